"""Progress of a job at fal, for a person who waits: a line of text and a share of the bar."""

from __future__ import annotations

import logging
import re

from .answers import Poll, printable
from .pricing import PriceEstimate

logger = logging.getLogger(__name__)

QUEUE_SHARE, RUN_SHARE = 0.05, 0.9  # of the bar, when the queue and the run are over
LOG_LENGTH = 120


class ProgressText:
    """The line and the share of the bar after each poll of a job."""

    def __init__(self, estimate: PriceEstimate):
        self.estimate, self.line = estimate, ""
        self.log_entries: set[tuple[str, str]] = set()
        self.running_since: float | None = None

    def update(self, poll: Poll, elapsed_s: float) -> tuple[str, float]:
        """The text, and the fraction of the whole, `elapsed_s` after the start."""
        if poll.status == "IN_QUEUE":
            ahead = f", {poll.queue_position} ahead" if poll.queue_position is not None else ""
            share = elapsed_s / (elapsed_s + 60)
            return f"In fal's queue{ahead} - {elapsed_s:.0f} s - {self.estimate}", QUEUE_SHARE * share
        self.running_since = elapsed_s if self.running_since is None else self.running_since
        for entry in poll.logs:  # whether fal repeats old lines is unknown, so only new ones count
            if entry not in self.log_entries:
                self.log_entries.add(entry)
                self.line = printable(entry[1], LOG_LENGTH)
                logger.info("fal: %s", self.line)
        suffix = f" - {self.line}" if self.line else ""
        share = _share(self.line, elapsed_s - self.running_since)
        return f"fal is generating - {elapsed_s:.0f} s{suffix}", QUEUE_SHARE + (RUN_SHARE - QUEUE_SHARE) * share


def _share(line: str, elapsed_s: float) -> float:
    """The finished share of a run (0..1): `40%` or `4/10` of a log line, else a guess from the time."""
    percent, ratio = re.search(r"(\d{1,3})%", line), re.search(r"(\d{1,9})/(\d{1,9})", line)
    if percent:
        return min(int(percent[1]), 100) / 100
    if ratio and 0 <= int(ratio[1]) <= int(ratio[2]) and int(ratio[2]) > 0:
        return int(ratio[1]) / int(ratio[2])
    return elapsed_s / (elapsed_s + 60)
