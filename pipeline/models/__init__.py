"""The networks: transformer, VAE, and the encoders of text, image and speech."""
