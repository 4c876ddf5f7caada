"""SHA-256 of a file and of a part of it, from one look at the bytes.

The definition is `hashlib.sha256`. Where the processor has SHA instructions a native digest takes its place, for one
reason: two digests of the same bytes, made side by side, take little longer than one (`benchmarks/convert_speed.py`).
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any, Protocol

from bitloss._native import Sha256, sha_available

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

    Bytes = npt.NDArray[np.uint8]


class Digest(Protocol):
    """A SHA-256 that grows."""

    def update(self, data: Any) -> None:
        """Add bytes: a contiguous vector of uint8."""
        ...

    def digest(self) -> bytes:
        """Return the hash of all bytes so far."""
        ...


def sha256() -> Digest:
    """Return the digest of no bytes."""
    return Sha256() if sha_available() else hashlib.sha256()


def update_both(one: Digest, other: Digest, data: Bytes) -> None:
    """Add the same bytes to two digests."""
    if isinstance(one, Sha256) and isinstance(other, Sha256):
        one.update_with(other, data)
    else:
        one.update(data)
        other.update(data)
