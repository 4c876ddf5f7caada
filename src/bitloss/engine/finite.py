"""Whether a model computes numbers at all: one with a weight that is NaN, or that overflows, is refused early."""

from __future__ import annotations

from typing import TYPE_CHECKING, Final, NamedTuple

import numpy as np

from bitloss.errors import EngineError

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from bitloss.engine.llama import LlamaEngine

TOKENS: Final = 64
"""Whether logits are finite, and the product of output weight and hidden states, shows on any tokens."""
CAUSES: Final = (
    "a weight of it is NaN or infinite (`bitloss audit` finds it), "
    "or it overflows, as F16 files can (try F32 or BF16)"
)


class Computed(NamedTuple):
    """Hidden states float32 [tokens, n_embd] and logits float32 [tokens, n_vocab] of some tokens."""

    hidden: NDArray[np.float32]
    logits: NDArray[np.float32]


def compute_finite(engine: LlamaEngine, tokens: NDArray[np.int32]) -> Computed:
    """Compute some tokens, int32 [tokens]: the scored ones of them are returned.

    Raises:
        EngineError: a logit is NaN or +infinity (-infinity is what a graph may rule out).
    """
    hidden, logits = engine.hidden_and_logits(tokens)
    bad = ~(logits.max(axis=1) < np.inf)  # the maximum is NaN if there is any
    if bad.any():
        raise EngineError(
            "logits are not finite",
            where=f"{engine.path}[first {len(tokens)} tokens of the text]",
            found=f"{int(bad.sum())} of {bad.size} tokens",
            mend=f"nothing can be told of this model: {CAUSES}",
        )
    return Computed(hidden, logits)
