"""Everything that can be known before any weights are read: what is wrong, and what the run will take."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import psutil
import torch
from torch import Tensor

from ..acceleration.presets import FEW_STEPS, AccelerationOptions, preset
from ..audio.dialogue import Arrangement, Speech, plan_turns
from ..audio.embeds import TAIL_FRAMES, check_fps, num_frames_of, num_model_frames
from ..audio.waveform import check
from ..conditioning.speakers import Place, speaker_masks
from ..conditioning.tokens import check_image, check_prompt
from ..config import GenerationConfig, Recipe
from ..errors import Problems
from ..generation.store import kept_bytes
from ..generation.windows import Window, plan_windows
from ..host import Host
from ..memory.placement import GB, MemoryConfig, MemoryLimit, Placement, place
from ..shapes import FPS, TOKEN_PIXELS, LatentSize
from ..weights.fit import TransformerFacts, WeightFiles, check_weights
from .estimate import RunEstimate, estimate
from .timings import Speeds, kind_of_run

SILENT = 1e-4  # below -80 dB nothing is heard
SHORTEST_VOICE_S = 0.4
SAME_PLACE = 0.9  # of the smaller place, covered by another
FLOAT_FRAME_BYTES = 2 * 3 * 4  # a pixel of an IMAGE, twice: the windows and what they are joined to
SMALLER_WINDOWS = (81, 61, 41, 21, 5)


@dataclass(frozen=True)
class Draft:
    """A request as it stands before any weights are read; None for what is not known yet.

    Attributes:
        num_frames: of the model, 25 a second.
        target: height and width of the video.
        num_voices: who is heard.
        num_places: who is seen; 1 where nobody was told apart.
        num_source_frames: of the picture; more than one are a video to dub.
        num_heard: frames of the model that speech which is already encoded covers.
        audio_features: layers and channels of it.
        prompt_channels: of the tokens of each prompt that is already encoded, the negative one too.
        image_channels: of the tokens of an image that is already encoded.
        runs: where finished windows are kept.
        speeds: where it is kept how long runs took.
        output: the file to write.
        keeps_frames: whether all frames are kept in memory too.
    """

    config: GenerationConfig
    options: AccelerationOptions | None = None
    memory: MemoryConfig = MemoryConfig()
    files: WeightFiles = WeightFiles()
    dtype: torch.dtype = torch.bfloat16
    num_frames: int | None = None
    target: tuple[int, int] | None = None
    num_voices: int = 1
    num_places: int = 1
    num_source_frames: int = 1
    num_heard: int | None = None
    audio_features: tuple[int, int] | None = None
    prompt_channels: tuple[int, ...] = ()
    image_channels: int | None = None
    runs: Path | None = None
    speeds: Path | None = None
    output: Path | None = None
    keeps_frames: bool = False


def inspect(draft: Draft, problems: Problems, host: Host) -> RunEstimate | None:
    """Adds to `problems` all that is wrong with `draft`; what it will take, None where too little is known."""
    options = draft.options or problems.attempt("acceleration", preset, draft.config)
    if options is not None:
        problems.attempt("acceleration", options.check, draft.config)
    _check_fit(draft, problems)
    facts = check_weights(draft.files, draft.dtype, problems)
    _check_features(draft, facts, problems)
    _note_steps(draft, problems)
    if draft.target is None or draft.num_frames is None or options is None:
        return None
    windows = problems.attempt("num_frames", _plan, draft)
    if not windows:
        return None
    found = estimate(draft.config, options, windows, draft.target)
    if facts is not None:
        found = _with_memory(found, draft, facts, problems, host)
        found = _with_seconds(found, draft, options, host)
    return _with_ram(_with_disk(found, draft, problems), draft, problems, host)


@contextmanager
def measuring(draft: Draft, found: RunEstimate | None, host: Host, is_whole: bool = True) -> Iterator[None]:
    """Keeps how long the run inside takes, for later estimates; not that of a run that goes on from an earlier one."""
    if draft.speeds is None or found is None or found.footprint is None or not is_whole:
        yield
        return
    kind = _kind(found, draft.options or preset(draft.config), host)
    with Speeds(draft.speeds).measure(kind, found.size.num_tokens, found.forwards):
        yield


def describe(problems: Problems, found: RunEstimate | None) -> str:
    """All of it as text, for people."""
    parts = [found.describe()] if found else []
    if problems.errors:
        parts.insert(0, "\n".join(["This cannot run:", *(f"- {problem}" for problem in problems.errors)]))
    else:
        parts.insert(0, "Nothing was found that keeps this from running.")
    if problems.notes:
        parts.append("\n".join(["Worth knowing:", *(f"- {note}" for note in problems.notes)]))
    return "\n\n".join(parts)


def check_places(
    places: Sequence[Place], image_hw: tuple[int, int], target: tuple[int, int], problems: Problems
) -> Tensor | None:
    """The speakers' masks; None for one speaker, or where they cannot be made."""
    if len(places) < 2:
        return None
    masks = problems.attempt("speakers", speaker_masks, places, image_hw, target)
    if masks is None:
        return None
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
    """The model's frames, 25 a second, of a video with these voices.

    Args:
        num_frames: of the model, asked for; 0 takes the voices' length.
        fps: of the file.
    """
    if problems.attempt("", check_fps, fps) is None:
        return None
    if not speeches:
        return None
    given = [(f"Voice {k}", speech.sound) for k, speech in enumerate(speeches, start=1) if speech.sound is not None]
    found_before = len(problems.errors)
    for name, sound in given:
        problems.attempt("audio", check, sound, name)
    if len(problems.errors) > found_before:
        return None
    turns = problems.attempt("audio", plan_turns, speeches, arrangement)
    if turns is None:
        return None
    for speaker, speech in enumerate(speeches, start=1):
        if speech.sound is None or max(map(abs, speech.sound.samples.aminmax())) < SILENT:
            problems.note(f"Voice {speaker} is silent: its lips will stay closed.")
        elif speech.sound.duration_s < SHORTEST_VOICE_S:
            problems.note(f"Voice {speaker} lasts {speech.sound.duration_s:.2f} s; speech needs about half a second.")
    if not num_frames and all(speech.sound is None for speech in speeches):
        problems.add("audio", "No speaker has a sound, so the video has no length. Give audio, or num_frames.")
        return None
    heard_s = max(turn.end_s for turn in turns)
    asked_s = num_frames / FPS
    if num_frames and asked_s > heard_s + 1:
        problems.note(f"The voices end after {heard_s:.1f} s, the video after {asked_s:.1f} s; 0 frames takes theirs.")
    elif num_frames and heard_s > asked_s + 1:
        problems.note(f"The voices last {heard_s:.1f} s, the video {asked_s:.1f} s; the rest is cut off.")
    return num_frames or num_model_frames(max(1, num_frames_of(heard_s, fps)), fps)


def _plan(draft: Draft) -> list[Window]:
    return plan_windows(draft.num_frames, draft.config.windows, [draft.num_frames + TAIL_FRAMES] * draft.num_voices)


def _check_fit(draft: Draft, problems: Problems) -> None:
    """Sizes, voices against places, recipe and voices against the adapter's name."""
    if draft.target is not None and any(side < TOKEN_PIXELS or side % TOKEN_PIXELS for side in draft.target):
        problems.add(
            "size", f"{draft.target[1]}x{draft.target[0]} is not possible; both sides must be multiples of 16."
        )
    if draft.num_voices > 1 and draft.num_places != draft.num_voices:
        problems.add(
            "speakers",
            f"{draft.num_voices} voices need as many places in the picture, got {draft.num_places}. Give a box or a "
            f"mask for each voice.",
        )
    if draft.num_voices == 1 < draft.num_places and draft.num_frames is not None:
        problems.note(
            f"{draft.num_places} places, one voice: the places are not used, and all lips follow it. Give whoever "
            f"listens a silent voice."
        )
    if draft.num_heard is not None and draft.num_frames > draft.num_heard + TAIL_FRAMES:
        problems.note(
            f"The audio embeds cover {draft.num_heard} frames, the video has {draft.num_frames}: the rest hears one "
            f"moment over and over. Take 0 frames, or encode the audio for as many."
        )
    adapter = draft.files.adapter or draft.files.base
    recipe = draft.config.windows.recipe
    if draft.num_source_frames > 1 and recipe is not Recipe.INFINITETALK:
        problems.add(
            "dub_video",
            f"A video of {draft.num_source_frames} frames is dubbed by InfiniteTalk's weights alone, got recipe "
            f"{recipe.value}. Set the loader's recipe to infinitetalk, or turn dub_video off.",
        )
    if adapter is not None and ("infinite" in adapter.name.lower()) != (recipe is Recipe.INFINITETALK):
        problems.note(f"recipe is {recipe.value}, though the audio weights are called {adapter.name}.")
    if adapter is not None and "single" in adapter.name.lower() and draft.num_voices > 1:
        problems.note(f"{adapter.name} hears one speaker, got {draft.num_voices}. Take MultiTalk's weights.")


def _check_features(draft: Draft, facts: TransformerFacts | None, problems: Problems) -> None:
    """What is encoded already against what the weights take."""
    if facts is None:
        return
    heard = draft.audio_features
    if heard is not None and heard != facts.audio_features:
        problems.add(
            "audio_embeds",
            f"They have {heard[0]} layers of {heard[1]}, the audio weights want {facts.audio_features[0]} of "
            f"{facts.audio_features[1]}. Encode the audio with chinese-wav2vec2-base.",
        )
    for channels in draft.prompt_channels:
        problems.attempt("conditioning", check_prompt, channels, facts.text_dim)
    if draft.image_channels is not None:
        problems.attempt("conditioning", check_image, draft.image_channels, facts.image_dim)


def _note_steps(draft: Draft, problems: Problems) -> None:
    """Steps and guidance against what the LoRAs were made for."""
    steps, scale, lora = draft.config.sampling.steps, draft.config.guidance.text_scale, draft.files.few_step_lora
    if lora and steps > 2 * FEW_STEPS:
        problems.note(f"{lora} was made for few steps; {steps} cost time and gain nothing. Take 4 to 8.")
    if lora and scale > 1:
        problems.note(f"{lora} was made without text guidance; set the text scale from {scale:g} to 1.")
    if not lora and draft.files.base is not None and steps <= FEW_STEPS:
        problems.note(f"{steps} steps without a few-step LoRA give a blurred video. Take 20 or more, or such a LoRA.")


def _with_memory(
    found: RunEstimate, draft: Draft, facts: TransformerFacts, problems: Problems, host: Host
) -> RunEstimate:
    free, memory = host.free_memory(), draft.memory
    placement = _placement(draft, facts, memory, found.size, free)
    if placement.estimate > free:
        kind = "of the machine's memory" if host.device.type == "cpu" else f"on {host.device}"
        problems.add(
            "memory",
            f"{memory.memory.value} takes about {placement.estimate / GB:.1f} GB, {free / GB:.1f} GB {kind} are free. "
            f"{_cure(draft, facts, found, free)}",
        )
    limit = memory.memory.limit
    if limit is not None and limit < placement.estimate <= free:
        problems.note(
            f"memory = {memory.memory.value} cannot be kept: about {placement.estimate / GB:.1f} GB are taken."
        )
    return replace(found, placement=placement, footprint=facts.footprint, free_bytes=free)


def _placement(draft: Draft, facts: TransformerFacts, memory: MemoryConfig, size: LatentSize, free: int) -> Placement:
    footprint = facts.footprint
    extra_bytes = footprint.constant_bytes(size, num_prompts=2, num_voices=draft.num_voices + 1)  # and silence
    return place(footprint, memory, size, free, extra_bytes)


def _cure(draft: Draft, facts: TransformerFacts, found: RunEstimate, free: int) -> str:
    """The setting that would fit into `free` bytes."""

    def least(size: LatentSize) -> int:
        return _placement(draft, facts, MemoryConfig(MemoryLimit.AUTO), size, free).estimate

    if least(found.size) <= free:
        return "Set memory to auto and resident_blocks to -1: blocks that do not fit are then streamed."
    shorter = range(draft.config.windows.overlap + 1, found.windows[0])
    for frames in (frames for frames in SMALLER_WINDOWS if frames in shorter):
        if least(LatentSize.of_video(frames, *draft.target)) <= free:
            return f"Set memory to auto and window_frames to {frames}, or take a smaller size."
    smallest = least(LatentSize.of_video(5, 128, 128))
    if smallest <= free:
        return "Take a smaller size: 480p, or custom with smaller sides."
    return (
        f"Even the smallest video needs {smallest / GB:.1f} GB: take smaller weights (GGUF or fp8) or another device."
    )


def _with_seconds(found: RunEstimate, draft: Draft, options: AccelerationOptions, host: Host) -> RunEstimate:
    if draft.speeds is None:
        return found
    seconds = Speeds(draft.speeds).seconds(_kind(found, options, host), found.size.num_tokens)
    return found if seconds is None else replace(found, seconds=seconds * found.forwards)


def _kind(found: RunEstimate, options: AccelerationOptions, host: Host) -> str:
    return kind_of_run(host.device, found.footprint, options, found.placement.streams)


def _with_disk(found: RunEstimate, draft: Draft, problems: Problems) -> RunEstimate:
    """Room for the finished windows, where they are kept, and whether the video's file can be written."""
    if draft.runs is None:
        found = replace(found, disk_bytes=0)
    else:
        free = _free_disk(draft.runs, problems)
        kept = 0 if free is None else kept_bytes(draft.runs)  # perhaps by this very run, which then needs less
        if free is not None and found.disk_bytes > free + kept:
            problems.add(
                "resume",
                f"Finished windows need up to {found.disk_bytes / GB:.2f} GB in {draft.runs}, {free / GB:.2f} GB are "
                f"free. Make room, or turn resuming off.",
            )
    if draft.output is not None:
        nearest = _nearest("output", draft.output, problems)
        if nearest is not None and nearest != draft.output.absolute():
            _check_folder("output", nearest, problems)
        elif nearest is not None and nearest.is_dir():
            problems.add("output", f"{draft.output} is a folder. Name a file in it, such as video.mp4.")
    return found


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


def _with_ram(found: RunEstimate, draft: Draft, problems: Problems, host: Host) -> RunEstimate:
    """What is needed of the machine's memory; `keep_frames` is what a person can turn off."""
    free = psutil.virtual_memory().available
    pixels = draft.target[0] * draft.target[1]
    window = found.windows[0] * pixels * FLOAT_FRAME_BYTES
    needed = window + (found.frames * pixels * FLOAT_FRAME_BYTES if draft.keeps_frames else 0)
    if window > free:
        problems.add(
            "window_frames",
            f"A window of {found.windows[0]} frames takes {window / GB:.1f} GB of memory, {free / GB:.1f} GB are free. "
            f"Take shorter windows, or a smaller size.",
        )
    elif needed > free:
        problems.add(
            "keep_frames",
            f"{found.frames} frames take {needed / GB:.1f} GB of memory, {free / GB:.1f} GB are free. Turn keep_frames "
            f"off and take the video output.",
        )
    weights = 0 if found.footprint is None or host.device.type == "cpu" else found.footprint.weights_bytes
    if weights + needed > free >= needed:
        problems.note(
            f"The weights ({weights / GB:.1f} GB) do not stay in the {free / GB:.1f} GB of memory that are free; what "
            f"is streamed is then read from the disk again and again. Smaller weights (GGUF or fp8) are faster."
        )
    return replace(found, ram_bytes=needed + weights, free_ram_bytes=free)
