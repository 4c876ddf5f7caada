"""What a quantized block is made of, so that a difference can be told apart: quants and scales.

A **scale** is any stored factor or offset: the halves d and m of a block, and the scales and minima of its groups. A
**quant** is the rest of a weight: its integer, or its place in a codebook.

Two definitions, which agree:

- by layout (`SCALES`, here and native): bits of a block belong to scales or to quants; a quant or scale differs when
  one of its bits does.
- by value: a quant differs when its weight would, were all scales of both blocks alike (`quants_by_value`). This is
  the one for codebook types, in which several weights share an index. Types whose scales are not in `SCALES` are not
  told apart.

Layouts: ``ggml/src/ggml-common.h`` (struct block_*).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
from gguf import GGMLQuantizationType as Kind

from bitloss import _native
from bitloss.model.tensor_types import block_of
from bitloss.quantize.codec import decode

Bytes = npt.NDArray[np.uint8]
Field = tuple[tuple[int, int], ...]
"""The bits of a scale: (byte, mask) each."""


class Fields(NamedTuple):
    """Quants and scales of some blocks, and how many of them differ.

    Attributes:
        quants: how many there are, one a weight.
        scales: how many there are, minima among them.
        differing_quants: how many differ.
        differing_scales: how many differ.
    """

    quants: int = 0
    scales: int = 0
    differing_quants: int = 0
    differing_scales: int = 0

    def plus(self, other: Fields) -> Fields:
        """Add up, field by field."""
        return Fields(*(x + y for x, y in zip(self, other, strict=True)))


def _half(at: int) -> Field:
    return ((at, 255), (at + 1, 255))


def _nibbles(first: int, n: int) -> list[Field]:
    return [((first + i, mask),) for i in range(n) for mask in (15, 240)]


def _six_bits() -> list[Field]:
    """Scales and minima of Q4_K and Q5_K; `bitloss.quantize.reference.k_decode` says where they lie."""
    plain: list[Field] = [((4 + i, 63),) for i in range(8)]
    spread: list[Field] = [
        ((12 + g, 15 if of == 0 else 240), (4 + 4 * of + g, 192)) for of in (0, 1) for g in range(4)
    ]
    return [_half(0), _half(2), *plain, *spread]


def _q3_k() -> list[Field]:
    return [
        _half(108),
        *(((96 + g % 8, 15 if g < 8 else 240), (104 + g % 4, 3 << g // 4 * 2)) for g in range(16)),
    ]


SCALES: Mapping[Kind, list[Field]] = {
    Kind.Q4_0: [_half(0)],
    Kind.Q4_1: [_half(0), _half(2)],
    Kind.Q5_0: [_half(0)],
    Kind.Q5_1: [_half(0), _half(2)],
    Kind.Q8_0: [_half(0)],
    Kind.Q2_K: [_half(80), _half(82), *_nibbles(0, 16)],
    Kind.Q3_K: _q3_k(),
    Kind.Q4_K: _six_bits(),
    Kind.Q5_K: _six_bits(),
    Kind.Q6_K: [_half(208), *(((192 + g, 255),) for g in range(16))],
    Kind.IQ4_NL: [_half(0)],
    Kind.IQ4_XS: [
        _half(0),
        *(((4 + g // 2, 15 << g % 2 * 4), (2 + g // 4, 3 << g % 4 * 2)) for g in range(8)),
    ],
    Kind.IQ2_XXS: [_half(0), *(((2 + 8 * g + 7, 240),) for g in range(8))],
    Kind.IQ2_XS: [_half(0), *_nibbles(66, 8)],
    Kind.IQ2_S: [_half(0), *_nibbles(74, 8)],
    Kind.IQ3_XXS: [_half(0), *(((66 + 4 * g + 3, 240),) for g in range(8))],
    Kind.IQ3_S: [_half(0), *_nibbles(106, 4)],
    Kind.IQ1_S: [_half(0), *(((34 + 2 * g + 1, 112),) for g in range(8))],
    Kind.TQ1_0: [_half(52)],
    Kind.TQ2_0: [_half(64)],
}
"""Type -> its scales; `_half` fields come first."""


def told_apart(kind: Kind) -> bool:
    """Whether quants and scales of a type are."""
    return kind in SCALES or int(kind) in _native.field_kinds()


def compare_fields(kind: Kind, a: Bytes, b: Bytes, *, threads: int = 1, isa: str = "auto") -> Fields:
    """Count the quants and scales that differ in blocks [n, block bytes] of a type that is `told_apart`.

    ``threads`` are for types that libggml decodes, ``isa`` is for the others.
    """
    weights, size = block_of(kind)
    n = a.size // size
    if int(kind) in _native.field_kinds():
        quants, scales = _native.differing_fields(
            int(kind), np.ascontiguousarray(a).reshape(-1), np.ascontiguousarray(b).reshape(-1), isa
        )
        return Fields(n * weights, n * (len(SCALES[kind]) if kind in SCALES else 1), quants, scales)
    a, b = a.reshape(n, size), b.reshape(n, size)
    return Fields(
        n * weights,
        n * len(SCALES[kind]),
        quants_by_value(kind, a, b, threads=threads),
        scales_by_layout(kind, a, b),
    )


def scales_by_layout(kind: Kind, a: Bytes, b: Bytes) -> int:
    """Count differing scales of blocks [n, block bytes]: the definition."""
    changed = a ^ b
    return sum(
        int(np.any([changed[:, at] & mask for at, mask in field], axis=0).sum()) for field in SCALES[kind]
    )


def quants_by_value(kind: Kind, a: Bytes, b: Bytes, *, threads: int = 1) -> int:
    """Count quants that differ by value in blocks [n, block bytes]: the definition."""
    weights = block_of(kind).weights
    left, right = (
        decode(kind, _with_equal_scales(kind, blocks), weights, threads=threads) for blocks in (a, b)
    )
    return int((left != right).sum())


def _with_equal_scales(kind: Kind, blocks: Bytes) -> Bytes:
    """Blocks whose halves are 1 and whose other scales have all bits set (so that none is zero)."""
    out = blocks.copy()
    for field in SCALES[kind]:
        for at, mask in field:
            out[:, at] |= np.uint8(mask)
        if len(field) == 2 and all(mask == 255 for _, mask in field):
            out[:, field[0][0]], out[:, field[1][0]] = 0x00, 0x3C
    return out
