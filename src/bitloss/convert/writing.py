"""Material -> GGUF files of several types at once, every byte of them read back, compared and hashed.

The main thread goes through the blocks of the source; each type has a thread of its own that casts a block, hands it to
the system, reads the file from where it ended before, compares that with the cast bit for bit, and hashes what it read
(for the file and for its tensor). So the hashes are those of what a reader of the file finds, the comparison meets
the pages while they are in memory, and nothing is read from the disk a second time. At the end the strict reader opens
each file: names, types, shapes and places of the tensors must be those of the bytes compared.

Memory: two blocks per type, and at most `_AHEAD` of the source that wait for the slowest.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bitloss.convert.cast import CastCounts, SourceType, cast
from bitloss.convert.material import Block, Material, Target
from bitloss.errors import CheckpointError
from bitloss.model.gguf import GgufFile, GgufType, GgufValue, join_tensor_hashes
from bitloss.model.gguf_split import split_metadata
from bitloss.model.gguf_writer import GgufStream
from bitloss.progress import Progress, ProgressCallback
from bitloss.store.atomic import explained

Hashes = dict[str, bytes]
"""Name of a tensor -> SHA-256 of its bytes as computed."""
Bytes = np.ndarray[Any, np.dtype[np.uint8]]
_AHEAD = 8
_FLUSH = 64 << 20  # bytes of a file between two times of asking the disk to take them
_FORGET = 128 << 20  # weights read between two times of letting go of mapped memory


class Part(NamedTuple):
    """A file to be written: where, and its tensors."""

    path: Path
    targets: list[Target]


class WrittenFile(NamedTuple):
    """A file that was written: bytes, and SHA-256 of what was read back."""

    bytes: int
    sha256: str


class Written(NamedTuple):
    """The file of a type, or its parts.

    Attributes:
        files: in the order of the parts.
        tensors_sha256: `GgufFile.tensors_sha256` of the model.
        tensor_bytes: bytes of tensors, all read back and equal to the cast of the source.
        counts: what the cast did to the weights.
    """

    files: tuple[WrittenFile, ...]
    tensors_sha256: str
    tensor_bytes: int
    counts: CastCounts


def write_files(
    material: Material,
    files: Mapping[SourceType, Sequence[Part]],
    *,
    allow_overflow: bool,
    progress: ProgressCallback,
) -> dict[SourceType, Written]:
    """Write the file of each type, or its parts, and read it back.

    Raises:
        CheckpointError: a weight that is not finite, or out of a type's range where that is not allowed; or the file
            holds other bytes than were written.
        DiskFull, FileProblem: the files cannot be written.
    """
    done, total = 0, sum(target.size for target in material.targets)
    with ExitStack() as stack:
        sinks = {kind: stack.enter_context(_Files(material, kind, parts)) for kind, parts in files.items()}
        # Before the files are closed, whatever happened.
        pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in files]
        lanes = [_Lane(kind, sink, allow_overflow) for kind, sink in sinks.items()]
        waiting: deque[list[Future[None]]] = deque()
        read: list[Target] = []
        for target in material.targets:
            for block in material.blocks(target):
                tasks = zip(pools, lanes, strict=True)
                waiting.append([pool.submit(lane.take, target, block) for pool, lane in tasks])
                _settle(waiting, _AHEAD)
                done += block.values.size
                progress(Progress(f"convert {material.label}", done, total, "weights"))
            read.append(target)
            if sum(each.size for each in read) >= _FORGET:
                _settle(waiting, 0)
                for each in read:
                    material.forget(each)
                read.clear()
        _settle(waiting, 0)
        finishing = [pool.submit(sink.finish) for pool, sink in zip(pools, sinks.values(), strict=True)]
        finished = [task.result() for task in finishing]
        return {lane.kind: lane.written(each) for lane, each in zip(lanes, finished, strict=True)}


def _settle(waiting: deque[list[Future[None]]], most: int) -> None:
    """Wait until at most that many blocks are under way; raise what a lane raised."""
    while len(waiting) > most:
        for task in waiting.popleft():
            task.result()


def same_bytes(a: Bytes, b: Bytes) -> bool:
    """Compare bytes of the same number, eight at a time: NumPy's comparison makes one byte of each."""
    whole = a.size // 8 * 8
    return np.array_equal(a[:whole].view(np.uint64), b[:whole].view(np.uint64)) and np.array_equal(
        a[whole:], b[whole:]
    )


class _File:
    """A file being written; what was written is read from it, compared and hashed."""

    def __init__(
        self, part: Part, kind: SourceType, metadata: Mapping[str, GgufValue], flusher: ThreadPoolExecutor
    ) -> None:
        self._part = part
        self._flusher = flusher
        self._kind = kind
        self._places: dict[str, int] = {}
        self._hash = hashlib.sha256()
        self._read = 0
        self._buffer = np.empty(0, np.uint8)
        self._flushing: Future[None] | None = None
        self._flushed = 0
        self._stream = GgufStream(part.path, metadata, [target.plan(kind) for target in part.targets])
        try:
            with explained(part.path):
                self._reader = os.open(part.path, os.O_RDONLY)
        except BaseException as error:
            self._stream.__exit__(type(error), error, None)
            raise
        self._hash.update(self._new().data)  # the header

    def append(self, target: Target, data: Bytes, digest: hashlib._Hash) -> None:
        """Write what comes next of a tensor, read it back, compare and hash it."""
        self._places.setdefault(target.name, self._read)
        self._stream.append(data)
        stored = self._new()
        digest.update(stored[: data.size].data)
        self._hash.update(stored.data)
        if not same_bytes(stored[: data.size], data) or stored[data.size :].any():
            raise CheckpointError(
                "the bytes in the file are not those written", where=f"{self._part.path}[{target.name}]"
            )

        self._flush()

    def _flush(self) -> None:
        """Let the disk work from early on, while the rest is computed; the system would wait with it."""
        if self._read - self._flushed < _FLUSH or not (self._flushing is None or self._flushing.done()):
            return
        if self._flushing is not None:
            with explained(self._part.path):
                self._flushing.result()
        self._flushed = self._read
        self._flushing = self._flusher.submit(os.fdatasync, self._reader)

    def _new(self) -> Bytes:
        """Return what the file holds behind the bytes read before."""
        n_bytes = self._stream.at - self._read
        if self._buffer.size < n_bytes:
            self._buffer = np.empty(n_bytes, np.uint8)
        stored = self._buffer[:n_bytes]
        with explained(self._part.path):
            at = 0
            while at < n_bytes:
                count = os.preadv(self._reader, [stored[at:].data], self._read + at)
                if count == 0:
                    raise CheckpointError("the file is shorter than what was written", where=self._part.path)
                at += count
        self._read += n_bytes
        return stored

    def finish(self) -> WrittenFile:
        """Finish the file, hand it to the disk, and open it as a reader would."""
        self._stream.close()
        with explained(self._part.path):
            if self._flushing is not None:
                self._flushing.result()
            os.fsync(self._reader)
        file = GgufFile.open(self._part.path, part_of_split=True)
        plans = [target.plan(self._kind) for target in self._part.targets]
        planned = [(each.name, each.shape, each.ggml_type, self._places.get(each.name)) for each in plans]
        # A tensor without values has a place, but nothing was ever written there.
        found = [
            (each.name, each.shape, each.ggml_type, each.offset if each.n_bytes else None)
            for each in file.tensors.values()
        ]
        if found != planned or file.size != self._read:
            raise CheckpointError(
                "the file written is not the one planned",
                where=self._part.path,
                expected=f"{len(planned)} tensors in {self._read} bytes",
                found=f"{len(found)} in {file.size}, or of other names, shapes or places",
            )
        return WrittenFile(self._read, self._hash.digest().hex())

    def close(self, error: BaseException | None) -> None:
        """Let go of the file, finished or not."""
        if self._flushing is not None:
            wait([self._flushing])
        os.close(self._reader)
        if error is not None:
            self._stream.__exit__(type(error), error, None)


class _Files:
    """The files of a type, written one after the other; a context manager."""

    def __init__(self, material: Material, kind: SourceType, parts: Sequence[Part]) -> None:
        self._kind = kind
        self._parts = parts
        self._total = len(material.targets)
        file_type = {"general.file_type": GgufValue(GgufType.UINT32, kind.file_type)}
        self._metadata = {**material.metadata, **file_type}
        self._left = {target.name: index for index, part in enumerate(parts) for target in part.targets}
        self._flusher = ThreadPoolExecutor(1)
        self._file: _File | None = None
        self._done: list[WrittenFile] = []

    def __enter__(self) -> _Files:
        self._open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._file is not None:
            self._file.close(error)
        self._flusher.shutdown()

    def append(self, target: Target, data: Bytes, digest: hashlib._Hash) -> None:
        """Write what comes next of a tensor."""
        while self._left[target.name] > len(self._done):
            self._end()
            self._open()
        assert self._file is not None
        self._file.append(target, data, digest)

    def finish(self) -> tuple[WrittenFile, ...]:
        """Finish the last file."""
        self._end()
        assert len(self._done) == len(self._parts)
        return tuple(self._done)

    def _open(self) -> None:
        index, count = len(self._done), len(self._parts)
        marks = split_metadata(index, count, self._total) if count > 1 else {}
        metadata = {**(self._metadata if index == 0 else {}), **marks}
        self._file = _File(self._parts[index], self._kind, metadata, self._flusher)

    def _end(self) -> None:
        assert self._file is not None
        self._done.append(self._file.finish())
        self._file.close(None)
        self._file = None


class _Lane:
    """The tensors of a type as they come, cast and hashed."""

    def __init__(self, kind: SourceType, sink: _Files, allow_overflow: bool) -> None:
        self.kind = kind
        self._sink = sink
        self._allow_overflow = allow_overflow
        self._tensors: list[tuple[Target, hashlib._Hash]] = []
        self._counts = CastCounts()
        self._buffer = np.empty(0, np.uint8)
        self._left = 0
        self._failed = False

    def take(self, target: Target, block: Block) -> None:
        """Cast, hash and write a block; after an error nothing more is written."""
        if self._failed:
            return
        self._failed = True
        if self._left == 0:
            self._tensors.append((target, hashlib.sha256()))
            self._left = target.size
        to = SourceType.F32 if target.always_f32 else self.kind
        n_bytes = block.values.size * to.dtype.itemsize
        if self._buffer.size < n_bytes:
            self._buffer = np.empty(n_bytes, np.uint8)
        data = self._buffer[:n_bytes]
        out = data.view(to.dtype).reshape(block.values.shape)
        counts = cast(block.values, to, block.where, allow_overflow=self._allow_overflow, out=out)[1]
        self._sink.append(target, data, self._tensors[-1][1])
        self._counts = self._counts.plus(counts)
        self._left -= block.values.size
        self._failed = False

    def hashes(self) -> Hashes:
        """Return the hashes of the tensors taken."""
        return {target.name: digest.digest() for target, digest in self._tensors}

    def written(self, files: tuple[WrittenFile, ...]) -> Written:
        """Return what became of the tensors taken, which stand in those files."""
        hashes = self.hashes()
        plans = [target.plan(self.kind) for target, _ in self._tensors]
        joined = join_tensor_hashes(
            (each.name, each.ggml_type, each.shape, hashes[each.name]) for each in plans
        )
        return Written(files, joined, sum(each.n_bytes for each in plans), self._counts)
