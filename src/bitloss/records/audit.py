"""The form of an audit: what a model's weights would lose, counted value by value.

Definitions of the counts: `bitloss.explain.weights`.
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bitloss.records.parts import BareName, Count, NonEmpty, Record

LossVerdict = Literal["lossless", "lossless except", "overflows"]


class CastLoss(Record):
    """What rounding to one type does to the finite values."""

    verdict: LossVerdict
    """``overflows`` when a value becomes infinite, ``lossless except`` when some come back different."""
    changed: Count
    """Values that come back different, those that overflow among them."""
    overflowed: Count
    """Values that become infinite."""
    zeroed: Count
    """Values other than zero that become zero."""
    largest_error: float | None = Field(ge=0)
    """Largest absolute error of those that do not overflow; null where nothing changes."""
    largest_relative_error: float | None = Field(ge=0)
    """Largest error over the value's size, likewise."""


class Weights(Record):
    """Counts over the values of a tensor, or of several."""

    values: Count
    """How many there are."""
    zeros: Count
    """Zeros of either sign."""
    largest: float | None
    """Largest magnitude of a finite value that is not zero; null without one."""
    smallest: float | None
    """Smallest magnitude, likewise."""
    below: Count
    """Values other than zero that are smaller than 6e-5."""
    above: Count
    """Finite values larger than 65504."""
    nan: Count
    """Values that are not a number."""
    positive_infinities: Count
    """Values of +infinity."""
    negative_infinities: Count
    """Values of -infinity."""
    f16: CastLoss
    """Cast to F16."""
    bf16: CastLoss
    """Cast to BF16."""
    lowest_exponent: int | None
    """Exponent (floor of the binary logarithm) of the first entry of `exponents`; null where it is empty."""
    exponents: tuple[Count, ...]
    """Finite values other than zero by exponent, in ascending order."""


class Through(Record):
    """What a cast changes in quantized blocks when weights go through it first."""

    changed: Count
    """Blocks with other bytes than without the cast."""
    overflowed: Count
    """Blocks of which a value becomes infinite, so that they cannot be quantized; counted in `changed` too."""


class BlockLoss(Record):
    """Blocks of one quantized type, made from the weights as they are and from the weights cast before."""

    type: NonEmpty
    """The type, e.g. ``Q8_0``; without an importance matrix."""
    blocks: Count
    """Blocks compared."""
    not_finite: Count
    """Blocks left out because a value is NaN or infinite."""
    f16: Through
    """By way of F16."""
    bf16: Through
    """By way of BF16."""


class TensorAudit(Record):
    """One tensor."""

    name: str
    """Its name."""
    type: NonEmpty
    """The type it is stored in."""
    shape: tuple[Count, ...]
    """The length of a row comes last."""
    decoded: bool
    """True for quantized types: what is counted are the values its blocks stand for."""
    opaque: NonEmpty | None = None
    """Why its values were not counted; null when they were."""
    weights: Weights | None
    """The counts; null for an opaque tensor."""
    blocks: tuple[BlockLoss, ...]
    """By type; empty for vectors, and for types whose blocks a row does not fill."""

    @model_validator(mode="after")
    def _counted_or_said_why(self) -> Self:
        if (self.weights is None) != (self.opaque is not None):
            raise ValueError("a tensor is either counted or opaque")
        return self


class Audit(Record):
    """What a model's weights would lose."""

    model: BareName
    """Name of the folder or file."""
    total: Weights
    """All values."""
    matrices: Weights
    """Values of tensors with two dimensions or more: what a conversion casts. Vectors stay F32."""
    blocks: tuple[BlockLoss, ...]
    """Blocks of all matrices, by type."""
    opaque: tuple[str, ...]
    """Names of tensors whose values were not counted."""
    tensors: tuple[TensorAudit, ...]
    """Each tensor; in ``results.json`` without its exponents."""
