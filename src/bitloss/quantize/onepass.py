"""Write all candidates of a source in one pass over it.

For each tensor, in the order of the files: a piece of its rows is taken from the source and made float32 once; for
each (type, weights) that any candidate wants of it the piece is encoded once, looked at by ggml for scales that are
not finite, and appended to every file that wants it. Rows are shared out to threads by the codec, files to threads
here. SHA-256 of the files and of their tensors grows along, so nothing is read back. Candidates with a key go on where
a pass that was interrupted stopped, each at its own tensor (`bitloss.quantize.unfinished`).

The bytes are those of llama_model_quantize: `bitloss.quantize.codec` gives those of ggml_quantize_chunk for any range
of rows, and weights are taken per expert as there. A candidate that cannot be encoded (a value too large for its type)
is given up alone; the others are finished.

Peak memory: a piece as float32 (8 MB, or one row), one encoded piece for each distinct (type, weights), and pages of
one tensor of the source that the system may drop; not the tensor, not the files.
"""

from __future__ import annotations

import functools
import hashlib
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import numpy as np
import numpy.typing as npt

from bitloss._native import add_squares
from bitloss.errors import BitlossError, UnsupportedError
from bitloss.model.gguf import GgufFile, TensorInfo, join_tensor_hashes, type_name
from bitloss.model.tensor_types import TensorType, block_of
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.quantize import codec
from bitloss.quantize.layout import FileLayout, trimmed
from bitloss.quantize.request import How, TensorError, WrittenFile
from bitloss.quantize.unfinished import CandidateFiles, TensorDone
from bitloss.quantize.verify import is_valid, not_finite

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence

    from bitloss.quantize.plan import TypePlan
    from bitloss.quantize.weights import Weights

T = TypeVar("T")

PIECE_VALUES = 1 << 21
_HASH_PIECE = 16 << 20
# quantize_q8_0 and these others take no notice of importance: one encoding serves with and without.
_UNWEIGHTED = frozenset({"F32", "F16", "BF16", "Q8_0", "Q1_0", "Q2_0", "TQ1_0", "TQ2_0", "MXFP4", "NVFP4"})


class Wanted(NamedTuple):
    """A candidate to be written.

    Attributes:
        name: of its type, for progress.
        plan: type of each tensor.
        weights: importance, None without.
        files: where its tensors go.
        key: what it is made of but for the source's values; None keeps nothing of an interrupted pass.
    """

    name: str
    plan: TypePlan
    weights: Weights | None
    files: tuple[FileLayout, ...]
    key: str | None = None


class Written(NamedTuple):
    """A candidate that was written.

    Attributes:
        files: with their hashes.
        tensors_sha256: of all its tensors.
        errors: of its quantized tensors, when asked for.
    """

    files: tuple[WrittenFile, ...]
    tensors_sha256: str
    errors: dict[str, TensorError]


def write_candidates(
    source: GgufFile,
    wanted: Sequence[Wanted],
    how: How,
    progress: ProgressCallback = silent,
    keep: Callable[[int, Written, str], object] | None = None,
) -> list[Written | BitlossError]:
    """Write the candidates; all must have their tensors in the same order.

    Args:
        source: the open source.
        wanted: the candidates.
        how: threads, and whether errors are told.
        progress: told after every tensor.
        keep: told of each candidate with a key before its files get their names: its index, what it is, and
            `GgufFile.tensors_sha256` of the source.

    Returns:
        For each candidate what was written, or why it could not be; its files are whole, or not there.

    Raises:
        GgufError: a value of the source is not finite, or damaged.
        DiskFull, FileProblem: a file cannot be written. Files finished before stay.
    """
    with _Pass(source, wanted, how) as work:
        names = list(wanted[0].plan.tensors)
        work.go_on(names, progress)
        stage = f"quantize {wanted[0].name if len(wanted) == 1 else f'{len(wanted)} types'}"
        for done, name in enumerate(names):
            progress(Progress(stage, done, len(names), "tensors"))
            work.tensor(name)
            if len(work.failed) == len(wanted):
                return work.finish(None)
        progress(Progress(stage, len(names), len(names), "tensors"))
        return work.finish(keep)


@dataclass(slots=True, eq=False)
class _Encoding:
    """One way to encode the tensor at hand.

    Attributes:
        kind: its type.
        weights: importance [n_mat, n_in], None without.
        users: indices of the candidates that want it.
        digest: of its bytes so far.
        sums: of squares: error, source, weighted error, weighted source.
        fault: why the tensor cannot be encoded so; None as long as it can.
    """

    kind: TensorType
    weights: npt.NDArray[np.float32] | None
    users: list[int]
    digest: hashlib._Hash = field(default_factory=hashlib.sha256)
    sums: npt.NDArray[np.float64] = field(default_factory=lambda: np.zeros(4))
    fault: str | None = None

    def error(self) -> TensorError:
        error, source, weighted, weighted_source = self.sums.tolist()
        return TensorError(
            type=type_name(self.kind),
            rms=(error / source) ** 0.5 if source else None,
            rms_weighted=(weighted / weighted_source) ** 0.5 if weighted_source else None,
        )


class _Piece(NamedTuple):
    """Rows of the tensor at hand, all of one expert."""

    expert: int
    raw: npt.NDArray[np.uint8]  # [n_rows, row_bytes] as the source has them
    values: npt.NDArray[np.float32] | None  # [n_rows, n_in]; None when the tensor is only copied


class _Pass:
    """The pass; a context manager, so that what is unfinished goes."""

    def __init__(self, source: GgufFile, wanted: Sequence[Wanted], how: How) -> None:
        self.source = source
        self.wanted = wanted
        self.threads = how.n_threads()
        self.errors = how.errors
        self.failed: dict[int, BitlossError] = {}
        self._pool = ThreadPoolExecutor(self.threads)
        self._outputs: dict[int, CandidateFiles] = {}
        self._done: list[dict[str, TensorDone]] = [{} for _ in wanted]
        self._source_hashes: dict[str, bytes] | None = (
            {} if any(each.key is not None for each in wanted) else None
        )

    def __enter__(self) -> _Pass:
        try:
            for index, each in enumerate(self.wanted):
                self._outputs[index] = CandidateFiles(each.files, each.key)
        except BaseException as error:
            self._close(error)
            raise
        return self

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        self._close(error or RuntimeError("not finished"))

    def _close(self, error: BaseException) -> None:
        self._pool.shutdown(cancel_futures=True)
        for index in list(self._outputs):
            self._drop(index, error)

    def _drop(self, index: int, error: BaseException) -> None:
        if (files := self._outputs.pop(index, None)) is not None:
            files.close(error)

    def go_on(self, names: Sequence[str], progress: ProgressCallback) -> None:
        """Find what an interrupted pass has written."""
        for index, files in self._outputs.items():
            each = self.wanted[index]
            copied = {name for name, tensor in each.plan.tensors.items() if tensor.is_copied}

            def source(name: str, stage: str = f"find the place in {each.name}") -> bytes:
                progress(Progress(stage, names.index(name), len(names), "tensors"))
                return self._source_hash(name)

            without_error = set(names) if not self.errors else copied
            done = files.go_on(names, source, without_error)
            self._done[index] = {entry.name: entry for entry in done}

    def _source_hash(self, name: str) -> bytes:
        assert self._source_hashes is not None
        if name not in self._source_hashes:
            data, digest = self.source.tensor_bytes(name).reshape(-1), hashlib.sha256()
            for at in range(0, data.size, _HASH_PIECE):
                digest.update(data[at : at + _HASH_PIECE].data)
            self._source_hashes[name] = digest.digest()
            self.source.forget(name)
        return self._source_hashes[name]

    def tensor(self, name: str) -> None:
        """Encode one tensor and append it to the files."""
        info = self.source.info(name)
        encodings = self._encodings(name)
        if not encodings:  # all have it from the pass before
            return
        own = (
            hashlib.sha256() if self._source_hashes is not None and name not in self._source_hashes else None
        )
        for piece in self._pieces(info, encodings):
            self._encode(info, encodings, piece, own)
            if not encodings:  # nobody wants the rest: none could hold this tensor
                return
        if self._source_hashes is not None and own is not None:
            self._source_hashes[name] = own.digest()
        source = self._source_hashes[name] if self._source_hashes is not None else b""
        for encoding in encodings:
            error = encoding.error() if self.errors and encoding.kind != info.ggml_type else None
            done = TensorDone(name, source, encoding.digest.digest(), error)
            for index in encoding.users:
                self._outputs[index].end(done)
                self._done[index][name] = done
        self.source.forget(name)

    def finish(self, keep: Callable[[int, Written, str], object] | None) -> list[Written | BitlossError]:
        """Put the files in their places."""
        results: list[Written | BitlossError] = []
        for index, each in enumerate(self.wanted):
            if index in self.failed:
                results.append(self.failed[index])
                continue
            written = self._written(index)
            if keep is not None and each.key is not None:
                keep(index, written, self._source_sha256())
            self._outputs[index].finish()
            del self._outputs[index]
            results.append(written)
        return results

    def _written(self, index: int) -> Written:
        done, tensors = self._done[index], self.wanted[index].plan.tensors
        joined = join_tensor_hashes(
            (name, tensors[name].target_type, trimmed(tensors[name].shape), each.sha256)
            for name, each in done.items()
        )
        errors = {name: each.error for name, each in done.items() if each.error is not None and self.errors}
        return Written(self._outputs[index].hashes(), joined, errors)

    def _source_sha256(self) -> str:
        return join_tensor_hashes(
            (info.name, info.ggml_type, info.shape, self._source_hash(info.name))
            for info in self.source.tensors.values()
        )

    def _encodings(self, name: str) -> list[_Encoding]:
        """Return the distinct encodings the candidates want of a tensor."""
        found: dict[tuple[int, object], _Encoding] = {}
        for index, each in enumerate(self.wanted):
            if index in self.failed or name in self._done[index]:
                continue
            tensor = each.plan.tensors[name]
            kind = TensorType(tensor.target_type)
            weights = each.weights.by_tensor.get(name) if each.weights else None
            if tensor.is_copied or kind.name in _UNWEIGHTED:
                weights = None
            key = (tensor.target_type, None if weights is None else weights.tobytes())
            if key not in found:
                rows = None if weights is None else weights.reshape(-1, tensor.shape[0])
                found[key] = _Encoding(kind, rows, [])
            found[key].users.append(index)
        return list(found.values())

    def _pieces(self, info: TensorInfo, encodings: Sequence[_Encoding]) -> Iterator[_Piece]:
        """Yield the rows of a tensor; those of two experts together only where nobody weighs them."""
        kind = TensorType(info.ggml_type)
        copied = all(encoding.kind == kind for encoding in encodings)
        n_in = info.shape[0] if info.shape else 1
        block, size = block_of(kind)
        if not info.n_bytes:
            return
        raw = self.source.tensor_bytes(info.name).reshape(-1, n_in // block * size)
        alone = all(encoding.weights is None for encoding in encodings)
        per_expert = len(raw) if alone or len(info.shape) < 2 else info.shape[1]
        step = max(1, PIECE_VALUES // max(1, n_in))
        for first in range(0, len(raw), max(1, per_expert)):
            for at in range(first, first + per_expert, step):
                rows = raw[at : min(at + step, first + per_expert)]
                if not self._all(lambda part: is_valid(kind, part), self._shared(rows)):
                    where = f"{self.source.path}[{info.name}]"
                    raise not_finite(where, self._values(kind, rows, n_in), at)
                yield _Piece(
                    first // max(1, per_expert), rows, None if copied else self._values(kind, rows, n_in)
                )

    def _values(self, kind: TensorType, rows: npt.NDArray[np.uint8], n_in: int) -> npt.NDArray[np.float32]:
        if kind == TensorType.F32:
            return np.require(rows.view("<f4"), np.float32, ["C", "A"])
        return codec.decode(kind, np.require(rows, np.uint8, ["C", "A"]), n_in, threads=self.threads)

    def _encode(
        self, info: TensorInfo, encodings: list[_Encoding], piece: _Piece, own: hashlib._Hash | None
    ) -> None:
        """Encode a piece in every way and append it to every file that wants it."""
        done: list[tuple[_Encoding, npt.NDArray[np.uint8]]] = []
        for encoding in encodings:
            if encoding.kind == info.ggml_type or piece.values is None:
                done.append((encoding, piece.raw))
                continue
            block, size = block_of(encoding.kind)
            out = np.empty((len(piece.raw), piece.values.shape[1] // block * size), np.uint8)
            weights = None if encoding.weights is None else encoding.weights[piece.expert]
            try:
                codec.encode_into(encoding.kind, piece.values, weights, out, threads=self.threads)
            except UnsupportedError as error:
                encoding.fault = f"{error.what} ({error.found})"
            done.append((encoding, out))
        self._each(lambda item: self._look(info, piece, *item), done)
        for encoding in [encoding for encoding in encodings if encoding.fault]:
            self._give_up(info, encoding)
            encodings.remove(encoding)
        self._append(info.name, [item for item in done if not item[0].fault], (piece.raw, own))

    def _look(self, info: TensorInfo, piece: _Piece, encoding: _Encoding, out: npt.NDArray[np.uint8]) -> None:
        """See that scales are finite, and how large the error is."""
        if encoding.kind == info.ggml_type or piece.values is None:
            return
        if not encoding.fault and not is_valid(encoding.kind, out):
            encoding.fault = "a scale is not finite"
        if not self.errors or encoding.fault:
            return
        difference = codec.decode(encoding.kind, out, piece.values.shape[1], threads=1)
        difference -= piece.values
        squares = np.zeros((2, piece.values.shape[1]))
        add_squares(squares[0], difference)
        add_squares(squares[1], piece.values)
        encoding.sums[:2] += squares.sum(axis=1)
        if encoding.weights is not None:
            encoding.sums[2:] += squares @ encoding.weights[piece.expert].astype(np.float64)

    def _append(
        self,
        name: str,
        done: Sequence[tuple[_Encoding, npt.NDArray[np.uint8]]],
        source: tuple[npt.NDArray[np.uint8], hashlib._Hash | None],
    ) -> None:
        tasks: list[tuple[Callable[[memoryview], None], memoryview]] = []
        raw, own = source
        if own is not None:
            tasks.append((own.update, np.ascontiguousarray(raw).reshape(-1).data))
        for encoding, out in done:
            data = np.ascontiguousarray(out).reshape(-1).data
            tasks.append((encoding.digest.update, data))
            tasks += [
                (functools.partial(self._outputs[index].append, name), data) for index in encoding.users
            ]
        # a file is in one task of a piece only, so its pieces stay in order
        self._each(lambda task: task[0](task[1]), tasks)

    def _give_up(self, info: TensorInfo, encoding: _Encoding) -> None:
        for index in encoding.users:
            path = self.wanted[index].files[0].path
            error = UnsupportedError(
                f"{type_name(encoding.kind)} cannot hold this tensor: {encoding.fault}",
                where=f"{path}[{info.name}]",
                mend="a value, or its importance, is too large for the type; choose another one"
                if encoding.weights is not None
                else "a value is too large for the type; choose another one",
            )
            self.failed[index] = error
            self._drop(index, error)

    def _shared(self, rows: npt.NDArray[np.uint8]) -> list[npt.NDArray[np.uint8]]:
        """Share rows out to the threads."""
        step = max(1, -(-len(rows) // self.threads))
        return [rows[at : at + step] for at in range(0, len(rows), step)]

    def _each(self, task: Callable[[T], object], items: Iterable[T]) -> None:
        list(self._pool.map(task, items))

    def _all(self, test: Callable[[T], bool], items: Iterable[T]) -> bool:
        return all(self._pool.map(test, items))
