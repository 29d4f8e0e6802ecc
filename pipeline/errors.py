"""Errors, each one sentence for the person behind the request, and the collector of several."""

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


class DeviceError(MultiTalkError):
    """A device, or the process that works on it, that failed while several work together."""


class RemoteError(MultiTalkError):
    """A request that the remote service refused, lost or did not finish, or a file from it that cannot be used."""


@dataclass
class Problems:
    """Collector of all problems of a request, so that a person reads them at once and not mistake by mistake.

    Attributes:
        errors: reasons why the request cannot run.
        notes: surprises in a request that runs.
    """

    errors: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, source: str, function: Callable[..., T], *arguments: object) -> T | None:
        """The result of `function`; None where it raises `MultiTalkError`, which becomes an error of `source`."""
        try:
            return function(*arguments)
        except MultiTalkError as error:
            self.add(source, str(error))
            return None

    def add(self, source: str, message: str) -> None:
        """Adds an error once; `source` is the option or the node, empty where the message names it."""
        text = f"{source}: {message}" if source else message
        if text not in self.errors:
            self.errors.append(text)

    def note(self, message: str) -> None:
        """Adds a note once."""
        if message not in self.notes:
            self.notes.append(message)

    def raise_errors(self) -> None:
        """Raises `ConfigError` with all errors, where there are any."""
        if len(self.errors) == 1:
            raise ConfigError(self.errors[0])
        if self.errors:
            numbered = "\n".join(f"{number}. {error}" for number, error in enumerate(self.errors, start=1))
            raise ConfigError(f"{len(self.errors)} things keep this from running:\n{numbered}")
