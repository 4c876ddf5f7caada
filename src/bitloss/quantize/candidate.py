"""A candidate before it is made: everything that can be checked, and every byte but the weights laid out."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from bitloss.errors import FileProblem, GgufError, UnsupportedError, UsageError
from bitloss.model.gguf import GgufFile, type_name
from bitloss.model.gguf_split import open_model
from bitloss.model.source import refuse_matrix
from bitloss.model.tensor_types import TensorType
from bitloss.quantize.layout import FileLayout, layout, trimmed
from bitloss.quantize.plan import TypePlan, type_plan
from bitloss.quantize.request import MatrixFacts, QuantizeSpec, rules_of
from bitloss.quantize.weights import GARBAGE, Weights, check_needed, matrix_facts, read_weights

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

    from bitloss.quantize.call import TypeRules
    from bitloss.quantize.types import QuantType

_PLAIN = frozenset({TensorType.F32, TensorType.F16, TensorType.BF16})


@dataclass(frozen=True, slots=True, eq=False)
class Candidate:
    """A candidate before it is made.

    Attributes:
        spec: what was asked for.
        source: the open source.
        kind: its file type.
        rules: what decides the types of its tensors.
        plan: its tensors.
        weights: importance, None without.
        files: what will be written, to the byte.
    """

    spec: QuantizeSpec
    source: GgufFile
    kind: QuantType
    rules: TypeRules
    plan: TypePlan
    weights: Weights | None
    files: tuple[FileLayout, ...]

    @property
    def bytes(self) -> int:
        """Bytes of all its files."""
        return sum(file.size for file in self.files)

    @property
    def bits_per_weight(self) -> float:
        """8 x tensor bytes / weights; a source without weights is a `GgufError`."""
        n_weights = sum(info.n_elements for info in self.source.tensors.values())
        if n_weights == 0:
            raise GgufError("the file has no weights", where=self.source.path)
        return 8 * self.plan.n_bytes / n_weights

    @property
    def type_counts(self) -> dict[str, int]:
        """Tensor type -> number of tensors."""
        return dict(sorted(Counter(self.plan.types.values()).items()))

    def as_json(self) -> dict[str, Any]:
        """Return what is known before anything is written, as JSON holds it."""
        facts = matrix_facts(self.weights, self.plan) if self.weights else MatrixFacts()
        return {
            "out": self.files[0].path.name,
            "type": self.kind.name,
            "bytes": self.bytes,
            "bits_per_weight": self.bits_per_weight,
            "type_counts": dict(self.type_counts),
            "n_fallback": self.plan.n_fallback,
            **facts.as_json(),
            "parts": [{"path": file.path.name, "bytes": file.size} for file in self.files[1:] and self.files],
        }


def plan_candidates(specs: Sequence[QuantizeSpec]) -> list[Candidate]:
    """Check everything that can be checked before writing, and lay out the files.

    Args:
        specs: at least one, all of one source.

    Raises:
        UsageError: no model, unknown type, pattern without a tensor, type that does not fit, files in each other's way.
        FileProblem: source or matrix missing, or a file is in the way of the output folder.
        GgufError, ImatrixError: source or matrix is damaged.
        UnsupportedError: a quantized source without `allow_requantize`; types that cannot be made of this source, every
            one of them named: one that needs weights without them, one whose blocks do not fit the rows.
        MismatchError: the importance matrix is of another model.
        EngineError: llama.cpp refused the source.
    """
    assert specs
    assert len({spec.source for spec in specs}) == 1
    source = open_model(specs[0].source)
    refuse_matrix(source)
    matrices: dict[Path, Weights] = {}
    candidates, refused = [], []
    for spec in specs:
        if spec.imatrix is not None and spec.imatrix not in matrices:
            matrices[spec.imatrix] = read_weights(spec.imatrix, source)
        weights = matrices[spec.imatrix] if spec.imatrix is not None else None
        try:
            candidates.append(_candidate(spec, source, weights))
        except UnsupportedError as error:
            refused.append((rules_of(spec)[0].name, error))
    if refused:
        raise _refusal(source, refused, [each.kind.name for each in candidates])
    _check_paths(source, candidates)
    return candidates


def _candidate(spec: QuantizeSpec, source: GgufFile, weights: Weights | None) -> Candidate:
    kind, rules = rules_of(spec)
    types = type_plan(source, rules)
    _check_tensors(spec, source, types)
    check_needed(source, kind, rules, types, weights)
    files = layout(spec, source, kind, types, weights.metadata if weights else ())
    return Candidate(spec, source, kind, rules, types, weights, files)


def _refusal(
    source: GgufFile, refused: Sequence[tuple[str, UnsupportedError]], possible: Sequence[str]
) -> UnsupportedError:
    """Name every type that cannot be made, why, and what could be: a long list is corrected once."""
    named = list(dict.fromkeys(kind for kind, _ in refused))
    if not possible and (len(named) == 1 or len({str(error) for _, error in refused}) == 1):
        return refused[0][1]  # the only type, or a fault that has nothing to do with types
    kinds: dict[str, list[str]] = {}
    reasons: dict[str, str] = {}
    for kind, error in refused:
        why = error.what.partition(" ")[2]  # what all types have in common that fail like this one
        kinds.setdefault(why, []).append(kind)
        found = f": expected {error.expected}, found {error.found}" if error.found else ""
        reasons.setdefault(why, f"{_within(source, error.where)}{error.what}{found}")
    told = [f"{', '.join(dict.fromkeys(kinds[why]))} ({reasons[why]})" for why in kinds]
    weighable = [
        kind for kind in named if all(_lacks_matrix(error) for other, error in refused if other == kind)
    ]
    remedy = f"leave out {', '.join(named)}"
    if weighable:
        which = "" if weighable == named else f" for {', '.join(weighable)}"
        remedy = f"give an importance matrix with --imatrix{which} (`bitloss imatrix` makes one), or {remedy}"
    others = f"; the others can be made: {','.join(dict.fromkeys(possible))}" if possible else ""
    return UnsupportedError(
        f"{len(named)} of {len({*named, *possible})} types cannot be made: {'; '.join(told)}",
        where=source.path,
        mend=f"{remedy}{others}",
    )


def _lacks_matrix(error: UnsupportedError) -> bool:
    """Whether a type only wants an importance matrix, and none was given."""
    return error.what.endswith(GARBAGE) and error.expected is None


def _within(source: GgufFile, where: str | None) -> str:
    """Return the tensor of "FILE[TENSOR]"."""
    inside = (where or "").removeprefix(f"{source.path}[")
    return f"{inside.removesuffix(']')}: " if where and inside != where else ""


def _check_tensors(spec: QuantizeSpec, source: GgufFile, types: TypePlan) -> None:
    """Refuse a quantized source that was not allowed, and shapes on which llama.cpp ends the process."""
    for tensor in types.tensors.values():
        if tensor.is_copied:
            continue
        where = f"{source.path}[{tensor.name}]"
        if tensor.source_type not in _PLAIN and not spec.allow_requantize:
            raise UnsupportedError(
                "the source is quantized already",
                where=where,
                expected="F32, F16 or BF16",
                found=type_name(tensor.source_type),
                mend="start from a full-precision file, or accept the extra loss with --allow-requantize",
            )
        if len(trimmed(tensor.shape)) > 3:
            raise UnsupportedError(
                "a tensor of four dimensions cannot be quantized", where=where, found=list(tensor.shape)
            )


def _check_paths(source: GgufFile, candidates: Sequence[Candidate]) -> None:
    """No file may replace the source or another candidate, or need a folder where there is a file."""
    for folder in {file.path.absolute().parent for candidate in candidates for file in candidate.files}:
        there = next(path for path in (folder, *folder.parents) if path.exists())
        if not there.is_dir():
            raise FileProblem(
                "a file is in the way of the output folder",
                where=there,
                mend="give -o another folder, or move the file away",
            )
    seen: set[Path] = set()
    for candidate in candidates:
        for file in candidate.files:
            if file.path.exists() and any(file.path.samefile(path) for path in source.paths):
                raise UsageError(
                    "the candidate would replace its source", where=file.path, mend="choose another name"
                )
            if file.path.absolute() in seen:
                raise UsageError(
                    "two candidates of the same name", where=file.path, mend="ask for each type once"
                )
            seen.add(file.path.absolute())
