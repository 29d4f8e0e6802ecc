"""The network: Wan2.1's image-to-video transformer that also listens to speech (MultiTalk, arXiv:2505.22647)."""
