"""Collects all that is wrong with a request, so that a person hears of it once and not mistake by mistake."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TypeVar

from .errors import ConfigError, MultiTalkError

T = TypeVar("T")


@dataclass
class Findings:
    """What a look at a request found.

    Attributes:
        problems: what keeps it from running.
        notes: what will run, but perhaps not as it was meant.
    """

    problems: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)

    def attempt(self, where: str, make: Callable[..., T], *given: object) -> T | None:
        """What `make` gives; None where it raises one of our errors, which becomes a problem of `where`."""
        try:
            return make(*given)
        except MultiTalkError as error:
            self.problem(where, str(error))
            return None

    def problem(self, where: str, message: str) -> None:
        """One more; `where` is the option or the node, empty where the message names it."""
        text = f"{where}: {message}" if where else message
        if text not in self.problems:
            self.problems.append(text)

    def note(self, message: str) -> None:
        """One more thing that is only worth knowing."""
        if message not in self.notes:
            self.notes.append(message)

    def raise_problems(self) -> None:
        """Raises `ConfigError` with all problems, where there are any."""
        if len(self.problems) == 1:
            raise ConfigError(self.problems[0])
        if self.problems:
            listed = "\n".join(f"{number}. {problem}" for number, problem in enumerate(self.problems, start=1))
            raise ConfigError(f"{len(self.problems)} things keep this from running:\n{listed}")
