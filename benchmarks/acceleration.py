"""Gain and price of every acceleration preset, of each option and each precision alone, on the bundled model."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from pipeline.acceleration.fp8_products import FP8, LARGEST, Fp8Layer, scaled_product
from pipeline.acceleration.presets import AccelerationOptions, CacheKind
from pipeline.config import Acceleration
from pipeline.host import Preview, Progress, TorchHost
from pipeline.models.transformer.model import MultiTalkTransformer
from pipeline.weights.build import load_transformer

from .lip_sync import MODELS_FOLDER, DemoModel, Frames, correlation, held_out, transformer_files
from .measure import PeakMemory, Settings, relative_error
from .report import Row

PRESETS = {f"preset {level.value}": level for level in Acceleration}
SINGLE_OPTIONS = {
    "TeaCache, 0.2": AccelerationOptions(CacheKind.TEA),
    "EasyCache, 0.05": AccelerationOptions(CacheKind.EASY),
    "EasyCache, 0.1": AccelerationOptions(CacheKind.EASY, 0.1),
    "EasyCache, 0.2": AccelerationOptions(CacheKind.EASY, 0.2),
    "MagCache, 0.12": AccelerationOptions(CacheKind.MAG),
    "first block, 0.06": AccelerationOptions(CacheKind.FIRST_BLOCK),
    "first block, 0.15": AccelerationOptions(CacheKind.FIRST_BLOCK, 0.15),
    "Taylor forecast, every 3rd": AccelerationOptions(CacheKind.TAYLOR, interval=3),
    "Taylor forecast, every 5th": AccelerationOptions(CacheKind.TAYLOR, interval=5),
    "guidance every 2nd step": AccelerationOptions(guidance_every=2),
    "guidance every 4th step": AccelerationOptions(guidance_every=4),
    "guidance in the first half": AccelerationOptions(guidance_until=0.5),
    "guidance in the first quarter": AccelerationOptions(guidance_until=0.25),
}
SIZES = {  # people, frames of each, steps, settings
    "smoke": (1, 13, 9, PRESETS),
    "demo": (1, 49, 40, PRESETS | SINGLE_OPTIONS),
}
SCALES = (3.0, 2.0)  # of text and audio: three different passes, and colours that the small model bears


@dataclass(frozen=True)
class Result:
    """Result of a setting on all people together."""

    frames: list[Frames]
    latents: Tensor
    forwards: float  # per person
    seconds: float  # per person
    denoising_s: float  # of those
    memory_mb: float
    lip_sync: float


class ForwardCounter(TorchHost):
    """Host that counts forwards, and the seconds from a window's first one to its last step; it keeps the latents."""

    def __init__(self, settings: Settings):
        super().__init__(settings.device)
        self.forwards, self.denoising_s = 0, 0.0
        self.latents: list[Tensor] = []  # of every window, clean
        self._clock, self._start_s = settings.clock, None

    @contextmanager
    def counting(self, transformer: MultiTalkTransformer) -> Iterator[ForwardCounter]:
        """Counts the forwards inside: each embeds latents, and runs the last block unless a cache has its result."""
        modules = {transformer.patch_embedding: self._start, transformer.blocks[-1]: self._count}
        handles = [module.register_forward_pre_hook(hook) for module, hook in modules.items()]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def report(self, progress: Progress, preview: Preview | None = None) -> None:
        """Stops the clock after a window's last step."""
        if progress.step == progress.num_steps:
            self.denoising_s += self._clock() - self._start_s
            self._start_s = None
            self.latents.append(preview.latents.flatten())

    def _start(self, *_: object) -> None:
        self._start_s = self._start_s or self._clock()

    def _count(self, *_: object) -> None:
        self.forwards += 1


def run(settings: Settings) -> Iterator[Row]:
    """Rows of the presets, then of single options, then of `none` in other precisions; each against `none`."""
    for name in settings.sizes or ("demo",):
        count, num_frames, steps, choices = SIZES[name]
        model = DemoModel(MODELS_FOLDER, steps, *SCALES)
        exact = None
        for label, choice in choices.items():
            result = _measure(model, choice, count, num_frames, settings)
            exact = exact or result
            yield _row(label, result, exact)
        for label, model.transformer in _other_precisions():
            yield _row(label, _measure(model, Acceleration.NONE, count, num_frames, settings), exact)


def _other_precisions() -> Iterator[tuple[str, MultiTalkTransformer]]:
    """The bundled transformer in 16 bits, and of 8-bit files; a CPU multiplies these as a card would."""
    yield "bfloat16", load_transformer(*transformer_files(MODELS_FOLDER), dtype=torch.bfloat16)
    with tempfile.TemporaryDirectory() as folder:
        files = [_to_float8(path, Path(folder)) for path in transformer_files(MODELS_FOLDER)]
        transformer = load_transformer(*files, dtype=torch.bfloat16)
        yield "float8 weights, decoded to bfloat16", transformer
        for layer in transformer.modules():
            if isinstance(layer, Fp8Layer) and layer.stores_fp8:
                layer.fp8_product = scaled_product
        yield "float8 weights, multiplied as stored", transformer


def _to_float8(path: Path, folder: Path) -> Path:
    """A copy of a file with the blocks' matrices in float8, a scale for each, as ComfyUI's fp8_scaled files are."""
    stored = {}
    for key, tensor in load_file(path).items():
        if key.startswith("blocks.") and key.endswith(".weight") and tensor.ndim == 2:
            scale = tensor.float().abs().max() / LARGEST
            stored[key] = (tensor.float() / scale).to(FP8)
            stored[key.removesuffix("weight") + "scale_weight"] = scale
        else:
            stored[key] = tensor
    save_file(stored | {"scaled_fp8": torch.zeros(2, dtype=FP8)}, folder / path.name)
    return folder / path.name


def _row(label: str, result: Result, exact: Result) -> Row:
    pairs = list(zip(result.frames, exact.frames, strict=True))
    same = result is exact
    return {
        "setting": label,
        "forwards": result.forwards,
        "seconds": result.seconds,
        "speed-up": exact.seconds / result.seconds,
        "denoising, s": result.denoising_s,
        "denoising, speed-up": exact.denoising_s / result.denoising_s,
        "PSNR, dB": None if same else float(np.mean([peak_signal_noise_ratio(b, a) for a, b in pairs])),
        "SSIM": None if same else float(np.mean([_ssim(a, b) for a, b in pairs])),
        "relative latent error": None if same else relative_error(result.latents, exact.latents),
        "lip sync": result.lip_sync,
        "peak MB": result.memory_mb,
    }


def _measure(
    model: DemoModel, choice: Acceleration | AccelerationOptions, count: int, num_frames: int, settings: Settings
) -> Result:
    scenes = [held_out(number, num_frames, 1) for number in range(count)]
    memory, start_s = PeakMemory(settings.device), settings.clock()
    with ForwardCounter(settings).counting(model.transformer) as counter:
        videos = [model.render(scene, num_frames, acceleration=choice, host=counter) for scene in scenes]
    seconds, megabytes = settings.clock() - start_s, memory.megabytes()
    return Result(
        frames=videos,
        latents=torch.cat(counter.latents),
        forwards=counter.forwards / count,
        seconds=seconds / count,
        denoising_s=counter.denoising_s / count,
        memory_mb=megabytes,
        lip_sync=float(np.mean([*map(correlation, videos, scenes)])),
    )


def _ssim(video: Frames, exact: Frames) -> float:
    """Mean structural similarity of a tenth of the frames."""
    pairs = zip(video[::10], exact[::10], strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=-1, gaussian_weights=True) for a, b in pairs]))
