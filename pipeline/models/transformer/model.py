"""MultiTalk's transformer: from noisy latents, a prompt, a picture and voices to a velocity."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any, ClassVar, cast

import torch
from diffusers.configuration_utils import ConfigMixin, register_to_config
from diffusers.models.modeling_utils import ModelMixin
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import pad

from ...errors import ConfigError
from ...shapes import LATENT_CHANNELS, MASK_CHANNELS, LatentSize, num_video_frames
from .attention import TextTokens
from .audio_projection import AudioProjection
from .block import AdaptiveNorm, BlockContext, MultiTalkBlock
from .embedding import ConditionEmbedder, Float32Linear, PatchEmbedding, TimeEmbedding
from .inputs import Constant, PassInputs, WindowInputs
from .rope import grid_rotation
from .scaled_dot_product import Attend
from .token_shares import MakeShares, TokenShares, WholeWindow


class MultiTalkTransformer(ModelMixin, ConfigMixin):
    """Wan2.1-I2V with MultiTalk's audio adapter (arXiv:2505.22647).

    Weights have diffusers' names for Wan and the published ones for the adapter (`audio_proj`, `audio_cross_attn`,
    `norm_x`). There is no batch axis. Activations are in the dtype of the patch embedding's weights; modulation, gates,
    norms, the head and the result are in float32.

    Use: `window = prepare_window(...)` once a window, `inputs = prepare_pass(window, ...)` once for each pass of the
    guidance, then `transformer(latents, timestep, inputs)` in every step.
    """

    _no_split_modules: ClassVar[list[str]] = ["MultiTalkBlock"]
    _repeated_blocks: ClassVar[list[str]] = ["MultiTalkBlock"]
    _skip_layerwise_casting_patterns: ClassVar[list[str]] = [
        "patch_embedding", "condition_embedder", "audio_proj", "norm", "proj_out",
    ]  # fmt: skip
    _keep_in_fp32_modules: ClassVar[list[str]] = ["time_embedder", "time_proj", "scale_shift_table", "proj_out"]

    @register_to_config
    def __init__(
        self,
        patch_size: tuple[int, int, int] = (1, 2, 2),
        num_attention_heads: int = 40,
        attention_head_dim: int = 128,
        in_channels: int = 36,
        out_channels: int = 16,
        text_dim: int = 4096,
        freq_dim: int = 256,
        ffn_dim: int = 13824,
        num_layers: int = 40,
        text_len: int = 512,
        image_dim: int = 1280,
        eps: float = 1e-6,
        audio_window: int = 5,
        audio_features: tuple[int, int] = (12, 768),
        audio_intermediate_dim: int = 512,
        audio_dim: int = 768,
        audio_tokens: int = 32,
        audio_norm: bool = True,
    ):
        super().__init__()
        self._make_shares: MakeShares = WholeWindow
        dim = num_attention_heads * attention_head_dim
        self.patch_embedding = PatchEmbedding(in_channels, dim, patch_size)
        self.condition_embedder = ConditionEmbedder(dim, freq_dim, text_dim, image_dim)
        self.audio_proj = AudioProjection(
            audio_window, prod(audio_features), audio_intermediate_dim, audio_tokens, audio_dim, audio_norm
        )
        blocks = [MultiTalkBlock(dim, ffn_dim, num_attention_heads, audio_dim, eps) for _ in range(num_layers)]
        self.blocks = cast(Sequence[MultiTalkBlock], nn.ModuleList(blocks))  # which has no types of its own
        self.norm_out = AdaptiveNorm(dim, eps)
        self.proj_out = Float32Linear(dim, out_channels * prod(patch_size))
        self.scale_shift_table = nn.Parameter(torch.randn(1, 2, dim) / dim**0.5)

    @property
    def config(self) -> Any:
        """The constructor's arguments, as attributes."""
        return super().config

    @property
    def compute_dtype(self) -> torch.dtype:
        """The dtype of the activations; other weights may be stored in others, as quantised ones are."""
        return self.patch_embedding.weight.dtype

    def set_attention(self, attend: Attend) -> None:
        """Chooses the kernel of the attentions to the video itself, to the prompt and to the picture."""
        for block in self.blocks:
            block.attn1.attend = block.attn2.attend = attend

    def set_shares(self, make_shares: MakeShares) -> None:
        """Chooses the devices' shares of the tokens of all windows that are prepared from now on."""
        self._make_shares = make_shares

    def zero_audio(self, num_frames: int) -> Tensor:
        """The audio of a pass without voices: zero features of one person, `1 num_frames window layers channels`."""
        return torch.zeros(1, num_frames, self.config.audio_window, *self.config.audio_features)

    def prepare_window(
        self, size: LatentSize, condition: Tensor, image_embeds: Tensor, speaker_masks: Tensor | None = None
    ) -> WindowInputs:
        """The inputs that all passes of a context window share.

        Args:
            size: of the window's latents.
            condition: `20 t h w`: the mask of the frames that are given and their latents.
            image_embeds: `i d`, the reference image's tokens.
            speaker_masks: `classes h w`, 0 or 1 at each latent, persons first, then background. Needed for two voices.

        Raises:
            ConfigError: the shapes do not fit each other.
        """
        if size.h % self.config.patch_size[1] or size.w % self.config.patch_size[2]:
            raise ConfigError(f"A window of {size.h}x{size.w} latents cannot be cut into patches. Use even sides.")
        _check_shape("condition", condition, (MASK_CHANNELS + LATENT_CHANNELS, size.t, size.h, size.w))
        _check_shape("image_embeds", image_embeds, (None, self.config.image_dim))
        if speaker_masks is not None:
            _check_shape("speaker_masks", speaker_masks, (None, size.h, size.w))
        return WindowInputs(size, condition, image_embeds, speaker_masks)

    def prepare_pass(self, window: WindowInputs, prompt_embeds: Tensor, audio: Tensor) -> PassInputs:
        """A window with a prompt and voices. Passes with the very same tensor share what is computed of it.

        Args:
            window: from `prepare_window`.
            prompt_embeds: `n d`, without padding.
            audio: `p f window layers channels`, features around each of the window's f video frames for p persons.

        Raises:
            ConfigError: the shapes do not fit each other or the window, or there are voices but no places for them.
        """
        frames = num_video_frames(window.size.t)
        _check_shape("prompt_embeds", prompt_embeds, (None, self.config.text_dim))
        if len(prompt_embeds) > self.config.text_len:
            raise ConfigError(
                f"prompt_embeds has {len(prompt_embeds)} tokens; at most {self.config.text_len} can be used."
            )
        _check_shape("audio", audio, (None, frames, self.config.audio_window, *self.config.audio_features))
        if len(audio) > 1 and window.num_classes != len(audio) + 1:
            raise ConfigError(
                f"{len(audio)} voices need {len(audio) + 1} speaker_masks, one for each person and one for the "
                f"background, got {window.num_classes}."
            )
        return PassInputs(window, prompt_embeds, audio)

    def forward(self, latents: Tensor, timestep: float | Tensor, inputs: PassInputs) -> Tensor:
        """The velocity (noise minus clean), `16 t h w` in float32.

        Args:
            latents: `16 t h w`.
            timestep: 1000 (noise) .. 0 (clean).
            inputs: from `prepare_pass`.
        """
        tokens, time = self.embed(latents, timestep, inputs)
        context = self.block_context(inputs)
        for block in self.blocks:
            tokens = block(tokens, time.projection, context)
        return self.head(tokens, time, inputs)

    def embed(self, latents: Tensor, timestep: float | Tensor, inputs: PassInputs) -> tuple[Tensor, TimeEmbedding]:
        """This device's share of the tokens that enter the blocks, `n c`, and the embedding of the timestep."""
        condition = inputs.window.condition.cached(self._embed_condition)
        tokens = self.patch_embedding(latents, 0, bias=condition)
        return self._shares(inputs.window).own(tokens), self.time(timestep)

    def run_blocks(
        self, tokens: Tensor, time: TimeEmbedding, inputs: PassInputs, blocks: slice = slice(None)
    ) -> Tensor:
        """`n c` after all blocks, or after those that `blocks` names."""
        context = self.block_context(inputs)
        for block in self.blocks[blocks]:
            tokens = block(tokens, time.projection, context)
        return tokens

    def head(self, tokens: Tensor, time: TimeEmbedding, inputs: PassInputs) -> Tensor:
        """The velocity of this device's tokens after all blocks, and of the others', `16 t h w` in float32."""
        shift, scale = (self.scale_shift_table.float() + time.embedding[:, None]).unbind(1)
        patches = self.proj_out(self.norm_out(tokens.float(), shift, scale))
        (a, b, d), size = self.config.patch_size, inputs.window.size
        return rearrange(
            self._shares(inputs.window).whole(patches),
            "(t h w) (a b d c) -> c (t a) (h b) (w d)",
            t=size.t // a,
            h=size.h // b,
            a=a,
            b=b,
            d=d,
        )

    def time(self, timestep: float | Tensor) -> TimeEmbedding:
        """The timestep's embedding, `1 c`, and its projection, `1 6 c`, on the device of the weights."""
        return self.condition_embedder.time(timestep)

    def time_projection(self, timestep: float | Tensor) -> Tensor:
        """The modulation of all blocks and passes by the timestep, `1 6 c` in float32 (for TeaCache)."""
        return self.time(timestep).projection

    def block_context(self, inputs: PassInputs) -> BlockContext:
        """Positions, prompt, reference image and voices of this pass, for the blocks; computed at the first call."""
        window = inputs.window
        return BlockContext(
            rope=window.grid.cached(self._rope),
            text=inputs.prompt_embeds.cached(self._embed_text),
            image=window.image_embeds.cached(self._embed_image),
            audio=inputs.audio.cached(self._embed_audio),
            token_masks=window.speaker_masks.cached(self._embed_masks) if inputs.num_speakers > 1 else None,
            shares=self._shares(window),
        )

    def _shares(self, window: WindowInputs) -> TokenShares:
        return window.grid.cached(self._share_grid)

    def _share_grid(self, size: LatentSize) -> TokenShares:
        a, b, c = self.config.patch_size
        return self._make_shares(size.t // a, (size.h // b) * (size.w // c))

    def _embed_condition(self, condition: Tensor) -> Tensor:
        return self.patch_embedding(self._cast(condition), self.config.in_channels - len(condition))

    def _rope(self, size: LatentSize) -> Tensor:
        a, b, c = self.config.patch_size
        rope = grid_rotation(size.t // a, size.h // b, size.w // c, self.config.attention_head_dim)
        return self._share_grid(size).own(rope).to(self.device)

    def _embed_text(self, prompt_embeds: Tensor) -> Constant[TextTokens]:
        prompt_and_padding = pad(self._cast(prompt_embeds), (0, 0, 0, 1))
        tokens = self.condition_embedder.text_embedder(prompt_and_padding)
        return Constant(TextTokens(tokens, self.config.text_len - len(prompt_embeds)))

    def _embed_image(self, image_embeds: Tensor) -> Constant[Tensor]:
        return Constant(self.condition_embedder.image_embedder(self._cast(image_embeds)))

    def _embed_audio(self, windows: Tensor) -> Constant[Tensor]:
        return Constant(self.audio_proj(self._cast(windows)))

    def _embed_masks(self, masks: Tensor | None) -> Tensor:
        assert masks is not None, "several voices have masks, see `prepare_pass`"
        _, b, c = self.config.patch_size
        return masks[:, ::b, ::c].flatten(1).to(self.device, torch.float32)  # the nearest latent of each token

    def _cast(self, x: Tensor) -> Tensor:
        return x.to(self.device, self.compute_dtype)


def _check_shape(name: str, tensor: Tensor, shape: tuple[int | None, ...]) -> None:
    fits = tensor.ndim == len(shape) and all(
        length in (None, axis) for length, axis in zip(shape, tensor.shape, strict=True)
    )
    if not fits:
        pattern = " x ".join("any" if length is None else str(length) for length in shape)
        raise ConfigError(f"{name} must be of shape {pattern}, got {' x '.join(map(str, tensor.shape))}.")
