"""CLIP's vision tower: the image tokens that the video transformer attends to beside the prompt's."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import interpolate
from transformers import CLIPVisionModel

MEAN = (0.48145466, 0.4578275, 0.40821073)  # of RGB in 0..1, CLIP's own
STD = (0.26862954, 0.26130258, 0.27577711)


def preprocess(frame: Tensor, side: int) -> Tensor:
    """CLIP's input of a frame (`c h w`, -1..1): squeezed to a square, whatever its shape, and normalised.

    Bicubic without antialiasing and without clamping, as the model was trained; transformers' image processor crops
    and antialiases instead.
    """
    square = interpolate(frame[None].float(), (side, side), mode="bicubic", align_corners=False)[0]
    mean, std = (torch.tensor(values, device=frame.device)[:, None, None] for values in (MEAN, STD))
    return (square * 0.5 + 0.5 - mean) / std


class ImageEncoder:
    """The vision tower of open-CLIP's ViT-H/14.

    Args:
        model: the tower; moved around by its owner.
    """

    def __init__(self, model: CLIPVisionModel):
        self.model = model

    @torch.no_grad()
    def encode(self, frame: Tensor) -> Tensor:
        """The class token and the patches of `frame` (`c h w`, -1..1) before the last block.

        Returns:
            `i d` in float32, on the CPU.
        """
        side = self.model.config.image_size
        assert isinstance(side, int), "of a square picture"
        pixels = preprocess(frame.to(self.model.device), side).to(self.model.dtype)
        hidden = self.model(pixels[None], output_hidden_states=True).hidden_states
        return hidden[-2][0].float().cpu()
