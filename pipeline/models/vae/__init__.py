"""Wan's video VAE: causal, streamed over time, in tiles where memory is short."""
