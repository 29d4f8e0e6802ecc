"""How long it will still take, and times as people say them."""

from __future__ import annotations

import time
from collections.abc import Callable


class Clock:
    """Tells what is left of a run from how fast it went so far.

    A run that goes on from finished windows starts in the middle, so its speed counts from where it was first seen.

    Args:
        now: seconds that only grow.
    """

    def __init__(self, now: Callable[[], float] = time.monotonic):
        self._now = now
        self._first: tuple[float, float] | None = None

    def left_s(self, fraction: float) -> float | None:
        """Seconds until 1, at `fraction` (0..1) of the run; None as long as nothing was seen to be done."""
        now = self._now()
        if self._first is None:
            self._first = now, fraction
        began, begun_at = self._first
        if fraction <= begun_at:
            return None
        return (now - began) * (1 - fraction) / (fraction - begun_at)


def readable(seconds: float) -> str:
    """`40 s`, `12 min` or `2.5 h`."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
