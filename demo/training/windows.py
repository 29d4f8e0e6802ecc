"""Clips as the windows that the transformer learns from, with the condition, the audio and the masks of each."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.conditioning.context_frames import context_mask
from pipeline.conditioning.speakers import Place, speaker_masks, to_latent_masks
from pipeline.generation.windows import CONTEXT
from pipeline.shapes import LatentSize, num_latent_frames, num_video_frames

from . import clips
from .clips import CONTEXT_FRAMES, Clip
from .run import Setup

CONTINUED_SHARE = 0.5  # of the early clips; late ones are continued in any case
FULL_CONTEXT_SHARE = 0.7  # of the continued long windows
LONG_WINDOW = 13  # latent frames from which on a window may continue a whole context
CONTEXT_ERROR = 0.3  # standard deviations, at most, that the context of a continued window is off by


@dataclass(frozen=True)
class Window:
    """Window of a clip as the transformer takes it."""

    clean: Tensor  # 16 t h w, normalised
    num_context: int  # latent frames that the window continues, its reference image included
    condition: Tensor  # 20 t h w
    image_embeds: Tensor  # i d
    audio: Tensor  # p f 5 layers channels
    masks: Tensor | None  # p+1 h w, where there are two people
    weights: Tensor  # h w, of the latents in the loss
    kind: tuple[int, int, int]  # smile, brows and number of people

    @property
    def size(self) -> LatentSize:
        """Size of the latents."""
        return LatentSize(*self.clean.shape[1:])


class Windows:
    """Source of windows: the clips on disk, the statistics of their latents, and a store of grey tails.

    The latents of grey frames after a context say nothing, so they come from the store instead of being encoded for
    every clip.
    """

    def __init__(self, setup: Setup) -> None:
        self.clips = clips.load(setup)
        self.mean, self.std = clips.latent_statistics(setup)
        self.grey_tails = clips.load_grey_tails(setup)

    def batch(self, random: np.random.Generator, num_windows: int, length: int) -> list[Window]:
        """Windows of `length` latent frames at most, all of one kind."""
        kind = self.clips[random.integers(len(self.clips))].kind
        clips_of_kind = [clip for clip in self.clips if clip.kind == kind]
        indices = random.choice(len(clips_of_kind), min(num_windows, len(clips_of_kind)), replace=False)
        return [self.window(clips_of_kind[index], length, random) for index in indices]

    def window(self, clip: Clip, length: int, random: np.random.Generator) -> Window:
        """Window of the first `length` latent frames of a clip.

        A window that continues another one has frames of the model in its context, with their errors, which stay at
        their place, and after one more coding. So the context of a continued clip has been coded once more, where the
        clip has it so, and one error in all its frames; the frames after it are the clip's, so that errors are to be
        mended, not handed on.
        """
        clean = self._normalized(clip.latents)[:, :length]
        length = clean.shape[1]
        num_context = 1
        if clip.late or random.random() < CONTINUED_SHARE:
            longest = num_latent_frames(CONTEXT_FRAMES)
            full = length > LONG_WINDOW and random.random() < FULL_CONTEXT_SHARE
            num_context = longest if full else int(random.integers(2, min(longest, length - 1) + 1))
            if clip.context_latents is not None:
                clean[:, :num_context] = self._normalized(clip.context_latents)[:, :num_context]
            error = torch.from_numpy(random.standard_normal(clean[:, :1].shape, dtype=np.float32))
            clean[:, :num_context] += random.uniform(0, CONTEXT_ERROR) * error
        num_frames = num_video_frames(length)
        mask = context_mask(num_video_frames(num_context), num_frames)
        latents = torch.cat((clean[:, :num_context], self._grey_tail(clean, num_context, random)), dim=1)
        features = clip.features.float()
        rows = (torch.arange(num_frames)[:, None] + CONTEXT).clamp(0, features.shape[1] - 1)
        return Window(
            clean=clean,
            num_context=num_context,
            condition=torch.cat((mask[..., None, None].expand(-1, -1, *clean.shape[2:]), latents)),
            image_embeds=clip.image_embeds.float(),
            audio=features[:, rows],
            masks=_masks(clean.shape[2] * 8, clean.shape[3] * 8) if len(features) > 1 else None,
            weights=clip.weights,
            kind=clip.kind,
        )

    def _normalized(self, latents: Tensor) -> Tensor:
        return (latents.float() - self.mean) / self.std

    def _grey_tail(self, clean: Tensor, num_context: int, random: np.random.Generator) -> Tensor:
        """Latents of grey frames after the context, those of some other clip."""
        tail = self._normalized(self.grey_tails[random.integers(len(self.grey_tails))])
        columns = torch.arange(clean.shape[3]) % tail.shape[3]
        frames = torch.arange(1, 1 + clean.shape[1] - num_context).clamp(max=tail.shape[1] - 1)
        return tail[:, frames][..., columns]


def _masks(height: int, width: int) -> Tensor:
    """Masks of two people side by side, as where no places are chosen."""
    masks = speaker_masks([Place(), Place()], (height, width), (height, width))
    return to_latent_masks(masks, LatentSize.of_video(1, height, width))
