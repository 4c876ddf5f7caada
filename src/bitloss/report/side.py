"""Several runs side by side: one table, when they measured against the same base on the same text."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from bitloss.errors import MismatchError, UsageError
from bitloss.records import Candidate, Comparison, Cost, Cross, Results
from bitloss.report.missing import no_candidates
from bitloss.report.summary import noise_file, token_files


class Run(NamedTuple):
    """A run to lay beside others.

    Attributes:
        label: what tells it from the others.
        folder: where it is.
        results: of it.
    """

    label: str
    folder: Path
    results: Results


class Together(NamedTuple):
    """Runs laid side by side.

    Attributes:
        results: of all, candidates named ``label: name``.
        files: per-token results by candidate.
        noise: those of the noise floor shown.
        warnings: what to keep in mind.
    """

    results: Results
    files: dict[str, Path]
    noise: Path | None
    warnings: tuple[str, ...]


def labelled(folders: Sequence[Path]) -> list[str]:
    """Names that tell folders apart: the last part of each path, numbered where that is not enough."""
    names = [folder.resolve().name for folder in folders]
    told = [f"{i}-{name}" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]
    # a folder may be called "1-a" itself
    return told if len(set(told)) == len(told) else [f"{i}-{name}" for i, name in enumerate(names, 1)]


def side_by_side(runs: Sequence[Run]) -> Together:
    """Join runs into one set of results.

    Comparisons stay those made within each run.

    Raises:
        UsageError: fewer than two.
        MismatchError: a run was measured against another base or on another text than the first; says which.
    """
    if len(runs) < 2:
        raise UsageError("nothing to lay side by side", where="RUN", expected="two runs or more")
    first = runs[0]
    for run in runs[1:]:
        _check(first, run)
    candidates: list[Candidate] = []
    comparisons: list[Comparison] = []
    costs: list[Cost] = []
    files: dict[str, Path] = {}
    by_tensors: dict[str, str] = {}
    for run in runs:

        def named(name: str, label: str = run.label) -> str:
            return f"{label}: {name}"

        for each in run.results.candidates:
            name = named(each.name)
            # equal tensors in two runs were measured twice, perhaps by other engines: no twins across runs
            twin = named(each.identical_to) if each.identical_to else None
            candidates.append(each.model_copy(update={"name": name, "identical_to": twin}))
            by_tensors.setdefault(each.tensors_sha256, name)
        comparisons += [
            each.model_copy(update={"a": named(each.a), "b": named(each.b)})
            for each in run.results.comparisons
        ]
        costs += [each.model_copy(update={"step": named(each.step)}) for each in run.results.costs]
        files |= {named(name): path for name, path in token_files(run.results, run.folder).items()}
    found = [
        f.model_copy(
            update={
                "title": f"{run.label}: {f.title}",
                "rows": tuple(r if r.startswith("#") else f"{run.label}: {r}" for r in f.rows),
            }
        )
        for run in runs
        for f in run.results.findings
    ]
    update: dict[str, Any] = {
        "candidates": tuple(candidates),
        "comparisons": tuple(comparisons),
        "costs": tuple(costs),
        "findings": tuple(found),
        "commands": tuple(command for run in runs for command in run.results.commands),
        "stopping": None,
        "cross": _crossed(runs),
        "sensitivity": None,  # a ranking against one plain file: of one run
    }
    return Together(
        first.results.model_copy(update=update),
        files,
        noise_file(first.folder),
        tuple(_warnings(runs, by_tensors)),
    )


def _crossed(runs: Sequence[Run]) -> Cross | None:
    """What each run crossed, under its label."""
    if not any(run.results.cross for run in runs):
        return None
    files = ("file_a", "file_b", "weights_of_b", "imatrix_of_b")
    attributions, pairs, halves = [], [], []
    for run in runs:
        if (cross := run.results.cross) is None:
            continue
        for each in cross.attributions:
            names = {key: f"{run.label}: {getattr(each, key)}" for key in files}
            attributions.append(each.model_copy(update=names))
        pairs += [pair.model_copy(update={"a": f"{run.label}: {pair.a}"}) for pair in cross.imatrices]
        halves += [half.model_copy(update={"source": f"{run.label}: {half.source}"}) for half in cross.halves]
    return Cross(attributions=tuple(attributions), imatrices=tuple(pairs), halves=tuple(halves))


def _check(first: Run, other: Run) -> None:
    a, b = first.results, other.results
    for what, mine, theirs in (
        ("base", a.base.sha256, b.base.sha256),
        ("text", a.text.tokens_sha256, b.text.tokens_sha256),
        ("context", a.text.n_ctx, b.text.n_ctx),
        ("number of chunks measured", a.text.chunks, b.text.chunks),
    ):
        if mine != theirs:
            raise MismatchError(
                f"the run has another {what} than {first.label}",
                where=other.folder,
                expected=str(mine)[:16],
                found=str(theirs)[:16],
                mend="only runs against the same base on the same text can stand in one table",
            )


def _warnings(runs: Sequence[Run], by_tensors: dict[str, str]) -> list[str]:
    said = [
        f"{len(runs)} runs side by side ({', '.join(run.label for run in runs)}). Comparisons were made within each; "
        "machine, noise floor, audit and how it was made are those of the first."
    ]
    for run in runs:
        if (nothing := no_candidates(run.results)) is not None:
            said.append(f"{run.label}: {nothing[:1].lower()}{nothing[1:]}")
    engines = {(run.results.llama_cpp.commit, run.results.machine.backend) for run in runs}
    if len(engines) > 1:
        shown = ", ".join(f"{commit} on {backend}" for commit, backend in sorted(engines))
        said.append(
            f"The runs were computed by different engines ({shown}): small differences can be theirs."
        )
    seen: dict[str, str] = {}
    for run in runs:
        for each in run.results.candidates:
            other = seen.setdefault(each.tensors_sha256, run.label)
            if other != run.label:
                said.append(f"{run.label}: {each.name} has the tensors of {by_tensors[each.tensors_sha256]}.")
    return said[:12]
