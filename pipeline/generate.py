"""A local run from top to bottom: window by window, from noise to frames."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path

import torch
from torch import Tensor

from .acceleration.accelerate import AccelerationOptions, accelerated, preset
from .acceleration.attention_kernels import AttentionKernel, find_kernel
from .acceleration.step_cache import StepCache, cached_forward, make_cache
from .audio.embeds import AudioEmbeds
from .color import match_colors
from .conditioning.conditioning import Conditioning
from .conditioning.speakers import to_latent_masks
from .config import GenerationConfig, WindowPlan
from .errors import ConfigError, NumericalError
from .host import Host, Progress
from .memory import MemoryConfig, PlacedTransformer, placed
from .recipes import WindowStart, start_window
from .sampling.denoise import denoise
from .sampling.guidance import Guidance, Pass
from .sampling.noise import Noise, NoiseSource
from .sampling.schedule import timesteps
from .sampling.windows import Window, plan_windows
from .shapes import TOKEN_PIXELS, LatentSize
from .store import FinishedWindow, WindowStore, run_key
from .transformer.model import MultiTalkTransformer
from .transformer.prepared import PreparedPass

logger = logging.getLogger(__name__)

DENOISING = 0.9  # a window's share of progress that its steps take; the rest is the VAE's
BLACK = -0.97  # a frame without a brighter value shows nothing


def generate(
    transformer: MultiTalkTransformer,
    audio_embeds: AudioEmbeds,
    conditioning: Conditioning,
    config: GenerationConfig,
    host: Host,
    *,
    options: AccelerationOptions | None = None,
    memory: MemoryConfig | None = None,
    noise: Noise | None = None,
    store: WindowStore | None = None,
) -> Iterator[Tensor]:
    """Yields the video's frames, `c f h w` in -1..1 on the CPU, window by window; together as many as asked for.

    The checks are made at once, the rest when the first frames are asked for.

    Args:
        transformer: the base with its audio adapter.
        audio_embeds: what is said; its length is the video's where `config.num_frames` is 0.
        conditioning: what is seen.
        config: the request.
        host: where to run, whom to tell.
        options: single knobs of the acceleration; None takes those of `config.acceleration`.
        memory: how much of the device the transformer may take.
        noise: where random numbers come from; None draws them from the request's seed.
        store: keeps finished windows, so that an interrupted run goes on where it stopped.

    Raises:
        ConfigError: the parts do not fit each other.
        NumericalError: the latents are not finite.
    """
    run = Run(
        transformer,
        audio_embeds,
        conditioning,
        config,
        options or preset(config),
        memory or MemoryConfig(),
        host,
        noise or NoiseSource(config.sampling.seed),
    )
    check(run)
    return _windows(run, store)


@dataclass(frozen=True)
class Run:
    """Everything that one run is made of."""

    transformer: MultiTalkTransformer
    audio_embeds: AudioEmbeds
    conditioning: Conditioning
    config: GenerationConfig
    options: AccelerationOptions
    memory: MemoryConfig
    host: Host
    noise: Noise

    @cached_property
    def windows(self) -> list[Window]:
        """The plan."""
        embeds = self.audio_embeds
        num_features = [embeds.features.shape[1]] * embeds.num_speakers
        return plan_windows(self.config.num_frames or embeds.num_frames, self.config.windows, num_features)

    @cached_property
    def timesteps(self) -> Tensor:
        """`steps+1` values of 1000..0."""
        sampling = self.config.sampling
        return timesteps(sampling.steps, sampling.shift_for(self.config.resolution), sampling.skip_tail)

    def size(self, window: Window) -> LatentSize:
        """The size of a window's latents."""
        return LatentSize.of_video(window.num_frames, self.conditioning.height, self.conditioning.width)

    def report(self, stage: str, window: Window, done: float, step: int = 0, latents: Tensor | None = None) -> None:
        """Tells the host; `done` is the share of this window."""
        fraction = (window.index + done) / len(self.windows)
        steps = self.config.sampling.steps
        self.host.report(Progress(stage, fraction, window.index + 1, len(self.windows), step, steps), latents)
        self.host.check_cancelled()


def check(run: Run) -> None:
    """Looks at everything that can be known before a network runs.

    Raises:
        ConfigError: the audio, the picture, the speakers or the sizes do not fit the model or each other.
    """
    conditioning, embeds = run.conditioning, run.audio_embeds
    run.options.check(run.config)
    if conditioning.height % TOKEN_PIXELS or conditioning.width % TOKEN_PIXELS:
        raise ConfigError(
            f"The picture is {conditioning.width}x{conditioning.height}; its sides must be multiples of {TOKEN_PIXELS}."
        )
    wanted = tuple(run.transformer.config.audio_features)
    if tuple(embeds.features.shape[2:]) != wanted:
        raise ConfigError(
            f"The audio embeds have {tuple(embeds.features.shape[2:])} layers x channels, the adapter wants {wanted}. "
            f"Encode the audio with chinese-wav2vec2-base."
        )
    places = 1 if conditioning.speaker_masks is None else len(conditioning.speaker_masks) - 1
    if embeds.num_speakers > 1 and places != embeds.num_speakers:
        raise ConfigError(
            f"{embeds.num_speakers} voices need as many places in the picture, got {places}. "
            f"Connect a speaker or a mask for each voice."
        )
    logger.info("%d frames in %d windows.", sum(_length(w.keep) for w in run.windows), len(run.windows))


def open_store(
    folder: Path,
    transformer: MultiTalkTransformer,
    audio_embeds: AudioEmbeds,
    conditioning: Conditioning,
    config: GenerationConfig,
    options: AccelerationOptions | None = None,
) -> WindowStore:
    """The store of finished windows that belongs to exactly these inputs."""
    pictures = (conditioning.source, *conditioning.prompt_embeds, conditioning.negative_embeds)
    optional = [part for part in (conditioning.speaker_masks, conditioning.image_embeds) if part is not None]
    key = run_key(
        transformer, audio_embeds.features, audio_embeds.num_frames, pictures, tuple(optional), config, options
    )
    return WindowStore(folder, key)


@torch.inference_mode()
def _windows(run: Run, store: WindowStore | None) -> Iterator[Tensor]:
    motion = None
    with ExitStack() as around:
        transformer = None
        for window in run.windows:
            finished = store.load(window.index) if store else None
            if finished is None:
                if transformer is None:
                    around.enter_context(accelerated(run.transformer, run.options, run.host.device))
                    transformer = around.enter_context(placed(run.transformer, run.memory, run.size(window), run.host))
                finished = _finish(run, transformer, window, motion, store)
            motion = finished.motion
            yield finished.frames[:, window.keep]


def _finish(
    run: Run, transformer: PlacedTransformer, window: Window, motion: Tensor | None, store: WindowStore | None
) -> FinishedWindow:
    """Makes a window and puts it into the store."""
    frames = generate_window(run, transformer, window, motion)
    overlap = run.config.windows.overlap
    if store:
        return store.save(window.index, frames, overlap)
    return FinishedWindow(frames, frames[:, -overlap:])


def generate_window(run: Run, transformer: PlacedTransformer, window: Window, motion: Tensor | None) -> Tensor:
    """The frames of one window, `c f h w` in -1..1 on the CPU; `motion` are the last ones of the window before."""
    run.report("image", window, 0.0)
    conditioning = run.conditioning
    latents = _sample_safely(run, transformer, window, motion)
    run.report("decode", window, DENOISING)
    with conditioning.coders_on(run.host):
        frames = torch.cat([chunk.cpu() for chunk in conditioning.vae.decode(latents)], 1)
    _check_frames(frames, conditioning.source, window)
    if window.index or run.config.windows.plan is WindowPlan.PUBLISHED:
        frames = match_colors(frames, conditioning.source[:, 0], run.config.color_strength)
    run.report("done", window, 1.0)
    return frames


def _sample_safely(run: Run, transformer: PlacedTransformer, window: Window, motion: Tensor | None) -> Tensor:
    """The clean latents of a window; where numbers go bad, once more, and from then on, with the plain attention."""
    try:
        return _sample(run, transformer, window, motion)
    except NumericalError as error:
        model = run.transformer
        plain = find_kernel(AttentionKernel.MATH, run.host.device, model.compute_dtype, model.config.attention_head_dim)
        if model.blocks[0].attn1.attend is plain:
            raise
        logger.warning("%s The window is made again with the math attention kernel.", error)
        model.set_attention(plain)
        return _sample(run, transformer, window, motion)


def _sample(run: Run, transformer: PlacedTransformer, window: Window, motion: Tensor | None) -> Tensor:
    """The clean latents of a window."""
    with run.conditioning.coders_on(run.host):
        start = start_window(run.config.windows.recipe, run.conditioning, window, motion, run.noise)
    latents = _denoise(run, transformer, window, start)
    _check_finite(latents, "after the last step")
    return latents


def _check_finite(latents: Tensor, when: str) -> None:
    if not torch.isfinite(latents).all():
        raise NumericalError(
            f"The latents are not finite {when}. Likely causes: float16 weights that overflow (choose bfloat16 as "
            f"precision), or a faulty attention kernel (choose math in the options)."
        )


def _check_frames(frames: Tensor, source: Tensor, window: Window) -> None:
    """Raises `NumericalError` for frames that show nothing though the picture does."""
    if not torch.isfinite(frames).all():
        raise NumericalError("The VAE gave values that are not finite. Run it in float32.")
    num_black = int((frames.amax((0, 2, 3)) < BLACK).sum())
    if 2 * num_black > frames.shape[1] and source.max() > BLACK:
        raise NumericalError(
            f"{num_black} of {frames.shape[1]} frames of window {window.index + 1} are black. Likely causes: a VAE "
            f"that overflows in float16 (load it in float32 or bfloat16), or a file that is no Wan2.1 VAE."
        )


def _denoise(run: Run, transformer: PlacedTransformer, window: Window, start: WindowStart) -> Tensor:
    """The clean latents of a window."""
    guidance = Guidance(run.config.guidance, run.options.guidance_every)
    heard = _prepare_passes(run, window, start, guidance)
    cache = make_cache(run.options, run.transformer, run.timesteps, run.config.resolution)
    noise = run.noise.for_window(window.index, run.size(window).shape).to(run.host.device)
    predict = partial(_predict, run, transformer, heard, cache)
    return denoise(predict, noise, run.timesteps, guidance, start.anchor, partial(_after_step, run, window))


def _prepare_passes(run: Run, window: Window, start: WindowStart, guidance: Guidance) -> dict[Pass, PreparedPass]:
    """The passes that the guidance needs, each with its prompt and its voices."""
    size, conditioning, device = run.size(window), run.conditioning, run.host.device
    masks = conditioning.speaker_masks
    if masks is not None:
        masks = to_latent_masks(masks, size).to(device)
    shared = run.transformer.prepare_window(
        size,
        start.condition.to(device),
        start.image_embeds.to(device),
        masks if run.audio_embeds.num_speakers > 1 else None,
    )
    prompts = {True: conditioning.prompt_for(window.index).to(device), False: conditioning.negative_embeds.to(device)}
    voices = {
        True: run.audio_embeds.window(window.feature_frames).to(device),
        False: run.transformer.zero_audio(window.num_frames).to(device),
    }
    return {
        role: run.transformer.prepare_pass(shared, prompts[role.hears_prompt], voices[role.hears_audio])
        for role in guidance.passes
    }


def _predict(
    run: Run,
    transformer: PlacedTransformer,
    heard: dict[Pass, PreparedPass],
    cache: StepCache | None,
    latents: Tensor,
    timestep: Tensor,
    step: int,
    role: Pass,
) -> Tensor:
    """One forward. When the device's memory runs out, once, the blocks are streamed and the forward is done again."""
    run.host.check_cancelled()
    forward = partial(cached_forward, run.transformer, cache, latents, timestep, step, heard[role], role)
    try:
        return forward()
    except torch.OutOfMemoryError:
        if not transformer.lower():
            raise
        return forward()


def _after_step(run: Run, window: Window, step: int, clean: Tensor) -> None:
    """Tells the host, and looks once a window whether the numbers are sound."""
    if step == 0:
        _check_finite(clean, "after the first step")
    steps = run.config.sampling.steps
    run.report("sampling", window, DENOISING * (step + 1) / steps, step + 1, clean)


def _length(keep: slice) -> int:
    return keep.stop - keep.start
