"""wav2vec 2.0, the speech encoder."""
