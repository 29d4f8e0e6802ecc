"""Decoded frames made ready to show: colours, seams between windows, flicker."""
