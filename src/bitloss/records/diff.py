"""The form of a diff: what two GGUF files have in common, and every byte in which they do not.

Definitions of the counts: `bitloss.explain.blocks` (blocks), `fields` (quants, scales), `distance` (values).
"""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from bitloss.records.parts import BareName, Count, NonEmpty, Record

SectionName = Literal["header", "metadata", "tensor list", "tensor data", "padding", "trailing bytes"]
TensorState = Literal["identical", "equal values", "different", "reshaped", "only in a", "only in b"]
Conclusion = Literal[
    "same file", "same weights", "same values", "different weights", "different tensors", "different models"
]


class Side(Record):
    """One of the two."""

    name: BareName
    """Name of the file, of a split model that of its first part."""
    bytes: Count
    """Size of the file, or of all parts."""
    parts: int = Field(ge=1)
    """Files it is made of."""
    architecture: str | None
    """What it says of itself; null where it does not."""
    tensors: Count
    """How many it has."""
    version: int
    """Of the format."""
    alignment: int = Field(ge=1)
    """Tensors begin at multiples of it."""


class Share(Record):
    """Some bytes of both files. All shares together are all bytes of both."""

    section: SectionName
    """Where they lie."""
    what: NonEmpty
    """Which they are: a key, or what some tensors have in common."""
    a: Count
    """Bytes in A."""
    b: Count
    """Bytes in B."""
    equal: bool
    """True when both have the same bytes there."""


class MetadataDifference(Record):
    """A key that the files do not both have with the same value."""

    key: str
    """Its name."""
    a: str | None
    """Value in A, shortened for reading; null where it has not the key."""
    b: str | None
    """Value in B, likewise."""
    note: NonEmpty | None = None
    """Of arrays: how many items differ, and which is the first."""


class NotFinite(Record):
    """Values that are not finite."""

    nan: Count
    """Not a number."""
    positive_infinities: Count
    """+infinity."""
    negative_infinities: Count
    """-infinity."""


class Values(Record):
    """Values of a tensor (or of all), after decoding, pair by pair."""

    values: Count
    """Pairs."""
    differing: Count
    """Not equal as numbers."""
    left_out: Count
    """Pairs, of those looked at, in which one is not finite: they are in no error."""
    rms: float | None = Field(ge=0)
    """Root mean square of the differences, over all pairs that are not left out; null without one."""
    largest: float | None = Field(ge=0)
    """Largest difference, likewise."""
    a_not_finite: NotFinite
    """Of A, where it was looked at: blocks with equal bytes are not."""
    b_not_finite: NotFinite
    """Of B, likewise."""


class AgainstReference(Record):
    """The difference beside what quantization itself costs."""

    a_rms: float | None = Field(ge=0)
    """Root mean square of A's distance to the reference; null where no value is finite."""
    b_rms: float | None = Field(ge=0)
    """B's."""
    ratio: float | None = Field(ge=0)
    """RMS of the difference over the larger of the two; null where both are 0."""


class DifferingBlock(Record):
    """A block that is not the same in both."""

    block: Count
    """Its place in the tensor, from 0."""
    bits: int = Field(ge=1)
    """How many of its bits differ."""


class TensorDiff(Record):
    """One tensor."""

    name: str
    """Its name."""
    state: TensorState
    """``identical``: the same type, shape and bytes; ``equal values``: other types or other bytes, the same numbers."""
    type_a: NonEmpty | None
    """Type in A; null where it is not there."""
    type_b: NonEmpty | None
    """Type in B."""
    shape_a: tuple[Count, ...] | None
    """The length of a row comes last."""
    shape_b: tuple[Count, ...] | None
    """Likewise."""
    bytes_a: Count
    """Bytes in A."""
    bytes_b: Count
    """Bytes in B."""
    blocks: Count | None = None
    """Blocks of the type both have, as `unit` says; null where types or shapes differ."""
    unit: Literal["block", "value", "byte"] | None = None
    """What is counted: blocks of a quantized type, values of any other, bytes of a type that is not known here."""
    differing_blocks: Count | None = None
    """Those whose bytes differ."""
    first: tuple[DifferingBlock, ...] = ()
    """The first of them; at most 8."""
    quants: Count | None = None
    """Quants; null where the type has none, or they are not told apart."""
    differing_quants: Count | None = None
    """Those that differ."""
    scales: Count | None = None
    """Scales and minima."""
    differing_scales: Count | None = None
    """Those that differ."""
    values: Values | None = None
    """The values; null where bytes alone could be compared, or the tensor is identical."""
    reference: AgainstReference | None = None
    """Beside a source; null without one, or where nothing differs."""
    note: NonEmpty | None = None
    """What could not be compared, and why."""


class Total(Record):
    """All tensors together."""

    identical: Count
    """Tensors by state."""
    equal_values: Count
    """Likewise."""
    different: Count
    """Likewise."""
    reshaped: Count
    """Likewise."""
    only_in_a: Count
    """Likewise."""
    only_in_b: Count
    """Likewise."""
    retyped: Count
    """Tensors of another type, whatever their state."""
    opaque: Count
    """Tensors that were compared as bytes only."""
    blocks: Count
    """Blocks of the tensors that have one quantized type in both."""
    differing_blocks: Count
    """Those that differ."""
    quants: Count
    """Quants of those tensors that have some and differ."""
    differing_quants: Count
    """Those that differ."""
    scales: Count
    """Scales and minima, likewise."""
    differing_scales: Count
    """Those that differ."""
    values: Values | None
    """Values of all tensors that are not identical and could be decoded; null without one."""
    reference: AgainstReference | None
    """Of those that the reference has as well."""


class Diff(Record):
    """What two GGUF files have in common and what not."""

    conclusion: Conclusion
    """The outcome in a word."""
    text: NonEmpty
    """The outcome in a sentence or two."""
    a: Side
    """The first file."""
    b: Side
    """The second."""
    reference: BareName | None
    """The source that differences were measured against."""
    causes: tuple[NonEmpty, ...]
    """Every reason why the files' hashes differ; empty for the same file."""
    shares: tuple[Share, ...]
    """All bytes of both."""
    metadata: tuple[MetadataDifference, ...]
    """Keys that differ."""
    key_order: bool
    """True when the keys of both come in another order."""
    tensor_order: bool
    """True when the tensors of both come in another order, in the list or in the data."""
    total: Total
    """All tensors together."""
    tensors: tuple[TensorDiff, ...]
    """Each tensor, in the order of A, then those only in B."""

    @model_validator(mode="after")
    def _every_byte_has_its_place(self) -> Self:
        for side, total in ((self.a, sum(s.a for s in self.shares)), (self.b, sum(s.b for s in self.shares))):
            if total != side.bytes:
                raise ValueError(f"the shares of {side.name} are {total} of {side.bytes} bytes")
        return self
