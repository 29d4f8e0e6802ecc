"""Handles of checked files, which a graph passes on until the weights are needed.

The loaders behind them import diffusers and transformers, which takes seconds, so they are imported when they are used.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Generic, TypeVar

import torch

from ..choice import Choice
from ..config import Recipe
from ..errors import WeightsError
from ..memory.placement import MemoryConfig

if TYPE_CHECKING:
    from transformers import Wav2Vec2Model

    from ..models.image_encoder import ImageEncoder
    from ..models.text_encoder import TextEncoder
    from ..models.transformer.model import MultiTalkTransformer
    from ..models.vae.video_vae import VideoVae
    from .lora import LoraStack

logger = logging.getLogger(__name__)

T = TypeVar("T")
AMPERE = (8, 0)


class Precision(Choice):
    """The dtype that a network computes in."""

    AUTO = "auto"
    BF16 = "bfloat16"
    FP16 = "float16"
    FP32 = "float32"

    def on(self, device: torch.device) -> torch.dtype:
        """The dtype; auto is bfloat16 on a card that computes in it, float16 on an older one, float32 elsewhere."""
        if self is not Precision.AUTO:
            return getattr(torch, self.value)
        if device.type != "cuda":
            return torch.float32
        return torch.bfloat16 if computes_bfloat16(device) else torch.float16

    def of_vae_on(self, device: torch.device) -> torch.dtype:
        """The VAE's dtype; auto is bfloat16 on a card that computes in it, else float32: float16 overflows in it."""
        if self is not Precision.AUTO:
            return getattr(torch, self.value)
        return torch.bfloat16 if computes_bfloat16(device) else torch.float32


def computes_bfloat16(device: torch.device) -> bool:
    """True for a card with bfloat16: NVIDIA's before Ampere emulate it, and no fused attention takes it there."""
    if device.type != "cuda":
        return False
    return torch.version.hip is not None or torch.cuda.get_device_capability(device) >= AMPERE


@dataclass(frozen=True)
class Lazy(Generic[T]):
    """A network whose file has been checked; its weights are read on first use and kept.

    Attributes:
        path: the file.
        report: its kind and packaging, for people.
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


class SharedTransformer:
    """A base with its adapter that several handles share, each with LoRAs of its own: one network, read once.

    The network has the LoRAs of the handle that asked last; a handle asks at each use.
    """

    def __init__(self, base: Path, adapter: Path | None, dtype: torch.dtype):
        self._load_arguments = base, adapter, dtype

    def with_loras(self, loras: Sequence[tuple[Path, float]]) -> MultiTalkTransformer:
        """The network with these LoRAs, files and strengths, and with no others.

        Raises:
            WeightsError: a file is damaged, or does not fit.
        """
        self._loras.replace(loras)
        return self._network

    @cached_property
    def _network(self) -> MultiTalkTransformer:
        from . import build, catalog

        base, adapter, dtype = self._load_arguments
        logger.info("Reading %s.", catalog.check_transformer(base, adapter))
        return build.load_transformer(base, adapter, dtype)

    @cached_property
    def _loras(self) -> LoraStack:
        from .lora import LoraStack

        return LoraStack(self._network)


@dataclass(frozen=True)
class TransformerFiles:
    """The transformer's files and the way to use them; the weights are read on first use and kept.

    Attributes:
        base: Wan2.1-I2V, or a file that holds the audio weights too.
        adapter: the audio weights, None where the base holds them.
        loras: files and strengths, applied in order.
        recipe: the one that the audio weights were trained for.
        dtype: of the computation, see `Precision`.
        shared: the network, of all handles that differ by their LoRAs.
    """

    base: Path
    adapter: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    recipe: Recipe = Recipe.MULTITALK
    dtype: torch.dtype = torch.float32
    memory: MemoryConfig = MemoryConfig()
    shared: SharedTransformer | None = field(default=None, repr=False, compare=False)

    def __post_init__(self) -> None:
        if self.shared is None:
            object.__setattr__(self, "shared", SharedTransformer(self.base, self.adapter, self.dtype))

    def with_lora(self, path: Path, strength: float) -> TransformerFiles:
        """The same network with one more LoRA."""
        return replace(self, loras=(*self.loras, (path, strength)))

    def check(self) -> str:
        """The description of the files, by their headers alone.

        Raises:
            WeightsError: a file is damaged, of another kind, or does not fit the others.
        """
        from .catalog import check_transformer

        return check_transformer(self.base, self.adapter, [path for path, _ in self.loras])

    @property
    def transformer(self) -> MultiTalkTransformer:
        """The network with these LoRAs; until the next handle of its kind takes it."""
        assert self.shared is not None
        return self.shared.with_loras(self.loras)


def find_adapter(base: Path, candidates: Iterable[Path]) -> Path | None:
    """The first of `candidates` that is audio weights for `base`; None where the base holds its own.

    Raises:
        WeightsError: there is none; the message is that of the base alone.
    """
    from .catalog import check_transformer

    try:
        check_transformer(base, None, [])
        return None
    except WeightsError as error:
        missing = error
    for candidate in candidates:
        with suppress(WeightsError):
            check_transformer(base, candidate, [])
            return candidate
    raise missing


def text_encoder(path: Path, device: torch.device) -> Lazy[TextEncoder]:
    """umT5 with its tokenizer, in bfloat16 where `device` has it and else in float32: float16 is too narrow for it."""
    from . import build, catalog

    dtype = torch.bfloat16 if computes_bfloat16(device) else torch.float32
    return Lazy(path, catalog.check_text_encoder(path), partial(build.load_text_encoder, path, dtype=dtype))


def image_encoder(path: Path) -> Lazy[ImageEncoder]:
    """CLIP's vision tower."""
    from . import build, catalog

    return Lazy(path, catalog.check_image_encoder(path), partial(build.load_image_encoder, path))


def vae(path: Path, device: torch.device, precision: Precision = Precision.AUTO) -> Lazy[VideoVae]:
    """Wan's video VAE, in a precision for `device`."""
    from . import build, catalog

    return Lazy(path, catalog.check_vae(path), partial(build.load_vae, path, precision.of_vae_on(device)))


def normalizes_input(encoder: Wav2Vec2Model) -> bool:
    """True for an encoder of input with zero mean and unit variance, as its `preprocessor_config.json` states."""
    return bool(getattr(encoder.config, "do_normalize", False))


def audio_encoder(path: Path, allow_other: bool = False) -> Lazy[Wav2Vec2Model]:
    """wav2vec2; `allow_other` takes a fine-tuned one of the same shape."""
    from . import build, catalog

    return Lazy(path, catalog.check_audio_encoder(path, allow_other), partial(build.load_audio_encoder, path))
