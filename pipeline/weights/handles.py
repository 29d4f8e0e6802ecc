"""Files that were looked at but not yet read: what a graph passes around until the weights are needed.

The loaders behind them import diffusers and transformers, which takes seconds, so they are imported when they are used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from ..choice import Choice
from ..config import Recipe
from ..memory.placement import MemoryConfig

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model

    from ..models.image_encoder import ImageEncoder
    from ..models.text_encoder import TextEncoder
    from ..models.transformer.model import MultiTalkTransformer
    from ..models.vae.video_vae import VideoVae

logger = logging.getLogger(__name__)

T = TypeVar("T")
AMPERE = (8, 0)


class Precision(Choice):
    """What the transformer computes in."""

    AUTO = "auto"
    BF16 = "bfloat16"
    FP16 = "float16"
    FP32 = "float32"

    def on(self, device: torch.device) -> torch.dtype:
        """The type; auto is bfloat16 on a card that computes in it, float16 on an older one, float32 elsewhere."""
        if self is not Precision.AUTO:
            return getattr(torch, self.value)
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if computes_bfloat16(device) else torch.float16


def computes_bfloat16(device: torch.device) -> bool:
    """Whether a card has bfloat16: NVIDIA's before Ampere emulate it, and no fused attention takes it there."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= AMPERE


@dataclass(frozen=True)
class Lazy(Generic[T]):
    """A network whose file has been checked; its weights are read on first use and kept.

    Attributes:
        path: the file.
        report: what it is, for people.
        load: reads the weights.
    """

    path: Path
    report: str
    load: Callable[[], T]

    @cached_property
    def model(self) -> T:
        """The network."""
        logger.info("Reading %s.", self.report)
        return self.load()


@dataclass(frozen=True)
class TransformerFiles:
    """The transformer's files and how to use them; the weights are read on first use and kept.

    Attributes:
        base: Wan2.1-I2V, or a file that holds the audio weights too.
        adapter: the audio weights, None where the base holds them.
        loras: files and strengths, applied in order.
        recipe: what the audio weights were trained for.
        dtype: what the transformer computes in, see `Precision`.
    """

    base: Path
    adapter: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    recipe: Recipe = Recipe.MULTITALK
    dtype: torch.dtype = torch.float32
    memory: MemoryConfig = MemoryConfig()

    def with_lora(self, path: Path, strength: float) -> TransformerFiles:
        """The same with one more LoRA."""
        return replace(self, loras=(*self.loras, (path, strength)))

    def check(self) -> str:
        """Reads the headers alone and tells what the files are.

        Raises:
            WeightsError: a file is damaged, of another kind, or does not fit the others.
        """
        from .catalog import check_transformer

        return check_transformer(self.base, self.adapter, [path for path, _ in self.loras])

    @cached_property
    def transformer(self) -> MultiTalkTransformer:
        """The network."""
        from .build import load_transformer

        logger.info("Reading %s.", self.check())
        return load_transformer(self.base, self.adapter, loras=self.loras, dtype=self.dtype)


def text_encoder(path: Path, device: torch.device) -> Lazy[TextEncoder]:
    """umT5 with its tokenizer, in bfloat16 where `device` has it and else in float32: float16 is too narrow for it."""
    from . import build, catalog

    dtype = torch.bfloat16 if computes_bfloat16(device) else torch.float32
    return Lazy(path, catalog.check_text_encoder(path), partial(build.load_text_encoder, path, dtype=dtype))


def image_encoder(path: Path) -> Lazy[ImageEncoder]:
    """CLIP's vision tower."""
    from . import build, catalog

    return Lazy(path, catalog.check_image_encoder(path), partial(build.load_image_encoder, path))


def vae(path: Path) -> Lazy[VideoVae]:
    """Wan's video VAE."""
    from . import build, catalog

    return Lazy(path, catalog.check_vae(path), partial(build.load_vae, path))


def normalizes_input(encoder: Wav2Vec2Model) -> bool:
    """Whether the encoder wants zero mean and unit variance, as its `preprocessor_config.json` said."""
    return bool(getattr(encoder.config, "do_normalize", False))


def audio_encoder(path: Path, allow_other: bool = False) -> Lazy[Wav2Vec2Model]:
    """wav2vec2; `allow_other` takes a fine-tuned one of the same shape."""
    from . import build, catalog

    return Lazy(path, catalog.check_audio_encoder(path, allow_other), partial(build.load_audio_encoder, path))
