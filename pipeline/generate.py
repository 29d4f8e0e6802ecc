"""A local run from top to bottom: window by window, from noise to frames."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import torch
from torch import Tensor

from .acceleration.presets import AccelerationOptions, accelerated, preset
from .audio.embeds import AudioEmbeds
from .conditioning.conditioning import Conditioning
from .config import GenerationConfig
from .generation.run import Run
from .generation.store import FinishedWindow, WindowStore, last_frames, run_key
from .generation.window import generate_window
from .generation.windows import Window
from .host import Host
from .memory.placement import MemoryConfig, PlacedTransformer, placed
from .models.transformer.model import MultiTalkTransformer
from .sampling.noise import Noise, NoiseSource


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
    run.check()
    return _windows(run, store)


def open_store(
    folder: Path,
    transformer: MultiTalkTransformer,
    audio_embeds: AudioEmbeds,
    conditioning: Conditioning,
    config: GenerationConfig,
    options: AccelerationOptions | None = None,
) -> WindowStore:
    """The store of finished windows that belongs to exactly these inputs: every weight and option that counts."""
    seen = (conditioning.source, *conditioning.all_prompts)
    optional = [part for part in (conditioning.speaker_masks, conditioning.image_embeds) if part is not None]
    coders = (type(conditioning.vae).__name__, conditioning.vae.model, *conditioning.networks)
    heard = (audio_embeds.features, audio_embeds.num_frames)
    key = run_key(transformer, coders, heard, seen, tuple(optional), config, options or preset(config))
    return WindowStore(folder, key)


@torch.inference_mode()
def _windows(run: Run, store: WindowStore | None) -> Iterator[Tensor]:
    """Holds one window at a time, and of the one before only its motion frames."""
    motion = None
    with ExitStack() as around:
        transformer = None
        for window in run.windows:
            finished = store.load(window.index) if store else None
            if finished is None:
                if transformer is None:
                    around.enter_context(accelerated(run.transformer, run.options, run.host.device))
                    placing = placed(run.transformer, run.memory, run.size(window), run.host, run.kept_bytes)
                    transformer = around.enter_context(placing)
                finished = _finish(run, transformer, window, motion, store)
            motion, frames = finished.motion, finished.frames[:, window.keep]
            del finished
            yield frames
            del frames


def _finish(
    run: Run, transformer: PlacedTransformer, window: Window, motion: Tensor | None, store: WindowStore | None
) -> FinishedWindow:
    """Makes a window and puts it into the store."""
    frames = generate_window(run, transformer, window, motion)
    overlap = run.config.windows.overlap
    if store:
        return store.save(window.index, frames, overlap)
    return FinishedWindow(frames, last_frames(frames, overlap))
