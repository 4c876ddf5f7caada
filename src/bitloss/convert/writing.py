"""Material -> GGUF files of several types at once, every byte of them read back, compared and hashed.

The main thread goes through the blocks of the source; each type has a thread of its own that casts a block, hands it to
the system, reads the file from where it ended before, compares that with the cast bit for bit, and hashes what it read.
A second thread per type takes the hashes of the tensors. So the hashes are those of what a reader of the file finds,
the comparison meets the pages while they are in memory, and nothing is read from the disk a second time. At the end
the strict reader opens each file: names, types, shapes and places of the tensors must be those of the bytes compared.

Memory: at most `_AHEAD` blocks wait for the slowest file, `_LATER` for its hashes; a few dozen MB per file.
"""

from __future__ import annotations

import hashlib
import os
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

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
_LATER = 4
_FORGET = 128 << 20  # weights read between two times of letting go of mapped memory
_PIECE = 16 << 20


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
        lanes = [
            _Lane(kind, sink, allow_overflow, stack.enter_context(ThreadPoolExecutor(1)).submit)
            for kind, sink in sinks.items()
        ]
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


def expected_hashes(material: Material, kind: SourceType, *, allow_overflow: bool) -> Hashes:
    """Return the hashes of the tensors `write_files` would write, for one file that is not written.

    Raises:
        CheckpointError: as `write_files`.
    """
    lane = _Lane(kind, _Nowhere(), allow_overflow, _at_once)
    for target in material.targets:
        for block in material.blocks(target):
            lane.take(target, block)
        material.forget(target)
    return lane.hashes()


def _settle(waiting: deque[list[Future[None]]], most: int) -> None:
    """Wait until at most that many blocks are under way; raise what a lane raised."""
    while len(waiting) > most:
        for task in waiting.popleft():
            task.result()


def bytes_of(values: np.ndarray[Any, Any]) -> Bytes:
    """Return contiguous values as bytes, without a copy."""
    return values.reshape(-1).view(np.uint8)


class _Sink(Protocol):
    def append(self, target: Target, data: Bytes) -> None: ...


class _Nowhere:
    def append(self, target: Target, data: Bytes) -> None:
        pass


class _File:
    """A file being written; what was written is read from it, compared and hashed."""

    def __init__(self, part: Part, kind: SourceType, metadata: Mapping[str, GgufValue]) -> None:
        self._part = part
        self._kind = kind
        self._places: dict[str, int] = {}
        self._hash = hashlib.sha256()
        self._read = 0
        self._buffer = np.empty(0, np.uint8)
        self._stream = GgufStream(part.path, metadata, [target.plan(kind) for target in part.targets])
        try:
            with explained(part.path):
                self._reader = os.open(part.path, os.O_RDONLY)
        except BaseException as error:
            self._stream.__exit__(type(error), error, None)
            raise
        self._new()  # the header

    def append(self, target: Target, data: Bytes) -> None:
        """Write what comes next of a tensor, read it back, compare it."""
        self._places.setdefault(target.name, self._read)
        self._stream.append(data)
        stored = self._new()
        if not np.array_equal(stored[: data.size], data) or stored[data.size :].any():
            raise CheckpointError(
                "the bytes in the file are not those written", where=f"{self._part.path}[{target.name}]"
            )

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
        self._hash.update(stored.data)
        self._read += n_bytes
        return stored

    def finish(self) -> WrittenFile:
        """Finish the file, hand it to the disk, and open it as a reader would."""
        self._stream.close()
        with explained(self._part.path):
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
        return WrittenFile(self._read, self._hash.hexdigest())

    def close(self, error: BaseException | None) -> None:
        """Let go of the file, finished or not."""
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
        self._file: _File | None = None
        self._done: list[WrittenFile] = []

    def __enter__(self) -> _Files:
        self._open()
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if self._file is not None:
            self._file.close(error)

    def append(self, target: Target, data: Bytes) -> None:
        """Write what comes next of a tensor."""
        while self._left[target.name] > len(self._done):
            self._end()
            self._open()
        assert self._file is not None
        self._file.append(target, data)

    def finish(self) -> tuple[WrittenFile, ...]:
        """Finish the last file."""
        self._end()
        assert len(self._done) == len(self._parts)
        return tuple(self._done)

    def _open(self) -> None:
        index, count = len(self._done), len(self._parts)
        marks = split_metadata(index, count, self._total) if count > 1 else {}
        self._file = _File(
            self._parts[index], self._kind, {**(self._metadata if index == 0 else {}), **marks}
        )

    def _end(self) -> None:
        assert self._file is not None
        self._done.append(self._file.finish())
        self._file.close(None)
        self._file = None


class _Lane:
    """The tensors of a type as they come, cast and hashed."""

    def __init__(
        self,
        kind: SourceType,
        sink: _Sink,
        allow_overflow: bool,
        submit: Callable[[Callable[[Bytes], None], Bytes], Future[None]],
    ) -> None:
        self.kind = kind
        self._sink = sink
        self._allow_overflow = allow_overflow
        self._submit = submit
        self._hashing: deque[list[Future[None]]] = deque()
        self._tensors: list[tuple[Target, Any]] = []  # with the hash under way
        self._counts = CastCounts()
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
        values, counts = cast(block.values, to, block.where, allow_overflow=self._allow_overflow)
        data = bytes_of(values)
        self._hashing.append([self._submit(self._tensors[-1][1].update, data)])
        self._sink.append(target, data)
        self._counts = self._counts.plus(counts)
        self._left -= values.size
        _settle(self._hashing, _LATER)
        self._failed = False

    def hashes(self) -> Hashes:
        """Return the hashes of the tensors taken."""
        _settle(self._hashing, 0)
        return {target.name: digest.digest() for target, digest in self._tensors}

    def written(self, files: tuple[WrittenFile, ...]) -> Written:
        """Return what became of the tensors taken, which stand in those files."""
        hashes = self.hashes()
        plans = [target.plan(self.kind) for target, _ in self._tensors]
        joined = join_tensor_hashes((each.name, each.ggml_type, each.shape, hashes[each.name]) for each in plans)
        return Written(files, joined, sum(each.n_bytes for each in plans), self._counts)


def _at_once(task: Callable[[Bytes], None], data: Bytes) -> Future[None]:
    done: Future[None] = Future()
    task(data)
    done.set_result(None)
    return done


class FileHashes(NamedTuple):
    """SHA-256 of a file, and its `GgufFile.tensors_sha256`."""

    sha256: str
    tensors_sha256: str


def read_back(path: Path, written: Mapping[str, bytes], progress: ProgressCallback) -> FileHashes:
    """Read somebody else's file and compare its tensors with the hashes of what bitloss would have written.

    Raises:
        CheckpointError: other tensors, or other bytes.
        GgufError: the file breaks its format.
    """
    file = GgufFile.open(path)
    if list(file.tensors) != list(written):
        raise CheckpointError(
            "the file written is not the one planned",
            where=path,
            expected=f"{len(written)} tensors",
            found=f"{len(file.tensors)} tensors, or another order",
        )
    whole, own = hashlib.sha256(), []
    at = done = 0
    with path.open("rb") as stream:
        for info in sorted(file.tensors.values(), key=lambda info: info.offset):
            whole.update(stream.read(info.offset - at))
            digest, end = hashlib.sha256(), info.offset + info.n_bytes
            for begin in range(info.offset, end, _PIECE):
                piece = stream.read(min(_PIECE, end - begin))
                digest.update(piece)
                whole.update(piece)
                done += len(piece)
                progress(Progress("read back", done, file.size, "bytes"))
            at = end
            if digest.digest() != written[info.name]:
                raise CheckpointError(
                    "the bytes on the disk are not those written", where=f"{path}[{info.name}]"
                )
            own.append((info.name, info.ggml_type, info.shape, digest.digest()))
        whole.update(stream.read())
    return FileHashes(whole.hexdigest(), join_tensor_hashes(own))
