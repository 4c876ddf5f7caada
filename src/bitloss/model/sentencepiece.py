"""Strict reader of a SentencePiece `tokenizer.model`: the fields a GGUF vocabulary is made of.

The file is one Protocol Buffers message, ModelProto (SentencePiece's `sentencepiece_model.proto`); of it are read

    1 pieces          {1 piece: text, 2 score: float32, 3 type: 1 normal .. 6 byte}, in the order of their ids
    2 trainer_spec    {3 model_type: 1 unigram, 2 BPE, 3 word, 4 char}
    3 normalizer_spec {3 add_dummy_prefix: a space before the text}

Other fields are stepped over, their lengths checked. What SentencePiece itself refuses is refused: empty or
repeated pieces, and other than one unknown piece.

llama.cpp splits by BPE (the neighbours whose join has the best score, first), so other kinds are refused. It does
not normalise text: a model with a `precompiled_charsmap` (NFKC) or `remove_extra_whitespaces` is tokenized
otherwise than its library does, from any GGUF file of it. Llama 2 and Mistral 7B have neither.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

from gguf import TokenType

from bitloss.errors import CheckpointError, FileProblem, UnsupportedError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

MAX_MODEL = 16 << 20  # Gemma's 262,144 pieces take 4.7 MB
_KINDS = {1: "unigram", 2: "BPE", 3: "word", 4: "char"}
_VARINT, _FIXED64, _BYTES, _FIXED32 = 0, 1, 2, 5
# Wire type -> bytes of the value, where the type says it.
_SIZES = {_VARINT: 0, _FIXED64: 8, _BYTES: 0, _FIXED32: 4}


class Piece(NamedTuple):
    """A token: its text (spaces written as U+2581), its score (higher joins first) and its type."""

    text: str
    score: float
    kind: TokenType


@dataclass(frozen=True, slots=True)
class SentencePieceModel:
    """A BPE vocabulary.

    Attributes:
        pieces: by id.
        add_dummy_prefix: whether a space is put before a text.
    """

    pieces: tuple[Piece, ...]
    add_dummy_prefix: bool


def read_sentencepiece(path: Path) -> SentencePieceModel:
    """Read a `tokenizer.model`.

    Raises:
        FileProblem: the file is missing or unreadable.
        CheckpointError: it breaks its format.
        UnsupportedError: no BPE.
    """
    try:
        if not path.is_file():
            raise FileProblem("no such file", where=path)
        if path.stat().st_size > MAX_MODEL:
            raise CheckpointError(
                "too large for what it should hold", where=path, expected=f"at most {MAX_MODEL} bytes"
            )
        data = path.read_bytes()
    except OSError as error:
        raise FileProblem(f"cannot be read ({error.strerror})", where=path) from error
    return parse_sentencepiece(data, path)


def parse_sentencepiece(data: bytes, where: object) -> SentencePieceModel:
    """Read the content of a `tokenizer.model`; errors as `read_sentencepiece`'s, `where` named in them."""
    try:
        return _model(data, where)
    except ValueError as error:
        raise CheckpointError(f"not a SentencePiece model ({error})", where=where) from None


def _model(data: bytes, where: object) -> SentencePieceModel:
    pieces: list[Piece] = []
    model_type, dummy_prefix = 1, True  # proto2's defaults
    for number, value in _fields(data):
        if number == 1:
            pieces.append(_piece(_message(value), len(pieces)))
        elif number in {2, 3}:
            for inner, setting in _fields(_message(value)):
                if inner == 3 and number == 2:
                    model_type = _integer(setting)
                elif inner == 3:
                    dummy_prefix = bool(_integer(setting))
    if len({piece.text for piece in pieces}) != len(pieces):
        raise ValueError("a piece occurs twice")
    unknown = sum(piece.kind is TokenType.UNKNOWN for piece in pieces)
    if unknown != 1:
        raise ValueError(f"{unknown} unknown pieces of {len(pieces)}, one is needed")
    if model_type != 2:
        raise UnsupportedError(
            "kind of SentencePiece model that cannot be converted here",
            where=where,
            expected="BPE",
            found=_KINDS.get(model_type, f"type {model_type}"),
            mend="make a GGUF with llama.cpp's convert_hf_to_gguf.py and give that",
        )
    return SentencePieceModel(tuple(pieces), dummy_prefix)


def _piece(data: bytes, at: int) -> Piece:
    text, score, kind = "", 0.0, 1
    for number, value in _fields(data):
        if number == 1:
            text = _message(value).decode("utf-8")
        elif number == 2 and isinstance(value, float):
            score = value
        elif number == 3:
            kind = _integer(value)
    if not text or "\0" in text:
        raise ValueError(f"piece {at} has no text")
    if not math.isfinite(score):
        raise ValueError(f"piece {at} has the score {score}")
    return Piece(text, score, TokenType(kind))


def _fields(data: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Yield (field number, value) of a message; raise ValueError where it breaks the wire format."""
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, wire = key >> 3, key & 7
        size = _SIZES.get(wire)
        value: int | float | bytes = 0
        if size is None or number == 0:
            raise ValueError(f"field {number} of wire type {wire} before byte {at}")
        if wire == _VARINT:
            value, at = _varint(data, at)
        elif wire == _BYTES:
            size, at = _varint(data, at)
        if size > len(data) - at:
            raise ValueError(f"field {number} goes {size - len(data) + at} bytes beyond its message")
        if wire == _FIXED32:
            value = struct.unpack_from("<f", data, at)[0]
        elif wire != _VARINT:
            value = data[at : at + size]
        at += size
        yield number, value


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = 0
    for shift in range(0, 70, 7):
        if at >= len(data):
            raise ValueError("it ends inside a number")
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if byte < 0x80:
            return value, at
    raise ValueError(f"number of more than ten bytes before byte {at}")


def _message(value: int | float | bytes) -> bytes:
    if not isinstance(value, bytes):
        raise ValueError("a number where a message or text should be")
    return value


def _integer(value: int | float | bytes) -> int:
    if not isinstance(value, int):
        raise ValueError("a message or text where a number should be")
    return value
