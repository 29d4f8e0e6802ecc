"""Every acceleration preset, and each of its knobs alone, on the bundled model: what it gains and what it costs."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import Tensor

from demo.lip_sync import implied_mouth, mouth_openings
from demo.lip_sync import measure as measure_lips
from pipeline.acceleration.presets import AccelerationOptions, CacheKind
from pipeline.config import Acceleration
from pipeline.host import Progress, TorchHost
from pipeline.models.transformer.model import MultiTalkTransformer

from .lip_sync import MODELS_FOLDER, Frames, Studio, held_out
from .measure import PeakMemory, Settings, relative_error
from .report import Row

PRESETS = {f"preset {level.value}": level for level in Acceleration}
KNOBS = {
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
SIZES = {"smoke": (1, 13, 9, PRESETS), "demo": (1, 49, 40, PRESETS | KNOBS)}  # people, frames of each, steps, ways
SCALES = (3.0, 2.0)  # of text and audio: three different passes, and colours that the small model bears


@dataclass(frozen=True)
class Take:
    """What a way made of all the people together."""

    frames: list[Frames]
    latents: Tensor
    forwards: float  # per person
    seconds: float  # per person
    denoising_s: float  # of those
    memory_mb: float
    lip_sync: float


class Watcher(TorchHost):
    """Counts forwards, and the seconds from a window's first forward to its last step; keeps what that step gave."""

    def __init__(self, settings: Settings):
        super().__init__(settings.device)
        self.forwards, self.denoising_s = 0, 0.0
        self.latents: list[Tensor] = []  # of every window, clean
        self._remaining, self._since = settings.clock, None

    @contextmanager
    def watching(self, transformer: MultiTalkTransformer) -> Iterator[Watcher]:
        """Sees the forwards inside: every one embeds its latents, and where it is not reused runs the last block."""
        modules = {transformer.patch_embedding: self._start, transformer.blocks[-1]: self._count}
        handles = [module.register_forward_pre_hook(hook) for module, hook in modules.items()]
        try:
            yield self
        finally:
            for handle in handles:
                handle.remove()

    def report(self, progress: Progress, latents: Tensor | None = None, frames: Tensor | None = None) -> None:
        """Stops the clock after a window's last step."""
        if progress.step == progress.num_steps:
            self.denoising_s += self._remaining() - self._since
            self._since = None
            self.latents.append(latents.flatten())

    def _start(self, *_: object) -> None:
        self._since = self._since or self._remaining()

    def _count(self, *_: object) -> None:
        self.forwards += 1


def run(settings: Settings) -> Iterator[Row]:
    """Presets first, then the knobs; each against `none`."""
    for name in settings.sizes or ("demo",):
        count, num_frames, steps, ways = SIZES[name]
        studio = Studio(MODELS_FOLDER, steps, *SCALES)
        exact = None
        for way, choice in ways.items():
            take = _take(studio, choice, count, num_frames, settings)
            exact = exact or take
            yield _row(way, take, exact)


def _row(way: str, take: Take, exact: Take) -> Row:
    pairs = list(zip(take.frames, exact.frames, strict=True))
    same = take is exact
    return {
        "way": way,
        "forwards": take.forwards,
        "seconds": take.seconds,
        "speed-up": exact.seconds / take.seconds,
        "denoising, s": take.denoising_s,
        "denoising, speed-up": exact.denoising_s / take.denoising_s,
        "PSNR, dB": None if same else float(np.mean([peak_signal_noise_ratio(b, a) for a, b in pairs])),
        "SSIM": None if same else float(np.mean([_ssim(a, b) for a, b in pairs])),
        "relative latent error": None if same else relative_error(take.latents, exact.latents),
        "lip sync": take.lip_sync,
        "peak MB": take.memory_mb,
    }


def _take(
    studio: Studio, choice: Acceleration | AccelerationOptions, count: int, num_frames: int, settings: Settings
) -> Take:
    scenes = [held_out(number, num_frames, 1) for number in range(count)]
    memory, started = PeakMemory(settings.device), settings.clock()
    with Watcher(settings).watching(studio.transformer) as seen:
        videos = [studio.talk(scene, num_frames, acceleration=choice, host=seen) for scene in scenes]
    seconds, megabytes = settings.clock() - started, memory.megabytes()
    lips = [
        measure_lips(mouth_openings(video)[0], implied_mouth(scene.sounds[0]).opening).correlation
        for video, scene in zip(videos, scenes, strict=True)
    ]
    return Take(
        frames=videos,
        latents=torch.cat(seen.latents),
        forwards=seen.forwards / count,
        seconds=seconds / count,
        denoising_s=seen.denoising_s / count,
        memory_mb=megabytes,
        lip_sync=float(np.mean(lips)),
    )


def _ssim(video: Frames, exact: Frames) -> float:
    """The mean over a tenth of the frames."""
    pairs = zip(video[::10], exact[::10], strict=True)
    return float(np.mean([structural_similarity(a, b, channel_axis=-1, gaussian_weights=True) for a, b in pairs]))
