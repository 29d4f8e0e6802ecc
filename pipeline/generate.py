"""A local run from top to bottom: window by window, from noise to frames."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from .audio.embeds import AudioEmbeds
from .conditioning.conditioning import Conditioning
from .generation.denoiser import Denoiser, local_denoiser
from .generation.guards import check_frames, check_latents
from .generation.preview import FramePreview, LatentPreview
from .generation.recipes import ReferenceCache, WindowStart
from .generation.recovery import Coders
from .generation.rules import check_inputs
from .generation.run_spec import RunSpec
from .generation.store import NoStore, RunKeys, WindowStore
from .generation.window_tensors import WindowTensors
from .generation.windows import Window
from .host import Host, Preview, Progress
from .memory.placement import Footprint, MemoryConfig
from .models.transformer.model import MultiTalkTransformer
from .postprocess.apply import postprocess
from .sampling.noise import Noise, NoiseSource
from .shapes import MASK_CHANNELS

MakeDenoiser = Callable[
    [MultiTalkTransformer, RunSpec, Noise, Host, MemoryConfig, int], AbstractContextManager[Denoiser]
]
DENOISING = 0.9  # a window's share of progress that its steps take; the rest is the VAE's


@torch.inference_mode()
def generate(
    transformer: MultiTalkTransformer,
    audio_embeds: AudioEmbeds,
    conditioning: Conditioning,
    spec: RunSpec,
    host: Host,
    *,
    memory: MemoryConfig | None = None,
    store: WindowStore | NoStore | None = None,
    noise: Noise | None = None,
    make_denoiser: MakeDenoiser = local_denoiser,
) -> Iterator[Tensor]:
    """Yields the video's frames, `c f h w` in -1..1 on the CPU, window by window; together `spec.num_frames`.

    Args:
        transformer: the base with its audio adapter.
        audio_embeds: the speech.
        conditioning: picture, prompts and places.
        spec: every choice of the run.
        host: its device; it is told of progress, and may cancel.
        memory: how much of the device the transformer may take.
        store: keeps finished windows, so that an interrupted run goes on where it stopped; None keeps none.
        noise: the random numbers; None draws them from the seed.
        make_denoiser: makes the context in which windows are denoised, here or on several devices.

    Raises:
        ConfigError: the inputs do not fit the network or each other.
        NumericalError: the latents are not finite, or the frames are black.
    """
    sizes = transformer.config
    check_inputs(sizes, sizes.text_len, audio_embeds, conditioning, spec)
    store, noise, memory = store or NoStore(), noise or NoiseSource(spec.seed), memory or MemoryConfig()
    reference, motion_frames = ReferenceCache(), None
    kept_bytes = _kept_bytes(transformer, audio_embeds, spec)
    with make_denoiser(transformer, spec, noise, host, memory, kept_bytes) as denoiser:
        coders = Coders(conditioning, denoiser, host)
        portrait = conditioning.source_frame(0)[:, 0]
        for window in spec.windows:
            size, report = spec.latent_size(window), WindowReport(host, spec, window)
            finished = store.load(window.index, (window.num_frames, conditioning.height, conditioning.width))
            if finished is None:
                report.stage("image", 0.0)
                start = coders.encode(spec.model.start_window, window, motion_frames, reference)
                tensors = WindowTensors.of(window, size, start, conditioning, audio_embeds)
                for attempt in denoiser.attempts():
                    with attempt:
                        denoise = denoiser.prepare(window, tensors)
                        latents = denoise(replace(report, start=start).step)
                        check_latents(latents, "after the last step")
                del start, tensors, denoise  # keys and values leave the device before the VAE comes
                report.stage("decode", DENOISING)
                frames = coders.decode(_decode, latents, host)
                check_frames(frames, portrait, window.index)
                frames = postprocess(frames, portrait, motion_frames, window.overlap, spec.postprocess, host.device)
                report.stage("done", 1.0, FramePreview(frames))
                finished = store.save(window.index, frames, spec.windows_config.motion_frames)
                del frames
            motion_frames, frames = finished.motion, finished.frames[:, window.keep]
            del finished  # one window is held at a time
            yield frames
            del frames


def open_store(
    folder: Path,
    transformer: MultiTalkTransformer,
    audio_embeds: AudioEmbeds,
    conditioning: Conditioning,
    spec: RunSpec,
) -> WindowStore:
    """The store of finished windows that belongs to exactly these inputs: every weight and option that counts."""
    coders = (type(conditioning.vae).__name__, conditioning.vae.model, *conditioning.networks)
    optional = [part for part in (conditioning.speaker_masks, conditioning.image_embeds) if part is not None]
    inputs = (conditioning.source, conditioning.negative_embeds, audio_embeds.features, optional)
    choices = (spec.recipe, spec.num_frames, spec.seed, spec.steps, spec.shift, spec.skip_tail, spec.guidance)
    methods = (spec.windows_config, spec.sampler, spec.acceleration, spec.postprocess, spec.resolution)
    prompts = [conditioning.prompt_for(window.index) for window in spec.windows]
    return WindowStore(folder, RunKeys.of((transformer, coders, inputs, choices, methods), prompts))


@dataclass(frozen=True)
class WindowReport:
    """The progress of one window, told to the host, which may cancel at each word."""

    host: Host
    spec: RunSpec
    window: Window
    start: WindowStart | None = None  # None until it is encoded

    def stage(self, stage: str, share: float, preview: Preview | None = None) -> None:
        """The stage that begins, after `share` (0..1) of the window."""
        self._report(stage, share, preview=preview)

    def step(self, step: int, clean: Tensor) -> None:
        """The end of step number `step`, from 0, with the present guess of the clean latents."""
        if step == 0:
            check_latents(clean, "after the first step")
        assert self.start is not None, "steps follow the start"
        preview = LatentPreview(clean, self.start.condition[MASK_CHANNELS:, 0], self.start.picture)
        self._report("sampling", DENOISING * (step + 1) / self.spec.steps, step + 1, preview)

    def _report(self, stage: str, share: float, step: int = 0, preview: Preview | None = None) -> None:
        count = len(self.spec.windows)
        fraction = (self.window.index + share) / count
        progress = Progress(stage, fraction, self.window.index + 1, count, step, self.spec.steps)
        self.host.report(progress, preview)
        self.host.check_cancelled()


def _decode(conditioning: Conditioning, latents: Tensor, host: Host) -> Tensor:
    """All frames of a window; each chunk leaves the device as it comes, and the host may cancel between them."""
    chunks = []
    for chunk in conditioning.vae.decode(latents):
        chunks.append(chunk.cpu())
        host.check_cancelled()
    return torch.cat(chunks, 1)


def _kept_bytes(transformer: MultiTalkTransformer, audio_embeds: AudioEmbeds, spec: RunSpec) -> int:
    """Bytes that stay on the device from step to step beside the weights: keys and values, and a cache's residuals."""
    size, passes = spec.latent_size(spec.windows[0]), spec.new_guidance().passes
    prompts = len({pass_.uses_prompt for pass_ in passes})
    voices = sum(audio_embeds.num_speakers if audio else 1 for audio in {pass_.uses_audio for pass_ in passes})
    footprint, residuals = Footprint.of(transformer), spec.acceleration.cache.num_tensors(len(passes))
    return footprint.constant_bytes(size, prompts, voices) + residuals * footprint.tokens_bytes(size)
