"""Talking clips as the transformer learns from them: latents, speech features, prompts; drawn once, kept on disk."""

from __future__ import annotations

import logging
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, Wav2Vec2Model

from pipeline.audio.embeds import SAMPLES_PER_FRAME, TAIL_FRAMES
from pipeline.models.image_encoder import ImageEncoder
from pipeline.models.wav2vec2.encoder import encode as encode_speech

from .faces import Appearance, Motion, draw, eye_box, mouth_box, random_appearance, random_background, random_motion
from .lip_sync import implied_mouth
from .numbers import fast_numbers
from .run import RUN_FOLDER
from .speech import Utterance, random_utterance
from .train_vae import coded

CLIPS_FOLDER = RUN_FOLDER / "clips"
HEIGHT, WIDTH_ONE, WIDTH_TWO = 128, 128, 192
KNOWN_FRAMES = 25  # at most, of a window that continues another one
LATE_START = 40  # frames after which a late clip starts: nobody looks neutral any more
CLIPS_PER_SHARD = 12
EYE_WEIGHT, MOUTH_WEIGHT = 5, 7  # in the loss, where the rest of the picture has 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Casting:
    """Who is in a set of clips, as shares."""

    two: float = 0.25  # clips of two people
    late: float = 0.3  # clips that start `LATE_START` frames into the speech
    plain: float = 0.0  # clips whose prompt asks for no look, and whose people keep the portrait's
    made_up: float = 0.0  # people who say made-up words
    coded: bool = False  # whether of every other clip the first frames are kept as they are after one more coding


@dataclass(frozen=True)
class Scene:
    """One clip before anything is encoded."""

    people: list[tuple[Appearance, Motion]]
    sounds: list[np.ndarray]  # of each person, from the start of its speech
    background: tuple[int, int, int]
    smile: int  # -1, 1, or 0 where none is asked for
    brows: int
    start: int  # the clip's first frame within the speech

    @property
    def width(self) -> int:
        """Of the frames, in pixels."""
        return WIDTH_ONE if len(self.people) == 1 else WIDTH_TWO

    def frames(self) -> np.ndarray:
        """`f h w 3` uint8."""
        return draw(self.people, self.background, HEIGHT, self.width)

    def eye_box(self, index: int) -> tuple[slice, slice]:
        """Rows and columns of the pixels where a person's eyes and brows may be."""
        return eye_box(self.people[index][0], index, len(self.people), HEIGHT, self.width)

    def mouth_box(self, index: int) -> tuple[slice, slice]:
        """Rows and columns of the pixels where a person's mouth may be."""
        return mouth_box(self.people[index][0], index, len(self.people), HEIGHT, self.width)

    def weights(self) -> Tensor:
        """`h w` over the latents: 1, more where eyes and brows may be, most where a mouth may be."""
        weights = torch.ones(HEIGHT, self.width)
        for index in range(len(self.people)):
            weights[self.eye_box(index)] = EYE_WEIGHT
            weights[self.mouth_box(index)] = MOUTH_WEIGHT
        return torch.nn.functional.avg_pool2d(weights[None], 8)[0]


def random_scene(
    random: np.random.Generator, num_frames: int, num_people: int | None = None, late: bool | None = None,
    held_out: bool = False, casting: Casting = Casting(),
) -> Scene:  # fmt: skip
    """People, what they say and how they look while they say it."""
    if num_people is None:
        num_people = 2 if random.random() < casting.two else 1
    if late is None:
        late = random.random() < casting.late
    start = LATE_START if late else 0
    smile, brows = (int(random.choice([-1, 1])) for _ in range(2))
    if casting.plain and random.random() < casting.plain:  # sets without plain clips draw as they always did
        smile, brows = 0, 0
    duration_s = (start + num_frames) / 25
    utterances = [random_utterance(random, duration_s, held_out, casting.made_up) for _ in range(num_people)]
    if num_people == 2:
        utterances = _in_turn(random, utterances)
    people = []
    for utterance in utterances:
        motion = random_motion(random, utterance.opening, utterance.width, smile, brows)
        cut = Motion(*(values[start : start + num_frames] for values in vars(motion).values()))
        people.append((random_appearance(random), cut))
    sounds = [utterance.samples for utterance in utterances]
    return Scene(people, sounds, random_background(random), smile, brows, start)


def _in_turn(random: np.random.Generator, utterances: list[Utterance]) -> list[Utterance]:
    """Mostly one of two is silent, all the time or from some moment on; sometimes both speak."""
    manner = random.random()
    if manner < 0.2:
        return utterances
    total = len(utterances[0].samples)
    turn = 0 if manner < 0.6 else int(total * random.uniform(0.3, 0.7))
    first, second = utterances[:: int(random.choice([-1, 1]))]
    silenced = [_silenced(first, slice(turn, None)), _silenced(second, slice(0, turn))]
    return silenced[:: int(random.choice([-1, 1]))]


def _silenced(utterance: Utterance, quiet: slice) -> Utterance:
    samples = utterance.samples.copy()
    samples[quiet] = 0
    return replace(utterance, samples=samples, **dict(zip(("opening", "width"), implied_mouth(samples), strict=True)))


def random_image_encoder() -> ImageEncoder:
    """CLIP's tower at a small size with random weights: its tokens tell pictures apart, which is all they are for."""
    config = CLIPVisionConfig(
        hidden_size=80, intermediate_size=160, num_hidden_layers=3, num_attention_heads=1, patch_size=14,
        image_size=56, hidden_act="gelu",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageEncoder(CLIPVisionModel(config).eval())


@dataclass(frozen=True)
class Encoders:
    """The finished parts that clips are encoded with."""

    vae: AutoencoderKLWan
    listener: Wav2Vec2Model
    image: ImageEncoder

    @torch.no_grad()
    def latents(self, frames: np.ndarray, codings: int = 0) -> Tensor:
        """`16 t h w`, not normalised, of `f h w 3` uint8 frames that have been coded that often before."""
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float().to(self.vae.device) / 127.5 - 1
        with fast_numbers(self.vae.device):
            return self.vae.encode(coded(self.vae, video, codings)).latent_dist.mode()[0].float().cpu()

    def speech(self, samples: np.ndarray, num_frames: int) -> Tensor:
        """`n layers channels`, features of the video frames and of the silence after them, as the engine makes them."""
        padded = np.zeros((num_frames + TAIL_FRAMES) * SAMPLES_PER_FRAME, np.float32)
        padded[: num_frames * SAMPLES_PER_FRAME] = samples[: num_frames * SAMPLES_PER_FRAME]
        return encode_speech(self.listener, torch.from_numpy(padded), num_frames + TAIL_FRAMES)


def encode(scene: Scene, encoders: Encoders, with_coded: bool) -> dict:
    """A clip for the disk, if asked with its first frames as a window knows them that continues another one."""
    frames = scene.frames()
    heard = [encoders.speech(sound, scene.start + len(frames)) for sound in scene.sounds]
    image = torch.from_numpy(frames[0]).permute(2, 0, 1).float() / 127.5 - 1
    clip = {
        "latents": encoders.latents(frames).half(),
        "features": torch.stack(heard)[:, scene.start :].half(),
        "image": encoders.image.encode(image).half(),
        "weights": scene.weights(),
        "smile": scene.smile,
        "brows": scene.brows,
        "late": scene.start > 0,
    }
    if with_coded:
        clip["coded"] = encoders.latents(frames[:KNOWN_FRAMES], codings=1).half()
    return clip


def make_shards(
    encoders: Encoders, seed: int, name: str, num_frames: int, numbers: range, casting: Casting = Casting()
) -> None:
    """Draws and encodes the clips of these shards, unless they are on disk.

    Shards of one length and number, whatever their name, show the same people.
    """
    CLIPS_FOLDER.mkdir(parents=True, exist_ok=True)
    for number in numbers:
        path = CLIPS_FOLDER / f"{name}-{number:04d}.pt"
        if path.exists():
            continue
        random = np.random.default_rng((seed, num_frames, number))
        clips = [
            encode(random_scene(random, num_frames, casting=casting), encoders, casting.coded and index % 2 == 0)
            for index in range(CLIPS_PER_SHARD)
        ]
        torch.save(clips, path.with_suffix(".partial"))
        path.with_suffix(".partial").replace(path)
        logger.info("clips  %s", path.stem)


def shards(name: str) -> list[Path]:
    """The shards of this name that are on disk by now."""
    return sorted(CLIPS_FOLDER.glob(f"{name}-*.pt"))


def make_grey_tails(encoders: Encoders, seed: int, count: int = 5, num_frames: int = 97) -> None:
    """What the encoder makes of grey frames after a portrait, for windows whose later frames are not known."""
    path = RUN_FOLDER / "grey_tails.pt"
    if path.exists():
        return
    random = np.random.default_rng((seed, 0))
    tails = []
    for _ in range(count):
        frames = random_scene(random, 25, num_people=1).frames()[:1]
        grey = np.full((num_frames - 1, *frames.shape[1:]), 127.5, np.float32)
        tails.append(encoders.latents(np.concatenate((frames, grey))))
    torch.save({"tails": torch.stack(tails)}, path)
