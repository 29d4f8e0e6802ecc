"""The checks of a run before any weights are read: all problems at once, and what the run will take."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING

import psutil
import torch
from torch import Tensor

from ..acceleration.presets import FEW_STEPS
from ..audio.dialogue import Arrangement, Speech, Turn, plan_turns
from ..audio.embeds import TAIL_FRAMES, AudioEmbeds, num_frames_of
from ..audio.waveform import SILENT, check, peak_of
from ..conditioning.reference_image import check_size
from ..conditioning.speakers import Place, speaker_masks
from ..conditioning.tokens import check_image, check_prompt
from ..config import check_fps, check_num_frames
from ..errors import Problems
from ..generation.recipes import find_recipe
from ..generation.rules import check_audio_features, check_dubbing, check_places, check_speakers
from ..generation.run_spec import RunSpec
from ..generation.store import kept_bytes
from ..host import Host
from ..media.video import check_video_path
from ..memory.placement import GB, MemoryConfig, MemoryLimit, Placement, plan_placement
from ..model_files import ModelFiles
from ..parallel.split import Split, choose_layout
from ..shapes import FPS, LatentSize
from ..weights.fit import TransformerFacts, check_weights, few_step_lora
from ..weights.quantization import decodes_float8
from .estimate import RunEstimate, estimate
from .timings import Timings, run_kind

if TYPE_CHECKING:  # imports diffusers, which takes seconds
    from ..conditioning.conditioning import Conditioning

SHORTEST_VOICE_S = 0.4
SAME_PLACE = 0.9  # of the smaller place, covered by another
FLOAT_FRAME_BYTES = 2 * 3 * 4  # a pixel of an IMAGE, twice: the windows and what they are joined to
SMALLER_WINDOWS = (81, 61, 41, 21, 5)


@dataclass(frozen=True)
class RunSetup:
    """The surroundings of a run: its files, its memory, its folders.

    Attributes:
        files: the weights.
        dtype: what the transformer computes in.
        memory: how much of the device it may take.
        store: the folder of finished windows; None keeps none.
        timings: the folder that remembers how long runs took; None measures nothing.
        output: the file to write.
        keeps_frames: whether all frames are kept in memory too.
        num_devices: that share the work.
        split: the part of it that each takes.
    """

    files: ModelFiles = ModelFiles()
    dtype: torch.dtype = torch.bfloat16
    memory: MemoryConfig = MemoryConfig()
    store: Path | None = None
    timings: Path | None = None
    output: Path | None = None
    keeps_frames: bool = False
    num_devices: int = 1
    split: Split = Split.AUTO


@dataclass(frozen=True)
class RunInputs:
    """The inputs of a run as far as they are known: how many speakers and frames, and what is encoded already.

    Attributes:
        num_places: speakers in the picture; 1 where nobody is told apart.
        num_source_frames: of the picture, 25 a second; more than one are a video to dub.
        num_prompts: of the windows, in turn.
        sound_bytes: of the sounds, which are in memory already.
        audio_embeds: encoded speech.
        conditioning: the encoded picture.
    """

    num_places: int = 1
    num_source_frames: int = 1
    num_prompts: int = 1
    sound_bytes: int = 0
    audio_embeds: AudioEmbeds | None = None
    conditioning: Conditioning | None = None

    @classmethod
    def encoded(cls, audio_embeds: AudioEmbeds | None, conditioning: Conditioning) -> RunInputs:
        """Those of a picture that is encoded."""
        soundtrack = None if audio_embeds is None else audio_embeds.soundtrack
        sound_bytes = 0 if soundtrack is None else soundtrack.samples.nbytes
        return cls(
            num_places=conditioning.num_places,
            num_source_frames=len(conditioning.source),
            num_prompts=len(conditioning.prompt_embeds),
            sound_bytes=sound_bytes,
            audio_embeds=audio_embeds,
            conditioning=conditioning,
        )


def check_run(spec: RunSpec, inputs: RunInputs, setup: RunSetup, problems: Problems, host: Host) -> RunEstimate | None:
    """Adds all that is wrong with a run to `problems`; what it will take, None where too little is known."""
    options = problems.attempt("acceleration", lambda: spec.acceleration)
    if options is not None:
        problems.attempt("acceleration", options.check, spec.steps)
    _check_fit(spec, inputs, setup.files, problems)
    facts = check_weights(setup.files, setup.dtype, problems)
    if facts is not None:
        _check_encoded(inputs, facts, problems)
    _note_steps(spec, setup.files, problems)
    if setup.output is not None:
        problems.attempt("output", check_video_path, setup.output)
    if spec.size is None or spec.num_frames is None or options is None:
        return None
    windows = problems.attempt("num_frames", lambda: spec.windows)
    if windows is None:
        return None
    if inputs.num_prompts > len(windows):
        problems.note(
            f"The prompt has {inputs.num_prompts} parts, one for each window, and the video has {len(windows)}: the "
            f"last {inputs.num_prompts - len(windows)} are not used."
        )
    run = estimate(spec)
    if facts is not None:
        if setup.num_devices > 1:
            sizes = len(spec.new_guidance().passes), facts.num_heads, run.size.tokens_per_frame
            problems.attempt("devices", choose_layout, setup.split, setup.num_devices, *sizes)
        _check_float8(setup.files, facts, problems, host)
        run = with_memory(run, spec, facts, setup.memory, problems, host)
        run = _with_seconds(run, spec, setup.timings, host)
    run = _with_ram(_with_disk(run, setup, problems), spec, setup, problems, host)
    return replace(run, ram_bytes=run.ram_bytes + inputs.sound_bytes)


@contextmanager
def timed(spec: RunSpec, setup: RunSetup, run: RunEstimate | None, host: Host, is_whole: bool = True) -> Iterator[None]:
    """Remembers how long the run inside takes, for later estimates; not one that goes on from an earlier one."""
    if setup.timings is None or run is None or run.footprint is None or not is_whole:
        yield
        return
    with Timings(setup.timings).measure(_run_kind(run, spec, host), run.size.num_tokens, run.forwards):
        yield


def describe(problems: Problems, run: RunEstimate | None) -> str:
    """All of it as text, for people."""
    parts = [run.describe()] if run else []
    if problems.errors:
        parts.insert(0, "\n".join(["This cannot run:", *(f"- {problem}" for problem in problems.errors)]))
    else:
        parts.insert(0, "Nothing was found that keeps this from running.")
    if problems.notes:
        parts.append("\n".join(["Worth knowing:", *(f"- {note}" for note in problems.notes)]))
    return "\n\n".join(parts)


def check_masks(
    places: Sequence[Place], image_hw: tuple[int, int], target: tuple[int, int], problems: Problems
) -> Tensor | None:
    """The speakers' masks; None where nobody is placed, or where they cannot be made."""
    if not places or (len(places) == 1 and not places[0].is_marked):
        return None
    masks = problems.attempt("speakers", speaker_masks, places, image_hw, target)
    if masks is None:
        return None
    for number, place in enumerate(places, start=1):
        if place.percent and place.box is not None and not all(0 <= edge <= 100 for edge in place.box):
            problems.note(
                f"The box of speaker {number} goes beyond the picture and is cut at its edge: boxes are in percent, 0 "
                f"to 100, got {place.box}."
            )
    for (first, a), (second, b) in combinations(enumerate(masks[:-1], start=1), 2):
        share = float((a * b).sum() / min(a.sum(), b.sum()))
        if share > SAME_PLACE:
            problems.add(
                "speakers",
                f"Speakers {first} and {second} are in the same place: {share:.0%} of the smaller one is inside the "
                f"other. Mark each person alone.",
            )
        elif share > 0:
            problems.note(f"Speakers {first} and {second} overlap on {share:.0%} of the smaller one.")
    return masks


def check_voices(
    speeches: Sequence[Speech], arrangement: Arrangement, num_frames: int, fps: float, problems: Problems
) -> int | None:
    """The frames, at `fps`, of a video with these voices; None where they are not known.

    Args:
        num_frames: of the request, 25 a second; 0 is as long as the voices.
        fps: of the file.
    """
    problems.attempt("", check_num_frames, num_frames)
    if problems.attempt("", check_fps, fps) is None or not speeches:
        return None
    errors_before = len(problems.errors)
    for number, speech in enumerate(speeches, start=1):
        if speech.sound is not None:
            problems.attempt("audio", check, speech.sound, f"Voice {number}")
    if len(problems.errors) > errors_before:
        return None
    turns = problems.attempt("audio", plan_turns, speeches, arrangement)
    if turns is None:
        return None
    for number, speech in enumerate(speeches, start=1):
        _note_voice(number, speech, problems)
    if not num_frames and all(speech.sound is None for speech in speeches):
        problems.add("audio", "No speaker has a sound, so the video has no length. Give audio, or num_frames.")
        return None
    _note_lengths(turns, num_frames, problems)
    return max(
        1, round(num_frames * fps / FPS) if num_frames else num_frames_of(max(voice.end_s for voice in turns), fps)
    )


def _note_voice(number: int, speech: Speech, problems: Problems) -> None:
    """Notes a voice that moves no lips."""
    if speech.sound is None or peak_of(speech.sound.samples) < SILENT:
        problems.note(f"Voice {number} is silent: its lips will stay closed.")
    elif speech.sound.duration_s < SHORTEST_VOICE_S:
        problems.note(f"Voice {number} lasts {speech.sound.duration_s:.2f} s; speech needs about half a second.")


def _note_lengths(turns: Sequence[Turn], num_frames: int, problems: Problems) -> None:
    """Notes voices that end long before the video, or that are cut off by its end."""
    if not num_frames:
        return
    speech_s, video_s = max(voice.end_s for voice in turns), num_frames / FPS
    if video_s > speech_s + 1:
        problems.note(f"The voices end after {speech_s:.1f} s, the video after {video_s:.1f} s; 0 frames takes theirs.")
    elif speech_s > video_s + 1:
        problems.note(f"The voices last {speech_s:.1f} s, the video {video_s:.1f} s; the rest is cut off.")
    for number, voice in enumerate(turns, start=1):
        if voice.duration_s and voice.start_s >= video_s:
            problems.note(
                f"Voice {number} is not heard: it starts at {voice.start_s:.1f} s, the video ends at {video_s:.1f} s."
            )


def _check_fit(spec: RunSpec, inputs: RunInputs, files: ModelFiles, problems: Problems) -> None:
    """Sizes, voices against places, recipe and voices against the audio weights' name."""
    if spec.size is not None:
        problems.attempt("size", check_size, *spec.size)
    problems.attempt("speakers", check_speakers, spec.num_speakers, spec.model)
    problems.attempt("speakers", check_places, spec.num_speakers, inputs.num_places)
    problems.attempt("image", check_dubbing, inputs.num_source_frames, spec.model)
    if spec.num_frames is not None and 1 < inputs.num_source_frames < spec.num_frames:
        problems.note(
            f"The video to dub lasts {inputs.num_source_frames / FPS:.1f} s, the speech {spec.num_frames / FPS:.1f} s: "
            f"its last frame stays."
        )
    embeds = inputs.audio_embeds
    if embeds is not None and spec.num_frames is not None and spec.num_frames > embeds.num_frames + TAIL_FRAMES:
        problems.note(
            f"The audio embeds cover {embeds.num_frames} frames, the video has {spec.num_frames}: the rest hears one "
            f"moment over and over. Take 0 frames, or encode the audio for as many."
        )
    if files.audio_weights is None:
        return
    name = files.audio_weights.name
    if find_recipe(files.audio_weights) is not spec.recipe:
        problems.note(f"recipe is {spec.recipe.value}, though the audio weights are called {name}.")
    if "single" in name.lower() and spec.num_speakers > 1:
        problems.note(f"{name} hears one speaker, got {spec.num_speakers}. Take MultiTalk's weights.")


def _check_encoded(inputs: RunInputs, facts: TransformerFacts, problems: Problems) -> None:
    """Encoded speech and pictures against what the weights take."""
    if inputs.audio_embeds is not None:
        features = tuple(inputs.audio_embeds.features.shape[2:])
        problems.attempt("audio_embeds", check_audio_features, features, facts.audio_features)
    if inputs.conditioning is not None:
        for prompt in inputs.conditioning.all_prompts:
            problems.attempt("conditioning", check_prompt, prompt.shape[1], facts.text_dim)
        if inputs.conditioning.image_embeds is not None:
            channels = inputs.conditioning.image_embeds.shape[1]
            problems.attempt("conditioning", check_image, channels, facts.image_dim)


def _check_float8(files: ModelFiles, facts: TransformerFacts, problems: Problems, host: Host) -> None:
    if facts.stores_float8 and files.base is not None and not decodes_float8(host.device):
        problems.add(
            "base",
            f"{files.base.name} or its audio weights are stored in float8, which {host.device} cannot decode. Take "
            f"GGUF or bfloat16 files, or the CPU as the device.",
        )


def _note_steps(spec: RunSpec, files: ModelFiles, problems: Problems) -> None:
    """Steps and guidance against what a distilled model, or the LoRAs, were made for."""
    steps, scale = spec.steps, spec.guidance.text_scale
    distilled = spec.model.name if spec.model.steps <= FEW_STEPS else few_step_lora(files.loras)
    if distilled and steps > 2 * FEW_STEPS:
        problems.note(f"{distilled} was made for few steps; {steps} cost time and gain nothing. Take 4 to 8.")
    if distilled and scale > 1:
        problems.note(f"{distilled} was made without text guidance; set the text scale from {scale:g} to 1.")
    if not distilled and files.base is not None and steps <= FEW_STEPS:
        problems.note(f"{steps} steps without a few-step LoRA give a blurred video. Take 20 or more, or such a LoRA.")


def with_memory(
    run: RunEstimate, spec: RunSpec, facts: TransformerFacts, memory: MemoryConfig, problems: Problems, host: Host
) -> RunEstimate:
    """The run with the placement of its blocks; adds a problem, with its cure, where it does not fit on the device."""
    free, own = host.free_memory(), facts.footprint
    facts = replace(facts, footprint=own.on(host.device))
    placement = _placement(spec, facts, memory, run.size, free)
    if placement.estimate > free:
        kind = "of the machine's memory" if host.device.type == "cpu" else f"on {host.device}"
        problems.add(
            "memory",
            f"{memory.memory.value} takes about {placement.estimate / GB:.1f} GB, {free / GB:.1f} GB {kind} are free. "
            f"{_cure(spec, facts, run, free)}",
        )
    limit = memory.memory.limit
    if limit is not None and limit < placement.estimate <= free:
        problems.note(
            f"memory = {memory.memory.value} cannot be kept: about {placement.estimate / GB:.1f} GB are taken."
        )
    return replace(run, placement=placement, footprint=own, free_bytes=free)


def _placement(spec: RunSpec, facts: TransformerFacts, memory: MemoryConfig, size: LatentSize, free: int) -> Placement:
    footprint = facts.footprint
    constants = footprint.constant_bytes(size, num_prompts=2, num_voices=spec.num_speakers + 1)  # and silence
    return plan_placement(footprint, memory, size, free, constants)


def _cure(spec: RunSpec, facts: TransformerFacts, run: RunEstimate, free: int) -> str:
    """The setting that would fit into `free` bytes."""

    def least(size: LatentSize) -> int:
        return _placement(spec, facts, MemoryConfig(MemoryLimit.AUTO), size, free).estimate

    if least(run.size) <= free:
        return "Set memory to auto and resident_blocks to -1: blocks that do not fit are then streamed."
    shorter = range(spec.windows_config.motion_frames + 1, run.windows[0])
    for frames in (frames for frames in SMALLER_WINDOWS if frames in shorter):
        if least(replace(run.size, t=LatentSize.of_video(frames, 0, 0).t)) <= free:
            return f"Set memory to auto and window_frames to {frames}, or take a smaller size."
    smallest = least(LatentSize.of_video(5, 128, 128))
    if smallest <= free:
        return "Take a smaller size: 480p, or custom with smaller sides."
    return (
        f"Even the smallest video needs {smallest / GB:.1f} GB: take smaller weights (GGUF or fp8) or another device."
    )


def _with_seconds(run: RunEstimate, spec: RunSpec, timings: Path | None, host: Host) -> RunEstimate:
    if timings is None:
        return run
    seconds = Timings(timings).seconds(_run_kind(run, spec, host), run.size.num_tokens)
    return replace(run, is_timed=True, seconds=None if seconds is None else seconds * run.forwards)


def _run_kind(run: RunEstimate, spec: RunSpec, host: Host) -> str:
    assert run.footprint is not None and run.placement is not None, "added together, where the files are known"
    return run_kind(host.device, run.footprint, spec.acceleration, spec.steps, run.placement.streams)


def _with_disk(run: RunEstimate, setup: RunSetup, problems: Problems) -> RunEstimate:
    """Room for the finished windows, where they are kept."""
    if setup.store is None:
        run = replace(run, disk_bytes=0)
    else:
        free = _free_disk(setup.store, problems)
        stored = 0 if free is None else kept_bytes(setup.store)  # perhaps by this very run, which then needs less
        if free is not None and run.disk_bytes > free + stored:
            problems.add(
                "resume",
                f"Finished windows need up to {run.disk_bytes / GB:.2f} GB in {setup.store}, {free / GB:.2f} GB are "
                f"free. Make room, or turn resuming off.",
            )
    return run


def _free_disk(folder: Path, problems: Problems) -> int | None:
    """Bytes free where `folder` is, or is going to be; None where nobody can say."""
    nearest = _nearest("resume", folder, problems)
    if nearest is None:
        return None
    _check_folder("resume", nearest, problems)
    return shutil.disk_usage(nearest).free


def _nearest(where: str, path: Path, problems: Problems) -> Path | None:
    """The nearest of `path` and the folders above it that is there already."""
    try:
        return next(place for place in (path.absolute(), *path.absolute().parents) if place.exists())
    except OSError as error:  # too long a name, or a folder that this user may not look into
        problems.add(where, f"{path} cannot be used ({error.strerror}). Choose another place.")
        return None


def _check_folder(where: str, place: Path, problems: Problems) -> None:
    if not place.is_dir():
        problems.add(where, f"{place} is a file, not a folder. Choose another place.")
    elif not os.access(place, os.W_OK):
        problems.add(where, f"{place} cannot be written to. Choose another folder.")


def _with_ram(run: RunEstimate, spec: RunSpec, setup: RunSetup, problems: Problems, host: Host) -> RunEstimate:
    """The need of the machine's memory; `keep_frames` is what a person can turn off."""
    free = psutil.virtual_memory().available
    pixels = run.height * run.width
    window = run.windows[0] * pixels * FLOAT_FRAME_BYTES
    required = window + (run.frames * pixels * FLOAT_FRAME_BYTES if setup.keeps_frames else 0)
    if window > free:
        problems.add(
            "window_frames",
            f"A window of {run.windows[0]} frames takes {window / GB:.1f} GB of memory, {free / GB:.1f} GB are free. "
            f"Take shorter windows, or a smaller size.",
        )
    elif required > free:
        problems.add(
            "keep_frames",
            f"{run.frames} frames take {required / GB:.1f} GB of memory, {free / GB:.1f} GB are free. Turn keep_frames "
            f"off and take the video output.",
        )
    weights = 0 if run.footprint is None or host.device.type == "cpu" else run.footprint.weights_bytes
    if weights + required > free >= required:
        problems.note(
            f"The weights ({weights / GB:.1f} GB) do not stay in the {free / GB:.1f} GB of memory that are free; what "
            f"is streamed is then read from the disk again and again. Smaller weights (GGUF or fp8) are faster."
        )
    return replace(run, ram_bytes=required + weights, free_ram_bytes=free)
