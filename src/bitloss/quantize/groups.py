"""Groups of a model's weights by what they do, for raising one at a time.

By the tensor's name, as llama.cpp gives them: ``token_embd`` embeddings, ``output`` the output layer, ``blk.N.attn_*``
attention, ``blk.N.ffn_*`` feed-forward (experts too); any other matrix is "other". Vectors (norms, biases) are never
quantized and belong to no group. Where the embedding is the output as well (no ``output.weight``), it is in the group
of embeddings. With ``per_layer`` attention, feed-forward and other are groups of each layer.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from bitloss.model.gguf import GgufFile
    from bitloss.records.sensitivity import GroupKind

_BLOCK = re.compile(r"blk\.(\d+)\.(\w+)")
_ORDER: tuple[GroupKind, ...] = ("embeddings", "attention", "feed-forward", "other", "output")


class Group(NamedTuple):
    """Weights that are raised together.

    Attributes:
        kind: what they do.
        layer: which layer they are of; None for all, or none.
        tensors: name -> name of its type in the source.
    """

    kind: GroupKind
    layer: int | None
    tensors: dict[str, str]

    @property
    def name(self) -> str:
        """The kind, or ``layer 3 attention``."""
        return self.kind if self.layer is None else f"layer {self.layer} {self.kind}"

    @property
    def tag(self) -> str:
        """The name, for files."""
        return self.name.replace(" ", "-")


def tensor_groups(source: GgufFile, *, per_layer: bool) -> list[Group]:
    """Group a model's matrices; by layer, then in the order embeddings, attention, feed-forward, other, output."""
    found: dict[tuple[int, int], Group] = {}
    for name, info in source.tensors.items():
        if len([n for n in info.shape if n > 1]) < 2 or not name.endswith(".weight"):
            continue
        kind, block = _kind(name)
        layer = block if per_layer else None
        key = (-1 if layer is None else layer, _ORDER.index(kind))
        found.setdefault(key, Group(kind, layer, {})).tensors[name] = info.type_name
    return [group for _, group in sorted(found.items())]


def _kind(name: str) -> tuple[GroupKind, int | None]:
    block = _BLOCK.match(name)
    if block is None:
        known: dict[str, GroupKind] = {"token_embd.weight": "embeddings", "output.weight": "output"}
        return known.get(name, "other"), None
    part = block[2]
    kind: GroupKind = "other"
    if part.startswith("attn_"):
        kind = "attention"
    elif part.startswith("ffn_"):
        kind = "feed-forward"
    return kind, int(block[1])
