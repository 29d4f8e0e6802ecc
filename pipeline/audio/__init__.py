"""Waveforms, the speakers' timeline, and the speech features that the model hears."""
