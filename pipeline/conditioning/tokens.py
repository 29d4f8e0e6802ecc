"""Encoded prompts and images against what the transformer takes."""

from __future__ import annotations

from ..errors import ConfigError


def check_prompt(channels: int, expected: int) -> None:
    """Raises `ConfigError` where a prompt's tokens are of another encoder than the model was trained with."""
    _check("prompt", channels, expected, "umt5-xxl")


def check_image(channels: int, expected: int) -> None:
    """Raises `ConfigError` where a reference image's tokens are of another encoder than the model was trained with."""
    _check("image", channels, expected, "clip_vision_h")


def _check(of_what: str, channels: int, expected: int, encoder: str) -> None:
    if channels != expected:
        raise ConfigError(
            f"The tokens of the {of_what} have {channels} channels, not {expected}. Encode it with {encoder}."
        )
