"""Video frames, latent frames and tokens of Wan2.1, and the conversions between them."""

from __future__ import annotations

import math
from dataclasses import dataclass

FPS = 25  # frames a second that the model was trained at
VAE_STRIDE_TIME, VAE_STRIDE_SPACE = 4, 8
PATCH_SPACE = 2  # latents of a token's side; in time a token is one latent frame
TOKEN_PIXELS = VAE_STRIDE_SPACE * PATCH_SPACE  # a token's side in pixels: image sides are multiples of it
LATENT_CHANNELS = 16
MASK_CHANNELS = VAE_STRIDE_TIME  # the mask of the four video frames of a latent frame


def num_latent_frames(num_frames: int) -> int:
    """Latent frames of `num_frames` = 4n+1 video frames: the first holds one frame, every other four."""
    return (num_frames - 1) // VAE_STRIDE_TIME + 1


def num_video_frames(num_latents: int) -> int:
    """Video frames of `num_latents` latent frames."""
    return (num_latents - 1) * VAE_STRIDE_TIME + 1


def nearest_num_frames(num_frames: int) -> int:
    """The smallest 4n+1 that is not below `num_frames`."""
    return math.ceil((num_frames - 1) / VAE_STRIDE_TIME) * VAE_STRIDE_TIME + 1


@dataclass(frozen=True)
class LatentSize:
    """The size of a window's latents: `t` latent frames of `h x w`."""

    t: int
    h: int
    w: int

    @classmethod
    def of_video(cls, num_frames: int, height: int, width: int) -> LatentSize:
        """From a video of `num_frames` x `height` x `width` pixels."""
        return cls(num_latent_frames(num_frames), height // VAE_STRIDE_SPACE, width // VAE_STRIDE_SPACE)

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """`c t h w` of the noisy latents."""
        return LATENT_CHANNELS, self.t, self.h, self.w

    @property
    def tokens_per_frame(self) -> int:
        """Tokens of one latent frame."""
        return (self.h // PATCH_SPACE) * (self.w // PATCH_SPACE)

    @property
    def num_tokens(self) -> int:
        """Tokens of the window."""
        return self.t * self.tokens_per_frame
