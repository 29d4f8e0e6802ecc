"""Each latent frame listens to the audio of its own moment only (MultiTalk, arXiv:2505.22647)."""

from __future__ import annotations

from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from .attention import KeyValue
from .rope import rotate, rotation
from .speakers import voice_positions


class AudioCrossAttention(nn.Module):
    """Video tokens listen to the voices of their latent frame; with several voices, mostly to their own person's."""

    def __init__(self, dim: int, audio_dim: int, num_heads: int):
        super().__init__()
        self.num_heads, self.head_dim = num_heads, dim // num_heads
        self.q_linear = nn.Linear(dim, dim)
        self.kv_linear = nn.Linear(audio_dim, 2 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, voices: KeyValue, positions: Tensor | None = None) -> Tensor:
        """
        Args:
            x: `(t s) c`, t latent frames of s tokens each.
            voices: what `of_voices` gave, each `t heads n k`.
            positions: `(t s)`, see `speaker_positions`; None for one voice.

        Returns:
            `(t s) c`, to be added to the video tokens.
        """
        key, value = voices
        query = rearrange(self.q_linear(x), "n (heads k) -> n heads k", heads=self.num_heads)
        if positions is not None:
            query = rotate(query, rotation(positions, self.head_dim).unsqueeze(1))
        query = rearrange(query, "(t s) heads k -> t heads s k", t=len(key))
        heard = scaled_dot_product_attention(query, key, value)
        return self.proj(rearrange(heard, "t heads s k -> (t s) (heads k)"))

    def of_voices(self, tokens: Tensor) -> KeyValue:
        """Keys and values of the audio tokens, `p t n d`: those of all p persons side by side, `t heads (p n) k`."""
        both = rearrange(
            self.kv_linear(tokens), "p t n (two heads k) -> two p t n heads k", two=2, heads=self.num_heads
        )
        key, value = both.unbind(0)
        if len(tokens) > 1:
            place = rotation(voice_positions(len(tokens), tokens.device), self.head_dim)
            key = rotate(key, rearrange(place, "p pairs two -> p 1 1 1 pairs two"))
        return tuple(rearrange(x, "p t n heads k -> t heads (p n) k") for x in (key, value))
