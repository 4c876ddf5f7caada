"""The demo model's card, filled with the figures of the run that made it."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from demo_evaluate import Evaluation

CARD = """\
---
license: mit
language:
  - en
library_name: transformers
pipeline_tag: text-generation
tags:
  - mistral
  - text-generation
  - quantization
  - demo
model-index:
  - name: bitloss-demo
    results:
      - task:
          type: text-generation
        dataset:
          name: The Adventures of Sherlock Holmes (held out)
          type: text
        metrics:
          - type: perplexity
            value: {perplexity:.2f}
---

# bitloss-demo

A small language model, really trained, that comes inside `bitloss`. `bitloss demo` converts, quantizes and
measures it in seconds and without a network. It is made to lose bits, not to write novels.

## Architecture

`MistralForCausalLM` with Mistral-Nemo's traits: {parameters:,} parameters in BF16, hidden size 256, 4 layers,
8 query heads and 2 key-value heads of width 64 (8 x 64 = 512, wider than the hidden state), SwiGLU of 768,
RMS norm with eps 1e-5, rotary positions with theta 1e6, output layer not tied to the embeddings, no sliding
window. Every row is a multiple of 256 long, so every GGUF quantization type fits without a fallback.

The tokenizer is a byte-level BPE of 2048 tokens with Mistral-Nemo's splitting rule (Tekken) and
`ignore_merges`, and puts `<s>` before a text. `[INST]`, `[/INST]`, `</s>` and `<pad>` are in the vocabulary
but were never trained on.

## Training

By `training/train_demo_model.py` of the bitloss repository, from random weights, on eight English novels in
the public domain ({training_tokens:,} tokens): Bleak House, David Copperfield, Emma, Great Expectations,
Middlemarch, Moby Dick, Pride and Prejudice, War and Peace, less the excerpts that bitloss bundles as
calibration text.

| | |
|---|---|
| tokens seen | {tokens_seen:,} ({passes:.2f} passes), {steps:,} steps of {batch_tokens:,} tokens |
| sequence length | 256, then 512 in the last {decay_percent:.0f} % of the steps, BOS first |
| optimizer | Muon ({muon_lr:g}) for the layers' matrices, AdamW ({adam_lr:g}, betas 0.9, 0.95) for the rest |
| schedule | {warmup_steps} steps of warmup, level, linear decay to zero over the last {decay_percent:.0f} % |
| weight decay | {weight_decay:g} (none on embeddings and norms) |
| arithmetic | F32 master weights, BF16 products; rounded to BF16 once, at the end |
| seed | {seed} |
| hardware | two shared CPU cores, {minutes:.0f} minutes |

## Evaluation

On the bundled excerpt of The Adventures of Sherlock Holmes, a book that was neither trained nor calibrated
on: chunks of 512 tokens, BOS in place of the first, second half scored ({scored_tokens:,} tokens), the BF16
weights evaluated in float32.

| | perplexity |
|---|---|
| this model | {perplexity:.2f} |
| unigram model (add-one counts of the training tokens) | {unigram_perplexity:.2f} |
| ratio | {ratio:.2f} |

Perplexity is per token of this tokenizer and cannot be compared with models that split text otherwise.

## Limits

It knows the words and grammar of nineteenth-century English novels and next to nothing of the world. It
follows no instructions, whatever the chat template suggests. Its weights are few and little trained, so
quantization costs it other amounts than it costs a model of billions of weights: figures measured on it show
how bitloss works, and say nothing about another model.

## Licence

MIT. The training texts are in the public domain.
"""


def model_card(figures: dict[str, float], evaluation: Evaluation) -> str:
    """Return the card; `figures` are the recipe plus `parameters`, `training_tokens` and `seconds`."""
    tokens_seen = figures["steps"] * figures["batch_tokens"]
    return CARD.format(
        **figures,
        perplexity=evaluation.perplexity,
        unigram_perplexity=evaluation.unigram_perplexity,
        ratio=evaluation.ratio,
        scored_tokens=evaluation.scored_tokens,
        tokens_seen=tokens_seen,
        passes=tokens_seen / figures["training_tokens"],
        decay_percent=figures["decay_share"] * 100,
        minutes=figures["seconds"] / 60,
    )
