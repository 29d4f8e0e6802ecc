"""Clips on disk as the windows that the transformer learns from: what is known of each, what it hears, who is where."""

from __future__ import annotations

from itertools import chain

import numpy as np
import torch
from torch import Tensor

from pipeline.conditioning.context_frames import known_mask
from pipeline.conditioning.speakers import Place, speaker_masks, to_latent_masks
from pipeline.generation.windows import CONTEXT
from pipeline.shapes import LatentSize, num_latent_frames, num_video_frames

from .dataset import KNOWN_FRAMES, shards
from .run import RUN_FOLDER

CONTINUED = 0.5  # share of the early clips that are shown as continued ones; late ones always are


class Clips:
    """The clips on disk, more of them whenever asked again."""

    def __init__(self, names: tuple[str, ...]) -> None:
        self.names, self.known, self.clips = names, set(), []

    def refresh(self) -> None:
        """Reads shards that are new."""
        for path in chain.from_iterable(map(shards, self.names)):
            if path not in self.known:
                self.known.add(path)
                self.clips += torch.load(path)

    def choose(self, random: np.random.Generator, count: int) -> list[dict]:
        """Clips that one prompt fits: of one mood and one number of people."""
        kin = self.clips[random.integers(len(self.clips))]
        key = kind_of(kin)
        fitting = [clip for clip in self.clips if kind_of(clip) == key]
        return [fitting[index] for index in random.choice(len(fitting), min(count, len(fitting)), replace=False)]


def kind_of(clip: dict) -> tuple[int, int, int]:
    return clip["smile"], clip["brows"], len(clip["features"])


def latent_statistics() -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of the VAE's latents, `16 1 1 1` each, over the first shard; kept on disk."""
    path = RUN_FOLDER / "latent_statistics.pt"
    if not path.exists():
        every = torch.cat([clip["latents"].float().flatten(1) for clip in torch.load(shards("short")[0])], dim=1)
        torch.save(tuple(value[:, None, None, None] for value in (every.mean(dim=1), every.std(dim=1))), path)
    return torch.load(path)


def window_of(
    clip: dict, length: int, worn: float, statistics: tuple[Tensor, Tensor], random: np.random.Generator
) -> dict:
    """A window of a clip: what is known of it, what it hears, who is where.

    A window that continues another one knows frames that the model has drawn, with its errors, which stay at their
    place, and that have been coded once more. So the known frames of a continued clip are those after another coding,
    where the clip has them, and may be off by the same noise in all of them, of `worn` standard deviations at most;
    what follows them is the clip as it is. Errors are to be mended, not handed on.

    What the encoder makes of the grey frames after the known ones says nothing, so it is taken from a store of such
    tails instead of being encoded for every clip.
    """
    mean, std = statistics
    clean = ((clip["latents"].float() - mean) / std)[:, :length]
    length, frames = clean.shape[1], num_video_frames(clean.shape[1])
    known = 1
    if clip["late"] or random.random() < CONTINUED:
        most = num_latent_frames(KNOWN_FRAMES)
        known = most if length > 13 and random.random() < 0.7 else int(random.integers(2, min(most, length - 1) + 1))
        if worn:  # phases without it draw as they always did
            if "coded" in clip:
                clean[:, :known] = ((clip["coded"].float() - mean) / std)[:, :known]
            error = random.standard_normal(clean[:, :1].shape, dtype=np.float32)
            clean[:, :known] += random.uniform(0, worn) * torch.from_numpy(error)
    condition = torch.cat((clean[:, :known], _grey_tail(clean, known, statistics)), dim=1)
    mask = known_mask(num_video_frames(known), frames)
    condition = torch.cat((mask[..., None, None].expand(-1, -1, *clean.shape[2:]), condition))
    features = clip["features"].float()
    heard = (torch.arange(frames)[:, None] + CONTEXT).clamp(0, features.shape[1] - 1)
    return {
        "clean": clean, "known": known, "condition": condition, "audio": features[:, heard], "weights": clip["weights"],
        "image": clip["image"].float(),
        "masks": _masks(clean.shape[2] * 8, clean.shape[3] * 8) if len(features) > 1 else None,
    }  # fmt: skip


_tails: dict[str, Tensor] = {}


def _grey_tail(clean: Tensor, known: int, statistics: tuple[Tensor, Tensor]) -> Tensor:
    """The latents of grey frames after `known` latent frames, those of some other clip."""
    if not _tails:
        _tails.update(torch.load(RUN_FOLDER / "grey_tails.pt"))
    tails = _tails["tails"]  # clips 16 t h w, of whole windows with one known frame
    tail = (tails[torch.randint(len(tails), ()).item()] - statistics[0]) / statistics[1]
    count = clean.shape[1] - known
    columns = torch.arange(clean.shape[3]) % tail.shape[3]
    steps = torch.arange(1, 1 + count).clamp(max=tail.shape[1] - 1)
    return tail[:, steps][..., columns]


def _masks(height: int, width: int) -> Tensor:
    """Side by side, as when nobody says who is where."""
    masks = speaker_masks([Place(), Place()], (height, width), (height, width))
    return to_latent_masks(masks, LatentSize.of_video(1, height, width))
