"""The form of a sensitivity: how much nearer a file comes when a group of its tensors keeps the source's precision."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from bitloss.records.parts import BareName, Count, NonEmpty, Record, Verdict

GroupKind = Literal["attention", "feed-forward", "output", "embeddings", "other"]


class Raised(Record):
    """One group of tensors, raised to the source's precision; all others as in the plain file."""

    group: NonEmpty
    """Its name: the kind, or ``layer 3 attention``."""
    kind: GroupKind
    """What the tensors do."""
    layer: int | None = Field(default=None, ge=0)
    """Which layer they are of; null where they are of all, or of none."""
    candidate: NonEmpty
    """The file with this group raised."""
    tensors: Count
    """Tensors that were raised."""
    bits_per_weight_added: float = Field(ge=0)
    """What that adds to the bits per weight of the file."""
    gain: float | None
    """Mean KLD of the plain file minus that of this one, in nats; null where undefined."""
    se: float | None = Field(default=None, ge=0)
    """Its standard error, paired, clustered by chunk, or document."""
    ci95: tuple[float, float] | None = None
    """Its 95 % confidence interval."""
    p_holm: float | None = Field(default=None, ge=0, le=1)
    """P-value of no difference after Holm's correction over the table of comparisons."""
    verdict: Verdict | None = None
    """What that says of this file against the plain one."""
    gain_share: float | None = None
    """`gain` over the mean KLD of the plain file."""
    gain_per_bit: float | None = None
    """`gain` over `bits_per_weight_added`; null where nothing is added."""
    reason: NonEmpty | None = None
    """Why something here is null."""


class Sensitivity(Record):
    """Groups of tensors by how much the file gains when they are raised, largest gain first."""

    source: BareName
    """File the weights come from."""
    type: NonEmpty
    """Quantization type of the plain file."""
    plain: NonEmpty
    """The file with no group raised."""
    imatrix: BareName | None
    """File of the importance matrix; null without one."""
    per_layer: bool
    """Whether groups are of single layers."""
    groups: tuple[Raised, ...]
    """The groups. Gains of several groups need not add up: their errors may cancel, or meet."""
