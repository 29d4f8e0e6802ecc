"""A whole run from files to a file: checked before any weights are read, then heard, seen, sampled and written."""

from __future__ import annotations

import logging
from dataclasses import dataclass, fields, replace
from pathlib import Path

import torch
from torch import Tensor
from transformers import Wav2Vec2Model

from .audio.dialogue import Arrangement, Speech, soundtrack
from .audio.embeds import AudioEmbeds, encode_audio
from .audio.waveform import read
from .conditioning.conditioning import Conditioning
from .conditioning.prompt import DEFAULT_NEGATIVE_PROMPT, split_prompts
from .conditioning.reference import bucket, check_size, fit, read_image
from .conditioning.speakers import Place, speaker_masks
from .config import GenerationConfig, Recipe
from .errors import AudioError, ConfigError, ImageError
from .generate import generate, open_store
from .host import Host, Progress
from .memory import MemoryConfig, resident
from .shapes import FPS
from .video import write_video
from .weights import handles

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Files:
    """The weights of a run."""

    base: Path
    vae: Path
    text_encoder: Path
    image_encoder: Path
    audio_encoder: Path
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
        audio: a voice for each speaker.
        boxes: a place for each speaker, (left, top, right, bottom) in percent; none splits the image.
        size: (height, width) instead of the resolution's bucket.
        in_turn: several voices one after the other.
    """

    image: Path | None
    audio: tuple[Path, ...]
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


@torch.inference_mode()
def run(request: Request, host: Host) -> Path:
    """Makes the video and returns its path.

    Raises:
        MultiTalkError: the request cannot be served; what is known before the weights are read is told before.
    """
    picture, speeches, target, masks = _look(request)
    model = _files(request)
    parts = {name: getattr(handles, name)(getattr(request.files, name)) for name in _ENCODERS}
    model.check()

    embeds = _hear(parts["audio_encoder"].model, request, speeches, host)
    conditioning = _see(parts, request, fit(picture, target)[:, None], masks, host)
    config = replace(request.config, windows=replace(request.config.windows, recipe=model.recipe))
    transformer = model.transformer
    store = None
    if request.resume_folder:
        store = open_store(request.resume_folder, transformer, embeds, conditioning, config)
    windows = generate(transformer, embeds, conditioning, config, host, memory=request.memory, store=store)
    num_output = embeds.output_frames(config.num_frames)
    sound = soundtrack(speeches, _arrangement(request), num_output, embeds.fps)
    write_video(request.output, windows, config.num_frames or embeds.num_frames, embeds.fps, num_output, sound)
    if store:
        store.discard()
    return request.output


_ENCODERS = ("audio_encoder", "text_encoder", "image_encoder", "vae")


def _look(request: Request) -> tuple[Tensor, list[Speech], tuple[int, int], Tensor | None]:
    """The picture, the voices, the video's size and the speakers' masks: all that can be wrong without weights."""
    if request.image is None:
        raise ImageError("There is no image. Name a portrait with --image.")
    if not request.audio:
        raise AudioError("There is no audio. Name a voice with --audio, once for each speaker.")
    if request.boxes and len(request.boxes) != len(request.audio):
        raise ConfigError(f"{len(request.audio)} voices need as many boxes, got {len(request.boxes)}.")
    picture = read_image(request.image)
    speeches = [Speech(read(path)) for path in request.audio]
    size = picture.shape[:2]
    target = check_size(*request.size) if request.size else bucket(*size, request.config.resolution)
    places = [Place(box=box, percent=True) for box in request.boxes] or [Place()] * len(speeches)
    return picture, speeches, target, speaker_masks(places, size, target) if len(places) > 1 else None


def _files(request: Request) -> handles.TransformerFiles:
    files = request.files
    model = handles.TransformerFiles(
        base=files.base,
        adapter=files.adapter,
        recipe=request.recipe or handles.recipe_of("auto", (files.adapter or files.base).name),
        memory=request.memory,
    )
    for lora in files.loras:
        path, _, strength = lora.rpartition(":") if ":" in lora else (lora, "", "1")
        model = model.with_lora(Path(path), float(strength))
    return model


def _arrangement(request: Request) -> Arrangement:
    return Arrangement.IN_TURN if request.in_turn else Arrangement.PARALLEL


def _hear(encoder: Wav2Vec2Model, request: Request, speeches: list[Speech], host: Host) -> AudioEmbeds:
    host.report(Progress("audio", 0))
    with resident(encoder, host):
        return encode_audio(
            encoder,
            speeches,
            _arrangement(request),
            round(request.config.num_frames * request.fps / FPS),
            normalize_input=handles.normalizes_input(encoder),
            fps=request.fps,
        )


def _see(parts: dict, request: Request, source: Tensor, masks: Tensor | None, host: Host) -> Conditioning:
    host.report(Progress("prompt", 0))
    encoder = parts["text_encoder"].model
    with resident(encoder.model, host):
        prompts = tuple(encoder.encode(part).cpu() for part in split_prompts(request.prompt))
        negative = encoder.encode(request.negative_prompt.strip() or DEFAULT_NEGATIVE_PROMPT).cpu()
    return Conditioning(source, prompts, negative, parts["vae"].model, parts["image_encoder"].model, None, masks)
