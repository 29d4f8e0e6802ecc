"""Sampling: from noise to latents, window by window, along a velocity that the caller predicts."""
