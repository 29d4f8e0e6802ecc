"""The picture of a dialogue: a row for each speaker, the waveform of each clip over seconds."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from .clips import Dialogue
from .waveform import Sound

WIDTH, ROW, MARGIN, SCALE = 960, 90, 36, 26  # pixels: of the picture, a speaker's row, the names, the seconds
BACKGROUND, LINE, TEXT = (28, 28, 32), (70, 70, 78), (220, 220, 225)
SECONDS = (0.5, 1, 2, 5, 10, 30, 60, 120, 300, 600, 1800, 3600)  # between two marks
MAX_MARKS = 12


def draw_timeline(dialogue: Dialogue, colors: Sequence[tuple[int, int, int]]) -> Tensor:
    """The clips over time, uint8 `h w c`.

    Args:
        colors: of the speakers, as in the picture of their places.
    """
    turns, num_rows = dialogue.turns(), max(1, dialogue.num_speakers)
    duration_s = max((interval.end_s for interval in turns), default=1.0)
    height = num_rows * ROW + SCALE
    picture = Image.new("RGB", (WIDTH, height), BACKGROUND)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(14)
    per_s = (WIDTH - MARGIN - 10) / duration_s
    interval = next((seconds for seconds in SECONDS if duration_s / seconds <= MAX_MARKS), SECONDS[-1])
    for mark in range(int(duration_s / interval) + 1):
        x = MARGIN + mark * interval * per_s
        draw.line((x, 0, x, height - SCALE), LINE)
        draw.text((x, height - SCALE / 2), f"{mark * interval:g} s", TEXT, font, "mm")
    for row in range(num_rows):
        draw.text((MARGIN / 2, (row + 0.5) * ROW), str(row + 1), colors[row % len(colors)], font, "mm")
    for clip, interval in zip(dialogue.clips, turns, strict=True):
        left, right = (round(MARGIN + moment * per_s) for moment in (interval.start_s, interval.end_s))
        middle, color = (clip.speaker - 0.5) * ROW, colors[(clip.speaker - 1) % len(colors)]
        draw.rectangle((left, middle - 0.45 * ROW, right, middle + 0.45 * ROW), outline=color)
        for x, peak in enumerate(_peaks(clip.sound, max(1, right - left)), start=left):
            draw.line((x, middle - 0.42 * ROW * peak, x, middle + 0.42 * ROW * peak), color)
    return torch.from_numpy(np.array(picture))


def _peaks(sound: Sound, num_columns: int) -> list[float]:
    """The largest magnitude of the sound in each column, 0..1, of its own peak."""
    magnitudes = sound.samples.abs().amax(0)
    columns = magnitudes[: len(magnitudes) // num_columns * num_columns].reshape(num_columns, -1)
    if not columns.numel():
        return [0.0] * num_columns
    peaks = columns.amax(1)
    return (peaks / peaks.max().clamp(min=1e-6)).tolist()
