"""Draws the demo's portraits and speaks its sentences, none of which the training has seen: `python -m demo.assets`."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from .faces import draw_frame, random_appearance, random_background, random_motion
from .speech import HELD_OUT, RATE_HZ, speak

ASSETS_FOLDER = Path(__file__).parent / "assets"
SEED = 2024  # of faces; the training draws from other streams
SIDE = 512


def main() -> None:
    """Writes the four files."""
    ASSETS_FOLDER.mkdir(exist_ok=True)
    Image.fromarray(portrait(1, SIDE)).save(ASSETS_FOLDER / "drawn_portrait.png")
    Image.fromarray(portrait(2, SIDE * 3 // 2)).save(ASSETS_FOLDER / "drawn_two.png")
    sentences = HELD_OUT["en"]
    soundfile.write(ASSETS_FOLDER / "drawn_speech.wav", speak(sentences[0], "en+f5", 150), RATE_HZ)
    soundfile.write(ASSETS_FOLDER / "drawn_answer.wav", speak(sentences[1], "en+m5", 150), RATE_HZ)


def portrait(num_people: int, width: int) -> np.ndarray:
    """`h w 3` uint8: people who are about to speak."""
    random = np.random.default_rng((SEED, num_people))
    still = np.zeros(1)
    people = [(random_appearance(random), random_motion(random, still, still, 0, 0)) for _ in range(num_people)]
    return draw_frame(people, random_background(random), 0, SIDE, width)


if __name__ == "__main__":
    main()
