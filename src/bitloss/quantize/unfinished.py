"""The files of a candidate while they are written, kept so that an interrupted pass goes on where it stopped.

A file grows as ``.NAME.unfinished`` beside its place. With a key, ``.NAME.journal`` beside the first of them says how
far it is: a line of JSON with the key, then one for each tensor that is whole, in order:

    {"name": ..., "source": SHA-256 of the source's bytes, "sha256": of the bytes written, "error": [type, rms, ...]}

The next pass with the same key reads that prefix again, which the file's SHA-256 needs in any case. It goes on behind
the last tensor whose bytes, and whose source's bytes, are those of the journal; what lies behind is cut off. Another
key, another header or no journal: from the start. An error removes everything, an interrupt nothing.

Without a key nothing is kept: the files are those of `bitloss.store.atomic_path`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
from typing import TYPE_CHECKING, Any, NamedTuple

from bitloss.errors import FileProblem
from bitloss.quantize.layout import padded
from bitloss.quantize.request import TensorError, WrittenFile
from bitloss.store import atomic_path
from bitloss.store.atomic import explained, open_alone, put_in_place

if TYPE_CHECKING:
    from collections.abc import Callable, Collection, Sequence
    from pathlib import Path

    from bitloss.quantize.layout import FileLayout

_PIECE = 16 << 20
_MAX_JOURNAL = 256 << 20


class TensorDone(NamedTuple):
    """A tensor that is written.

    Attributes:
        name: its name.
        source: SHA-256 of its bytes in the source.
        sha256: of its bytes in the candidate.
        error: how far it is from the source's; None when not asked for, or copied.
    """

    name: str
    source: bytes
    sha256: bytes
    error: TensorError | None


def unfinished_path(target: Path) -> Path:
    """Where a file grows that an interrupt shall not lose."""
    return target.with_name(f".{target.name}.unfinished")


def journal_path(target: Path) -> Path:
    """Where it is written how far a candidate is; `target` is its first file."""
    return target.with_name(f".{target.name}.journal")


class CandidateFiles:
    """All files of a candidate: written in order, hashed along.

    Args:
        layouts: the files.
        key: what the candidate is made of; None keeps nothing.

    Raises:
        FileProblem: a file cannot be written, or another process is writing it.
    """

    def __init__(self, layouts: Sequence[FileLayout], key: str | None) -> None:
        self._file_of = {tensor.name: at for at, file in enumerate(layouts) for tensor in file.tensors}
        self._sizes = {tensor.name: tensor.n_bytes for file in layouts for tensor in file.tensors}
        self._outputs: list[_Output] = []
        self._journal: _Journal | None = None
        try:
            for layout in layouts:
                self._outputs.append(_Output(layout, keep=key is not None))
            if key is not None:
                self._journal = _Journal(journal_path(layouts[0].path), key)
            if self._journal is None or not self._journal.entries:
                for output in self._outputs:
                    output.start_anew()
        except BaseException as error:
            self.close(error)
            raise

    def go_on(
        self, names: Sequence[str], source: Callable[[str], bytes], without_error: Collection[str]
    ) -> list[TensorDone]:
        """Find the tensors that are written, and cut off what is not.

        Args:
            names: of the tensors, in order.
            source: gives the SHA-256 of a tensor's bytes in the source.
            without_error: tensors whose error need not be known.
        """
        done: list[TensorDone] = []
        if self._journal is None or not self._journal.entries:
            return done
        for output in self._outputs:
            output.recall_header()
        for name, entry in zip(names, self._journal.entries, strict=False):
            output = self._outputs[self._file_of[name]]
            if entry.name != name or (entry.error is None and name not in without_error):
                break
            if source(name) != entry.source or not output.recall(self._sizes[name], entry.sha256):
                break
            done.append(entry)
        for output in self._outputs:
            output.cut()
        self._journal.cut(len(done))
        return done

    def append(self, name: str, data: bytes | memoryview) -> None:
        """Write what comes next of a tensor."""
        self._outputs[self._file_of[name]].append(data)

    def end(self, done: TensorDone) -> None:
        """A tensor is whole."""
        self._outputs[self._file_of[done.name]].pad()
        if self._journal is not None:
            self._journal.add(done)

    def hashes(self) -> tuple[WrittenFile, ...]:
        """Return what the files will be; all tensors are there."""
        return tuple(output.written() for output in self._outputs)

    def finish(self) -> None:
        """Put the files in their places."""
        for output in self._outputs:
            output.finish()
        if self._journal is not None:
            self._journal.close(remove=True)

    def close(self, error: BaseException) -> None:
        """End before the end: an interrupt keeps what can be gone on with, an error does not."""
        for output in self._outputs:
            output.close(error)
        if self._journal is not None:
            self._journal.close(remove=isinstance(error, Exception))


class _Output:
    """One file."""

    def __init__(self, layout: FileLayout, *, keep: bool) -> None:
        self.layout = layout
        self._hash = hashlib.sha256()
        self._at = 0
        self._files = contextlib.ExitStack()
        self._kept = unfinished_path(layout.path) if keep else None
        try:
            if self._kept is not None:
                self._descriptor = _locked(self._kept, layout.path)
            else:
                partial = self._files.enter_context(atomic_path(layout.path))
                with explained(layout.path):
                    self._descriptor = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
            self._files.callback(os.close, self._descriptor)
        except BaseException as error:
            self.close(error, mine=False)
            raise

    def start_anew(self) -> None:
        """Begin with the header."""
        with explained(self.layout.path):
            os.ftruncate(self._descriptor, 0)
        self.append(self.layout.header)

    def append(self, data: bytes | memoryview) -> None:
        """Write what comes next."""
        self._hash.update(data)
        with explained(self.layout.path):
            left = memoryview(data)
            while left:
                count = os.pwrite(self._descriptor, left, self._at)
                left, self._at = left[count:], self._at + count

    def pad(self) -> None:
        """End a tensor."""
        self.append(bytes(padded(self._at) - self._at))

    def recall_header(self) -> None:
        """Take the header that is there for written, or write it."""
        header = self.layout.header
        with explained(self.layout.path):
            found = os.pread(self._descriptor, len(header), 0)
        if found == header:
            self._hash.update(header)
            self._at = len(header)
        else:
            self.start_anew()

    def recall(self, n_bytes: int, sha256: bytes) -> bool:
        """Take what is there for the next tensor, if it is that."""
        whole, own, at = self._hash.copy(), hashlib.sha256(), self._at
        end = at + n_bytes
        with explained(self.layout.path):
            while at < end:
                piece = os.pread(self._descriptor, min(_PIECE, end - at), at)
                if not piece:
                    return False
                whole.update(piece)
                own.update(piece)
                at += len(piece)
            padding = os.pread(self._descriptor, padded(end) - end, end)
        if own.digest() != sha256 or padding != bytes(padded(end) - end):
            return False
        whole.update(padding)
        self._hash, self._at = whole, padded(end)
        return True

    def cut(self) -> None:
        """Cut off what was not recalled."""
        with explained(self.layout.path):
            os.ftruncate(self._descriptor, self._at)

    def written(self) -> WrittenFile:
        """Return what the file is, now that it is whole."""
        assert self._at == self.layout.size
        return WrittenFile(self.layout.path, self._at, self._hash.hexdigest())

    def finish(self) -> None:
        """Put the file in its place."""
        if self._kept is not None:
            put_in_place(self._kept, self.layout.path)
        self._files.close()

    def close(self, error: BaseException, *, mine: bool = True) -> None:
        """Let go of the file; `mine` is False where another process has it."""
        if self._kept is not None and mine and isinstance(error, Exception):
            self._kept.unlink(missing_ok=True)
        with contextlib.suppress(BaseException):
            self._files.__exit__(type(error), error, error.__traceback__)


class _Journal:
    """How far a candidate is; whoever has its files open is alone with it."""

    def __init__(self, path: Path, key: str) -> None:
        self._path = path
        self.entries: list[TensorDone] = []
        self._ends: list[int] = []
        with explained(path):
            self._descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
            content = os.read(self._descriptor, _MAX_JOURNAL) if self._size() <= _MAX_JOURNAL else b""
        first, *lines = content.split(b"\n")[:-1] or [b""]  # what has no end of line was cut short
        start = json.dumps({"key": key}).encode()
        self._begin = self._end = len(start) + 1
        if first == start:
            self._read(lines)
        else:
            self._end = 0
            self._write(start + b"\n", cut=True)

    def _size(self) -> int:
        return os.fstat(self._descriptor).st_size

    def _read(self, lines: Sequence[bytes]) -> None:
        for line in lines:
            entry = _parsed(line)
            if entry is None:
                break
            self.entries.append(entry)
            self._end += len(line) + 1
            self._ends.append(self._end)

    def _write(self, data: bytes, *, cut: bool = False) -> None:
        with explained(self._path):
            if cut:
                os.ftruncate(self._descriptor, self._end)
            while data:
                count = os.pwrite(self._descriptor, data, self._end)
                data, self._end = data[count:], self._end + count

    def cut(self, n_entries: int) -> None:
        """Keep so many entries."""
        self._end = self._ends[n_entries - 1] if n_entries else self._begin
        self._write(b"", cut=True)

    def add(self, done: TensorDone) -> None:
        """Write down a tensor whose bytes are written."""
        error = done.error
        entry = {
            "name": done.name,
            "source": done.source.hex(),
            "sha256": done.sha256.hex(),
            "error": None if error is None else [error.type, error.rms, error.rms_weighted],
        }
        self._write(json.dumps(entry).encode() + b"\n")

    def close(self, *, remove: bool) -> None:
        """Let go of it."""
        with contextlib.suppress(OSError):
            os.close(self._descriptor)
        if remove:
            self._path.unlink(missing_ok=True)


def _parsed(line: bytes) -> TensorDone | None:
    try:
        entry: dict[str, Any] = json.loads(line)
        error = entry["error"]
        return TensorDone(
            str(entry["name"]),
            bytes.fromhex(entry["source"]),
            bytes.fromhex(entry["sha256"]),
            None if error is None else TensorError(*error),
        )
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _locked(path: Path, target: Path) -> int:
    """Open a file that grows, alone."""
    if target.is_dir():
        raise FileProblem("a folder is in the way of a file", where=target, mend="choose another folder")
    return open_alone(path, target, "file")
