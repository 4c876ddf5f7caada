"""The form of a cross: weights of one source with the importance matrix of another, and what makes files differ.

Definitions of the parts: `bitloss.divergence.factorial` (KLD) and `bitloss.explain.crossed` (blocks).
"""

from __future__ import annotations

from typing import Self

from pydantic import Field, model_validator

from bitloss.records.parts import Count, NonEmpty, Record


class Effect(Record):
    """A part of the difference of two files' mean KLD, paired on the same tokens, errors clustered."""

    difference: float | None
    """Mean over tokens, in nats; null where a token has no finite value."""
    se: float | None = Field(default=None, ge=0)
    """Its standard error."""
    ci95: tuple[float, float] | None = None
    """Its 95 % confidence interval."""
    p_value: float | None = Field(default=None, ge=0, le=1)
    """Two-sided p-value of no difference; of this part alone, not adjusted."""
    share: float | None = None
    """Of the whole difference; negative where it pulls the other way. Null where the whole cannot be told from 0."""
    share_se: float | None = Field(default=None, ge=0)
    """Standard error of `share`."""
    scatter: float | None = None
    """Share of the mean square of the per-token difference: mean(part x whole) / mean(whole²)."""
    scatter_se: float | None = Field(default=None, ge=0)
    """Standard error of `scatter`."""
    reason: NonEmpty | None = None
    """Why something here is null."""


class Effects(Record):
    """The difference b - a of two files' mean KLD, split; ``whole = (weights + imatrix) + both`` to the bit."""

    whole: Effect
    """The file of route b minus that of route a."""
    weights: Effect
    """Weights from b instead of a, with the importance matrix of a."""
    imatrix: Effect
    """Importance matrix of b instead of a, with the weights from a."""
    both: Effect
    """What comes only when both change: the interaction."""
    weights_averaged: Effect
    """Weights from b instead of a, averaged over the two importance matrices (main effect): weights + both / 2."""
    imatrix_averaged: Effect
    """Importance matrix of b instead of a, averaged over the two weights (main effect): imatrix + both / 2."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        parts = [each.difference for each in (self.weights, self.imatrix, self.both)]
        known = [part for part in parts if part is not None]
        if len(known) == len(parts) and self.whole.difference != (known[0] + known[1]) + known[2]:
            raise ValueError("the parts do not add up to the whole")
        return self


_WITHOUT_BLOCKS = {"F32", "F16", "BF16", "F64", "I8", "I16", "I32", "I64"}


class Blocks(Record):
    """Blocks of two files that differ, by what they differ through; ``whole = weights + imatrix + both``."""

    total: Count
    """Blocks compared; of a tensor that is not quantized, values."""
    whole: Count
    """Blocks that differ between the file of route a and that of route b."""
    weights: Count
    """Of those: only the weights matter; either matrix gives the same."""
    imatrix: Count
    """Of those: only the importance matrix matters; either weights give the same."""
    both: Count
    """Of those: it takes both to tell which bytes come out."""
    undone: Count
    """Blocks that are equal in the two files although one change alone makes other bytes; not in `whole`."""
    weights_with_a: Count
    """Blocks that differ between weights of a and of b, both with the importance matrix of a."""
    weights_with_b: Count
    """The same, both with the importance matrix of b."""
    imatrix_with_a: Count
    """Blocks that differ between the importance matrices of a and of b, both with the weights of a."""
    imatrix_with_b: Count
    """The same, both with the weights of b."""

    @model_validator(mode="after")
    def _adds_up(self) -> Self:
        if self.whole != self.weights + self.imatrix + self.both:
            raise ValueError("the parts do not add up to the whole")
        alone = (self.weights_with_a, self.weights_with_b, self.imatrix_with_a, self.imatrix_with_b)
        if max(self.whole + self.undone, *alone) > self.total:
            raise ValueError("more blocks differ than there are")
        return self


class CrossedTensor(Record):
    """The blocks of one tensor; of one that is not quantized, its values."""

    name: str
    """Its name."""
    type: NonEmpty
    """Its type in the files."""
    blocks: Blocks
    """The counts."""
    first: tuple[Count, ...]
    """Indices of the first blocks that differ, in the order of the file; at most 8."""
    first_weights: tuple[Count, ...]
    """Indices of the first blocks in which weights of a and b differ with the same importance matrix; at most 8."""

    @property
    def unit(self) -> str:
        """What is counted: ``block``, or ``value`` of a type that has none."""
        return "value" if self.type in _WITHOUT_BLOCKS else "block"


class Attribution(Record):
    """Two routes to one type, crossed."""

    type: NonEmpty
    """Quantization type."""
    a: str
    """Source of the first route."""
    b: str
    """Source of the second route."""
    file_a: str
    """Candidate with weights and importance matrix from a."""
    file_b: str
    """Candidate with both from b."""
    weights_of_b: str
    """Candidate with weights from b, importance matrix from a."""
    imatrix_of_b: str
    """Candidate with weights from a, importance matrix from b."""
    blocks: Blocks
    """What of the files differs, in tensors of quantized types."""
    values: Blocks | None = None
    """The same of tensors that are not quantized, value by value; null in results that took values for blocks."""
    tensors: tuple[CrossedTensor, ...]
    """Tensors in which anything differs; empty where nothing does."""
    kld: Effects
    """What of the mean KLD differs."""


class Likeness(Record):
    """Two importance matrices, column by column (`bitloss.imatrix.likeness`)."""

    columns: Count
    """Columns compared: all of all weights whose mean square is above 0 in both."""
    left_out: Count
    """Columns with a mean square of 0 in one of them or in both."""
    correlation_lowest: float | None
    """Lowest Pearson correlation of the mean squares of one weight; null where no weight varies."""
    correlation_lowest_at: str | None
    """Name of that weight."""
    correlation_median: float | None
    """Median over weights."""
    largest_ratio: float | None = Field(ge=1)
    """Largest ratio of two mean squares of one column, the larger over the smaller; null without columns."""
    largest_ratio_at: str | None
    """Name of that weight."""
    spread: float | None = Field(ge=0)
    """Root mean square of ln(a / b) over the columns; null without columns."""


class ImatrixPair(Record):
    """The importance matrices of two sources, from the same text."""

    a: str
    """First source."""
    b: str
    """Second source."""
    likeness: Likeness
    """How alike they are."""


class ImatrixHalves(Record):
    """The importance matrix of one source on the first and on the second half of the calibration text."""

    source: str
    """The source."""
    likeness: Likeness | None
    """How alike the halves are; null where it is not known."""
    reason: NonEmpty | None = None
    """Why it is not known."""


class Cross(Record):
    """Weights from x importance matrix from."""

    attributions: tuple[Attribution, ...]
    """Every type, every pair of sources."""
    imatrices: tuple[ImatrixPair, ...]
    """Importance matrices against each other."""
    halves: tuple[ImatrixHalves, ...]
    """What the choice of the text alone does to each, as a measure for `imatrices`."""
