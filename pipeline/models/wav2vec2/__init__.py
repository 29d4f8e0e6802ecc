"""wav2vec 2.0 (arXiv:2006.11477), the speech encoder."""
