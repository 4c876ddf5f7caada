"""Steps in a run folder: find what was done, do what was not, keep a record of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

from pydantic import JsonValue

from bitloss.engine.llama import engine_version
from bitloss.progress import Progress
from bitloss.records import Cost
from bitloss.run.executor import Executor
from bitloss.run.steps import MEASUREMENT_VERSION, Step
from bitloss.store import RunFolder, StepRecord, content_key


@dataclass(frozen=True, slots=True)
class StepProgress:
    """Progress of one step within a run.

    Attributes:
        label: the step ("measure Q8_0/f16").
        index: number of the step, from 1.
        detail: progress within it; None when it begins.
        reused: True when the step had been done before.
        seconds: how long it took, once it is over.
    """

    label: str
    index: int
    detail: Progress | None = None
    reused: bool = False
    seconds: float | None = None


RunProgress = Callable[[StepProgress], None]


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

    def do(self, step: Step, label: str, route: str | None, outputs: list[Path]) -> StepRecord:
        """Find the step's record, or run it and keep one.

        Args:
            step: what to do.
            label: how to call it.
            route: source it is done for; None when several share it.
            outputs: files and folders it leaves, all inside the run folder.

        Raises:
            BitlossError: the step failed; nothing of it is kept.
        """
        key = step_key(step)
        index = len(self.costs) + 1
        # what is small and read in this process is hashed again; a model file is only compared in size
        record = self.folder.find(key, verify=step.kind in ("imatrix", "measure"))
        # a key says what a step makes, not where: what lies elsewhere than expected is made again
        reused = record is not None and all(path.exists() for path in outputs)
        if record is None or not reused:
            record = self._execute(step, key, label, outputs)
        self.costs.append(
            Cost(
                step=label,
                kind=step.kind,
                route=route,
                seconds=record.seconds,
                bytes=sum(output.bytes for output in record.outputs),
                reused=reused,
            )
        )
        self.progress(StepProgress(label, index, reused=reused, seconds=record.seconds))
        return record

    def _execute(self, step: Step, key: str, label: str, outputs: list[Path]) -> StepRecord:
        index = len(self.costs) + 1
        self.progress(StepProgress(label, index))
        self.folder.event("step-started", step=label, key=key)
        started = datetime.now(UTC)
        for path in outputs:
            path.parent.mkdir(parents=True, exist_ok=True)
        try:
            done = self.executor.run(step, lambda detail: self.progress(StepProgress(label, index, detail)))
        except BaseException as error:
            self.folder.event("step-failed", step=label, error=str(error) or type(error).__name__)
            raise
        record = StepRecord(
            kind=step.kind,
            key=key,
            outputs=self.folder.outputs(outputs),
            result=done.value,
            seconds=done.seconds,
            started=started,
        )
        self.folder.save(record)
        self.folder.event("step-finished", step=label, seconds=done.seconds, peak_bytes=done.peak_bytes)
        return record


def step_key(step: Step) -> str:
    """Content key of a step: its identity, the version of our numbers, the engine's version and commit."""
    parts: dict[str, JsonValue] = {
        "step": step.identity(),
        "measurement": MEASUREMENT_VERSION,
        "llama_cpp": engine_version(),
    }
    return content_key(step.kind, parts)
