"""How the noise floor is measured."""

from __future__ import annotations

from typing import Final

from bitloss.spec import EngineSpec

NOISE = "noise floor"
NOISE_SEED: Final = 0
"""Of the random order its chunks are taken in."""


def noise_chunks(n_chunks: int) -> int:
    """Chunks the noise floor is measured on, drawn at random: an eighth of the text, at least 8, at most 32.

    It is a mean far below all others, and a pass of the full-precision model is the dearest of a run.
    """
    return min(n_chunks, max(8, min(n_chunks // 8, 32)))


def other_arithmetic(engine: EngineSpec, n_ctx: int) -> EngineSpec:
    """Settings under which the engine computes the same thing in another order.

    Half the micro-batch, and flash attention switched: another kernel for softmax(QK)V, whose sums are taken in
    another order. On a CPU the micro-batch alone changes nothing (every row is computed by itself).
    """
    half = max(2, min(engine.ubatch, engine.batch, n_ctx) // 2)
    return engine.model_copy(
        update={"ubatch": half, "flash_attn": "on" if engine.flash_attn == "off" else "off"}
    )
