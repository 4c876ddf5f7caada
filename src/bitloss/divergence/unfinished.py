"""A base while it is computed, kept so that an interrupted pass goes on where it stopped.

Its files grow as ``.NAME.unfinished/`` beside the base's place; ``.NAME.journal`` says how far they are: a line of JSON
with what the base is made of (a hash), then one for each chunk that is whole, in order:

    {"sha256": of the chunk's hidden states, as bytes}

The next pass with the same hash reads that prefix again and goes on behind the last chunk whose bytes are those of the
journal; what lies behind is cut off. Another hash, another header or no journal: from the start. An error removes
everything, an interrupt (and the end of the process) nothing.

A shard is a safetensors file of one tensor whose shape is known before it is computed, so its header is written first
and chunks follow as they come: float32 [n_embd] for every scored position. Bytes are those of `safetensors.save_file`.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import struct
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from bitloss.divergence.basefile import Shard
from bitloss.store.atomic import explained, open_alone, put_folder_in_place

_ALIGNMENT = 8


class ShardPlan(NamedTuple):
    """A file of hidden states before it is computed.

    Attributes:
        file: its name.
        first: index of its first chunk.
        rows: scored positions of each of its chunks.
        shape: of its tensor.
    """

    file: str
    first: int
    rows: tuple[int, ...]
    shape: tuple[int, ...]

    @property
    def header(self) -> bytes:
        """What stands before the tensor's bytes."""
        tensor = {"dtype": "F32", "shape": list(self.shape), "data_offsets": [0, self.n_bytes]}
        text = json.dumps({"hidden": tensor}, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return struct.pack("<Q", len(text)) + text

    @property
    def n_bytes(self) -> int:
        """Bytes of the tensor."""
        return 4 * int(np.prod(self.shape, dtype=np.int64))

    @property
    def size(self) -> int:
        """Bytes of the file."""
        return len(self.header) + self.n_bytes

    def chunk_bytes(self, index: int) -> int:
        """Bytes of one of its chunks."""
        return 4 * self.rows[index] * self.shape[-1]


def unfinished_folder(out: Path) -> Path:
    """Where a base grows that an interrupt shall not lose."""
    return out.with_name(f".{out.name}.unfinished")


def journal_path(out: Path) -> Path:
    """Where it is written how far a base is."""
    return out.with_name(f".{out.name}.journal")


def bytes_there(out: Path) -> int:
    """Bytes on the disk that an interrupted pass has taken already."""
    try:
        return sum(path.lstat().st_blocks * 512 for path in unfinished_folder(out).iterdir())
    except OSError:
        return 0


class UnfinishedBase:
    """The files of a base that grows; a context manager.

    Args:
        out: where the base will be.
        plans: its files, in order.
        key: hash of what it is made of.

    Attributes:
        folder: where its files are meanwhile.
        n_chunks: chunks that are there.

    Raises:
        DiskFull, FileProblem: it cannot be written, or another process is writing it.
    """

    def __init__(self, out: Path, plans: Sequence[ShardPlan], key: str) -> None:
        self._out = out
        self._plans = tuple(plans)
        self.folder = unfinished_folder(out)
        self.n_chunks = 0
        self._hashes: list[str] = []  # of the files that are whole
        self._file: int | None = None
        self._at = 0  # chunks of the file at hand
        self._digest = hashlib.sha256()
        self._journal = open_alone(journal_path(out), out, "folder")
        self._start = json.dumps({"key": key}).encode() + b"\n"
        try:
            with explained(out):
                self._take_up()
        except BaseException as error:
            self._close(error)
            raise

    def __enter__(self) -> UnfinishedBase:
        return self

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        self._close(error)

    def keep(self, n_chunks: int) -> None:
        """Go back to so many chunks: those behind are computed again."""
        with explained(self._out):
            self._recall(self._entries()[:n_chunks])

    def append(self, states: NDArray[np.float32]) -> None:
        """Write the hidden states of the next chunk: float32 [scored, n_embd]."""
        data = np.ascontiguousarray(states, "<f4").view(np.uint8).reshape(-1).data
        with explained(self._out):
            self._open()
            assert self._file is not None
            _write(self._file, data)
            self._digest.update(data)
            self._count()
            line = json.dumps({"sha256": hashlib.sha256(data).hexdigest()}).encode() + b"\n"
            _write(self._journal, line)

    def shards(self) -> Iterator[Shard]:
        """Tell of the files, all of which are whole."""
        assert len(self._hashes) == len(self._plans)
        for plan, sha256 in zip(self._plans, self._hashes, strict=True):
            yield Shard(file=plan.file, first=plan.first, chunks=len(plan.rows), sha256=sha256)

    def put_in_place(self) -> None:
        """Give the folder its name; header and tokens are in it as well."""
        put_folder_in_place(self.folder, self._out)
        journal_path(self._out).unlink(missing_ok=True)

    # ------------------------------------------------------------------------------------------------ inside

    def _take_up(self) -> None:
        self.folder.mkdir(exist_ok=True)
        entries = self._entries()
        if not entries:
            os.ftruncate(self._journal, 0)
            os.lseek(self._journal, 0, os.SEEK_SET)
            _write(self._journal, self._start)
        self._recall(entries)

    def _entries(self) -> list[bytes]:
        """Hashes of the chunks that the journal knows, if it is of this base."""
        size = os.fstat(self._journal).st_size
        lines = os.pread(self._journal, size, 0)
        if not lines.startswith(self._start):
            return []
        found = []
        for line in lines[len(self._start) :].split(b"\n")[:-1]:  # what has no end of line was cut short
            try:
                found.append(bytes.fromhex(json.loads(line)["sha256"]))
            except (ValueError, KeyError, TypeError):
                break
        return found

    def _recall(self, entries: Sequence[bytes]) -> None:
        """Take the chunks that are there, as far as they are those of the journal, and cut off the rest."""
        self._close_file()
        self._hashes, self.n_chunks, self._at = [], 0, 0
        for entry in entries:
            if not self._open(there=True) or not self._take(entry):
                break
            self._count()
        if self._file is not None:
            os.ftruncate(self._file, os.lseek(self._file, 0, os.SEEK_CUR))
        kept = {plan.file for plan in self._plans[: len(self._hashes) + (self._file is not None)]}
        for path in self.folder.iterdir():
            if path.name not in kept:
                path.unlink()
        line = len(json.dumps({"sha256": "0" * 64})) + 1
        os.ftruncate(self._journal, len(self._start) + line * self.n_chunks)
        os.lseek(self._journal, 0, os.SEEK_END)

    def _take(self, entry: bytes) -> bool:
        """Read the next chunk of the file at hand; False, and back where it was, if it is not that."""
        assert self._file is not None
        begin = os.lseek(self._file, 0, os.SEEK_CUR)
        n_bytes = self._plan.chunk_bytes(self._at)
        data = b""
        while len(data) < n_bytes and (piece := os.read(self._file, n_bytes - len(data))):
            data += piece
        if hashlib.sha256(data).digest() != entry:
            os.lseek(self._file, begin, os.SEEK_SET)
            return False
        self._digest.update(data)
        return True

    @property
    def _plan(self) -> ShardPlan:
        return self._plans[len(self._hashes)]

    def _open(self, *, there: bool = False) -> bool:
        """Open the next file, if none is: the one that is there, or a new one with its header."""
        if self._file is not None:
            return True
        if len(self._hashes) == len(self._plans):
            return False
        path, header = self.folder / self._plan.file, self._plan.header
        if there and not path.is_file():
            return False
        flags = os.O_RDWR | os.O_NOFOLLOW | (0 if there else os.O_CREAT | os.O_TRUNC)
        self._file = os.open(path, flags, 0o666)
        if there and os.read(self._file, len(header)) != header:
            self._close_file()
            return False
        if not there:
            _write(self._file, header)
        self._digest = hashlib.sha256(header)
        return True

    def _count(self) -> None:
        self.n_chunks += 1
        self._at += 1
        if self._at == len(self._plan.rows):
            self._hashes.append(self._digest.hexdigest())
            self._at = 0
            self._close_file()

    def _close_file(self) -> None:
        descriptor, self._file = self._file, None
        if descriptor is not None:
            os.close(descriptor)

    def _close(self, error: BaseException | None) -> None:
        """Let go; an error takes what is there along, an interrupt does not."""
        with contextlib.suppress(OSError):
            self._close_file()
        if isinstance(error, Exception):
            shutil.rmtree(self.folder, ignore_errors=True)
            journal_path(self._out).unlink(missing_ok=True)
        os.close(self._journal)


def _write(descriptor: int, data: bytes | memoryview) -> None:
    left = memoryview(data)
    while left:
        left = left[os.write(descriptor, left) :]
