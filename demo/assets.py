"""Portraits and sentences of the demo, none of them in the training: `python -m demo.assets` writes them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import soundfile
from PIL import Image

from pipeline.audio.waveform import SAMPLE_RATE_HZ

from .faces import draw_frame, random_appearance, random_background, random_motion
from .speech import HELD_OUT, speak

ASSETS_FOLDER = Path(__file__).parent / "assets"
SEED = 2024  # of faces; the training draws from other streams
SIDE = 512


def main() -> None:
    """Writes two pictures and two sounds."""
    ASSETS_FOLDER.mkdir(exist_ok=True)
    Image.fromarray(portrait(1, SIDE)).save(ASSETS_FOLDER / "drawn_portrait.png")
    Image.fromarray(portrait(2, SIDE * 3 // 2)).save(ASSETS_FOLDER / "drawn_two.png")
    sentences = HELD_OUT["en"]
    soundfile.write(ASSETS_FOLDER / "drawn_speech.wav", speak(sentences[0], "en+f5", 150), SAMPLE_RATE_HZ)
    soundfile.write(ASSETS_FOLDER / "drawn_answer.wav", speak(sentences[1], "en+m5", 150), SAMPLE_RATE_HZ)


def portrait(num_people: int, width: int) -> np.ndarray:
    """Picture `h w 3` uint8 of people who are about to speak."""
    random = np.random.default_rng((SEED, num_people))
    still = np.zeros(1)
    people = [(random_appearance(random), random_motion(random, still, still, 0, 0)) for _ in range(num_people)]
    return draw_frame(people, random_background(random), 0, SIDE, width)


if __name__ == "__main__":
    main()
