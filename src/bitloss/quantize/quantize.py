"""Quantize a source: checks first, then llama.cpp's own encoder, then a look at what it wrote.

The tensors are those of `llama-quantize` with the same arguments, byte for byte, as the same function of the
same library makes them. Different on purpose from that tool:
- `quantize.imatrix.file` names the matrix by file name and content, `NAME (sha256:16 digits)`, and
  `quantize.imatrix.dataset` by file name: a published file must not show a local path.
- What the tool only logs is an error here: an importance matrix whose weights or widths are not the model's,
  a pattern that matches no tensor. What ends the tool's process (GGML_ASSERT) is found before.
- Patterns of tensor types are taken as they are; the tool turns them to lower case.
- A source of another alignment than 32 bytes gives a candidate of alignment 32; what the tool writes is refused
  or read as garbage, as it keeps the key and aligns to 32 all the same.
- The candidate appears under its name when it is complete and checked, and not at all otherwise.

Peak memory: the tensor at hand, at most 1 GiB of it, beside pages of source and candidate the system may
drop.
"""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from gguf import GGMLQuantizationType

from bitloss.engine.llama import usable_cores
from bitloss.errors import (
    BitlossError,
    DiskFull,
    EngineError,
    ImatrixError,
    MismatchError,
    UnsupportedError,
    UsageError,
)
from bitloss.imatrix.file import Imatrix, quantize_weights, read_imatrix
from bitloss.imatrix.matrix import file_name
from bitloss.model.gguf import DEFAULT_ALIGNMENT, GgufFile, type_name
from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.quantize.call import QuantizeCall, TypeRules, cut_utf8
from bitloss.quantize.plan import TypePlan, type_plan
from bitloss.quantize.types import QuantType, parse_quant_type, parse_tensor_type
from bitloss.quantize.verify import verify_candidate
from bitloss.store import atomic_path, sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    import numpy as np
    import numpy.typing as npt

# tensor_requires_imatrix of llama.cpp: types that are garbage without weights, except on the two tables.
_NEED_WEIGHTS = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
# ggml_quantize_requires_imatrix: without weights these end the process, on the tables as well.
_ABORT_WITHOUT_WEIGHTS = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
_TABLES = frozenset({"token_embd.weight", "per_layer_token_embd.weight", "output.weight"})
# Products of weights and squares are summed in float32; beyond, some encoders end the process on an infinity.
_MAX_WEIGHT = 1e30
_COUNT = re.compile(r"\[ *(\d+)/ *(\d+)\] ")
# Header of the candidate beyond the source's: the keys of the matrix, and offsets moved by alignment.
_HEADER_SLACK = 1 << 16


@dataclass(frozen=True, slots=True)
class QuantizeSpec:
    """What to make.

    Attributes:
        source: GGUF file with F32, F16 or BF16 tensors.
        type: name of the file type ("Q4_K_M"), in any case.
        out: the candidate; an existing file is replaced.
        imatrix: importance matrix, GGUF or .dat.
        tensor_types: (pattern, tensor type); the first pattern found in a tensor's name decides its type.
        output_tensor_type: tensor type of output.weight.
        token_embedding_type: tensor type of token_embd.weight.
        pure: one type for all tensors, no mix.
        threads: 0 takes the cores this process may use. The bytes do not depend on it.
        allow_requantize: accept a source that is quantized already.
    """

    source: Path
    type: str
    out: Path
    imatrix: Path | None = None
    tensor_types: tuple[tuple[str, str], ...] = ()
    output_tensor_type: str | None = None
    token_embedding_type: str | None = None
    pure: bool = False
    threads: int = 0
    allow_requantize: bool = False


@dataclass(frozen=True, slots=True)
class Quantized:
    """What was made.

    Attributes:
        out: the candidate.
        type: name of its file type.
        bytes: its size.
        sha256: of the file.
        tensors_sha256: of its tensors (`GgufFile.tensors_sha256`).
        bits_per_weight: 8 x tensor bytes / weights.
        type_counts: tensor type -> number of tensors.
        n_fallback: tensors whose row length refused the type of the mix.
        without_imatrix: quantized tensors the importance matrix says nothing about, if one was given.
        seconds: wall time of quantizing and checking.
    """

    out: Path
    type: str
    bytes: int
    sha256: str
    tensors_sha256: str
    bits_per_weight: float
    type_counts: dict[str, int]
    n_fallback: int
    without_imatrix: tuple[str, ...]
    seconds: float

    def as_json(self) -> dict[str, Any]:
        """Return the record as JSON holds it; the path is the file name."""
        return {**asdict(self), "out": self.out.name, "without_imatrix": list(self.without_imatrix)}


def candidate_name(source: Path, kind: str) -> str:
    """Return the file name of a candidate: `<source stem>-<TYPE>.gguf`."""
    return f"{source.stem}-{parse_quant_type(kind).name}.gguf"


def quantize(spec: QuantizeSpec, progress: ProgressCallback = silent) -> Quantized:
    """Make a candidate; see the module's head.

    Raises:
        UsageError: unknown type, pattern without a tensor, a type that does not fit, `out` is the source.
        FileProblem: source or matrix missing; `out` cannot be written.
        DiskFull: less space than the plan needs, or the disk ran full.
        GgufError, ImatrixError: source or matrix is damaged.
        UnsupportedError: a quantized source without `allow_requantize`; a type that needs weights without
        them. MismatchError: the importance matrix is of another model.
        EngineError: llama.cpp gave up, or what it wrote is not what it planned.
    """
    started = time.monotonic()
    kind, rules = _rules(spec)
    source = GgufFile.open(spec.source)
    if spec.out.exists() and spec.out.samefile(spec.source):
        raise UsageError("the candidate would replace its source", where=spec.out, mend="choose another name")
    imatrix = read_imatrix(spec.imatrix) if spec.imatrix else None
    weights = quantize_weights(imatrix) if imatrix else {}
    _check_weights(spec, source, weights)
    plan = type_plan(source, rules)
    _check_requantize(spec, plan)
    _check_needed_weights(spec, kind, plan, weights)
    _check_space(spec.out, source, plan)
    call = QuantizeCall(
        rules,
        weights,
        [
            *_alignment_key(source),
            *(_imatrix_keys(spec.imatrix, imatrix) if spec.imatrix and imatrix else ()),
        ],
        spec.threads or usable_cores(),
        spec.allow_requantize,
    )
    stage = f"quantize {kind.name}"
    with atomic_path(spec.out) as partial:
        try:
            call.run(spec.source, partial, _Counter(stage, progress))
            progress(Progress(stage, len(plan.tensors), len(plan.tensors), "tensors"))
            candidate = verify_candidate(partial, spec.out, source, plan, progress)
        except EngineError as error:
            raise _explained(error, spec.out, partial, plan) from error
        tensors_sha256 = candidate.tensors_sha256(progress)
        sha256 = sha256_file(partial, progress)
    return Quantized(
        out=spec.out,
        type=kind.name,
        bytes=candidate.size,
        sha256=sha256,
        tensors_sha256=tensors_sha256,
        bits_per_weight=candidate.bits_per_weight(),
        type_counts=dict(sorted(Counter(plan.types.values()).items())),
        n_fallback=plan.n_fallback,
        without_imatrix=_without(plan, weights) if imatrix else (),
        seconds=time.monotonic() - started,
    )


class _Counter:
    """Progress from the log: "[  12/ 147] blk.0..." starts tensor 12."""

    def __init__(self, stage: str, progress: ProgressCallback) -> None:
        self.stage = stage
        self.progress = progress

    def __call__(self, piece: str) -> None:
        match = _COUNT.match(piece)
        if match:
            self.progress(Progress(self.stage, int(match[1]) - 1, int(match[2]), "tensors"))


def _rules(spec: QuantizeSpec) -> tuple[QuantType, TypeRules]:
    kind = parse_quant_type(spec.type)
    if spec.threads < 0:
        raise UsageError("impossible number of threads", expected="0 (all cores) or more", found=spec.threads)
    if spec.tensor_types and kind.name in {"F32", "F16", "BF16"}:
        # llama.cpp looks at the patterns only when the file's type is quantized.
        raise UsageError("tensor types need a quantized file type", where=kind.name)

    def tensor_type(name: str | None) -> int | None:
        return None if name is None else int(parse_tensor_type(name))

    return kind, TypeRules(
        ftype=kind.ftype,
        has_imatrix=spec.imatrix is not None,
        tensor_types=tuple((pattern, int(parse_tensor_type(name))) for pattern, name in spec.tensor_types),
        output_tensor_type=tensor_type(spec.output_tensor_type),
        token_embedding_type=tensor_type(spec.token_embedding_type),
        pure=spec.pure,
    )


# --- checks before anything is written ---------------------------------------------------------------


def _check_weights(
    spec: QuantizeSpec, source: GgufFile, weights: Mapping[str, npt.NDArray[np.float32]]
) -> None:
    """Every weight of the matrix must be a tensor of the source, of the same width, and of sane size."""
    mend = f"is it of the model in {spec.source.name}?"
    missing = [name for name in weights if name not in source.tensors]
    if missing:
        found = f"{len(missing)} of {len(weights)} weights unknown, the first is {missing[0]}"
        raise MismatchError("importance matrix of another model", where=spec.imatrix, found=found, mend=mend)
    for name, values in weights.items():
        if values.max() > _MAX_WEIGHT:
            raise ImatrixError(
                "impossible mean square",
                where=f"{spec.imatrix}[{name}]",
                expected=f"at most {_MAX_WEIGHT}",
                found=float(values.max()),
            )
        n_in, _, n_mat, *_ = (*source.tensors[name].shape, 1, 1, 1)
        if values.size != n_in * n_mat:
            raise MismatchError(
                "importance matrix of another model",
                where=f"{spec.imatrix}[{name}]",
                expected=f"{n_in * n_mat} values",
                found=values.size,
                mend=mend,
            )


def _check_requantize(spec: QuantizeSpec, plan: TypePlan) -> None:
    plain = {GGMLQuantizationType.F32, GGMLQuantizationType.F16, GGMLQuantizationType.BF16}
    for tensor in plan.tensors.values():
        if not tensor.is_copied and tensor.source_type not in plain and not spec.allow_requantize:
            raise UnsupportedError(
                "the source is quantized already",
                where=f"{spec.source}[{tensor.name}]",
                expected="F32, F16 or BF16",
                found=type_name(tensor.source_type),
                mend="start from a full-precision file, or allow requantizing and accept the extra loss",
            )


def _without(plan: TypePlan, weights: Mapping[str, object]) -> tuple[str, ...]:
    return tuple(
        name for name, tensor in plan.tensors.items() if not tensor.is_copied and name not in weights
    )


def _check_needed_weights(
    spec: QuantizeSpec, kind: QuantType, plan: TypePlan, weights: Mapping[str, object]
) -> None:
    for name in _without(plan, weights):
        target = plan.types[name]
        needed = _ABORT_WITHOUT_WEIGHTS if name in _TABLES else _NEED_WEIGHTS
        if target in needed or (kind.name == "Q2_K_S" and target == "Q2_K" and name not in _TABLES):
            raise UnsupportedError(
                f"{target} is garbage without an importance matrix",
                where=f"{spec.source}[{name}]",
                expected=f"weights for this tensor in {spec.imatrix}" if spec.imatrix else None,
                mend=None if spec.imatrix else f"make one with `bitloss imatrix {spec.source.name}`",
            )


def _needed_bytes(source: GgufFile, plan: TypePlan) -> int:
    # llama.cpp pads every tensor to 32 bytes.
    return source.data_offset + plan.n_bytes + 32 * len(plan.tensors) + _HEADER_SLACK


def _check_space(out: Path, source: GgufFile, plan: TypePlan) -> None:
    folder = next(parent for parent in out.absolute().parents if parent.exists())
    needed, free = _needed_bytes(source, plan), shutil.disk_usage(folder).free
    if needed > free:
        raise _disk_full(out, needed, free)


def _disk_full(out: Path, needed: int, free: int) -> DiskFull:
    return DiskFull(
        "not enough space",
        where=out,
        expected=f"{needed / 1e6:.1f} MB free",
        found=f"{free / 1e6:.1f} MB",
        mend="free some space or choose a folder on another disk; nothing half-written was left",
    )


def _alignment_key(source: GgufFile) -> list[tuple[str, int | str]]:
    # llama.cpp copies the key but places data and tensors by 32: read by the key they are elsewhere.
    return [] if source.alignment == DEFAULT_ALIGNMENT else [("general.alignment", DEFAULT_ALIGNMENT)]


def _imatrix_keys(path: Path, imatrix: Imatrix) -> list[tuple[str, int | str]]:
    """Return the keys llama-quantize sets, in its order; llama.cpp cuts text at 127 bytes."""
    content = f" (sha256:{sha256_file(path)[:16]})"
    keys: list[tuple[str, int | str]] = [
        ("quantize.imatrix.file", cut_utf8(path.name, 127 - len(content)) + content)
    ]
    if imatrix.datasets:
        keys.append(("quantize.imatrix.dataset", file_name(imatrix.datasets[0])))
    keys.append(("quantize.imatrix.entries_count", len(imatrix.entries)))
    if imatrix.chunk_count > 0:
        keys.append(("quantize.imatrix.chunks_count", imatrix.chunk_count))
    return keys


# --- after a failure ---------------------------------------------------------------------------------


def _explained(error: EngineError, out: Path, partial: Path, plan: TypePlan) -> BitlossError:
    """Return `DiskFull` where that is the cause: llama.cpp goes on without a word when the disk is full."""
    free = shutil.disk_usage(out.parent).free
    written = partial.stat().st_size if partial.exists() else 0
    if plan.n_bytes > written + free:
        return _disk_full(out, plan.n_bytes, written + free)
    return error
