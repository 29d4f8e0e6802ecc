"""Files that are joined of several, one after the other: raw FLAC, chained Ogg, and WAV."""

from __future__ import annotations

import itertools
import mmap
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

from ..errors import AudioError
from .files import open_regular

FLAC_HEAD = re.compile(rb"fLaC[\x00\x80]\x00\x00\x22")  # the marker, and a block of 34 bytes: STREAMINFO
OGG_FIRST_PAGE = re.compile(rb"OggS\x00[\x02\x06].{20}(.)", re.DOTALL)  # of a stream; the group counts its segments
WAVE_HEAD = re.compile(rb"RIFF.{4}WAVE", re.DOTALL)
MAX_PARTS = 1000  # a day of radio, with a new link for each song, has half as many


class Part(NamedTuple):
    """The bytes of a file from `start` to `end`."""

    start: int
    end: int


def joined_parts(path: str | Path) -> list[Part]:
    """The parts of a file that have headers of their own: one, unless it is raw FLAC, Ogg or WAV and joined of several.

    FFmpeg takes the first header for all of it, and leaves out what does not fit to that.

    Raises:
        AudioError: it is no file that can be read, or has more than 1000 parts.
    """
    with open_regular(path, AudioError) as file:
        starts_of = STARTS.get(file.read(4))
        size = file.seek(0, 2)
        if starts_of is None:
            return [Part(0, size)]
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            starts = list(itertools.islice(starts_of(data), MAX_PARTS + 1))
    if len(starts) > MAX_PARTS:
        raise AudioError(f"{Path(path).name} is joined of more than {MAX_PARTS} files. Convert it to WAV or MP3.")
    return [Part(*ends) for ends in itertools.pairwise((0, *starts[1:], size))]


def _flac_starts(data: mmap.mmap) -> Iterator[int]:
    return (head.start() for head in FLAC_HEAD.finditer(data))


def _ogg_starts(data: mmap.mmap) -> Iterator[int]:
    """The first pages of links: streams that sound together begin side by side, their first pages in a row."""
    row_end = None
    for page in OGG_FIRST_PAGE.finditer(data):
        if page.start() != row_end:
            yield page.start()
        num_segments = page[1][0]
        row_end = page.end() + num_segments + sum(data[page.end() : page.end() + num_segments])


def _wave_starts(data: mmap.mmap) -> Iterator[int]:
    """The headers at the ends that the headers before them say; a length that nobody knew leads beyond the file."""
    start = 0
    while WAVE_HEAD.match(data, start):
        yield start
        start += 8 + int.from_bytes(data[start + 4 : start + 8], "little")
        start += start % 2


STARTS: dict[bytes, Callable[[mmap.mmap], Iterator[int]]] = {
    b"OggS": _ogg_starts,
    b"fLaC": _flac_starts,
    b"RIFF": _wave_starts,
    b"ID3\x03": _flac_starts,  # FLAC, or another format, behind a tag
    b"ID3\x04": _flac_starts,
}
