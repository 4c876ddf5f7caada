"""The importance matrix of a candidate: whose model it is of, what it leaves out, what the file says of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from bitloss.errors import ImatrixError, MismatchError, UnsupportedError
from bitloss.imatrix.file import Imatrix, quantize_weights, read_imatrix
from bitloss.imatrix.matrix import file_name
from bitloss.quantize.call import cut_utf8
from bitloss.quantize.request import LostTensor, MatrixFacts
from bitloss.store import sha256_file

if TYPE_CHECKING:
    from collections.abc import Mapping
    from pathlib import Path

    from bitloss.model.gguf import GgufFile
    from bitloss.quantize.call import TypeRules
    from bitloss.quantize.plan import TypePlan
    from bitloss.quantize.types import QuantType

GARBAGE = "is garbage without an importance matrix"
# tensor_requires_imatrix of llama.cpp: types that are garbage without weights, except on the two tables.
_NEED_WEIGHTS = frozenset({"IQ3_XXS", "IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ1_M", "IQ1_S"})
# ggml_quantize_requires_imatrix: without weights these end the process, on the tables as well.
_ABORT_WITHOUT_WEIGHTS = frozenset({"IQ2_XXS", "IQ2_XS", "IQ1_S"})
_TABLES = frozenset({"token_embd.weight", "per_layer_token_embd.weight", "output.weight"})
# What encoders make of blocks whose importance is 0 throughout: a scale of 0, or one that fits nothing. Not named here
# are types that take no notice of importance, and Q4_1, Q5_1 and IQ3_S, which then encode as without it, or nearly.
STORED_AS_ZEROS = frozenset(
    {"Q4_0", "Q5_0", "Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K", "IQ2_XXS", "IQ1_S", "IQ1_M", "IQ4_NL", "IQ4_XS"}
)
STORED_AS_NOISE = frozenset({"IQ2_XS", "IQ2_S", "IQ3_XXS"})  # errors of 0.7 to 0.9 of the weights themselves
# Products of weights and squares are summed in float32; beyond, some encoders end the process on an infinity.
_MAX_WEIGHT = 1e30


@dataclass(frozen=True, slots=True, eq=False)
class Weights:
    """An importance matrix as the quantizer takes it.

    Attributes:
        path: its file.
        by_tensor: tensor name -> float32 [n_mat * n_in].
        metadata: keys llama-quantize sets for it, in its order.
        unused: tensor name -> experts that were never used.
        zeros: tensor name -> experts that were used, all their weights zero.
    """

    path: Path
    by_tensor: Mapping[str, npt.NDArray[np.float32]]
    metadata: tuple[tuple[str, int | str], ...]
    unused: Mapping[str, tuple[int, ...]]
    zeros: Mapping[str, tuple[int, ...]]


def read_weights(path: Path, source: GgufFile) -> Weights:
    """Read an importance matrix for the model in `source`.

    Raises:
        FileProblem, ImatrixError, UnsupportedError: the file is missing or damaged.
        MismatchError: a weight it names is not in the model, or has another width.
    """
    imatrix = read_imatrix(path)
    values = quantize_weights(imatrix)
    _check_model(path, source, values)
    return Weights(path, values, tuple(_keys(path, imatrix)), *_odd_experts(imatrix, values))


def matrix_facts(weights: Weights, plan: TypePlan) -> MatrixFacts:
    """Return what the matrix does not say about the quantized tensors of a plan."""
    quantized = {name for name, tensor in plan.tensors.items() if not tensor.is_copied}
    return MatrixFacts(
        missing=without(plan, weights.by_tensor),
        unused_experts={name: which for name, which in weights.unused.items() if name in quantized},
        zero_weights={name: which for name, which in weights.zeros.items() if name in quantized},
        lost={
            name: LostTensor(
                plan.types[name],
                which,
                (*plan.tensors[name].shape, 1, 1)[2],
                "zeros" if plan.types[name] in STORED_AS_ZEROS else "noise",
            )
            for name, which in weights.zeros.items()
            if name in quantized and plan.types[name] in STORED_AS_ZEROS | STORED_AS_NOISE
        },
    )


def without(plan: TypePlan, weights: Mapping[str, object]) -> tuple[str, ...]:
    """Return the quantized tensors of a plan that have no weights."""
    return tuple(
        name for name, tensor in plan.tensors.items() if not tensor.is_copied and name not in weights
    )


def check_needed(
    source: GgufFile, kind: QuantType, rules: TypeRules, plan: TypePlan, weights: Weights | None
) -> None:
    """Refuse a type that is garbage without weights for a tensor that has none.

    Args:
        source: whose tensors.
        kind: the file type that was asked for.
        rules: with what else was asked for.
        plan: its tensors.
        weights: importance, None without.

    Raises:
        UnsupportedError: the tensor is named.
    """
    for name in without(plan, weights.by_tensor if weights else {}):
        target = plan.types[name]
        needed = _ABORT_WITHOUT_WEIGHTS if name in _TABLES else _NEED_WEIGHTS
        if target in needed or (kind.name == "Q2_K_S" and target == "Q2_K" and name not in _TABLES):
            raise UnsupportedError(
                f"{target} {GARBAGE}",
                where=f"{source.path}[{name}]",
                expected=f"weights for this tensor in {weights.path}" if weights else None,
                mend=_how_to_weigh(source, kind, rules, plan.tensors[name].target_type, weights),
            )


def _how_to_weigh(
    source: GgufFile, kind: QuantType, rules: TypeRules, target: int, weights: Weights | None
) -> str:
    forced = {rules.output_tensor_type, rules.token_embedding_type, *(each for _, each in rules.tensor_types)}
    other = "choose another type for it" if target in forced else f"take another type than {kind.name}"
    if weights:
        return f"make a matrix that has this tensor (with a text that reaches it), or {other}"
    return f"make one with `bitloss imatrix {source.path.name}` and give it with --imatrix, or {other}"


def _check_model(path: Path, source: GgufFile, weights: Mapping[str, npt.NDArray[np.float32]]) -> None:
    """Every weight of the matrix must be a tensor of the source, of the same width, and of sane size."""
    mend = f"is it of the model in {source.path.name}?"
    missing = [name for name in weights if name not in source.tensors]
    if missing:
        found = f"{len(missing)} of {len(weights)} weights unknown, the first is {missing[0]}"
        raise MismatchError("importance matrix of another model", where=path, found=found, mend=mend)
    for name, values in weights.items():
        if values.max() > _MAX_WEIGHT:
            raise ImatrixError(
                "impossible mean square",
                where=f"{path}[{name}]",
                expected=f"at most {_MAX_WEIGHT}",
                found=float(values.max()),
                mend="the activations overflowed: compute the matrix again, from a source of F32 or BF16",
            )
        n_in, _, n_mat, *_ = (*source.tensors[name].shape, 1, 1, 1)
        if values.size != n_in * n_mat:
            raise MismatchError(
                "importance matrix of another model",
                where=f"{path}[{name}]",
                expected=f"{n_in * n_mat} values",
                found=values.size,
                mend=mend,
            )


def _odd_experts(
    imatrix: Imatrix, values: Mapping[str, npt.NDArray[np.float32]]
) -> tuple[dict[str, tuple[int, ...]], dict[str, tuple[int, ...]]]:
    """Return the experts that were never used, and those that were and have only zeros, by tensor."""
    unused: dict[str, tuple[int, ...]] = {}
    zeros: dict[str, tuple[int, ...]] = {}
    for name, entry in imatrix.entries.items():
        never = entry.counts == 0 if not imatrix.is_legacy else np.zeros(entry.counts.size, bool)
        zero = ~values[name].reshape(entry.counts.size, -1).any(axis=1)
        if never.any():
            unused[name] = tuple(np.flatnonzero(never).tolist())
        if zero.any():
            zeros[name] = tuple(np.flatnonzero(zero).tolist())
    return unused, zeros


def _keys(path: Path, imatrix: Imatrix) -> list[tuple[str, int | str]]:
    """Return the keys llama-quantize sets, in its order; llama.cpp cuts text at 127 bytes."""
    content = f" (sha256:{sha256_file(path)[:16]})"
    keys: list[tuple[str, int | str]] = [
        ("quantize.imatrix.file", cut_utf8(path.name, 127 - len(content)) + content)
    ]
    if imatrix.datasets:
        keys.append(("quantize.imatrix.dataset", cut_utf8(file_name(imatrix.datasets[0]), 127)))
    keys.append(("quantize.imatrix.entries_count", len(imatrix.entries)))
    if imatrix.chunk_count > 0:
        keys.append(("quantize.imatrix.chunks_count", imatrix.chunk_count))
    return keys
