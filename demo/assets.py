"""Portraits and sentences of the demo, none of them in the training, and the registry's two pictures of the pack.

`python -m demo.assets` writes them.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path

import numpy as np
import soundfile
from PIL import Image, ImageDraw

from pipeline.audio.waveform import SAMPLE_RATE_HZ

from .faces import draw_frame, random_appearance, random_background, random_motion
from .speech import HELD_OUT, speak

ASSETS_FOLDER = Path(__file__).parent / "assets"
SEED = 2024  # of faces; the training draws from other streams
SIDE = 512
IMAGES_FOLDER = Path(__file__).parents[1] / "docs" / "images"
ICON, BANNER = (400, 400), (1050, 450)  # width and height as the registry wants them: a square, 21:9
BARS, BAR_SHARE = 40, 0.6  # of the banner's waveform, and the share of a step that a bar fills
INK = (52, 62, 80)


def main() -> None:
    """Writes two pictures and two sounds, and the icon and the banner."""
    ASSETS_FOLDER.mkdir(exist_ok=True)
    Image.fromarray(portrait(1, SIDE)).save(ASSETS_FOLDER / "drawn_portrait.png")
    Image.fromarray(portrait(2, SIDE * 3 // 2)).save(ASSETS_FOLDER / "drawn_two.png")
    sentences = HELD_OUT["en"]
    soundfile.write(ASSETS_FOLDER / "drawn_speech.wav", speak(sentences[0], "en+f5", 150), SAMPLE_RATE_HZ)
    soundfile.write(ASSETS_FOLDER / "drawn_answer.wav", speak(sentences[1], "en+m5", 150), SAMPLE_RATE_HZ)
    Image.fromarray(portrait(1, ICON[0], ICON[1], openings=(0.8,))).save(IMAGES_FOLDER / "icon.png", optimize=True)
    banner(speak(sentences[0], "en+f5", 150)).save(IMAGES_FOLDER / "banner.png", optimize=True)


def portrait(num_people: int, width: int, height: int = SIDE, openings: Sequence[float] = ()) -> np.ndarray:
    """Picture `h w 3` uint8 of people who are about to speak, or whose mouths are open by 0..1."""
    random = np.random.default_rng((SEED, num_people))
    still = np.zeros(1)
    people = [(random_appearance(random), random_motion(random, still, still, 0, 0)) for _ in range(num_people)]
    people = [
        (face, replace(motion, opening=np.full(1, opening)))
        for (face, motion), opening in zip_longest(people, openings, fillvalue=0.0)
    ]
    return draw_frame(people, random_background(random), 0, height, width)


def banner(speech: np.ndarray) -> Image.Image:
    """One of two people speaks, and the levels of the sentence stand between them."""
    width, height = BANNER
    picture = Image.fromarray(portrait(2, width, height, openings=(0.8, 0.0)))
    pen, step = ImageDraw.Draw(picture), width / 6 / BARS
    levels = np.array([np.sqrt(np.mean(part**2)) for part in np.array_split(speech, BARS)])
    for place, level in zip(np.arange(BARS) - BARS / 2, levels / levels.max(), strict=True):
        left, half = width / 2 + place * step, 2 + 0.16 * height * level
        pen.rectangle((left, 0.55 * height - half, left + BAR_SHARE * step, 0.55 * height + half), fill=INK)
    return picture


if __name__ == "__main__":
    main()
