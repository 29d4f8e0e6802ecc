"""A speech encoder with the published one's layers at a tiny width."""

import torch
from transformers import Wav2Vec2Config, Wav2Vec2Model


def tiny_encoder(feat_extract_norm: str = "group", conv_bias: bool = False) -> Wav2Vec2Model:
    """Three layers of 16 channels, the same weights every time."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = Wav2Vec2Config(
            hidden_size=16,
            num_hidden_layers=3,
            num_attention_heads=2,
            intermediate_size=32,
            conv_dim=(8,) * 7,
            feat_extract_norm=feat_extract_norm,
            conv_bias=conv_bias,
            num_conv_pos_embeddings=8,
            num_conv_pos_embedding_groups=2,
        )
        return Wav2Vec2Model(config)
