"""An option that is one of a few words."""

from __future__ import annotations

import re
from enum import Enum
from typing import NoReturn

from .errors import ConfigError


class Choice(str, Enum):
    """Its members are the words. Any other word is refused in a sentence, wherever a choice is made of text."""

    @classmethod
    def _missing_(cls, value: object) -> NoReturn:
        of_what = re.sub(r"(?<!^)(?=[A-Z])", " ", cls.__name__).lower()
        raise ConfigError(f"{value!r} is no {of_what}. Take one of: {', '.join(choice.value for choice in cls)}.")
