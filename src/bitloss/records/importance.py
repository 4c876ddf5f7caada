"""What an importance matrix leaves open of a file it was used for."""

from __future__ import annotations

from pydantic import Field

from bitloss.records.parts import Count, Record


class Importance(Record):
    """Quantized tensors of which the importance matrix does not say which columns matter.

    The rules for them are llama.cpp's; the bytes are llama-quantize's.
    """

    missing: tuple[str, ...] = ()
    """Tensors the matrix does not have: encoded as without one. The two tables of tokens usually are among them."""
    unused_experts: dict[str, tuple[Count, ...]] = Field(default_factory=dict)
    """Tensor -> experts that no token reached: every column counts 1."""
    zero_weights: dict[str, tuple[Count, ...]] = Field(default_factory=dict)
    """Tensor -> experts (0 of a plain tensor) that tokens reached and whose columns all are 0: taken as they are."""
    lost: tuple[str, ...] = ()
    """Those of `zero_weights` of whose values the type then keeps nothing, or noise."""
