from __future__ import annotations

import struct
from pathlib import Path

import pytest
from gguf import TokenType

from bitloss.errors import CheckpointError, FileProblem, UnsupportedError
from bitloss.model.sentencepiece import MAX_MODEL, Piece, read_sentencepiece


def varint(value: int) -> bytes:
    out = b""
    while value >= 0x80:
        out += bytes([value & 0x7F | 0x80])
        value >>= 7
    return out + bytes([value])


def message(number: int, content: bytes) -> bytes:
    return varint(number << 3 | 2) + varint(len(content)) + content


def number(field: int, value: int) -> bytes:
    return varint(field << 3) + varint(value)


def piece(text: bytes, score: float | None = None, kind: int | None = None) -> bytes:
    content = message(1, text)
    if score is not None:
        content += varint(2 << 3 | 5) + struct.pack("<f", score)
    if kind is not None:
        content += number(3, kind)
    return message(1, content)


UNK, BPE = piece(b"<unk>", 0.0, 2), message(2, number(3, 2))


def read(tmp_path: Path, content: bytes) -> tuple[tuple[Piece, ...], bool]:
    path = tmp_path / "tokenizer.model"
    path.write_bytes(content)
    model = read_sentencepiece(path)
    return model.pieces, model.add_dummy_prefix


def test_pieces_have_text_score_and_type(tmp_path: Path) -> None:
    kinds = [piece(f"k{kind}".encode(), -kind / 2, kind) for kind in (1, 3, 4, 5, 6)]
    pieces, prefix = read(tmp_path, UNK + b"".join(kinds) + piece("▁é".encode()) + BPE)
    assert pieces == (
        Piece("<unk>", 0.0, TokenType.UNKNOWN),
        Piece("k1", -0.5, TokenType.NORMAL),
        Piece("k3", -1.5, TokenType.CONTROL),
        Piece("k4", -2.0, TokenType.USER_DEFINED),
        Piece("k5", -2.5, TokenType.UNUSED),
        Piece("k6", -3.0, TokenType.BYTE),
        Piece("▁é", 0.0, TokenType.NORMAL),  # proto2's defaults
    )
    assert prefix


def test_settings_may_come_in_parts_and_in_any_order(tmp_path: Path) -> None:
    # A message given twice is merged; the last of a value counts. Other fields, of every wire type, are skipped.
    other = number(90, 1 << 63) + varint(91 << 3 | 1) + bytes(8) + varint(92 << 3 | 5) + bytes(4)
    settings = message(3, number(3, 1)) + message(2, number(3, 1)) + BPE + message(2, other)
    pieces, prefix = read(tmp_path, settings + UNK + message(3, other + number(3, 0)) + message(4, b"\xff"))
    assert len(pieces) == 1
    assert not prefix


BAD = {
    "empty": (b"", "0 unknown pieces of 0"),
    "two unknown": (UNK + piece(b"x", 0.0, 2) + BPE, "2 unknown pieces of 2"),
    "twice": (UNK + piece(b"x") + piece(b"x") + BPE, "a piece occurs twice"),
    "no text": (UNK + piece(b"") + BPE, "piece 1 has no text"),
    "not UTF-8": (UNK + piece(b"\xff") + BPE, "utf-8"),
    "type": (UNK + piece(b"x", 0.0, 7) + BPE, "7 is not a valid TokenType"),
    "score": (UNK + piece(b"x", float("nan")) + BPE, "piece 1 has the score nan"),
    "text as number": (message(1, number(1, 5)), "a number where a message or text"),
    "number as text": (message(2, message(3, b"")), "a message or text where a number"),
    "piece as number": (number(1, 5), "a number where a message or text"),
    "group": (varint(9 << 3 | 3), "field 9 of wire type 3 before byte 1"),
    "field 0": (number(0, 1), "field 0 of wire type 0"),
    "beyond": (varint(1 << 3 | 2) + varint(5) + b"abc", "field 1 goes 2 bytes beyond its message"),
    "huge": (varint(1 << 3 | 2) + varint((1 << 64) - 1), "beyond its message"),
    "cut number": (b"\x80", "it ends inside a number"),
    "long number": (b"\xff" * 20, "number of more than ten bytes before byte 10"),
}


@pytest.mark.parametrize("case", BAD)
def test_faults_have_their_own_line(tmp_path: Path, case: str) -> None:
    content, message_ = BAD[case]
    with pytest.raises(CheckpointError, match=message_) as caught:
        read(tmp_path, content)
    assert "tokenizer.model: not a SentencePiece model (" in str(caught.value)


@pytest.mark.parametrize(
    ("settings", "found"),
    [(b"", "unigram"), (number(3, 1), "unigram"), (number(3, 4), "char"), (number(3, 9), "9")],
)
def test_other_kinds_than_bpe_are_refused_by_name(tmp_path: Path, settings: bytes, found: str) -> None:
    with pytest.raises(UnsupportedError, match=f"expected BPE, found .*{found}.*convert_hf_to_gguf"):
        read(tmp_path, UNK + message(2, settings))


def test_missing_and_too_large(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="no such file"):
        read_sentencepiece(tmp_path / "tokenizer.model")
    with (tmp_path / "tokenizer.model").open("wb") as file:
        file.truncate(MAX_MODEL + 1)
    with pytest.raises(CheckpointError, match="too large"):
        read_sentencepiece(tmp_path / "tokenizer.model")
