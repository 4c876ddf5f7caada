"""Folders that a command has just made: gone again where it was refused before anything was finished in them."""

from __future__ import annotations

import contextlib
import os
from typing import TYPE_CHECKING, Final

from bitloss.errors import BitlossError

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence
    from pathlib import Path

LOCK: Final = ".bitloss.lock"
TRACES: Final = frozenset({LOCK, "run.json", "events.jsonl", "spec.toml"})
"""What a run folder holds before its first step is finished."""


def missing_folders(path: Path) -> tuple[Path, ...]:
    """The folders that would have to be made for `path` to be one: itself first, then those above it."""
    return tuple(each for each in (path, *path.parents) if not each.exists() and not each.is_symlink())


def remove_bare(made: Sequence[Path]) -> None:
    """Remove a run folder, and those made above it, if there is nothing in it but `TRACES` and empty folders.

    Args:
        made: as `missing_folders` gave it before they were made; empty where the folder was there before.
    """
    # errors are let be: the one that brought us here is to be told
    with contextlib.suppress(OSError):
        if not made or not _bare(made[0]):
            return
        for place, _, _ in os.walk(made[0], topdown=False):
            if place != str(made[0]):
                os.rmdir(place)
        for name in (*(TRACES - {LOCK}), LOCK):  # held to the end
            (made[0] / name).unlink(missing_ok=True)
        remove_empty(made)


def remove_empty(made: Sequence[Path]) -> None:
    """Remove folders, each if it is empty."""
    for folder in made:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def removed_when_refused(made: Sequence[Path]) -> Iterator[None]:
    """`remove_bare` after an error of ours. What is interrupted is gone on with, and stays."""
    try:
        yield
    except BitlossError:
        remove_bare(made)
        raise


def _bare(folder: Path) -> bool:
    """Whether there is nothing below a folder but folders, and `TRACES` at its top."""
    if folder.is_symlink():
        return False
    return not any(
        set(files) - (TRACES if place == str(folder) else set())
        or any(os.path.islink(os.path.join(place, name)) for name in folders)
        for place, folders, files in os.walk(folder)
    )
