"""Durations of runs on this machine, in a small file, so that the next one's time can be told before it starts."""

from __future__ import annotations

import json
import logging
import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from ..acceleration.presets import AccelerationOptions
from ..media.files import atomic_write
from ..memory.placement import Footprint

logger = logging.getLogger(__name__)

FILE = "timings.json"


class Timings:
    """Seconds of one forward, all that a run does besides shared out among them, by kind of run and number of tokens.

    Args:
        folder: where the file is, or is going to be.
    """

    def __init__(self, folder: Path):
        self.path = Path(folder) / FILE

    def seconds(self, kind: str, num_tokens: int) -> float | None:
        """Of a forward over `num_tokens`: as measured at the nearest number, in proportion; None where none was."""
        measured = self._read().get(kind)
        if not measured:
            return None
        nearest = min(measured, key=lambda tokens: abs(math.log(tokens / num_tokens)))
        return measured[nearest] * num_tokens / nearest

    @contextmanager
    def measure(self, kind: str, num_tokens: int, num_forwards: int) -> Iterator[None]:
        """Measures the run inside, if it ends well. A file that cannot be written is told in the log alone."""
        start = time.monotonic()
        yield
        self._note(kind, num_tokens, (time.monotonic() - start) / num_forwards)

    def _note(self, kind: str, num_tokens: int, seconds: float) -> None:
        timings = self._read()
        timings.setdefault(kind, {})[num_tokens] = seconds
        try:
            with atomic_write(self.path) as path:
                path.write_text(json.dumps(timings, indent=1), encoding="utf-8")
        except OSError as error:
            logger.warning("How long this run took is not kept: %s cannot be written (%s).", self.path, error.strerror)

    def _read(self) -> dict[str, dict[int, float]]:
        try:
            stored = json.loads(self.path.read_text(encoding="utf-8"))
            return {
                kind: {int(_above_0(int(tokens))): _above_0(float(s)) for tokens, s in row.items()}
                for kind, row in stored.items()
            }
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError, AttributeError, RecursionError):
            logger.warning("%s cannot be read; it is written anew after the next run.", self.path)
            return {}


def run_kind(
    device: torch.device, footprint: Footprint, options: AccelerationOptions, steps: int, streams: bool
) -> str:
    """The name of runs that take alike per forward: of one device, network, cache, attention and streaming."""
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    network = f"{footprint.num_blocks} blocks of {footprint.width} ({footprint.block_bytes} bytes)"
    parts = [name, network, options.cache.value, options.attention.value]
    is_compiled = options.compile.applies(device, steps)
    return ", ".join([*parts, *(["compiled"] if is_compiled else []), *(["streamed"] if streams else [])])


def _above_0(number: float) -> float:
    if not 0 < number < math.inf:
        raise ValueError(f"{number} is no speed")
    return number
