"""The weights of a run, named file by file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from .config import Recipe
from .errors import ConfigError, Problems

BUNDLED_WEIGHTS = Path(__file__).parents[1] / "demo" / "weights"
NO_FILES = ("loras", "allow_other_audio_encoder", "recipe")


@dataclass(frozen=True)
class ModelFiles:
    """The weights of a run; None where something else, such as a core node, does a file's work.

    Attributes:
        base: Wan2.1-I2V, or a file that holds the audio weights too.
        adapter: the audio weights; None where the base holds them.
        loras: files and strengths, applied in order.
        allow_other_audio_encoder: an audio encoder that was fine-tuned for something else.
        recipe: the model that the audio weights belong to; None goes by their name.
    """

    base: Path | None = None
    adapter: Path | None = None
    vae: Path | None = None
    text_encoder: Path | None = None
    image_encoder: Path | None = None
    audio_encoder: Path | None = None
    loras: tuple[tuple[Path, float], ...] = ()
    allow_other_audio_encoder: bool = False
    recipe: Recipe | None = None

    @classmethod
    def of(
        cls,
        loras: Iterable[str | tuple[Path, float]] = (),
        recipe: Recipe | str | None = None,
        **paths: Path | str | None,
    ) -> ModelFiles:
        """From paths by the names of the fields.

        Args:
            loras: FILE, FILE:STRENGTH, or file and strength.
            recipe: None goes by the name of the audio weights.
            **paths: the other fields.

        Raises:
            ConfigError: a LoRA's strength is no number, or there is no such recipe.
        """
        files: dict[str, Any] = {
            name: None if path is None else Path(path).expanduser() for name, path in paths.items()
        }
        pairs = tuple(parse_lora(lora) if isinstance(lora, str) else lora for lora in loras)
        return cls(**files, loras=pairs, recipe=None if recipe is None else Recipe(recipe))

    @classmethod
    def bundled(cls) -> ModelFiles:
        """The small model of this repository, which knows drawn faces."""
        folder = BUNDLED_WEIGHTS
        return cls.of(
            base=folder / "diffusion_models" / "wan2.1_i2v_480p_demo.safetensors",
            adapter=folder / "model_patches" / "multitalk_demo.safetensors",
            vae=folder / "vae" / "wan_2.1_vae_demo.safetensors",
            text_encoder=folder / "text_encoders" / "umt5_demo.safetensors",
            image_encoder=folder / "clip_vision" / "clip_vision_h_demo.safetensors",
            audio_encoder=folder / "audio_encoders" / "wav2vec2_demo.safetensors",
        )

    @property
    def audio_weights(self) -> Path | None:
        """The file that holds the audio weights."""
        return self.adapter or self.base

    @classmethod
    def names(cls) -> list[str]:
        """The fields that name one file each."""
        return [field.name for field in fields(cls) if field.name not in NO_FILES]

    def check_complete(self, problems: Problems) -> None:
        """Adds a problem for each file that a whole run needs and that is not named."""
        for name in self.names():
            if getattr(self, name) is None and name != "adapter":
                option = name.replace("_", "-")
                problems.add(option, f"There is none. Name its weights with --{option}.")


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
