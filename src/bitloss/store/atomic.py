"""Files and folders that are either whole or not there.

Everything is written to a temporary sibling ``.<name>.partial-<pid>-<host><random>``, synced, then renamed.
On any error, Ctrl-C included, the sibling is removed; what a killed process left is removed the next time
somebody writes beside it.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import os
import platform
import re
import secrets
import shutil
import stat
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bitloss.errors import BitlossError, DiskFull, FileProblem

if TYPE_CHECKING:
    from collections.abc import Iterator

_OWNER_ALONE = 0o600
_FULL = frozenset({errno.ENOSPC, errno.EDQUOT})
_NO_ROOM = _FULL | {errno.EFBIG}
_RUST_ERROR = re.compile(r"\(os error (\d{1,4})\)")  # how libraries in Rust pass on what the system said
_MENDS = {
    errno.EACCES: "see who may read and write there, or choose another place",
    errno.EPERM: "see who may read and write there, or choose another place",
    errno.EROFS: "choose a place that can be written to",
    errno.EEXIST: "a file is in the way of a folder: choose another place, or move the file away",
    errno.ENOTDIR: "a file is in the way of a folder: choose another place, or move the file away",
    errno.EFBIG: "this disk, or a limit, allows no file that large: choose another disk, or write parts",
    errno.ENAMETOOLONG: "choose a shorter name",
}
# Process ids mean nothing on another machine, and a run folder may be on a shared disk.
_HOST = hashlib.sha256(platform.node().encode()).hexdigest()[:8]
_PARTIAL = re.compile(rf"\..+\.partial-(\d{{1,9}})-{_HOST}[0-9a-f]{{8}}", re.DOTALL)


def file_problem(error: OSError, where: Path | str) -> FileProblem:
    """Say what the system said about `where`, in the project's own errors."""
    if error.errno in _FULL:
        return _disk_full(where)
    return FileProblem(error.strerror or str(error), where=where, mend=_MENDS.get(error.errno or 0))


def _disk_full(where: Path | str) -> DiskFull:
    return DiskFull(
        "the disk is full",
        where=where,
        mend="free some space or choose a folder on another disk; nothing half-written was left",
    )


@contextlib.contextmanager
def explained(where: Path) -> Iterator[None]:
    """Turn the system's errors about `where` into the project's own."""
    try:
        yield
    except OSError as error:
        raise file_problem(error, where) from error


_NOWHERE = "nothing can be written there"


def make_folder(path: Path) -> None:
    """Make a folder, and those above it, unless it is there.

    Raises:
        FileProblem: it cannot be made; file systems that hold none, such as ``/proc``, call that a missing path.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        above = next(each for each in path.absolute().parents if each.exists())
        if isinstance(error, FileNotFoundError) and above.is_dir():
            raise nowhere(path) from error
        raise file_problem(error, path) from error


def check_place(path: Path) -> None:
    """Refuse a folder that takes no files, such as those of ``/proc``; `path` is what is to be written in it.

    Raises:
        FileProblem: so it is.
    """
    folder = next(each for each in path.absolute().parents if each.exists())
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except FileNotFoundError as error:
        raise nowhere(path) from error
    except OSError as error:
        raise file_problem(error, path) from error


def nowhere(path: Path) -> FileProblem:
    """Return the error for a place that takes no files."""
    return FileProblem(_NOWHERE, where=path, mend="choose another place")


def _no_room(error: BaseException | None) -> int | None:
    """The system's number where a full disk, or a file that may not grow, is behind `error`.

    Libraries that write for us wrap what the system said.
    """
    for _ in range(8):
        if error is None or isinstance(error, BitlossError):
            return None
        if isinstance(error, OSError):
            code = error.errno
        else:
            told = _RUST_ERROR.search(str(error))
            code = int(told[1]) if told else None
        if code in _NO_ROOM:
            return code
        error = error.__cause__ or error.__context__
    return None


def _alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return not _is_zombie(pid)


def _is_zombie(pid: int) -> bool:
    """Whether a process has ended and nobody has asked how: it writes no more (Linux; elsewhere never)."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return False
    return stat.rpartition(b")")[2].split()[:1] in ([b"Z"], [b"X"])


def _remove(path: Path) -> None:
    """Remove a file or folder if it is there; a leftover that resists is no reason to fail."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        with contextlib.suppress(OSError):
            path.unlink()


def clean_partials(folder: Path) -> list[Path]:
    """Remove what dead processes of this machine left half-written in `folder` (not below it).

    Returns:
        The paths removed, sorted.
    """
    gone = []
    with contextlib.suppress(FileNotFoundError), os.scandir(folder) as entries:
        for entry in entries:
            match = _PARTIAL.fullmatch(entry.name)
            if match and (pid := int(match[1])) > 0 and not _alive(pid):
                gone.append(Path(entry.path))
    for path in gone:
        _remove(path)
    return sorted(gone)


def _sync(path: Path) -> None:
    """Flush a file or folder to the disk. Folders that cannot be synced (some network disks) are let be."""
    folder = path.is_dir()
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if not (folder and error.errno in {errno.EINVAL, errno.EBADF, errno.ENOTSUP}):
            raise
    finally:
        os.close(descriptor)


def _partial_of(target: Path) -> Path:
    make_folder(target.parent)
    with explained(target):
        if not os.statvfs(target.parent).f_blocks:  # no disk, or one that does not say how large it is
            check_place(target)
        clean_partials(target.parent)
    return target.with_name(f".{target.name}.partial-{os.getpid()}-{_HOST}{secrets.token_hex(4)}")


@contextlib.contextmanager
def _removed_on_error(partial: Path, target: Path) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        _remove(partial)
        if isinstance(error, Exception) and (code := _no_room(error)) is not None:
            raise file_problem(OSError(code, os.strerror(code)), target) from error
        if isinstance(error, BitlossError):
            error.rename(str(partial), str(target))
            error.rename(partial.name, target.name)
        raise


@contextlib.contextmanager
def atomic_path(target: Path) -> Iterator[Path]:
    """Write a file that is either whole or not there.

    The parent folder is made when missing. An existing file keeps its content until the new one is complete.

    Args:
        target: where the finished file shall be.

    Yields:
        A path beside `target` to write to; it does not exist yet.

    Raises:
        DiskFull: the disk ran out, in the caller's writing or in the final sync.
        FileProblem: the folder cannot be written, `target` is a folder, or nothing was written.
    """
    with explained(target):
        if target.is_dir():
            raise FileProblem("a folder is in the way of a file", where=target, mend="choose another name")
    partial = _partial_of(target)
    with _removed_on_error(partial, target):
        yield partial
        if not partial.is_file():
            raise FileProblem("nothing was written", where=target)
        put_in_place(partial, target)


def _as_usual(path: Path) -> None:
    """Give a file the rights that a file made here would have: libraries write through files for their owner alone."""
    if path.is_file() and stat.S_IMODE(path.stat().st_mode) == _OWNER_ALONE:
        mask = os.umask(0)
        os.umask(mask)
        path.chmod(0o666 & ~mask)


def put_in_place(partial: Path, target: Path) -> None:
    """Give a finished file, on the disk of `target`, its name.

    Raises:
        DiskFull, FileProblem: it could not be synced or renamed.
    """
    with explained(target):
        _as_usual(partial)
        _sync(partial)
        os.replace(partial, target)
        _sync(target.parent)


@contextlib.contextmanager
def atomic_dir(target: Path) -> Iterator[Path]:
    """Write a folder that is either whole or not there; like :func:`atomic_path`.

    An existing folder is replaced. A machine that stops between the two renames this takes leaves no folder
    of that name, never a mixture.

    Yields:
        An empty folder beside `target`.

    Raises:
        DiskFull: the disk ran out.
        FileProblem: the folder cannot be written, or `target` is a file.
    """
    if target.exists() and not target.is_dir():
        raise FileProblem("a file is in the way of a folder", where=target, mend="choose another name")
    partial = _partial_of(target)
    with _removed_on_error(partial, target):
        with explained(target):
            partial.mkdir()
        yield partial
        put_folder_in_place(partial, target)


def put_folder_in_place(partial: Path, target: Path) -> None:
    """Give a finished folder, on the disk of `target`, its name; what is there is replaced.

    Raises:
        DiskFull, FileProblem: it could not be synced or renamed.
    """
    with explained(target):
        for path in sorted(partial.rglob("*"), reverse=True):
            _as_usual(path)
            _sync(path)
        _sync(partial)
        if target.exists():
            old = _partial_of(target)
            os.replace(target, old)
            try:
                os.replace(partial, target)
            except BaseException:
                os.replace(old, target)
                raise
            _remove(old)
        else:
            os.replace(partial, target)
        _sync(target.parent)


def open_alone(path: Path, target: Path, what: str) -> int:
    """Open a file that grows beside its place, or make it, alone until its descriptor is closed.

    Args:
        path: the file; not a link.
        target: what it will be, for messages.
        what: file or folder, likewise.

    Returns:
        The descriptor, locked.

    Raises:
        FileProblem: another process has it open, or it cannot be opened.
    """
    make_folder(path.parent)
    with explained(target):
        while True:
            descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if is_at(descriptor, path):  # else its holder has put it in its place meanwhile
                    return descriptor
            except BlockingIOError:
                os.close(descriptor)
                raise FileProblem(
                    f"another process is writing this {what}",
                    where=target,
                    mend="wait for it to finish, or choose another folder",
                ) from None
            except BaseException:
                os.close(descriptor)
                raise
            os.close(descriptor)


def is_at(descriptor: int, path: Path) -> bool:
    """Whether an open file is the one of that name: it may have been removed or replaced since."""
    try:
        return os.path.samestat(os.fstat(descriptor), os.stat(path, follow_symlinks=False))
    except FileNotFoundError:
        return False


def atomic_write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` in one step; raises as :func:`atomic_path`."""
    with atomic_path(path) as partial, explained(path):
        partial.write_bytes(data)


def atomic_write_text(path: Path, text: str) -> None:
    """Write `text` to `path` as UTF-8 with its line ends as they are; raises as :func:`atomic_path`."""
    atomic_write_bytes(path, text.encode())
