"""Room on the disk for what is to be written, looked up before it is computed."""

from __future__ import annotations

import shutil
from typing import TYPE_CHECKING

from bitloss.display import size
from bitloss.errors import DiskFull, FileProblem
from bitloss.store.atomic import check_place, explained

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path


def check_room(files: Iterable[tuple[Path, int]]) -> None:
    """Refuse files (or folders) that do not fit together on the disks they go to.

    Args:
        files: where each will be, and the bytes it will take more than it does now.

    Raises:
        DiskFull: says how much is needed and how much is free.
        FileProblem: a file is in the way of a folder, or the system does not say how much there is.
    """
    disks: dict[int, tuple[Path, Path, int]] = {}
    for file, more in files:
        with explained(file):
            folder = next(parent for parent in file.absolute().parents if parent.exists())
            disk = folder.stat().st_dev
        if not folder.is_dir():
            raise FileProblem(
                "a file is in the way of a folder",
                where=folder,
                mend="choose another place, or move the file away",
            )
        first, _, needed = disks.get(disk, (file, folder, 0))
        disks[disk] = (first, folder, needed + max(0, more))
    for first, folder, needed in disks.values():
        with explained(folder):
            total, _, free = shutil.disk_usage(folder)
        if not total:  # no disk at all, or one that does not say
            check_place(first)
        elif needed > free:
            raise not_enough_room(first, needed, free)


def not_enough_room(first: Path, needed: int, free: int) -> DiskFull:
    """Return the error for a disk; `first` is one of the files that go to it."""
    return DiskFull(
        "not enough space on the disk",
        where=first,
        expected=f"{size(needed)} free",
        found=size(free),
        mend="free some space or choose a folder on another disk; nothing half-written was left",
    )
