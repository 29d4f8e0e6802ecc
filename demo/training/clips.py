"""Phase 3: scenes become clips on disk, encoded by the finished VAE and speech encoder."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor
from transformers import CLIPVisionConfig, CLIPVisionModel, Wav2Vec2Model

from pipeline.audio.embeds import SAMPLES_PER_FRAME, TAIL_FRAMES
from pipeline.models.image_encoder import ImageEncoder
from pipeline.models.wav2vec2.encoder import encode as encode_speech

from ..scenes import Scene, random_scene
from . import speech_encoder, vae
from .run import Setup, autocast

CLIP_FRAMES = (33, 97)  # of short clips, which show many faces, and of long ones
NUM_SHARDS = 100  # of each length
CLIPS_PER_SHARD = 12
CONTEXT_FRAMES = 25  # at most, of a window that continues another one
GREY_TAILS = 5
EYE_WEIGHT, MOUTH_WEIGHT = 5.0, 7.0  # in the loss, where the rest of the picture has 1

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Clip:
    """One encoded scene.

    Attributes:
        latents: `16 t h w` of the VAE, not normalised.
        features: `p n layers channels` of each person's speech, and of the silence after it.
        image_embeds: `i d` of the first frame.
        weights: `h w` of the latents in a loss.
        smile: -1, 1, or 0 where the prompt names no expression.
        brows: the same.
        late: the scene starts in the middle of the speech.
        context_latents: `16 t h w` of the first frames after one more coding; None in half of the clips.
    """

    latents: Tensor
    features: Tensor
    image_embeds: Tensor
    weights: Tensor
    smile: int
    brows: int
    late: bool
    context_latents: Tensor | None = None

    @property
    def kind(self) -> tuple[int, int, int]:
        """Smile, brows and number of people: clips of one kind can share a prompt."""
        return self.smile, self.brows, len(self.features)


@dataclass(frozen=True)
class Encoders:
    """Finished networks that clips are encoded with."""

    vae: AutoencoderKLWan
    speech: Wav2Vec2Model
    image: ImageEncoder

    def clip(self, scene: Scene, with_context: bool) -> Clip:
        """Clip of a scene; `with_context` adds the latents of the first frames after one more coding."""
        frames = scene.frames()
        features = torch.stack([self._features(sound, scene.start + len(frames)) for sound in scene.sounds])
        image = torch.from_numpy(frames[0]).permute(2, 0, 1).float() / 127.5 - 1
        weights = torch.from_numpy(scene.loss_weights(EYE_WEIGHT, MOUTH_WEIGHT))
        return Clip(
            latents=self.latents(frames).half(),
            features=features[:, scene.start :].half(),
            image_embeds=self.image.encode(image).half(),
            weights=torch.nn.functional.avg_pool2d(weights[None], 8)[0],
            smile=scene.smile,
            brows=scene.brows,
            late=scene.start > 0,
            context_latents=self.latents(frames[:CONTEXT_FRAMES], recodings=1).half() if with_context else None,
        )

    @torch.no_grad()
    def latents(self, frames: np.ndarray, recodings: int = 0) -> Tensor:
        """Latents `16 t h w`, not normalised, of frames `f h w 3`, 0..255, after so many more codings."""
        video = torch.from_numpy(frames).permute(3, 0, 1, 2)[None].float().to(self.vae.device) / 127.5 - 1
        with autocast(self.vae.device):
            return self.vae.encode(vae.recode(self.vae, video, recodings)).latent_dist.mode()[0].float().cpu()

    def _features(self, samples: np.ndarray, num_frames: int) -> Tensor:
        """Features `n layers channels` of the video frames and of the silence after them, as the engine makes them."""
        waveform = np.zeros((num_frames + TAIL_FRAMES) * SAMPLES_PER_FRAME, np.float32)
        waveform[: num_frames * SAMPLES_PER_FRAME] = samples[: num_frames * SAMPLES_PER_FRAME]
        return encode_speech(self.speech, torch.from_numpy(waveform), num_frames + TAIL_FRAMES)


def make(setup: Setup) -> None:
    """Writes all clips and grey tails that are not on disk yet."""
    encoders = Encoders(vae.train(setup), speech_encoder.train(setup).encoder, random_image_encoder())
    _folder(setup).mkdir(parents=True, exist_ok=True)
    for num_frames in CLIP_FRAMES:
        for number in range(setup.steps or NUM_SHARDS):
            _save_once(_folder(setup) / f"{num_frames}-{number:04d}.pt", _shard, encoders, setup, num_frames, number)
    _save_once(_grey_tails_path(setup), _grey_tails, encoders, setup)


def load(setup: Setup) -> list[Clip]:
    """All clips on disk.

    Raises:
        FileNotFoundError: there are none.
    """
    paths = sorted(_folder(setup).glob("*.pt"))
    if not paths:
        raise FileNotFoundError(f"{_folder(setup)} holds no clips. Run `python -m demo.training clips` first.")
    return [Clip(**fields) for path in paths for fields in torch.load(path)]


def load_grey_tails(setup: Setup) -> Tensor:
    """Latents `clips 16 t h w`, not normalised, of grey frames after a portrait; the first latent frame is its."""
    return torch.load(_grey_tails_path(setup))


def latent_statistics(setup: Setup) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents, `16 1 1 1` each, over the first shard; kept on disk."""
    path = setup.folder / "latent_statistics.pt"
    if not path.exists():
        latents = torch.cat([clip.latents.float().flatten(1) for clip in load(setup)[:CLIPS_PER_SHARD]], dim=1)
        save_latent_statistics(latents.mean(dim=1), latents.std(dim=1), setup)
    return torch.load(path)


def save_latent_statistics(mean: Tensor, std: Tensor, setup: Setup) -> None:
    """Keeps the statistics, `16` each, for `latent_statistics`."""
    torch.save(tuple(value[:, None, None, None] for value in (mean, std)), setup.folder / "latent_statistics.pt")


def random_image_encoder() -> ImageEncoder:
    """CLIP's tower at a small size with random weights: enough for its tokens to tell pictures apart."""
    config = CLIPVisionConfig(
        hidden_size=80, intermediate_size=160, num_hidden_layers=3, num_attention_heads=1, patch_size=14,
        image_size=56, hidden_act="gelu",
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return ImageEncoder(CLIPVisionModel(config).eval())


def _folder(setup: Setup) -> Path:
    return setup.folder / "clips"


def _grey_tails_path(setup: Setup) -> Path:
    return setup.folder / "grey_tails.pt"


def _save_once(path: Path, make_content: Callable[..., object], *arguments: object) -> None:
    """Writes what `make_content` returns, unless the file is there; a half-written file never counts as one."""
    if path.exists():
        return
    torch.save(make_content(*arguments), path.with_suffix(".partial"))
    path.with_suffix(".partial").replace(path)
    logger.info("clips  %s", path.stem)


def _shard(encoders: Encoders, setup: Setup, num_frames: int, number: int) -> list[dict]:
    random = np.random.default_rng((setup.seed, num_frames, number))
    return [
        vars(encoders.clip(random_scene(random, num_frames), with_context=index % 2 == 0))
        for index in range(CLIPS_PER_SHARD)
    ]


def _grey_tails(encoders: Encoders, setup: Setup) -> Tensor:
    random = np.random.default_rng((setup.seed, 0))
    tails = []
    for _ in range(GREY_TAILS):
        portrait = random_scene(random, 1, num_people=1).frames()
        grey = np.full((CLIP_FRAMES[-1] - 1, *portrait.shape[1:]), 127.5, np.float32)
        tails.append(encoders.latents(np.concatenate((portrait, grey))))
    return torch.stack(tails)
