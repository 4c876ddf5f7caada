"""Room on the disk for what is to be written."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from bitloss.errors import DiskFull
from bitloss.quantize.unfinished import unfinished_path

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
    disks: dict[int, tuple[Path, Path, int]] = {}
    for file in files:
        folder = next(parent for parent in file.path.absolute().parents if parent.exists())
        disk = folder.stat().st_dev
        first, _, needed = disks.get(disk, (file.path, folder, 0))
        disks[disk] = (first, folder, needed + max(0, file.size - (_written(file.path) if kept else 0)))
    for first, folder, needed in disks.values():
        free = shutil.disk_usage(folder).free
        if needed > free:
            raise disk_full(first, needed, free)


def _written(target: Path) -> int:
    """Bytes on the disk of what an interrupted pass left of a file."""
    try:
        return unfinished_path(target).lstat().st_blocks * 512
    except OSError:
        return 0


def disk_full(out: Path, needed: int, free: int) -> DiskFull:
    """Return the error for `out`, the first of the files."""
    return DiskFull(
        "not enough space",
        where=out,
        expected=f"{needed / 1e6:.1f} MB free",
        found=f"{free / 1e6:.1f} MB",
        mend="free some space or choose a folder on another disk; nothing half-written was left",
    )
