"""Progress as one callback: the library never prints."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a stage is.

    Attributes:
        stage: what is going on, in two or three words ("measure Q8_0/f16").
        done: units finished.
        total: units in all, or None when unknown.
        unit: what is counted ("chunks", "tensors", "bytes").
    """

    stage: str
    done: int
    total: int | None
    unit: str


ProgressCallback = Callable[[Progress], None]


def silent(_: Progress) -> None:
    """Report nothing."""
