"""The steps an experiment is made of.

A step is a small pydantic model: what to do, in absolute paths and settings, nothing else. It is what crosses to the
child process that runs it (`bitloss.run.child`), and `identity` is what its content key is made of: hashes of contents
and settings, never paths or times. Running a step gives a JSON-able result.

Heavy imports happen inside `execute`: a parent that only plans stays light.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import Field, TypeAdapter

from bitloss.run.steps.common import MEASUREMENT_VERSION, engine_options, rounding
from bitloss.run.steps.evaluating import BaseStep, KldStep, MeasureStep, MeasureTogetherStep, Part, Repair
from bitloss.run.steps.explaining import AuditStep, BlocksStep
from bitloss.run.steps.making import ConvertStep, ImatrixStep, QuantizeStep, QuantizeTogetherStep
from bitloss.run.steps.texts import EvaluationTexts, OverlapStep, check_texts, texts_sha256

__all__ = [
    "MEASUREMENT_VERSION",
    "AuditStep",
    "BaseStep",
    "BlocksStep",
    "ConvertStep",
    "EvaluationTexts",
    "ImatrixStep",
    "KldStep",
    "MeasureStep",
    "MeasureTogetherStep",
    "OverlapStep",
    "Part",
    "QuantizeStep",
    "QuantizeTogetherStep",
    "Repair",
    "Step",
    "check_texts",
    "engine_options",
    "rounding",
    "step_from_json",
    "texts_sha256",
]

Step = Annotated[
    ConvertStep
    | ImatrixStep
    | QuantizeStep
    | QuantizeTogetherStep
    | OverlapStep
    | AuditStep
    | BlocksStep
    | BaseStep
    | KldStep
    | MeasureStep
    | MeasureTogetherStep,
    Field(discriminator="kind"),
]

_ADAPTER: TypeAdapter[Any] = TypeAdapter(Step)


def step_from_json(data: str | bytes) -> Step:
    """Read a step that crossed to this process."""
    step: Step = _ADAPTER.validate_json(data)
    return step
