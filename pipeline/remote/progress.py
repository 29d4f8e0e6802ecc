"""What a waiting user reads, and how far the bar is."""

from __future__ import annotations

import logging
import re

from .answers import Poll, printable
from .payload import PriceEstimate

logger = logging.getLogger(__name__)

QUEUE_SHARE, RUN_SHARE = 0.05, 0.9  # of the bar, when the queue and the run are over
LOG_LENGTH = 120


class ProgressText:
    """Turns what fal says of a job into a line and a share of the bar."""

    def __init__(self, estimate: PriceEstimate):
        self.estimate, self.log_entries, self.line = estimate, set(), ""
        self.running_since: float | None = None

    def update(self, poll: Poll, waited_s: float) -> tuple[str, float]:
        """The text, and the fraction of the whole."""
        if poll.status == "IN_QUEUE":
            ahead = f", {poll.queue_position} ahead" if poll.queue_position is not None else ""
            return f"In fal's queue{ahead} - {waited_s:.0f} s - {self.estimate}", QUEUE_SHARE * waited_s / (
                waited_s + 60
            )
        self.running_since = waited_s if self.running_since is None else self.running_since
        for entry in poll.logs:  # whether fal repeats old lines is not known, so only new ones count
            if entry not in self.log_entries:
                self.log_entries.add(entry)
                self.line = printable(entry[1], LOG_LENGTH)
                logger.info("fal: %s", self.line)
        suffix = f" - {self.line}" if self.line else ""
        share = _share(self.line, waited_s - self.running_since)
        return f"fal is generating - {waited_s:.0f} s{suffix}", QUEUE_SHARE + (RUN_SHARE - QUEUE_SHARE) * share


def _share(line: str, elapsed_s: float) -> float:
    """How much of the run is done (0..1): what a log line says, `40%` or `4/10`, else a guess from the time."""
    percent, ratio = re.search(r"(\d{1,3})%", line), re.search(r"(\d+)/(\d+)", line)
    if percent:
        return min(int(percent[1]), 100) / 100
    if ratio and 0 <= int(ratio[1]) <= int(ratio[2]) and int(ratio[2]) > 0:
        return int(ratio[1]) / int(ratio[2])
    return elapsed_s / (elapsed_s + 60)
