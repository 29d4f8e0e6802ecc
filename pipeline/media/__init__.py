"""Sound, picture, video and result files: one way in, one way out."""
