"""Material -> GGUF files of several types at once, with the hash of every tensor as it was computed.

The main thread reads blocks and widens them; each file has a thread of its own that narrows, hashes and writes, in the
order of the blocks. At most `_AHEAD` blocks wait for the slowest file, so memory is a few blocks per file.

`read_back` then reads a finished file through the strict reader and compares every tensor with those hashes: what is
on the disk is, bit for bit, what was computed from the model.
"""

from __future__ import annotations

import hashlib
from collections import deque
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np

from bitloss.convert.cast import SourceType, narrow
from bitloss.convert.material import Block, Material, Target
from bitloss.errors import CheckpointError
from bitloss.model.gguf import GgufFile, GgufType, GgufValue, join_tensor_hashes
from bitloss.model.gguf_writer import GgufStream
from bitloss.progress import Progress, ProgressCallback

Hashes = dict[str, bytes]
"""Name of a tensor -> SHA-256 of its bytes as computed."""
_AHEAD = 3
_FORGET = 128 << 20  # weights read between two times of letting go of mapped memory
_PIECE = 16 << 20


def write_files(
    material: Material,
    paths: Mapping[SourceType, Path],
    *,
    allow_overflow: bool,
    progress: ProgressCallback,
) -> dict[SourceType, Hashes]:
    """Write one file of each type; return the hashes of its tensors.

    Raises:
        CheckpointError: a weight that is not finite, or out of a type's range where that is not allowed.
        DiskFull, FileProblem: the files cannot be written.
    """
    done, total = 0, sum(target.size for target in material.targets)
    with ExitStack() as stack:
        lanes = [
            _Lane(kind, stack.enter_context(_stream(material, kind, path)), allow_overflow)
            for kind, path in paths.items()
        ]
        # Before the streams are closed, whatever happened.
        pools = [stack.enter_context(ThreadPoolExecutor(1)) for _ in lanes]
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
    return {lane.kind: lane.hashes for lane in lanes}


def expected_hashes(material: Material, kind: SourceType, *, allow_overflow: bool) -> Hashes:
    """Return what `write_files` would, for one file that is not written.

    Raises:
        CheckpointError: as `write_files`.
    """
    lane = _Lane(kind, _Nowhere(), allow_overflow)
    for target in material.targets:
        for block in material.blocks(target):
            lane.take(target, block)
        material.forget(target)
    return lane.hashes


class _Sink(Protocol):
    def append(self, piece: np.ndarray[Any, Any]) -> None: ...


class _Nowhere:
    def append(self, piece: np.ndarray[Any, Any]) -> None:
        pass


def _stream(material: Material, kind: SourceType, path: Path) -> GgufStream:
    file_type = {"general.file_type": GgufValue(GgufType.UINT32, kind.file_type)}
    return GgufStream(path, {**material.metadata, **file_type}, [t.plan(kind) for t in material.targets])


def _settle(waiting: deque[list[Future[None]]], most: int) -> None:
    """Wait until at most that many blocks are under way; raise what a lane raised."""
    while len(waiting) > most:
        for task in waiting.popleft():
            task.result()


class _Lane:
    """One file being written, by one thread."""

    def __init__(self, kind: SourceType, stream: _Sink, allow_overflow: bool) -> None:
        self.kind = kind
        self.hashes: Hashes = {}
        self._stream = stream
        self._allow_overflow = allow_overflow
        self._digest = hashlib.sha256()
        self._left: int | None = None

    def take(self, target: Target, block: Block) -> None:
        """Narrow, hash and write a block; after an error nothing more is written."""
        if self._left is not None and self._left < 0:
            return
        left, self._left = target.size if self._left is None else self._left, -1
        to = SourceType.F32 if target.always_f32 else self.kind
        data = narrow(block.values, to, block.where, allow_overflow=self._allow_overflow)
        self._digest.update(data.reshape(-1).view(np.uint8).data)
        self._stream.append(data)
        self._left = left - data.size
        if self._left == 0:
            self.hashes[target.name] = self._digest.digest()
            self._digest, self._left = hashlib.sha256(), None


class FileHashes(NamedTuple):
    """SHA-256 of a file, and its `GgufFile.tensors_sha256`."""

    sha256: str
    tensors_sha256: str


def read_back(path: Path, written: Mapping[str, bytes], progress: ProgressCallback) -> FileHashes:
    """Read a finished file and compare its tensors with the hashes taken when they were computed.

    Raises:
        CheckpointError: other tensors than written, or other bytes.
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
