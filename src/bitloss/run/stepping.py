"""Steps in a run folder: find what was done, do what was not, keep a record of each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import NamedTuple

from pydantic import JsonValue

from bitloss.errors import FileProblem
from bitloss.progress import Progress
from bitloss.records import Cost
from bitloss.run.executor import Executor, StepResult
from bitloss.run.steps import (
    MEASUREMENT_VERSION,
    MeasureStep,
    MeasureTogetherStep,
    QuantizeStep,
    QuantizeTogetherStep,
    Step,
)
from bitloss.run.steps.common import StepModel
from bitloss.store import RunFolder, StepRecord, content_key
from bitloss.store.atomic import explained


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Progress of one step within a run.

    Attributes:
        label: the step ("measure Q8_0/f16").
        index: number of the step, from 1.
        detail: progress within it; None when it begins.
        reused: True when the step had been done before.
        seconds: how long it took, once it is over.
        plan: what it will take, where that was planned, when it begins.
    """

    label: str
    index: int
    detail: Progress | None = None
    reused: bool = False
    seconds: float | None = None
    plan: str | None = None


RunProgress = Callable[[StepProgress], None]


class Measurement(NamedTuple):
    """A candidate to be measured.

    Attributes:
        step: what to do.
        label: how to call it.
        route: source the candidate was made from; None when not known.
    """

    step: MeasureStep
    label: str
    route: str | None


class Quantization(NamedTuple):
    """A candidate to be made.

    Attributes:
        step: what to do.
        label: how to call it.
        route: the source it is made from.
    """

    step: QuantizeStep
    label: str
    route: str | None


class Stepper:
    """Does the steps of one run.

    Args:
        folder: the run folder, held.
        executor: runs what has to be run.
        progress: told about every step.

    Attributes:
        costs: of every step, in order.
    """

    def __init__(self, folder: RunFolder, executor: Executor, progress: RunProgress) -> None:
        self.folder = folder
        self.executor = executor
        self.progress = progress
        self.costs: list[Cost] = []

    def do(
        self, step: Step, label: str, route: str | None, outputs: list[Path], *, again: bool = False
    ) -> StepRecord:
        """Find the step's record, or run it and keep one.

        Args:
            step: what to do.
            label: how to call it.
            route: source it is done for; None when several share it.
            outputs: files and folders it leaves, all inside the run folder.
            again: run it although there is a record: what it left is known to be damaged.

        Raises:
            BitlossError: the step failed; nothing of it is kept.
        """
        record = None if again else self.found(step, outputs)
        if record is not None:
            self._count(record, label, route, reused=True)
            return record
        started, done = self._execute(step, label, outputs)
        record = self._keep(step, outputs, started, done)
        self.folder.event("step-finished", step=label, seconds=done.seconds, peak_bytes=done.peak_bytes)
        self._count(record, label, route, reused=False)
        return record

    def measure(self, todo: Sequence[Measurement], label: str, plan: str) -> list[StepRecord]:
        """Run measurements that share a pass, and keep each as if it had been done alone.

        Args:
            todo: of one base, one part of it and one setting of the engine; none has a record (see `found`).
            label: how to call the pass.
            plan: what it will take, for people.

        Raises:
            BitlossError: the pass failed; nothing of it is kept.
        """
        step = MeasureTogetherStep(steps=tuple(each.step for each in todo))
        return self._together(step, todo, label, plan)

    def quantize(self, todo: Sequence[Quantization], label: str) -> list[StepRecord]:
        """Make candidates of one source in one pass, and keep each as if it had been made alone.

        Args:
            todo: none has a record (see `found`).
            label: how to call the pass.

        Raises:
            BitlossError: the pass failed; nothing of it is kept.
        """
        return self._together(QuantizeTogetherStep(steps=tuple(each.step for each in todo)), todo, label)

    def _together(
        self,
        step: MeasureTogetherStep | QuantizeTogetherStep,
        todo: Sequence[Measurement | Quantization],
        label: str,
        plan: str | None = None,
    ) -> list[StepRecord]:
        started, done = self._execute(step, label, [each.step.out for each in todo], plan)
        assert isinstance(done.value, list)
        records = []
        # What is not a candidate's own (start, opening of the base, all of a pass over a source) is shared out evenly.
        own = [_seconds(result) if isinstance(step, MeasureTogetherStep) else 0.0 for result in done.value]
        rest = max(0.0, done.seconds - sum(own)) / len(own)
        for each, result, seconds in zip(todo, done.value, own, strict=True):
            alone = StepResult(result, seconds + rest, done.peak_bytes)
            records.append(self._keep(each.step, [each.step.out], started, alone))
        self.folder.event("step-finished", step=label, seconds=done.seconds, peak_bytes=done.peak_bytes)
        for each, record in zip(todo, records, strict=True):
            self._count(record, each.label, each.route, reused=False)
        return records

    def found(self, step: Step, outputs: list[Path]) -> StepRecord | None:
        """The record of a step that was done before and whose outputs are there."""
        # what is small and read in this process is hashed again; a model file is only compared in size
        record = self.folder.find(step_key(step), verify=step.kind in ("imatrix", "measure"))
        # a key says what a step makes, not where: what lies elsewhere than expected is made again
        return record if record is not None and all(path.exists() for path in outputs) else None

    def reuse(self, each: Measurement | Quantization, record: StepRecord) -> None:
        """Count what was `found`."""
        self._count(record, each.label, each.route, reused=True)

    def _count(self, record: StepRecord, label: str, route: str | None, *, reused: bool) -> None:
        self.costs.append(
            Cost(
                step=label,
                kind=record.kind,
                route=route,
                seconds=record.seconds,
                bytes=sum(output.bytes for output in record.outputs),
                reused=reused,
            )
        )
        self.progress(StepProgress(label, len(self.costs), reused=reused, seconds=record.seconds))

    def _execute(
        self, step: Step, label: str, outputs: list[Path], plan: str | None = None
    ) -> tuple[datetime, StepResult]:
        index = len(self.costs) + 1
        self.progress(StepProgress(label, index, plan=plan))
        self.folder.event("step-started", step=label, **({"plan": plan} if plan else {}))
        started = datetime.now(UTC)
        for path in outputs:
            with explained(path.parent):
                path.parent.mkdir(parents=True, exist_ok=True)
        try:
            done = self.executor.run(step, lambda detail: self.progress(StepProgress(label, index, detail)))
        except BaseException as error:
            with contextlib.suppress(FileProblem):  # on a full disk; the error itself is told
                self.folder.event("step-failed", step=label, error=str(error) or type(error).__name__)
            raise
        return started, done

    def _keep(self, step: Step, outputs: list[Path], started: datetime, done: StepResult) -> StepRecord:
        known = step.hashes(done.value) if isinstance(step, StepModel) else {}
        record = StepRecord(
            kind=step.kind,
            key=step_key(step),
            outputs=self.folder.outputs(outputs, known=known),
            result=done.value,
            seconds=done.seconds,
            started=started,
        )
        self.folder.save(record)
        return record


def _seconds(result: JsonValue) -> float:
    assert isinstance(result, dict)
    seconds = result["seconds"]
    assert isinstance(seconds, float)
    return seconds


def step_key(step: Step) -> str:
    """Content key of a step: its identity, the version of our numbers, the engine's version and commit."""
    from bitloss.engine.llama import engine_version  # a quarter of a second, and some verbs keep no keys

    parts: dict[str, JsonValue] = {
        "step": step.identity(),
        "measurement": MEASUREMENT_VERSION,
        "llama_cpp": engine_version(),
    }
    return content_key(step.kind, parts)
