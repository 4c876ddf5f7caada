"""What records are made of: checked types, closed sets, and one number with its uncertainty."""

from __future__ import annotations

import math
from enum import StrEnum
from typing import Annotated, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, JsonValue, model_validator


def _finite(value: JsonValue) -> JsonValue:
    if isinstance(value, float) and not math.isfinite(value):
        raise ValueError("must be a finite number")
    for item in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        _finite(item)
    return value


def _bare_name(name: str) -> str:
    if not name or name in {".", ".."} or "/" in name or "\\" in name or "\0" in name:
        raise ValueError("must be a bare name, not a path")
    return name


Sha256 = Annotated[str, Field(pattern="^[0-9a-f]{64}$")]
MetricName = Annotated[str, Field(pattern="^[a-z][a-z0-9_]{0,63}$")]
BareName = Annotated[str, AfterValidator(_bare_name)]
Count = Annotated[int, Field(ge=0)]
FiniteJson = Annotated[JsonValue, AfterValidator(_finite)]
NonEmpty = Annotated[str, Field(min_length=1)]


class Record(BaseModel):
    """Base of all records: frozen, no unknown keys, no NaN or infinity."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Verdict(StrEnum):
    """What a paired comparison says of its first candidate against its second."""

    IDENTICAL = "identical"
    """The same tensors, or the same value on every token."""
    TIE = "tie"
    """No difference that this text can show."""
    BETTER = "better"
    """The first is nearer to the base (or less perplexed), beyond chance."""
    WORSE = "worse"
    """The second is."""


class Outcome(StrEnum):
    """What a confidence sequence settled about two candidates, by one metric."""

    BETTER = "better"
    """The first is better: the sequence excludes 0."""
    WORSE = "worse"
    """The second is."""
    EQUIVALENT = "equivalent"
    """They are no further apart than the margin."""
    IDENTICAL = "identical"
    """Their tensors are equal: nothing to measure."""
    OPEN = "open"
    """Not settled by the chunks measured."""
    UNDEFINED = "undefined"
    """Cannot be settled: a token has no finite value."""


class Confidence(StrEnum):
    """How well a finding is founded."""

    PROVEN = "proven"
    """Follows from bytes that were compared or counted."""
    MEASURED = "measured"
    """A number with its uncertainty, or a test, on this run's tokens."""
    SUGGESTED = "suggested"
    """Fits the numbers; no test was made."""


class Figure(Record):
    """One number with its uncertainty."""

    value: float | None
    """The number, in its metric's unit; null when it is undefined."""
    se: float | None = Field(default=None, ge=0)
    """Standard error as llama-perplexity prints it, tokens taken as independent; null where not defined."""
    se_clustered: float | None = Field(default=None, ge=0)
    """Standard error clustered by chunk, or document: tokens of one are not independent; null where not defined."""
    reason: NonEmpty | None = None
    """Why `value` or an error is null."""

    @model_validator(mode="after")
    def _null_needs_reason(self) -> Self:
        if self.value is None:
            if self.reason is None:
                raise ValueError("a value of null needs a reason")
            if self.se is not None or self.se_clustered is not None:
                raise ValueError("a value of null has no standard error")
        return self


Metrics = dict[MetricName, Figure]
