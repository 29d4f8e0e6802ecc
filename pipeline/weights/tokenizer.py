"""umT5's sentencepiece model: inside the text encoder's file, beside it, or rebuilt from a GGUF's metadata."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from sentencepiece import SentencePieceProcessor

from ..errors import WeightsError
from .headers import regular_file_size
from .source import Source

EMBEDDED = "spiece_model"  # the tensor in which ComfyUI's files carry it
FILE = "spiece.model"
MODEL_BYTES = 2**26  # of a sentencepiece model; umT5's has 4.5 MB
UNIGRAM, NO_ID = 1, -1  # of a sentencepiece model
FOLDERS = (".", "tokenizer", "../tokenizer", "google/umt5-xxl", "umt5-xxl")  # from the encoder's own


def find_tokenizer(source: Source) -> SentencePieceProcessor:
    """The tokenizer of the text encoder `source`: inside it, near it, or rebuilt from its metadata.

    Raises:
        WeightsError: there is none, or it is damaged.
    """
    check_tokenizer(source)
    if EMBEDDED in source.entries:
        return _parse(source, source.get(EMBEDDED).flatten().view(torch.uint8).numpy().tobytes())
    file = _nearby_file(source)
    if file is not None:
        return _load(file)
    try:
        rebuilt = _rebuild(source.metadata)
    except (LookupError, ValueError, TypeError, AttributeError, struct.error) as error:
        raise WeightsError(f"{source.name} holds a damaged tokenizer; download it again.") from error
    return _parse(source, rebuilt)


def check_tokenizer(source: Source) -> None:
    """Raises `WeightsError` where the text encoder `source` has no tokenizer inside, near it or in its metadata."""
    if EMBEDDED in source.entries:
        if source.entries[EMBEDDED].num_bytes > MODEL_BYTES:
            raise WeightsError(f"{source.name} holds a damaged tokenizer; download it again.")
    elif _nearby_file(source) is None and "tokenizer.ggml.tokens" not in source.metadata:
        raise WeightsError(
            f"{source.name} has no tokenizer inside: put google/umt5-xxl's {FILE} next to it, or use umt5_xxl_fp16 or "
            f"umt5_xxl_fp8_e4m3fn_scaled."
        )


def _parse(source: Source, model: bytes) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_proto=model)
    except RuntimeError as error:
        raise WeightsError(f"{source.name} holds a damaged tokenizer; download it again.") from error


def _nearby_file(source: Source) -> Path | None:
    folder = source.path if source.path.is_dir() else source.path.parent
    return next((file for place in FOLDERS if (file := folder / place / FILE).exists()), None)


def _load(file: Path) -> SentencePieceProcessor:
    try:
        if regular_file_size(file) > MODEL_BYTES:
            raise OSError("too large")
        return SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{file} is no sentencepiece model; choose google/umt5-xxl's {FILE}.") from error


def _rebuild(fields: Mapping[str, Any]) -> bytes:
    """A sentencepiece model from the fields that llama.cpp's converter kept of it.

    The message is written by hand (`sentencepiece_model.proto`): it has three fields, and Python's protobuf would have
    to be of the very version that sentencepiece was built with.
    """
    names = ("tokens", "scores", "token_type")
    pieces = zip(*(fields[f"tokenizer.ggml.{name}"] for name in names), strict=True)
    ids = {40: ("unknown", 2), 42: ("eos", 1), 43: ("padding", 0)}
    trainer = _number(3, UNIGRAM) + _number(4, len(fields["tokenizer.ggml.tokens"])) + _number(41, NO_ID)
    trainer += b"".join(_number(field, fields.get(f"tokenizer.ggml.{name}_token_id", usual))
                        for field, (name, usual) in ids.items())  # fmt: skip
    charsmap = bytes(value & 0xFF for value in fields.get("tokenizer.ggml.precompiled_charsmap", ()))
    normalizer = _text(1, b"identity") + (_text(2, charsmap) if charsmap else b"")
    normalizer += _number(3, fields.get("tokenizer.ggml.add_space_prefix", True))
    normalizer += _number(4, fields.get("tokenizer.ggml.remove_extra_whitespaces", True))
    return b"".join(_text(1, _piece(*piece)) for piece in pieces) + _text(2, trainer) + _text(3, normalizer)


def _piece(text: str, score: float, kind: int) -> bytes:
    return _text(1, text.encode()) + _varint(2 << 3 | 5) + struct.pack("<f", score) + _number(3, kind)


def _text(field: int, content: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(content)) + content


def _number(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(int(value) & 2**64 - 1)


def _varint(value: int) -> bytes:
    """Seven bits a byte, the lowest first; the top bit says that more follow."""
    encoded = bytearray()
    while value > 0x7F:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*encoded, value])
