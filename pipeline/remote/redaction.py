"""Secrets out of texts: a key, whole or in part, plain or encoded, and the passwords of addresses."""

from __future__ import annotations

import base64
import re
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

PART = 16  # characters of a key that give it away
DECODINGS = 3  # an address within an address within an address
_PASSWORD = re.compile(r"(?<=://)[^\s/?#]*@")
_HEADER = re.compile(r"Key \S+")
_HEX = re.compile(r"[0-9A-Fa-f]{2}")


class Redactor:
    """Replaces secrets in texts by three dots.

    Args:
        key: the secret. Each part of it of `PART` characters is one, as it stands, percent-encoded, or in base64.
    """

    def __init__(self, key: str):
        self._fragments: dict[int, set[str]] = {}
        for form in (key, *(half for half in key.split(":") if len(half) >= PART // 2), *_base64_forms(key)):
            size = min(PART, len(form))
            parts = {form[start : start + size] for start in range(len(form) - size + 1)}
            self._fragments.setdefault(size, set()).update(parts)

    def text(self, text: str) -> str:
        """`text` without secrets."""
        characters = _percent_decoded(text)
        plain = "".join(character for character, _ in characters)
        is_secret = bytearray(len(text))
        for size, fragments in self._fragments.items():
            for start in range(len(plain) - size + 1):
                if plain[start : start + size] in fragments:
                    first, last = characters[start][1].start, characters[start + size - 1][1].stop
                    is_secret[first:last] = bytes([1]) * (last - first)
        pieces = groupby(range(len(text)), key=is_secret.__getitem__)
        blank = "".join("..." if secret else "".join(text[index] for index in run) for secret, run in pieces)
        return _HEADER.sub("Key ...", without_passwords(blank))

    def json(self, value: Any) -> Any:
        """A JSON value whose strings have no secrets."""
        if isinstance(value, str):
            return self.text(value)
        if isinstance(value, list):
            return [self.json(element) for element in value]
        if isinstance(value, dict):
            return {self.text(str(name)): self.json(element) for name, element in value.items()}
        return value


def without_passwords(text: str) -> str:
    """`text` whose addresses name neither user nor password."""
    return _PASSWORD.sub("...@", text)


def _base64_forms(key: str) -> Iterator[str]:
    """The characters that base64 has for the key wherever it stands among other bytes, in both alphabets."""
    for start in range(3):
        aligned = key.encode()[start:]
        aligned = aligned[: len(aligned) // 3 * 3]
        yield from (base64.b64encode(aligned).decode(), base64.urlsafe_b64encode(aligned).decode())


def _percent_decoded(text: str) -> Sequence[tuple[str, slice]]:
    """The characters of `text` with `%XX` decoded, each with the place that it comes from."""
    characters = [(character, slice(index, index + 1)) for index, character in enumerate(text)]
    for _ in range(DECODINGS):
        if not any(character == "%" for character, _ in characters):
            break
        characters = list(_decode_once(characters))
    return characters


def _decode_once(characters: Sequence[tuple[str, slice]]) -> Iterator[tuple[str, slice]]:
    index = 0
    while index < len(characters):
        character, place = characters[index]
        digits = "".join(following for following, _ in characters[index + 1 : index + 3])
        if character == "%" and _HEX.fullmatch(digits):
            yield chr(int(digits, 16)), slice(place.start, characters[index + 2][1].stop)
            index += 3
        else:
            yield character, place
            index += 1
