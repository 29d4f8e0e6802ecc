"""A whole run from files to a file: checked before any weights are read, then heard, seen, sampled and written."""

from __future__ import annotations

import logging
import math
import os
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .audio.dialogue import Arrangement, Speech, soundtrack
from .audio.embeds import AudioEmbeds, encode_audio
from .audio.waveform import Sound, read
from .conditioning.reference_image import bucket, check_size, fit, read_image
from .conditioning.speakers import Place
from .config import GenerationConfig, Recipe, Resolution
from .errors import ConfigError, Problems
from .host import Host, Progress
from .media.video import write_video
from .memory.placement import MemoryConfig, resident
from .preflight.checks import Draft, check_places, check_voices, describe, inspect, measuring
from .preflight.estimate import RunEstimate
from .shapes import FPS
from .weights import handles
from .weights.fit import WeightFiles

if TYPE_CHECKING:  # seconds to import; what is wrong with a request is told before
    from .conditioning.conditioning import Conditioning

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """The weights of a run; None is a mistake, but for an adapter whose weights are in the base."""

    base: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    image_encoder: Path | None = None
    audio_encoder: Path | None = None
    adapter: Path | None = None
    loras: tuple[str, ...] = ()  # FILE or FILE:STRENGTH

    @classmethod
    def names(cls) -> list[str]:
        """The fields that name one file each."""
        return [field.name for field in fields(cls) if field.name != "loras"]


@dataclass(frozen=True)
class Request:
    """What a person asks for on the command line.

    Attributes:
        image: the portrait.
        audio: a voice for each speaker; None for one who keeps quiet.
        starts: when each voice starts, in seconds; none goes by `in_turn`.
        heard: what the video sounds like where that is not the voices, such as the mix they were separated from.
        boxes: a place for each speaker, (left, top, right, bottom) in percent; none splits the image.
        size: (height, width) instead of the resolution's bucket.
        in_turn: several voices one after the other.
        fps: frames a second of the file; the model itself runs at 25.
        resume_folder: where finished windows are kept until the video is written.
        restart: forget what an earlier run has left there, and make every window again.
    """

    image: Path | None
    audio: tuple[Path | None, ...]
    files: Files
    output: Path
    config: GenerationConfig
    prompt: str = ""
    negative_prompt: str = ""
    boxes: tuple[tuple[float, ...], ...] = ()
    size: tuple[int, int] | None = None
    in_turn: bool = False
    fps: float = 25.0
    recipe: Recipe | None = None
    memory: MemoryConfig = MemoryConfig()
    resume_folder: Path | None = None
    starts: tuple[float, ...] = ()
    heard: Path | None = None
    restart: bool = False


@dataclass(frozen=True)
class Seen:
    """What a look at a request gave, before any weights are read; what could not be told is None.

    Attributes:
        picture: uint8 `h w c`.
        heard: the soundtrack where it is not the voices.
        masks: `p+1 h w`, None for one speaker.
    """

    picture: Tensor | None
    speeches: list[Speech]
    heard: Sound | None
    draft: Draft
    masks: Tensor | None
    estimate: RunEstimate | None


@torch.inference_mode()
def run(request: Request, host: Host, problems: Problems | None = None) -> Path:
    """Makes the video and returns its path.

    Args:
        problems: what is known to be wrong already.

    Raises:
        ConfigError: the request cannot be served; all that is known before the weights are read is told at once.
        MultiTalkError: it turned out later.
    """
    problems = problems or Problems()
    seen = look(request, problems, host)
    problems.raise_errors()
    logger.log(logging.WARNING if problems.notes else logging.INFO, "%s", describe(problems, seen.estimate))
    from .generate import generate, open_store  # imports diffusers, which takes seconds

    model = _files(request, host.device)
    config = seen.draft.config
    embeds = _hear(request, seen.speeches, host)
    conditioning = _see(request, fit(seen.picture, seen.draft.target)[:, None], seen.masks, host)
    transformer = model.transformer
    store = None
    if request.resume_folder:
        store = open_store(request.resume_folder, transformer, embeds, conditioning, config)
        if request.restart:
            store.clear()
    windows = generate(transformer, embeds, conditioning, config, host, memory=request.memory, store=store)
    num_output = embeds.output_frames(config.num_frames)
    heard = seen.speeches if seen.heard is None else [Speech(seen.heard)]
    sound = soundtrack(heard, _arrangement(request), num_output, embeds.fps)
    with measuring(seen.draft, seen.estimate, host, is_whole=not store or not any(store.folder.iterdir())):
        write_video(request.output, windows, config.num_frames or embeds.num_frames, embeds.fps, num_output, sound)
    if store:
        store.discard()
    return request.output


def look(request: Request, problems: Problems, host: Host) -> Seen:
    """Everything that can be known without weights; all that is wrong goes to `problems`."""
    picture = _picture(request, problems)
    target = None if picture is None else problems.attempt("size", _target, request, picture)
    speeches = _speeches(request, problems)
    heard = None if request.heard is None else problems.attempt("heard", read, request.heard)
    places = _places(request, problems)
    if len(request.boxes) not in (0, len(request.audio)):
        problems.add("box", f"{len(request.audio)} voices need as many boxes, got {len(request.boxes)}.")
        places = []
    for name in Files.names():
        if getattr(request.files, name) is None and name != "adapter":
            option = name.replace("_", "-")
            problems.add(option, f"There is none. Name its weights with --{option}.")
    masks = check_places(places, tuple(picture.shape[:2]), target, problems) if target else None
    num_frames = check_voices(speeches, _arrangement(request), request.config.num_frames, request.fps, problems)
    draft = _draft(request, target, num_frames, problems, host.device)
    return Seen(picture, speeches, heard, draft, masks, inspect(draft, problems, host))


def _picture(request: Request, problems: Problems) -> Tensor | None:
    if request.image is None:
        problems.add("image", "There is none. Name a portrait with --image.")
        return None
    return problems.attempt("image", read_image, request.image)


def _target(request: Request, picture: Tensor) -> tuple[int, int]:
    return check_size(*request.size) if request.size else bucket(*picture.shape[:2], request.config.resolution)


def _speeches(request: Request, problems: Problems) -> list[Speech]:
    if not request.audio:
        problems.add("audio", "There is none. Name a voice with --audio, once for each speaker.")
    starts = request.starts or (None,) * len(request.audio)
    if len(starts) != len(request.audio):
        problems.add("start", f"{len(request.audio)} voices need as many starts, got {len(starts)}.")
        starts = (None,) * len(request.audio)
    pairs = zip(request.audio, starts, strict=True)
    speeches = [problems.attempt("audio", _speech, path, start_s) for path, start_s in pairs]
    return [speech for speech in speeches if speech is not None]


def _speech(path: Path | None, start_s: float | None) -> Speech:
    return Speech(None if path is None else read(path), start_s)


def _places(request: Request, problems: Problems) -> list[Place]:
    if not request.boxes:
        return [Place()] * len(request.audio)
    places = [problems.attempt("box", Place, None, box, True) for box in request.boxes]
    return [place for place in places if place is not None]


def _draft(
    request: Request, target: tuple[int, int] | None, num_frames: int | None, problems: Problems, device: torch.device
) -> Draft:
    files, voices = request.files, max(1, len(request.audio))
    trained = files.adapter or files.base
    recipe = request.recipe or handles.recipe_of("auto", trained.name if trained else "")
    windows = problems.attempt("windows", lambda: replace(request.config.windows, recipe=recipe))
    loras = [problems.attempt("lora", parse_lora, lora) for lora in files.loras]
    resolution = Resolution.of(*target) if target else request.config.resolution
    return Draft(
        config=replace(request.config, windows=windows or request.config.windows, resolution=resolution),
        memory=request.memory,
        files=WeightFiles(**{name: getattr(files, name) for name in Files.names()}, loras=tuple(filter(None, loras))),
        dtype=handles.Precision.AUTO.on(device),
        num_frames=num_frames,
        target=target,
        num_voices=voices,
        num_places=voices,  # boxes that do not match are told already
        runs=request.resume_folder,
        speeds=request.resume_folder,
        output=request.output,
    )


def parse_lora(text: str) -> tuple[Path, float]:
    """File and strength from FILE or FILE:STRENGTH; a colon may be part of the file's path.

    Raises:
        ConfigError: the strength is no number.
    """
    path, _, strength = text.rpartition(":")
    if not path or os.path.exists(text) or any(mark in strength for mark in "/\\"):
        return Path(text), 1.0
    try:
        number = float(strength)
    except ValueError:
        number = math.nan
    if not math.isfinite(number):
        raise ConfigError(f"The strength of {path} must be a number such as 0.8, got {strength}.")
    return Path(path), number


def _files(request: Request, device: torch.device) -> handles.TransformerFiles:
    files = request.files
    model = handles.TransformerFiles(
        base=files.base,
        adapter=files.adapter,
        recipe=request.recipe or handles.recipe_of("auto", (files.adapter or files.base).name),
        dtype=handles.Precision.AUTO.on(device),
        memory=request.memory,
    )
    for lora in files.loras:
        model = model.with_lora(*parse_lora(lora))
    return model


def _arrangement(request: Request) -> Arrangement:
    return Arrangement.IN_TURN if request.in_turn else Arrangement.PARALLEL


def _hear(request: Request, speeches: list[Speech], host: Host) -> AudioEmbeds:
    """What is said; the encoder is read for it and dropped again."""
    host.report(Progress("audio", 0))
    with resident(handles.audio_encoder(request.files.audio_encoder).model, host) as encoder:
        return encode_audio(
            encoder,
            speeches,
            _arrangement(request),
            round(request.config.num_frames * request.fps / FPS),
            normalize_input=handles.normalizes_input(encoder),
            fps=request.fps,
        )


def _see(request: Request, source: Tensor, masks: Tensor | None, host: Host) -> Conditioning:
    """What is seen; the text encoder, the largest of the small networks, is read for it and dropped again."""
    from .conditioning.conditioning import Conditioning  # imports diffusers
    from .models.text_encoder import DEFAULT_NEGATIVE_PROMPT, split_prompts

    host.report(Progress("prompt", 0))
    encoder = handles.text_encoder(request.files.text_encoder, host.device).model
    with resident(encoder.model, host):
        prompts = tuple(encoder.encode(part).cpu() for part in split_prompts(request.prompt))
        negative = encoder.encode(request.negative_prompt.strip() or DEFAULT_NEGATIVE_PROMPT).cpu()
    vae, image_encoder = handles.vae(request.files.vae).model, handles.image_encoder(request.files.image_encoder).model
    return Conditioning(source, prompts, negative, vae, image_encoder, None, masks)
