"""llama.cpp's log, caught: silent by default, collected on request.

libllama and ggml share one callback for the whole process, and `llama_cpp` sets one on import that prints
every line to stderr. This module sets its own on first use and leaves it there: text goes to the captures
that are open, else nowhere. All users of libllama in bitloss go through here, so no capture overwrites
another.
"""

from __future__ import annotations

import ctypes
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import llama_cpp

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator


class _Capture:
    def __init__(self, listener: Callable[[str], None] | None) -> None:
        self.pieces: list[str] = []
        self.listener = listener
        self.error: BaseException | None = None

    def take(self, text: str) -> None:
        self.pieces.append(text)
        if self.listener is not None and self.error is None:
            try:
                self.listener(text)
            # An exception (Ctrl-C among them) cannot pass through the C code that called: kept for the exit.
            except BaseException as error:  # noqa: BLE001, RUF100
                self.error = error


_open: list[_Capture] = []


def _receive(_level: int, text: bytes, _user_data: Any) -> None:
    piece = text.decode("utf-8", errors="replace")
    for capture in tuple(_open):
        capture.take(piece)


# Must outlive every call into the library, so it is kept for the life of the process.
_callback = llama_cpp.llama_log_callback(_receive)


def silence_log() -> None:
    """Keep llama.cpp from printing; open captures still receive everything."""
    llama_cpp.llama_log_set(_callback, ctypes.c_void_p(0))


@contextmanager
def captured_log(listener: Callable[[str], None] | None = None) -> Iterator[list[str]]:
    """Collect what llama.cpp logs, from any thread, while the context is open.

    Captures may be nested; each receives everything. Afterwards the log is silent.

    Args:
        listener: also told every piece as it comes. If it raises, it is not called again and the exception is
            raised when the context is left, as C code in between cannot be unwound.

    Yields:
        The pieces of text, growing. A piece may be part of a line: join before splitting.
    """
    silence_log()
    capture = _Capture(listener)
    _open.append(capture)
    try:
        yield capture.pieces
    finally:
        _open.remove(capture)
        if capture.error is not None:
            raise capture.error


def last_lines(pieces: list[str], count: int = 1) -> str:
    """Return the last `count` lines of a captured log that say something, joined by " | "."""
    lines = [line.strip(" .=\t\r") for line in "".join(pieces).splitlines()]
    told = [line for line in lines if line]
    return " | ".join(told[-count:]) if told else "nothing in llama.cpp's log"
