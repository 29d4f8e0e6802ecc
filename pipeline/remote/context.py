"""The context of remote runs: the key that pays, the caps, and the folders."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from ..errors import ConfigError, RemoteError
from .connection import load_library
from .credentials import Key, find_key
from .exchange import Backoff
from .pricing import PriceEstimate, dollars

LONG_USD = 5.0  # for a run as long as its sound where nobody set a cap: about 20 s of video
RUN_CAP_VARIABLE, DAY_CAP_VARIABLE = "MULTITALK_FAL_MAX_USD", "MULTITALK_FAL_MAX_USD_PER_DAY"


@dataclass(frozen=True)
class Caps:
    """The most that may be spent, in dollars; None is no limit."""

    run_usd: float | None = None
    day_usd: float | None = None

    @classmethod
    def from_environment(cls, environ: Mapping[str, str] = os.environ) -> Caps:
        """MULTITALK_FAL_MAX_USD for a run, MULTITALK_FAL_MAX_USD_PER_DAY for 24 hours."""
        return cls(_dollars_of(environ, RUN_CAP_VARIABLE), _dollars_of(environ, DAY_CAP_VARIABLE))

    @property
    def of_long_run(self) -> Caps:
        """The caps of a run as long as its sound, which five minutes would otherwise make a matter of $75."""
        return Caps(LONG_USD if self.run_usd is None else self.run_usd, self.day_usd)

    def check_run(self, estimate: PriceEstimate) -> None:
        """Raises RemoteError when a run may cost more than a run may."""
        if self.run_usd is not None and estimate.usd_at_most > self.run_usd:
            raise RemoteError(
                f"This video would cost {estimate}; {RUN_CAP_VARIABLE} allows {dollars(self.run_usd)} a run. "
                f"Ask for fewer frames, or raise it."
            )


@dataclass(frozen=True)
class RemoteContext:
    """The key that pays, the caps, and the folders.

    Attributes:
        private: for the ledger; nobody else reads it.
        output: ComfyUI's output folder, or any other.
    """

    key: Key
    private: Path
    output: Path
    caps: Caps = field(default_factory=Caps.from_environment)
    backoff: Backoff = field(default_factory=Backoff)

    @classmethod
    def open(cls, private: Path, output: Path) -> RemoteContext:
        """With the key and the caps of this machine.

        Raises:
            RemoteError: there is no key, or fal-client is not installed.
        """
        load_library()
        return cls(find_key(private), private, output)


def _dollars_of(environ: Mapping[str, str], name: str) -> float | None:
    text = environ.get(name, "").strip().lstrip("$")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0 <= value < float("inf"):
        raise ConfigError(f"{name} must be a number of dollars like 2.50, got {text[:20]!r}.")
    return value
