"""Perplexity as llama-perplexity defines it, and the unigram perplexity it is compared with.

The text is tokenized whole, cut into chunks of `n_ctx` tokens (a shorter rest is dropped), the first token of
each chunk replaced by BOS; positions n_ctx/2 .. n_ctx-2 are scored, token i+1 the target of position i. Both
perplexities are exp of the mean negative log-likelihood over the very same targets.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from demo_network import Network


@dataclass(frozen=True, slots=True)
class Evaluation:
    """Held-out figures; `ratio` is unigram perplexity over model perplexity."""

    perplexity: float
    unigram_perplexity: float
    ratio: float
    chunks: int
    scored_tokens: int


def scored_chunks(tokens: NDArray[np.int32], n_ctx: int, bos: int) -> NDArray[np.int32]:
    """Return the text's chunks [chunks, n_ctx], BOS in front."""
    count = len(tokens) // n_ctx
    chunks = tokens[: count * n_ctx].reshape(count, n_ctx).copy()
    chunks[:, 0] = bos
    return chunks


@torch.no_grad()
def evaluate(
    network: Network, training: NDArray[np.uint16], evaluation: NDArray[np.int32], *, n_ctx: int, bos: int
) -> Evaluation:
    """Score `network`, in float32, and the add-one unigram model of `training` on the same tokens."""
    chunks = scored_chunks(evaluation, n_ctx, bos)
    first = n_ctx // 2
    total = 0.0
    for start in range(0, len(chunks), 8):
        batch = torch.from_numpy(chunks[start : start + 8].astype(np.int64))
        logits = network(batch)[:, first : n_ctx - 1]
        targets = batch[:, first + 1 :]
        flat = logits.flatten(0, 1).double()
        total += functional.cross_entropy(flat, targets.flatten(), reduction="sum").item()
    targets = chunks[:, first + 1 :].ravel()
    counts = np.bincount(training, minlength=network.shape.vocab_size).astype(np.float64) + 1
    unigram = np.exp(-np.log(counts / counts.sum())[targets].mean())
    perplexity = float(np.exp(total / targets.size))
    return Evaluation(perplexity, float(unigram), float(unigram) / perplexity, len(chunks), int(targets.size))
