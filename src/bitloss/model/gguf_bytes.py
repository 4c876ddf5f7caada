"""Bytes of a GGUF header, read one after the other; no length is believed before it was compared with what is left."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING, Any

import numpy as np

from bitloss import _native
from bitloss.errors import GgufError, cut_off

if TYPE_CHECKING:
    from pathlib import Path


class Cursor:
    """A cursor that tests the bounds before every read."""

    def __init__(self, path: Path, data: memoryview) -> None:
        self.path = path
        self.data = data
        self.at = 0
        self.place = "header"

    def fail(self, what: str, *, expected: object = None, found: object = None) -> GgufError:
        """The error that something here is wrong."""
        return GgufError(
            what,
            where=f"{self.path}[{self.place}, byte {self.at}]",
            expected=expected,
            found=found,
            mend="the file is damaged: copy or fetch it again, or make it again",
        )

    def take(self, count: int, what: str) -> memoryview:
        """The next bytes.

        Raises:
            GgufError: fewer are left; `what` was to be read.
        """
        left = len(self.data) - self.at
        if count > left:
            raise cut_off(
                GgufError,
                where=f"{self.path}[{self.place}, byte {self.at}]",
                inside=what,
                expected=self.at + count,
                found=len(self.data),
                least=True,
            )
        piece = self.data[self.at : self.at + count]
        self.at += count
        return piece

    def number(self, dtype: np.dtype[Any], what: str) -> Any:
        """The next number, as Python's own; likewise."""
        return np.frombuffer(self.take(dtype.itemsize, what), dtype=dtype)[0].item()

    def u32(self, what: str) -> int:
        """Likewise."""
        return int.from_bytes(self.take(4, what), "little")

    def u64(self, what: str) -> int:
        """Likewise."""
        return int.from_bytes(self.take(8, what), "little")

    def name(self, what: str, limit: int) -> str:
        """The next string, of at most `limit` bytes of UTF-8; likewise."""
        length = self.u64(f"the length of {what}")
        if length > limit:
            raise self.fail(f"{what} is too long", expected=f"at most {limit} bytes", found=length)
        raw = bytes(self.take(length, what))
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise self.fail(f"{what} is not UTF-8", found=raw[:60]) from None

    def string(self) -> str:
        """The next string, what is not UTF-8 in it escaped; likewise."""
        length = self.u64("the length of a string")
        return bytes(self.take(length, "a string")).decode("utf-8", errors="backslashreplace")

    def strings(self, count: int) -> list[str]:
        """As `string` so many times; a vocabulary and its merges are hundreds of thousands."""
        starts, ends = np.empty(count, np.int64), np.empty(count, np.int64)
        found, end = _native.find_strings(np.frombuffer(self.data, np.uint8), self.at, starts, ends)
        if found < count:
            self.at = end
            self.string()  # says what is wrong here
        first, self.at = self.at, end
        return list(_decode(bytes(self.data[first:end]), count))


@functools.lru_cache(maxsize=4)  # a run opens files of one vocabulary over and over
def _decode(raw: bytes, count: int) -> tuple[str, ...]:
    """The strings of an array that is known to hold so many."""
    return tuple(_native.decode_strings(raw, count))
