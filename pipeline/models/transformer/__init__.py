"""Wan2.1's image-to-video transformer with MultiTalk's attention to speech (arXiv:2505.22647)."""
