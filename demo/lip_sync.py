"""Lip sync of a video, measured from its frames and its sound alone, without any model.

    opening = mouth_openings(frames)[0]
    sync = measure(opening, implied_mouth(waveform).opening)

The mouth of a drawn face is where its lower middle gets darker, and its opening is how tall that is. For other faces
give `mouth_openings` another `Gauge`, for example the distance of the lips by a landmark detector.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter1d, minimum_filter1d

from pipeline.audio.waveform import SAMPLE_RATE_HZ
from pipeline.shapes import FPS

Track = NDArray[np.float64]
Gauge = Callable[[NDArray[np.uint8]], Track]
"""The mouth's opening, `f`, of one face in `f h w 3` frames; any unit, larger is wider open."""

SPECTRA_PER_FRAME = 4
WINDOW = 512  # samples, 32 ms
SHUT_SPECTRA = 6  # lips that shut stay so for 60 ms
SMOOTHING_SPECTRA = 2.6  # standard deviation of the smoothing
MOUTH_ROWS, MOUTH_COLUMNS = (0.52, 0.86), (0.22, 0.78)  # of a drawn face's part of the frame
MOUTH_MIDDLE = 0.25  # the share of those columns in which a mouth is tallest
MAX_LAG = 12  # frames, about half a second


class Mouth(NamedTuple):
    """Shape of a mouth in each video frame."""

    opening: Track  # 0 shut .. 1 wide open
    width: Track  # -1 rounded .. 1 spread


@dataclass(frozen=True)
class LipSync:
    """Agreement of a mouth's opening with a sound."""

    correlation: float  # at the best lag
    lag: int  # video frames by which the lips are late
    without_lag: float  # the correlation at lag 0


def implied_mouth(waveform: np.ndarray, fps: int = FPS) -> Mouth:
    """Mouth that would have made a sound: a formula on its spectrum, the same for every voice.

    With E(a, b) the energy between a and b Hz: `voicing` is 0 at -52 dB of E(300, 3500) and below, as in
    silence and while m, b or p shut the lips, and 1 from -26 dB on; `low` is the share of E(500, 1100) in
    E(200, 1100), which a high first formant raises. Opening = voicing (0.3 + 0.7 low). Width compares E(1600, 3000)
    with E(700, 1400).

    Args:
        waveform: `n`, mono, 16 kHz, at -23 LUFS.
        fps: of the video.
    """
    bands = _Bands(waveform, SAMPLE_RATE_HZ // fps // SPECTRA_PER_FRAME)
    voicing = np.clip((bands.level_db(300, 3500) + 52) / 26, 0, 1)
    low = np.clip(bands.energy(500, 1100) / bands.energy(200, 1100) * 1.5 - 0.15, 0, 1)
    opening = minimum_filter1d(voicing, SHUT_SPECTRA) * (0.3 + 0.7 * low)
    width = np.tanh((bands.level_db(1600, 3000) - bands.level_db(700, 1400) + 3) / 8) * voicing
    moments = np.arange(len(waveform) * fps // SAMPLE_RATE_HZ) * SPECTRA_PER_FRAME
    return Mouth(*(gaussian_filter1d(track, SMOOTHING_SPECTRA)[moments] for track in (opening, width)))


def mouth_openings(frames: NDArray[np.uint8], num_faces: int = 1, gauge: Gauge | None = None) -> list[Track]:
    """Opening of each face's mouth in `f h w 3` frames; the faces stand side by side in equal shares."""
    return [(gauge or drawn_opening)(share) for share in np.array_split(frames, num_faces, axis=2)]


def drawn_opening(frames: NDArray[np.uint8]) -> Track:
    """Height of the dark inside of a drawn mouth, `f`, 0..255: the darkening of a column against its brightest value.

    Only the columns where it is tallest count, so that a mouth which is merely wide is not taken for an open one.
    """
    height, width = frames.shape[1:3]
    rows, columns = (slice(int(a * n), int(b * n)) for (a, b), n in ((MOUTH_ROWS, height), (MOUTH_COLUMNS, width)))
    brightness = frames[:, rows, columns].astype(np.float64).mean(axis=-1)
    columns = (np.percentile(brightness, 98, axis=0) - brightness).clip(min=0).mean(axis=1)
    middle = round(MOUTH_MIDDLE * columns.shape[1])
    return np.sort(columns, axis=1)[:, -middle:].mean(axis=1)


def measure(opening: Track, reference: Track, max_lag: int = MAX_LAG) -> LipSync:
    """Agreement of an opening with the one that a sound implies, over the length of the shorter one."""
    length = min(len(opening), len(reference))
    opening, reference = opening[:length], reference[:length]
    max_lag = min(max_lag, length // 2)  # the overlap is half of them at least
    by_lag = {lag: _correlation(opening, reference, lag) for lag in range(-max_lag, max_lag + 1)}
    lag = max(by_lag, key=by_lag.get)
    return LipSync(by_lag[lag], lag, by_lag[0])


def _correlation(opening: Track, reference: Track, lag: int) -> float:
    late = opening[max(lag, 0) : len(opening) + min(lag, 0)]
    early = reference[max(-lag, 0) : len(reference) - max(lag, 0)]
    if len(late) < 2 or late.std() < 1e-9 or early.std() < 1e-9:
        return 0.0  # a track that does not move follows nothing
    return float(np.corrcoef(late, early)[0, 1])


class _Bands:
    """Energies of a sound in bands, a few times a video frame."""

    def __init__(self, waveform: np.ndarray, hop: int) -> None:
        samples = np.pad(np.asarray(waveform, np.float64), (WINDOW // 2, WINDOW // 2 + hop))
        windows = np.lib.stride_tricks.sliding_window_view(samples, WINDOW)[::hop]
        self._power = np.abs(np.fft.rfft(windows * np.hanning(WINDOW), axis=1)) ** 2 / WINDOW**2 * 4
        self._frequencies = np.fft.rfftfreq(WINDOW, 1 / SAMPLE_RATE_HZ)

    def energy(self, low_hz: float, high_hz: float) -> Track:
        """Energy between two frequencies, never quite 0, a few times a video frame."""
        inside = (self._frequencies >= low_hz) & (self._frequencies < high_hz)
        return self._power[:, inside].sum(axis=1) + 1e-9

    def level_db(self, low_hz: float, high_hz: float) -> Track:
        """Energy between two frequencies in decibels of full scale."""
        return 10 * np.log10(self.energy(low_hz, high_hz))
