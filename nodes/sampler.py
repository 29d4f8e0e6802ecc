"""The sampler: from audio embeds and a conditioned portrait to frames, a video and its sound."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction
from typing import TYPE_CHECKING

import torch
from comfy_api.latest import InputImpl, io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..pipeline.acceleration.presets import preset
from ..pipeline.audio.embeds import AudioEmbeds
from ..pipeline.audio.waveform import Sound, fit_length
from ..pipeline.config import Acceleration, GenerationConfig, GuidanceConfig, SamplingConfig
from ..pipeline.errors import Problems
from ..pipeline.media.video import resample_frame_times, write_video
from ..pipeline.preflight.checks import Draft, describe, inspect, measuring
from ..pipeline.preflight.estimate import RunEstimate
from ..pipeline.shapes import FPS
from ..pipeline.weights.handles import TransformerFiles
from . import folders, sockets
from .comfy_host import ComfyHost
from .conversions import from_audio, to_audio, to_image
from .options import SamplerOptions
from .settings import Settings, hearing, seeing

if TYPE_CHECKING:
    from ..pipeline.conditioning.conditioning import Conditioning

CATEGORY = "MultiTalk"

logger = logging.getLogger(__name__)


class MultiTalkSampler(io.ComfyNode):
    """Turns audio embeds and a conditioned portrait into a talking video."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="MultiTalkSampler",
            display_name="MultiTalk Sampler",
            category=CATEGORY,
            description="Samples the video window by window. An interrupted run goes on where it stopped.",
            inputs=[
                sockets.Model.Input("model", tooltip="From MultiTalk Load Model, with LoRAs or without."),
                sockets.AudioEmbeds.Input("audio_embeds", tooltip="From MultiTalk Encode Audio."),
                sockets.Conditioning.Input("conditioning", tooltip="From MultiTalk Condition."),
                io.Audio.Input(
                    "soundtrack", optional=True, tooltip="What the video sounds like; none makes it silent."
                ),
                sockets.Options.Input("options", optional=True, tooltip="Single knobs, from our options nodes."),
                io.Int.Input(
                    "num_frames",
                    default=GenerationConfig.num_frames,
                    min=0,
                    max=100000,
                    tooltip="Length in frames of the model, which makes 25 a second; 0 takes the audio's. Above 97 "
                    "(InfiniteTalk: 81) it is made in windows.",
                ),
                io.Int.Input(
                    "steps",
                    default=SamplingConfig.steps,
                    min=1,
                    max=200,
                    tooltip="Denoising steps: 40 as published, 8 or 4 with a few-step LoRA.",
                ),
                io.Float.Input(
                    "text_cfg_scale",
                    default=GuidanceConfig.text_scale,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How closely the video follows the prompt; 1 turns it off and saves a third of the time.",
                ),
                io.Float.Input(
                    "audio_cfg_scale",
                    default=GuidanceConfig.audio_scale,
                    min=0.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How closely the lips follow the audio: 3 to 5, 2 with a few-step LoRA; 1 turns it off.",
                ),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Where the steps are spent; 0 takes 7 for 480p and 11 for 720p; 2 with a few-step LoRA.",
                ),
                io.Int.Input(
                    "seed",
                    default=SamplingConfig.seed,
                    min=0,
                    max=2**64 - 1,
                    control_after_generate=True,
                    tooltip="The same seed gives the same frames.",
                ),
                io.Combo.Input(
                    "acceleration",
                    options=Acceleration,
                    default=GenerationConfig.acceleration,
                    tooltip="none is exact; regular skips steps that change little; high gives up most for speed.",
                ),
                io.Boolean.Input(
                    "keep_frames",
                    default=True,
                    tooltip="Hands the frames on as IMAGE. Off for long videos: they then go straight to the file.",
                ),
            ],
            outputs=[
                io.Image.Output(display_name="frames"),
                io.Video.Output(display_name="video"),
                io.Audio.Output(display_name="audio"),
                io.Float.Output(display_name="fps"),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def execute(
        cls,
        model: TransformerFiles,
        audio_embeds: AudioEmbeds,
        conditioning: Conditioning,
        num_frames: int,
        steps: int,
        text_cfg_scale: float,
        audio_cfg_scale: float,
        shift: float,
        seed: int,
        acceleration: str,
        keep_frames: bool,
        soundtrack: dict | None = None,
        options: SamplerOptions | None = None,
    ) -> io.NodeOutput:
        settings = Settings(
            num_frames,
            steps,
            text_cfg_scale,
            audio_cfg_scale,
            shift,
            acceleration,
            keep_frames,
            options or SamplerOptions(),
            seed,
        )
        config, host = settings.config(model.recipe, conditioning.resolution), ComfyHost(cls.hidden.unique_id)
        draft, estimate = _look(seeing(hearing(settings.draft(model, config), audio_embeds), conditioning), host)
        from ..pipeline.generate import generate, open_store  # imports diffusers, which takes seconds

        fps, num_frames = audio_embeds.fps, config.num_frames or audio_embeds.num_frames
        num_output_frames = audio_embeds.output_frames(config.num_frames)
        sound = None if soundtrack is None else _as_long(from_audio(soundtrack, "soundtrack"), num_output_frames, fps)
        parts, knobs = (model.transformer, audio_embeds, conditioning, config), draft.options
        store = open_store(draft.runs, *parts, knobs) if draft.runs else None
        windows = generate(*parts, host, options=knobs, memory=model.memory, store=store)
        frames: list[Tensor] = []
        windows = _kept(windows, frames) if keep_frames else windows
        with measuring(draft, estimate, host, is_whole=not store or not any(store.folder.iterdir())):
            path = write_video(folders.new_video(), windows, num_frames, fps, num_output_frames, sound)
        images = ExecutionBlocker(
            "The frames are not handed on because keep_frames is off. Turn it on in the sampler, or use its video."
        )
        if frames:
            images = torch.cat(frames)
            shown = resample_frame_times(num_frames, fps, num_output_frames)
            images = images if fps == FPS else images[shown[shown < len(images)]]  # the published plan loses some
        audio = None if sound is None else to_audio(sound)
        if store:
            store.discard()
        return io.NodeOutput(images, InputImpl.VideoFromFile(str(path)), audio, float(fps))


def _look(draft: Draft, host: ComfyHost) -> tuple[Draft, RunEstimate | None]:
    """`draft` with its knobs, and what it will take.

    Raises:
        ConfigError: with all that keeps it from running.
    """
    problems = Problems()
    estimate = inspect(draft, problems, host)
    problems.raise_errors()
    logger.info("%s", describe(problems, estimate))
    return replace(draft, options=draft.options or preset(draft.config)), estimate


def _kept(windows: Iterator[Tensor], frames: list[Tensor]) -> Iterator[Tensor]:
    """Hands the windows on and keeps them as IMAGE."""
    for window in windows:
        frames.append(to_image(window))
        yield window


def _as_long(sound: Sound, num_frames: int, fps: Fraction) -> Sound:
    """The sound, cut or continued with silence to the length of the video."""
    return Sound(fit_length(sound.samples, round(num_frames / fps * sound.rate_hz)), sound.rate_hz)
