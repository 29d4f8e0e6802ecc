"""The prompts of a long video's windows: parted, and encoded."""

from __future__ import annotations

from typing import TYPE_CHECKING

from torch import Tensor

if TYPE_CHECKING:  # imports transformers, which takes seconds
    from ..models.text_encoder import TextEncoder

WINDOW_SEPARATOR = "|"

DEFAULT_NEGATIVE_PROMPT = (  # published with MultiTalk
    "bright tones, overexposed, static, blurred details, subtitles, style, works, paintings, images, static, "
    "overall gray, worst quality, low quality, JPEG compression residue, ugly, incomplete, extra fingers, "
    "poorly drawn hands, poorly drawn faces, deformed, disfigured, misshapen limbs, fused fingers, still picture, "
    "messy background, three legs, many people in the background, walking backwards"
)


def split_prompts(text: str) -> list[str]:
    """The prompts of successive windows, parted by `|`; an empty part repeats the one before. At least one."""
    prompts: list[str] = []
    for part in text.split(WINDOW_SEPARATOR):
        prompts.append(part.strip() or (prompts[-1] if prompts else ""))
    return prompts


def encode_prompts(encoder: TextEncoder, prompt: str, negative_prompt: str) -> tuple[tuple[Tensor, ...], Tensor]:
    """The embeddings `n d` of the prompts of successive windows, and of the negative prompt.

    Args:
        encoder: umT5.
        prompt: `|` parts it.
        negative_prompt: empty takes the published one.
    """
    prompts = tuple(encoder.encode(part) for part in split_prompts(prompt))
    return prompts, encoder.encode(negative_prompt.strip() or DEFAULT_NEGATIVE_PROMPT)
