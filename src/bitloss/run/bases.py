"""The base of a run: made once, and mended where a file of it is missing or damaged."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from bitloss.errors import BaseError
from bitloss.run.stepping import Stepper
from bitloss.run.steps import BaseStep, Repair
from bitloss.store import StepRecord

T = TypeVar("T")


def make_base(steps: Stepper, step: BaseStep, label: str) -> StepRecord:
    """Find a base or make it; of one that is there but not whole, only the files that are not are made again.

    Raises:
        BitlossError: the step failed.
    """
    return steps.do(_mending(step), label, None, [step.out])


def mended(steps: Stepper, step: BaseStep, label: str, work: Callable[[], T]) -> T:
    """Do work with a base; if a file of the base turns out to be damaged, mend it and try once more.

    Args:
        steps: of the run the base is in.
        step: that made the base.
        label: how to call the step.
        work: reads the base.

    Raises:
        BaseError: it is damaged still.
        BitlossError: as the work.
    """
    try:
        return work()
    except BaseError:
        steps.do(_mending(step), f"{label}, repaired", None, [step.out], again=True)
        return work()


def _mending(step: BaseStep) -> BaseStep:
    there = (step.out / "base.json").is_file()
    return step.model_copy(update={"repair": Repair.IF_SAME}) if there else step
