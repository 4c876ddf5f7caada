"""A results.json cut at any byte, with bits flipped, or made to hurt: RecordError and nothing else."""

from __future__ import annotations

import random
from typing import TYPE_CHECKING

import pytest

from bitloss.errors import RecordError
from bitloss.records import Results, read_results, write_results

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def written(sample_results: Results, tmp_path: Path) -> Path:
    path = tmp_path / "results.json"
    write_results(sample_results.model_copy(update={"candidates": (), "comparisons": ()}), path)
    return path


def test_cut_at_every_byte(written: Path) -> None:
    whole = written.read_bytes()
    for length in range(len(whole.rstrip())):
        written.write_bytes(whole[:length])
        with pytest.raises(RecordError, match=r"results\.json"):
            read_results(written)


def test_flipped_bits(written: Path) -> None:
    """Either refused, or still a record (a flipped digit is a valid digit): never another exception."""
    whole = written.read_bytes()
    rng = random.Random(7)
    messages = []
    for _ in range(1500):
        damaged = bytearray(whole)
        damaged[rng.randrange(len(whole))] ^= 1 << rng.randrange(8)
        written.write_bytes(damaged)
        try:
            read_results(written)
        except RecordError as error:
            messages.append(str(error))
    assert len(messages) > 500
    assert all(message.isprintable() for message in messages)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"\xff\xfe",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 100_000,
        b'{"schema": "' + b"x" * 1_000_000 + b'"}',
        b'{"schema": "bitloss/results@1", "bitloss": ' + b"9" * 10_000 + b"}",
        b'{"schema": "bitloss/results@1", "\\u001b[2J\\n": 1}',
        b'{"schema": "\\ud800"}',
        b"\x00" * 4096,
    ],
)
def test_made_to_hurt(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "results.json"
    path.write_bytes(data)
    with pytest.raises(RecordError) as caught:
        read_results(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 1000


def test_far_too_large(tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    with path.open("wb") as file:
        file.truncate((1 << 28) + 1)
    with pytest.raises(RecordError, match="too large"):
        read_results(path)
