"""Postprocessing of decoded frames: colour match, seams between windows, flicker."""
