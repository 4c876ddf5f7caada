"""A file that has its final name is whole, whatever went wrong before."""

from __future__ import annotations

import errno
import os
import signal
import stat
import subprocess
import sys
import time
from typing import TYPE_CHECKING, NoReturn

import pytest

from bitloss.errors import DiskFull, FileProblem, GgufError
from bitloss.store import atomic_dir, atomic_path, atomic_write_bytes, atomic_write_text, clean_partials
from bitloss.store.atomic import file_problem

if TYPE_CHECKING:
    from pathlib import Path

WRITE_AND_WAIT = """
import sys, time
from pathlib import Path
from bitloss.store import atomic_path
with atomic_path(Path(sys.argv[1])) as partial:
    partial.write_bytes(b"half")
    print("ready", flush=True)
    time.sleep(60)
"""


def names(folder: Path) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def full_disk(*_: object) -> NoReturn:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_writes_and_replaces(tmp_path: Path) -> None:
    target = tmp_path / "deep" / "er" / "file.bin"
    atomic_write_bytes(target, b"one")
    assert target.read_bytes() == b"one"
    with atomic_path(target) as partial:
        assert partial.parent == target.parent
        assert not partial.exists()
        partial.write_bytes(b"two")
        assert target.read_bytes() == b"one"
    assert target.read_bytes() == b"two"
    assert names(target.parent) == ["file.bin"]


def test_text_keeps_its_line_ends(tmp_path: Path) -> None:
    atomic_write_text(tmp_path / "t", "ä\r\nb\n")
    assert (tmp_path / "t").read_bytes() == "ä\r\nb\n".encode()


@pytest.mark.parametrize("error", [ValueError("x"), KeyboardInterrupt(), SystemExit(3)])
def test_an_error_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    target = tmp_path / "file"
    target.write_bytes(b"old")
    with pytest.raises(type(error)), atomic_path(target) as partial:
        partial.write_bytes(b"half")
        raise error
    assert target.read_bytes() == b"old"
    assert names(tmp_path) == ["file"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk_while_writing(tmp_path: Path, code: int) -> None:
    target = tmp_path / "file"
    with (
        pytest.raises(DiskFull, match=r"file: the disk is full\. Free some space"),
        atomic_path(target) as part,
    ):
        part.write_bytes(b"half")
        raise OSError(code, os.strerror(code))
    assert names(tmp_path) == []


def test_a_full_disk_at_the_last_sync(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(DiskFull):
        atomic_write_bytes(tmp_path / "file", b"data")
    with pytest.raises(DiskFull), atomic_dir(tmp_path / "folder") as partial:
        (partial / "x").write_bytes(b"1")
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    ("code", "said"),
    [(errno.ENOSPC, "the disk is full"), (errno.EFBIG, "File too large. This disk, or a limit")],
)
def test_a_full_disk_that_a_library_in_another_language_tells(tmp_path: Path, code: int, said: str) -> None:
    target = tmp_path / "file"
    with pytest.raises(FileProblem, match=f"file: {said}"), atomic_path(target) as partial:
        partial.write_bytes(b"half")
        raise RuntimeError(f"Error while serializing: I/O error: no (os error {code})")
    with pytest.raises(FileProblem, match=f"file: {said}"), atomic_path(target) as partial:
        raise OSError(code, os.strerror(code))
    with pytest.raises(RuntimeError), atomic_path(target):
        raise RuntimeError("no such thing (os error 2)")
    assert names(tmp_path) == []


def test_a_full_disk_that_a_library_wrapped(tmp_path: Path) -> None:
    with pytest.raises(DiskFull), atomic_path(tmp_path / "file") as partial:
        partial.write_bytes(b"half")
        try:
            full_disk()
        except OSError as error:
            raise RuntimeError("serialization failed") from error
    assert names(tmp_path) == []


def test_other_errors_of_the_body_stay_what_they_are(tmp_path: Path) -> None:
    with pytest.raises(PermissionError), atomic_path(tmp_path / "file"):
        raise PermissionError(errno.EACCES, "not about this file")


def test_nothing_written_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="nothing was written"), atomic_path(tmp_path / "file"):
        pass


def test_things_in_the_way(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").write_bytes(b"")
    with pytest.raises(FileProblem, match="folder is in the way"):
        atomic_write_bytes(tmp_path / "folder", b"")
    with pytest.raises(FileProblem, match="file is in the way"), atomic_dir(tmp_path / "file"):
        pass
    with pytest.raises(FileProblem):
        atomic_write_bytes(tmp_path / "file" / "below", b"")
    assert names(tmp_path) == ["file", "folder"]


def test_a_folder_comes_whole_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "base"
    with atomic_dir(target) as partial:
        (partial / "sub").mkdir()
        (partial / "sub" / "a").write_bytes(b"1")
        assert not target.exists()
    assert (target / "sub" / "a").read_bytes() == b"1"
    with pytest.raises(KeyboardInterrupt), atomic_dir(target) as partial:
        (partial / "b").write_bytes(b"2")
        raise KeyboardInterrupt
    assert names(target) == ["sub"]
    with atomic_dir(target) as partial:
        (partial / "b").write_bytes(b"2")
    assert names(target) == ["b"]
    assert names(tmp_path) == ["base"]


def test_a_folder_that_cannot_be_put_in_place_gives_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = tmp_path / "base"
    with atomic_dir(target) as partial:
        (partial / "old").write_bytes(b"")
    replace, calls = os.replace, []

    def second_fails(a: Path, b: Path) -> None:
        calls.append(a)
        if len(calls) == 2:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        replace(a, b)

    monkeypatch.setattr(os, "replace", second_fails)
    with pytest.raises(FileProblem), atomic_dir(target) as partial:
        (partial / "new").write_bytes(b"")
    assert names(target) == ["old"]
    assert names(tmp_path) == ["base"]


def test_what_a_killed_process_left_is_removed(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    child = subprocess.Popen([sys.executable, "-c", WRITE_AND_WAIT, str(target)], stdout=subprocess.PIPE)
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    (half,) = tmp_path.iterdir()
    assert half.read_bytes() == b"half"
    assert clean_partials(tmp_path) == []  # its owner lives
    atomic_write_bytes(tmp_path / "other", b"")
    assert half.exists()
    child.send_signal(signal.SIGKILL)
    child.wait()
    child.stdout.close()
    atomic_write_bytes(tmp_path / "other", b"")
    assert names(tmp_path) == ["other"]


def test_ctrl_c_in_a_real_process(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITE_AND_WAIT, str(target)], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    assert child.stdout is not None
    child.stdout.readline()
    time.sleep(0.05)
    child.send_signal(signal.SIGINT)
    assert child.wait() != 0
    child.stdout.close()
    assert names(tmp_path) == []


@pytest.mark.parametrize(
    "name",
    [
        ".x.partial-1",  # not our form
        ".x.partial-999999999-00000000deadbeef",  # another machine's
        "x.partial-999999999-0000000000000000",
        f".x.partial-{os.getpid()}-0000000000000000",
    ],
    ids=[
        "another form",
        "another machine's",
        "not hidden",
        "a living process's",
    ],  # no pid: the same in every process
)
def test_foreign_files_are_let_be(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"")
    assert clean_partials(tmp_path) == []
    assert names(tmp_path) == [name]
    assert clean_partials(tmp_path / "missing") == []


@pytest.mark.parametrize(
    ("number", "mend"),
    [
        (errno.EACCES, "see who may read and write there"),
        (errno.EROFS, "choose a place that can be written to"),
        (errno.EEXIST, "a file is in the way of a folder: choose another place"),
        (errno.EFBIG, "choose another disk, or write parts"),
        (errno.ENAMETOOLONG, "choose a shorter name"),
    ],
)
def test_what_the_system_says_comes_with_what_to_do(tmp_path: Path, number: int, mend: str) -> None:
    problem = file_problem(OSError(number, os.strerror(number)), tmp_path / "a")
    assert str(problem).startswith(f"{tmp_path / 'a'}: {os.strerror(number)}. ")
    assert mend in (problem.mend or "")


def test_a_file_where_a_folder_should_be(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"x")
    with (
        pytest.raises(FileProblem, match="A file is in the way of a folder: choose another place"),
        atomic_path(tmp_path / "file" / "a"),
    ):
        pass


def test_an_error_speaks_of_the_files_place(tmp_path: Path) -> None:
    target = tmp_path / "model.gguf"
    with pytest.raises(GgufError) as caught, atomic_path(target) as partial:
        partial.write_bytes(b"half")
        raise GgufError("bad", where=f"{partial}[x]", found=f"llama.cpp says {partial.name}", mend="none")
    assert str(caught.value) == f"{target}[x]: bad: found llama.cpp says model.gguf. None"
    with pytest.raises(GgufError) as caught, atomic_dir(tmp_path / "folder") as partial:
        raise GgufError("bad", where=partial / "x")
    assert str(caught.value) == f"{tmp_path / 'folder' / 'x'}: bad"


def test_a_name_that_no_file_can_have(tmp_path: Path) -> None:
    with pytest.raises(FileProblem, match="File name too long"), atomic_path(tmp_path / ("x" * 300)):
        pass


@pytest.mark.parametrize("mask", [0o022, 0o077, 0o002])
def test_files_have_the_rights_of_files_made_here(tmp_path: Path, mask: int) -> None:
    """Libraries that write through a file for its owner alone do not decide who may read the finished one."""
    before = os.umask(mask)
    try:
        with atomic_path(tmp_path / "one") as partial:
            partial.touch(0o600)
        with atomic_dir(tmp_path / "many") as folder:
            (folder / "inside").touch(0o600)
            (folder / "run").touch(0o700)
    finally:
        os.umask(before)
    for path in (tmp_path / "one", tmp_path / "many" / "inside"):
        assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask
    assert stat.S_IMODE((tmp_path / "many" / "run").stat().st_mode) == 0o700 & ~mask
