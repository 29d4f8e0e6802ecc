"""umT5's sentencepiece model: inside the text encoder's file, beside it, or rebuilt from a GGUF's metadata."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from sentencepiece import SentencePieceProcessor

from ..errors import WeightsError
from .source import Source

INSIDE = "spiece_model"  # the tensor in which ComfyUI's files carry it
FILE = "spiece.model"
FOLDERS = (".", "tokenizer", "../tokenizer", "google/umt5-xxl", "umt5-xxl")  # seen from the encoder's folder


def find_tokenizer(source: Source, given: Path | str | None = None) -> SentencePieceProcessor:
    """The tokenizer of the text encoder `source`.

    Args:
        source: the text encoder.
        given: `spiece.model`, or a folder that holds it; None looks inside `source` and around it.

    Raises:
        WeightsError: there is none.
    """
    if given is not None:
        return _load(_file_of(Path(given)))
    if INSIDE in source.entries:
        return SentencePieceProcessor(model_proto=bytes(source.get(INSIDE).numpy()))
    folder = source.path if source.path.is_dir() else source.path.parent
    for candidate in _around(folder):
        if candidate.exists():
            return _load(candidate)
    if "tokenizer.ggml.tokens" in source.metadata:
        return SentencePieceProcessor(model_proto=_rebuild(source.metadata))
    raise WeightsError(
        f"{source.name} has no tokenizer inside: put google/umt5-xxl's {FILE} next to it, or use umt5_xxl_fp16 or "
        f"umt5_xxl_fp8_e4m3fn_scaled."
    )


def _around(folder: Path) -> Iterator[Path]:
    for place in FOLDERS:
        yield folder / place / FILE


def _file_of(given: Path) -> Path:
    file = given / FILE if given.is_dir() else given
    if not file.exists():
        raise WeightsError(f"There is no tokenizer at {given}; choose google/umt5-xxl's {FILE}.")
    return file


def _load(file: Path) -> SentencePieceProcessor:
    try:
        return SentencePieceProcessor(model_file=str(file))
    except (OSError, RuntimeError) as error:
        raise WeightsError(f"{file} is no sentencepiece model; choose google/umt5-xxl's {FILE}.") from error


def _rebuild(fields: Mapping[str, Any]) -> bytes:
    """A sentencepiece model from the pieces, scores and types that llama.cpp's converter wrote down."""
    from sentencepiece import sentencepiece_model_pb2 as proto  # needs protobuf, and only here

    model = proto.ModelProto()
    pieces = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores", "token_type"))
    for text, score, kind in zip(*pieces, strict=True):
        model.pieces.add(piece=text, score=score, type=kind)
    model.trainer_spec.model_type = proto.TrainerSpec.UNIGRAM
    model.trainer_spec.vocab_size = len(model.pieces)
    model.trainer_spec.eos_id = fields.get("tokenizer.ggml.eos_token_id", 1)
    model.trainer_spec.pad_id = fields.get("tokenizer.ggml.padding_token_id", 0)
    model.trainer_spec.unk_id = fields.get("tokenizer.ggml.unknown_token_id", 2)
    model.trainer_spec.bos_id = -1
    model.normalizer_spec.name = "identity"
    model.normalizer_spec.add_dummy_prefix = fields.get("tokenizer.ggml.add_space_prefix", True)
    model.normalizer_spec.remove_extra_whitespaces = fields.get("tokenizer.ggml.remove_extra_whitespaces", True)
    charsmap = fields.get("tokenizer.ggml.precompiled_charsmap")
    if charsmap:
        model.normalizer_spec.precompiled_charsmap = bytes(value & 0xFF for value in charsmap)
    return model.SerializeToString()
