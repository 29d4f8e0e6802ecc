"""Errors, each one sentence for the person who made the request, and the collector of several."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

T = TypeVar("T")


class MultiTalkError(ValueError):
    """A request that cannot be served; the message says what came, what was wanted and what to do."""


class ConfigError(MultiTalkError):
    """An option, or a combination of options, that cannot be run."""


class AudioError(MultiTalkError):
    """Audio that cannot be used."""


class ImageError(MultiTalkError):
    """An image or a mask that cannot be used."""


class WeightsError(MultiTalkError):
    """A weights file that is damaged, of another kind, or does not fit its companions."""


class NumericalError(MultiTalkError):
    """A run whose numbers went bad (NaN, infinity, black frames)."""


class RemoteError(MultiTalkError):
    """A request that the remote service refused, lost or did not finish, or a file from it that cannot be used."""


@dataclass
class Problems:
    """All problems of a request, collected, so that a person reads them once and not mistake by mistake.

    Attributes:
        errors: what keeps it from running.
        notes: what will run, but perhaps not as it was meant.
    """

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, where: str, make: Callable[..., T], *args: object) -> T | None:
        """The result of `make`; None where it raises one of our errors, which becomes a problem of `where`."""
        try:
            return make(*args)
        except MultiTalkError as error:
            self.add(where, str(error))
            return None

    def add(self, where: str, message: str) -> None:
        """One more; `where` is the option or the node, empty where the message names it."""
        text = f"{where}: {message}" if where else message
        if text not in self.errors:
            self.errors.append(text)

    def note(self, message: str) -> None:
        """One more thing that is only worth knowing."""
        if message not in self.notes:
            self.notes.append(message)

    def raise_errors(self) -> None:
        """Raises `ConfigError` with all problems, where there are any."""
        if len(self.errors) == 1:
            raise ConfigError(self.errors[0])
        if self.errors:
            lines = "\n".join(f"{number}. {problem}" for number, problem in enumerate(self.errors, start=1))
            raise ConfigError(f"{len(self.errors)} things keep this from running:\n{lines}")
