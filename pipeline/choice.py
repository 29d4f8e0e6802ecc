"""Options of a few words."""

from __future__ import annotations

import re
from enum import Enum
from typing import NoReturn

from .errors import ConfigError


class Choice(str, Enum):
    """Enumeration of the words of an option; making one of any other word raises `ConfigError` with all of them."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        noun = re.sub(r"(?<!^)(?=[A-Z])", " ", cls.__name__).lower()
        raise ConfigError(f"{value!r} is no {noun}. Take one of: {', '.join(choice.value for choice in cls)}.")
