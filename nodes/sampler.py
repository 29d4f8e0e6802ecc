"""The sampler: from audio embeds and a conditioned portrait to frames, a video and its sound."""

from __future__ import annotations

import logging
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from comfy_api.latest import InputImpl, io
from comfy_execution.graph_utils import ExecutionBlocker
from torch import Tensor

from ..pipeline.audio.embeds import AudioEmbeds
from ..pipeline.audio.waveform import fit_length
from ..pipeline.config import Acceleration, GenerationConfig
from ..pipeline.errors import Problems
from ..pipeline.generation.run_spec import RunSpec
from ..pipeline.host import format_duration
from ..pipeline.memory.placement import GB
from ..pipeline.model_files import ModelFiles
from ..pipeline.multitalk_pipeline import MultiTalkPipeline
from ..pipeline.parallel.split import Split
from ..pipeline.preflight.checks import RunInputs, RunSetup, check_run, describe
from ..pipeline.preflight.estimate import RunEstimate
from ..pipeline.weights.handles import TransformerFiles
from . import folders, sockets
from .comfy_host import ComfyHost, show_text
from .conversions import to_audio, to_image
from .options import SamplerOptions

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
            search_aliases=[
                "multitalk",
                "infinitetalk",
                "flashtalk",
                "talking",
                "talking head",
                "lip sync",
                "lipsync",
                "avatar",
                "speech",
                "portrait",
                "dub",
            ],
            category=CATEGORY,
            description="Samples the video window by window. An interrupted run goes on where it stopped.",
            inputs=[
                sockets.Model.Input("model", tooltip="From MultiTalk Load Model, with LoRAs or without."),
                sockets.AudioEmbeds.Input(
                    "audio_embeds", tooltip="From MultiTalk Encode Audio; the video is as long, and sounds so."
                ),
                sockets.Conditioning.Input("conditioning", tooltip="From MultiTalk Condition."),
                sockets.Options.Input("options", optional=True, tooltip="Single knobs, from our options nodes."),
                io.Int.Input(
                    "steps",
                    default=0,
                    min=0,
                    max=200,
                    tooltip="Denoising steps; 0 takes the model's: 40 as published, FlashTalk's 4. 8 or 4 with a "
                    "few-step LoRA.",
                ),
                io.Float.Input(
                    "text_scale",
                    default=-1.0,
                    min=-1.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How closely the video follows the prompt; -1 takes the model's: 5 as published. 1 turns "
                    "it off and saves a third of the time.",
                ),
                io.Float.Input(
                    "audio_scale",
                    default=-1.0,
                    min=-1.0,
                    max=20.0,
                    step=0.1,
                    tooltip="How closely the lips follow the audio; -1 takes the model's: 4 as published. 3 to 5, 2 "
                    "with a few-step LoRA; 1 turns it off.",
                ),
                io.Float.Input(
                    "shift",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    tooltip="Where the steps are spent; 0 takes the model's: 7 for 480p and 11 for 720p, FlashTalk's "
                    "5. 2 with a few-step LoRA.",
                ),
                io.Int.Input(
                    "seed",
                    default=GenerationConfig.seed,
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
        )

    @classmethod
    def execute(
        cls,
        model: TransformerFiles,
        audio_embeds: AudioEmbeds,
        conditioning: Conditioning,
        keep_frames: bool,
        options: SamplerOptions | None = None,
        **widgets: Any,
    ) -> io.NodeOutput:
        from ..pipeline.conditioning.conditioning import match_speakers  # imports diffusers, which takes seconds

        options = options or SamplerOptions()
        host = ComfyHost(keeps_windows=options.resume)
        audio_embeds, conditioning = match_speakers(audio_embeds, conditioning)
        talk = MultiTalkPipeline(model, host=host, ranks=options.ranks)
        config = sampling_config(options, fps=float(audio_embeds.fps), **widgets)
        spec = talk.make_spec(config, audio_embeds, conditioning, options.acceleration)
        setup = replace(run_setup(model, options, keep_frames), output=folders.new_video())
        problems = Problems()
        inputs = RunInputs.encoded(audio_embeds, conditioning)
        estimate = check_run(spec, inputs, setup, problems, host)
        problems.raise_errors()
        logger.info("%s", describe(problems, estimate))
        assert estimate is not None, "encoded inputs have a size and a length"
        host.show_headline("\n".join((estimate.headline(), *problems.notes)))
        frames: list[Tensor] = []
        keep = (lambda window: frames.append(to_image(window))) if keep_frames else None
        start = time.monotonic()
        path = talk.write(audio_embeds, conditioning, spec, setup, estimate, on_frames=keep)
        show_text(_facts(spec, estimate, time.monotonic() - start, path))
        images = (
            torch.cat(frames)
            if frames
            else ExecutionBlocker(
                "The frames are not handed on because keep_frames is off. Turn it on in the sampler, or use its video."
            )
        )
        return io.NodeOutput(images, InputImpl.VideoFromFile(str(path)), _audio(audio_embeds, spec.output_s), spec.fps)


def sampling_config(
    options: SamplerOptions, *, steps: int, text_scale: float, audio_scale: float, shift: float, seed: int,
    acceleration: str, **choices: Any,
) -> GenerationConfig:  # fmt: skip
    """The sampler's widgets as choices: 0 steps, a shift of 0 and scales of -1 are the model's own.

    Raises:
        ConfigError: a value is out of range.
    """
    return GenerationConfig(
        steps=steps or None,
        text_scale=None if text_scale < 0 else text_scale,
        audio_scale=None if audio_scale < 0 else audio_scale,
        shift=shift or None,
        seed=seed,
        acceleration=Acceleration(acceleration),
        **options.choices,
        **choices,
    )


def run_setup(model: TransformerFiles, options: SamplerOptions, keep_frames: bool) -> RunSetup:
    """The surroundings of a run in this ComfyUI."""
    files = ModelFiles(base=model.base, adapter=model.adapter, loras=model.loras)
    runs = folders.runs_directory()
    return RunSetup(
        files,
        model.dtype,
        model.memory,
        runs if options.resume else None,
        timings=runs,
        keeps_frames=keep_frames,
        num_devices=1 if options.ranks is None else len(options.ranks.devices),
        split=Split.AUTO if options.ranks is None else options.ranks.split,
    )


def _facts(spec: RunSpec, estimate: RunEstimate, run_s: float, path: Path) -> str:
    """The finished run: frames, time, memory, and the file."""
    memory = "" if estimate.placement is None else f", about {estimate.placement.estimate / GB:.1f} GB"
    return (
        f"{spec.num_output_frames} frames ({spec.output_s:.1f} s) in {format_duration(run_s)}{memory}; "
        f"{path.parent.name}/{path.name} until Save Video keeps it"
    )


def _audio(audio_embeds: AudioEmbeds, duration_s: float) -> dict | None:
    """The soundtrack as AUDIO, as long as the video."""
    sound = audio_embeds.soundtrack
    if sound is None:
        return None
    return to_audio(replace(sound, samples=fit_length(sound.samples, round(duration_s * sound.rate_hz))))
