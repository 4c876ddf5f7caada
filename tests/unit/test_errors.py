"""What every error line has: what, where, expected, found, what to do."""

from __future__ import annotations

import errno
import os
import pickle

import pytest

from bitloss.errors import BitlossError, GgufError, UsageError, cut_off, unreadable


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOENT, os.strerror(errno.ENOENT)), "x: no such imatrix. Make one"),
        (OSError(errno.ENOTDIR, os.strerror(errno.ENOTDIR)), "x: no such imatrix. Make one"),
        (OSError(errno.EISDIR, os.strerror(errno.EISDIR)), "x: a folder, not an imatrix. Make one"),
        (
            OSError(errno.EACCES, os.strerror(errno.EACCES)),
            "x: imatrix that cannot be read (Permission denied). See who may read it, or copy it to another place",
        ),
        (ValueError("embedded null byte"), "x: imatrix that cannot be read (embedded null byte). Make one"),
    ],
)
def test_a_file_that_cannot_be_read(error: OSError | ValueError, line: str) -> None:
    assert str(unreadable(error, where="x", what="imatrix", mend="make one")) == line


def test_a_file_that_is_cut_off() -> None:
    error = cut_off(GgufError, where="m.gguf", inside="the tensors", expected=20, found=7)
    assert str(error) == (
        "m.gguf: the file is cut off: it ends inside the tensors: expected 20 bytes, found 7 bytes. "
        "Copy or fetch it again"
    )
    assert "at least 20 bytes" in str(
        cut_off(GgufError, where="m", inside="a key", expected=20, found=7, least=True)
    )


def test_other_advice_keeps_the_rest() -> None:
    error = UsageError("what", where="where", expected="a", found="b", mend="c")
    other: BitlossError = error.amended("d")
    assert type(other) is UsageError
    assert str(other) == "where: what: expected a, found b. D"
    assert str(pickle.loads(pickle.dumps(other))) == str(other)
