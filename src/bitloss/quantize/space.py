"""Room on the disk for the candidates that are to be written."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bitloss.quantize.unfinished import unfinished_path
from bitloss.store.space import check_room

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from bitloss.quantize.layout import FileLayout


def check_space(files: Iterable[FileLayout], *, kept: bool = False) -> None:
    """Refuse files that do not fit together on the disks they go to.

    Args:
        files: what is to be written.
        kept: take off what an interrupted pass has written of them: it is gone on with, or cut off first.

    Raises:
        DiskFull: says how much is needed and how much is there.
    """
    check_room((file.path, file.size - (_written(file.path) if kept else 0)) for file in files)


def _written(target: Path) -> int:
    """Bytes on the disk of what an interrupted pass left of a file."""
    try:
        return unfinished_path(target).lstat().st_blocks * 512
    except OSError:
        return 0
