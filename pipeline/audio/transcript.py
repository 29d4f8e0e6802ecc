"""Transcripts that say who speaks when: SubRip subtitles and NIST's Rich Transcription Time Marked files."""

from __future__ import annotations

import re

from ..errors import AudioError
from .dialogue import Turn

TIMES = re.compile(r"(\d+):(\d\d):(\d\d)[,.](\d{1,3})\s*-->\s*(\d+):(\d\d):(\d\d)[,.](\d{1,3})")
NAME = re.compile(r"^\s*[-–—]?\s*(?:\[([^\]]{1,40})\]|\(([^)]{1,40})\)|<v\s+([^>]{1,40})>|([^:]{1,40}):)")


def read_transcript(text: str) -> list[tuple[str, Turn]]:
    """Names and turns of .srt or .rttm text, in its order.

    Raises:
        AudioError: it is neither, or a subtitle or line of it is wrong.
    """
    turns = _read_rttm(text) if re.search(r"(?m)^\s*SPEAKER\s", text) else _read_srt(text)
    if not turns:
        raise AudioError(
            "The transcript has no turns. Paste .srt text whose lines begin with a name and a colon, or .rttm text."
        )
    return turns


def _read_rttm(text: str) -> list[tuple[str, Turn]]:
    """`SPEAKER <file> <channel> <start> <duration> <NA> <NA> <name> ...`, a line for each turn."""
    turns = []
    for number, line in enumerate(text.splitlines(), start=1):
        fields = line.split()
        if not fields or fields[0] != "SPEAKER":
            continue
        try:
            start_s, duration_s, name = float(fields[3]), float(fields[4]), fields[7]
        except (IndexError, ValueError):
            raise AudioError(
                f"Line {number} of the transcript is no turn: {line[:60]!r}. It is SPEAKER, file, channel, start, "
                f"duration, <NA>, <NA>, name."
            ) from None
        turns.append((name, _interval(start_s, start_s + duration_s, number)))
    return turns


def _read_srt(text: str) -> list[tuple[str, Turn]]:
    """Blocks of a number, a line of times, and text that begins with a name: `Ann: Hello` or `[Ann] Hello`.

    A block without a name goes on with the speaker before it.
    """
    turns: list[tuple[str, Turn]] = []
    lines = text.splitlines()
    for number, line in enumerate(lines, start=1):
        times = TIMES.search(line)
        if times is None:
            continue
        name = NAME.match(lines[number]) if number < len(lines) else None
        if name is None and not turns:
            raise AudioError(
                f"Line {number + 1} of the transcript must begin with who speaks, like Ann: Hello. Add the names."
            )
        speaker = turns[-1][0] if name is None else next(filter(None, name.groups())).strip()
        start_s, end_s = (_seconds(*times.groups()[first : first + 4]) for first in (0, 4))
        turns.append((speaker, _interval(start_s, end_s, number)))
    return turns


def _seconds(hours: str, minutes: str, seconds: str, fraction: str) -> float:
    return 3600 * int(hours) + 60 * int(minutes) + int(seconds) + float(f"0.{fraction}")


def _interval(start_s: float, end_s: float, line: int) -> Turn:
    if not 0 <= start_s < end_s:
        raise AudioError(f"Line {line} of the transcript ends at {end_s:g} s, before its start at {start_s:g} s.")
    return Turn(start_s, end_s - start_s)
