"""One window from noise to frames: its start, its steps, its pictures, and what is done when something goes wrong."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TypeVar

import torch
from torch import Tensor

from ..acceleration.attention_kernels import AttentionKernel, find_kernel
from ..acceleration.step_cache import StepCache, cached_forward, make_cache
from ..conditioning.conditioning import Conditioning
from ..conditioning.speakers import to_latent_masks
from ..config import WindowPlan
from ..errors import NumericalError
from ..host import Host
from ..memory.placement import GB, PlacedTransformer
from ..models.transformer.prepared import PassInputs
from ..postprocess.color import match_colors
from ..postprocess.deflicker import hold_still
from ..postprocess.seam import fade_seam
from ..sampling.denoise import denoise
from ..sampling.guidance import Guidance, Pass
from ..shapes import FPS
from .recipes import WindowStart, start_window
from .run import Run
from .windows import Window

logger = logging.getLogger(__name__)

Made = TypeVar("Made")

DENOISING = 0.9  # a window's share of progress that its steps take; the rest is the VAE's
COLOR_FRAMES = 2 * FPS + 1  # over which colours are compared: they drift in seconds, mouths move in tenths of them
SEAM_FLICKER = 10  # how many times as much two windows differ as two frames; 11 to 15 with the small model
BLACK = -0.97  # a frame without a brighter value shows nothing


def generate_window(run: Run, transformer: PlacedTransformer, window: Window, motion: Tensor | None) -> Tensor:
    """The frames of one window, `c f h w` in -1..1 on the CPU; `motion` are the last ones of the window before."""
    run.report("image", window, 0.0)
    latents = _sample_safely(run, transformer, window, motion)
    run.report("decode", window, DENOISING)
    frames = _with_coders(run, transformer, partial(_decode, run.host, latents))
    _check_frames(frames, run.conditioning.source, window)
    frames = _steady(frames, run, window, motion)
    run.report("done", window, 1.0, frames=frames)
    return frames


def _with_coders(run: Run, transformer: PlacedTransformer, work: Callable[[Conditioning], Made]) -> Made:
    """`work` with the VAE and the image encoder on the device, in tiles where whole frames do not fit."""
    conditioning = run.conditioning
    if transformer.make_room(run.decode_bytes) or not conditioning.can_tile:
        try:
            with conditioning.coders_on(run.host):
                return work(conditioning)
        except torch.OutOfMemoryError:
            if not conditioning.can_tile:
                raise
    logger.warning(
        "There is too little memory for the VAE, which takes about %.1f GB: it works on tiles in this window, "
        "which may show a little.",
        run.decode_bytes / GB,
    )
    transformer.release()
    with conditioning.coders_on(run.host):
        return work(conditioning.tiled())


def _start(run: Run, window: Window, motion: Tensor | None, conditioning: Conditioning) -> WindowStart:
    """What the window is given before its first step."""
    return start_window(run.config.windows.recipe, conditioning, window, motion, run.noise, run.reference)


def _decode(host: Host, latents: Tensor, conditioning: Conditioning) -> Tensor:
    """All frames of a window; each chunk leaves the device as it comes, and the host may cancel between them."""
    chunks = []
    for chunk in conditioning.vae.decode(latents):
        chunks.append(chunk.cpu())
        host.check_cancelled()
    return torch.cat(chunks, 1)


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
    return _sample(run, transformer, window, motion)  # outside the except, where the first try's tensors are gone


def _sample(run: Run, transformer: PlacedTransformer, window: Window, motion: Tensor | None) -> Tensor:
    """The clean latents of a window."""
    start = _with_coders(run, transformer, partial(_start, run, window, motion))
    transformer.place()
    latents = _denoise(run, transformer, window, start)
    _check_finite(latents, "after the last step")
    return latents


def _check_finite(latents: Tensor, when: str) -> None:
    if not torch.isfinite(latents).all():
        raise NumericalError(
            f"The latents are not finite {when}. Likely causes: float16 weights that overflow (choose bfloat16 as "
            f"precision), or a faulty attention kernel (choose math in the options)."
        )


def _steady(frames: Tensor, run: Run, window: Window, motion: Tensor | None) -> Tensor:
    """The decoded frames with the portrait's colours, without a jump from the window before, and without flicker."""
    config, exact = run.config, run.config.windows.plan is WindowPlan.EXACT
    if len(run.windows) > 1 or not exact:
        settling = COLOR_FRAMES if exact else 1
        frames = match_colors(frames, run.conditioning.source[:, 0], config.color_strength, settling)
    if not window.overlap:
        return hold_still(frames, frames[:, 0], config.deflicker)
    last = motion[:, -1]
    if exact:
        frames = fade_seam(frames, last, window.overlap, SEAM_FLICKER * config.deflicker)
    known, new = frames.split([window.overlap, frames.shape[1] - window.overlap], dim=1)
    return torch.cat((known, hold_still(new, last, config.deflicker)), dim=1)


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
    guidance = run.guidance()
    heard = _prepare_passes(run, window, start, guidance)
    cache = make_cache(run.options, run.transformer, run.timesteps, run.config.resolution)
    noise = run.noise.for_window(window.index, run.size(window).shape).to(run.host.device)
    predict = partial(_predict, run, transformer, heard, cache)
    return denoise(predict, noise, run.timesteps, guidance, start.anchor, partial(_after_step, run, window))


def _prepare_passes(run: Run, window: Window, start: WindowStart, guidance: Guidance) -> dict[Pass, PassInputs]:
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
    heard: dict[Pass, PassInputs],
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
    return forward()  # outside the except, where the failed forward's tensors are gone


def _after_step(run: Run, window: Window, step: int, clean: Tensor) -> None:
    """Tells the host, and looks once a window whether the numbers are sound."""
    if step == 0:
        _check_finite(clean, "after the first step")
    steps = run.config.sampling.steps
    run.report("sampling", window, DENOISING * (step + 1) / steps, step + 1, clean)
