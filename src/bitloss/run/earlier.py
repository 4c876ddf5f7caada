"""What was measured in a folder before: it stays in the results, beside what is measured now.

The folder is bound to one base and one arithmetic, so all that is in it was measured on the same tokens. A file is kept
if the step that measured it is found again by what went into it (`bitloss.run.stepping`); its GGUF file may be gone.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from bitloss.divergence.measure import read_tokens
from bitloss.errors import FileProblem, FormatError, RunFolderError
from bitloss.records import RESULTS_NAME, Candidate, Results, read_results
from bitloss.run.results import MeasuredFile
from bitloss.run.stepping import Measurement, Stepper, step_key
from bitloss.run.steps import BaseStep, MeasureStep

_WHY_LOST = "their per-token results are damaged, or of another version of bitloss, llama.cpp or the base"


class Kept(NamedTuple):
    """A file measured before, and what its step told."""

    file: MeasuredFile
    result: JsonValue


class Earlier(NamedTuple):
    """What a folder's results hold beside the files that are measured now.

    Attributes:
        results: all of them; None where there are none to keep anything of.
        candidates: of them, those that are not measured now.
    """

    results: Results | None = None
    candidates: tuple[Candidate, ...] = ()

    @property
    def commands(self) -> tuple[str, ...]:
        """Commands that measured what is kept."""
        return self.results.commands if self.results and self.candidates else ()

    @property
    def forced(self) -> tuple[str, ...]:
        """Differences that were accepted for what is kept."""
        return self.results.base.forced if self.results and self.candidates else ()

    def ordered(self, files: Sequence[MeasuredFile]) -> list[MeasuredFile]:
        """In the order of the results as they were, what is new behind; as given where nothing is kept."""
        if self.results is None or not self.candidates:
            return list(files)
        before = [each.name for each in self.results.candidates]
        return sorted(files, key=lambda file: before.index(file.name) if file.name in before else len(before))


def earlier(out: Path, names: Collection[str], *, ranking: bool, stopping: bool) -> Earlier:
    """Look what a folder's results hold, and refuse what cannot stand beside it.

    Args:
        out: the folder.
        names: of the files that are measured now.
        ranking: groups of tensors are ranked: earlier rankings, whose files are found again, are replaced.
        stopping: a rule decides how much is measured, which depends on all files.

    Raises:
        RunFolderError: files measured before would be lost.
    """
    path = out / RESULTS_NAME
    if not path.exists():
        return Earlier()
    try:
        results = read_results(path)
    except (FileProblem, FormatError) as error:
        raise RunFolderError(
            "results of what was measured here before cannot be read, and would be lost",
            where=path,
            found=error.what,
            mend="restore the file, remove it to begin with the files named now, or choose another folder with --out",
        ) from error
    if ranking and results.sensitivity is not None:
        return Earlier()
    others = tuple(each for each in results.candidates if each.name not in names)
    if ranking or results.sensitivity is not None:
        raise RunFolderError(
            f"the folder holds results of `bitloss {'measure' if ranking else 'sensitivity'}`, which would be lost",
            where=out,
            mend="choose another folder with --out",
        )
    if stopping and others:
        raise _lost(out, [each.name for each in others], "a rule to stop by looks at all files together")
    return Earlier(results, others)


def contents(out: Path) -> dict[str, str]:
    """By name, the SHA-256 of the files that a folder's results speak of; empty where there are none to read."""
    try:
        return {each.name: each.sha256 for each in read_results(out).candidates}
    except (FileProblem, FormatError):
        return {}


def replaced(before: dict[str, str], results: Results) -> list[str]:
    """Say of each file of the results that another one of its name was there `before` (`contents`)."""
    return [
        f"{each.name} was another file when it was measured here before: its figures are replaced. To keep both, give "
        "one another name"
        for each in results.candidates
        if before.get(each.name, each.sha256) != each.sha256
    ]


def refuse_before_base(before: Earlier, base: BaseStep, steps: Stepper) -> None:
    """Refuse, before a base is computed, and one that is there replaced, what `take_along` would refuse after it.

    Args:
        before: what there is.
        base: the step that makes the base, in the folder; its engine is the one that measures.
        steps: finds what was measured.

    Raises:
        RunFolderError: files measured before would be lost.
    """
    like = MeasureStep(
        candidate=base.source,
        candidate_tensors_sha256="",
        base=base.out,
        base_key=step_key(base),
        engine=base.engine,
        out=base.out.parent / "tokens" / "any",
    )
    every = [(candidate.name, _step(candidate, like)) for candidate in before.candidates]
    if lost := [name for name, step in every if step is None or steps.found(step, [step.out]) is None]:
        raise _lost(base.out.parent, lost, _WHY_LOST)


def take_along(before: Earlier, now: Sequence[MeasureStep], steps: Stepper) -> list[Kept]:
    """Find what is kept of the files measured before.

    Args:
        before: what there is.
        now: the steps that measure now, at least one: base and engine are theirs, and so are their costs.
        steps: finds them, and counts their costs.

    Raises:
        RunFolderError: files measured before would be lost.
    """
    kept: list[Kept] = []
    like, counted = now[0], {step.out for step in now}
    lost = []
    for candidate in before.candidates:
        step = _step(candidate, like)
        record = None if step is None else steps.found(step, [step.out])
        if step is None or record is None:
            lost.append(candidate.name)
            continue
        if step.out not in counted:  # files that compute the same share one
            steps.reuse(Measurement(step, f"measure {candidate.name}", None), record)
            counted.add(step.out)
        kept.append(Kept(_measured(candidate, step.out), record.result))
    if lost:
        raise _lost(like.out.parent.parent, lost, _WHY_LOST)
    return kept


def _step(candidate: Candidate, like: MeasureStep) -> MeasureStep | None:
    """The step that measured a file, if its per-token results say so."""
    if candidate.tokens is None:
        return None
    path = like.out.parent / candidate.tokens
    try:
        _, facts = read_tokens(path)
    except (FileProblem, FormatError):
        return None
    computed = facts.get("tensors_sha256")
    if computed is None:
        return None
    return like.model_copy(
        update={
            "candidate": Path(candidate.file),
            "candidate_tensors_sha256": computed,
            "part": None,
            "out": path,
        }
    )


def _measured(candidate: Candidate, tokens: Path) -> MeasuredFile:
    return MeasuredFile(
        name=candidate.name,
        type=candidate.type,
        weights_from=candidate.weights_from,
        imatrix_from=candidate.imatrix_from,
        file=candidate.file,
        bytes=candidate.bytes,
        bits_per_weight=candidate.bits_per_weight,
        sha256=candidate.sha256,
        tensors_sha256=candidate.tensors_sha256,
        tokens=tokens,
    )


def _lost(out: Path, names: Sequence[str], why: str) -> RunFolderError:
    shown = ", ".join(names[:5]) + (f" and {len(names) - 5} more" if len(names) > 5 else "")
    return RunFolderError(
        f"files measured here before would be lost ({why})",
        where=out,
        found=shown,
        mend="name them as well, or choose another folder with --out",
    )
