"""`bitloss sensitivity`: one group of tensors at a time at the source's precision, measured against the plain file.

All files are made in one pass over the source: a tensor that several have alike is encoded once. They lie in
``OUT/candidates``, a run folder of their own, so that another type, or ``--per-layer`` after whole groups, takes what
is there; then they are measured like any finished files (`bitloss.run.measuring`), as many in a pass as memory allows.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

from bitloss.divergence.comparison import Pair
from bitloss.errors import EngineError, FileProblem, UsageError
from bitloss.explain.sensitivity import Plan, sensitivity
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import open_model, whole_stem
from bitloss.model.source import model_sha256, precision
from bitloss.quantize.candidate import plan_candidates
from bitloss.quantize.groups import Group, tensor_groups
from bitloss.quantize.request import QuantizeSpec
from bitloss.quantize.types import parse_quant_type
from bitloss.records import Cost, Results
from bitloss.run.executor import Executor
from bitloss.run.measuring import Measuring, measure_files, prepare_measuring
from bitloss.run.quantizing import quantize_in_passes
from bitloss.run.results import Why
from bitloss.run.stepping import Quantization, RunProgress, Stepper
from bitloss.run.steps import QuantizeStep
from bitloss.store import RunFolder, content_key, sha256_file
from bitloss.store.fresh import removed_when_refused

_LOCK_SECONDS = 2.0
_PLAIN = ("F32", "F16", "BF16")


class Sensing(NamedTuple):
    """What to raise, and how to measure it.

    Attributes:
        source: GGUF file of full precision.
        type: quantization type of everything that is not raised.
        imatrix: importance matrix; None without one.
        per_layer: one group for each layer and kind.
        measuring: base, texts, folder and engine; its candidates are filled in here.
    """

    source: Path
    type: str
    imatrix: Path | None
    per_layer: bool
    measuring: Measuring


class _Wanted(NamedTuple):
    group: Group | None
    file: Path


def sense(sensing: Sensing, *, executor: Executor, progress: RunProgress) -> Results:
    """Make the plain file and one for each group, measure all, rank the groups.

    Returns:
        The results with their ``sensitivity``, also written to ``results.json`` with the report beside it.

    Raises:
        FileProblem, GgufError: source, importance matrix or base is missing or damaged.
        UsageError: a quantized source, an unknown type, a type that is no quantization, nothing to raise.
        UnsupportedError: a type that needs an importance matrix, without one; before anything is written.
        MismatchError: an importance matrix or base of another model.
        BitlossError: a step failed; what was finished is used next time.
    """
    kind, source, groups, made = _checked(sensing)
    with removed_when_refused(made):
        return _sensed(sensing, kind, source, groups, executor, progress)


def _sensed(
    sensing: Sensing,
    kind: str,
    source: GgufFile,
    groups: list[Group],
    executor: Executor,
    progress: RunProgress,
) -> Results:
    first = _plain_file(sensing, kind)
    wanted = [_Wanted(None, first)]
    wanted += [_Wanted(group, first.with_name(f"{first.stem}+{group.tag}.gguf")) for group in groups]
    costs = _make(sensing, kind, source, wanted, executor, progress)
    plain = wanted[0].file
    plan = Plan(
        source=sensing.source.name,
        type=kind,
        imatrix=sensing.imatrix.name if sensing.imatrix else None,
        per_layer=sensing.per_layer,
        plain=plain.stem,
        raised={
            each.file.stem: (each.group, _raised(plain, each.group, each.file))
            for each in wanted
            if each.group
        },
    )
    why = Why(
        sensitivity=functools.partial(sensitivity, plan),
        pairs=tuple(Pair(plain.stem, name) for name in plan.raised),
    )
    measuring = sensing.measuring._replace(candidates=[each.file for each in wanted])
    return measure_files(measuring, executor=executor, progress=progress, why=why, costs=costs)


def _plain_file(sensing: Sensing, kind: str) -> Path:
    return (sensing.measuring.out / "candidates").resolve() / f"{whole_stem(sensing.source)}-{kind}.gguf"


def _checked(sensing: Sensing) -> tuple[str, GgufFile, list[Group], tuple[Path, ...]]:
    """Everything that can be found out before anything is written, and the folders made to say whose they are."""
    kind = parse_quant_type(sensing.type).name
    if kind in _PLAIN:
        raise UsageError(
            "not a quantized type",
            where="--type",
            expected="a type such as Q4_K_M",
            found=sensing.type,
            mend="there is nothing to raise in a full-precision file",
        )
    if sensing.imatrix is not None and not sensing.imatrix.is_file():
        raise FileProblem("no such importance matrix", where=sensing.imatrix)
    source = open_model(sensing.source)
    precision(source)
    groups = tensor_groups(source, per_layer=sensing.per_layer)
    if not groups:
        raise UsageError("no matrices to raise", where=sensing.source)
    # the plain file asks more of a matrix than those with a group raised
    plan_candidates([QuantizeSpec(sensing.source, kind, _plain_file(sensing, kind), sensing.imatrix)])
    made = prepare_measuring(sensing.measuring._replace(candidates=[sensing.source]))
    return kind, source, groups, made


def _make(
    sensing: Sensing,
    kind: str,
    source: GgufFile,
    wanted: list[_Wanted],
    executor: Executor,
    progress: RunProgress,
) -> list[Cost]:
    source_sha256 = model_sha256(sensing.source)
    imatrix_sha256 = sha256_file(sensing.imatrix) if sensing.imatrix else None
    todo = []
    for each in wanted:
        tensors = each.group.tensors if each.group else {}
        step = QuantizeStep(
            source=source.path.resolve(),
            source_sha256=source_sha256,
            type=kind,
            imatrix=sensing.imatrix.resolve() if sensing.imatrix else None,
            imatrix_sha256=imatrix_sha256,
            tensor_types=tuple(
                (f"^{name.replace('.', '[.]')}$", precise)
                for name, precise in tensors.items()
                if name not in ("output.weight", "token_embd.weight")
            ),
            output_tensor_type=tensors.get("output.weight"),
            token_embedding_type=tensors.get("token_embd.weight"),
            threads=sensing.measuring.engine.threads,
            out=each.file,
        )
        todo.append(Quantization(step, f"quantize {each.file.stem}", None))
    settings = {"source": source_sha256, "imatrix": imatrix_sha256}
    with RunFolder.open(
        wanted[0].file.parent, content_key("sensitivity", settings), settings, timeout=_LOCK_SECONDS
    ) as folder:
        steps = Stepper(folder, executor, progress)
        quantize_in_passes(steps, todo)
        return steps.costs


def _raised(plain: Path, group: Group, file: Path) -> int:
    """Tensors that are of another type than in the plain file; all of them must be of the group."""
    before, after = open_model(plain).tensors, open_model(file).tensors
    changed = [name for name, info in after.items() if info.ggml_type != before[name].ggml_type]
    if others := [name for name in changed if name not in group.tensors]:
        raise EngineError(
            "raising a group changed the type of a tensor outside it",
            where=f"{file.name}[{others[0]}]",
            expected=before[others[0]].type_name,
            found=after[others[0]].type_name,
        )
    return len(changed)
