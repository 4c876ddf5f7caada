"""Write a checkpoint's logits as `transformers` computes them: the outside witness of converter and engine.

    python training/make_golden_logits.py src/bitloss/assets/demo-model \
        src/bitloss/assets/texts/evaluation.txt tests/data/demo_golden_logits.npz

The file holds `tokens` int32 [64], BOS first, and `logits` float32 [64, vocabulary]: the BF16 weights widened
to float32, all arithmetic in float32, one thread.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from sentencepiece import SentencePieceProcessor
from tokenizers import Tokenizer
from transformers import AutoModelForCausalLM

LENGTH = 64


def tokenize(model: Path, text: str) -> list[int]:
    """Return the ids of `text`, BOS first, by the library of the model's tokenizer."""
    if (model / "tokenizer.model").is_file():
        library = SentencePieceProcessor(model_file=str(model / "tokenizer.model"))
        return [library.bos_id(), *library.encode(text)]
    return list(Tokenizer.from_file(str(model / "tokenizer.json")).encode(text).ids)


def write_golden_logits(model: Path, text: str, out: Path) -> None:
    """Run the first `LENGTH` tokens of `text`, BOS included, through `model` and write `out`.

    Raises ValueError if the text is shorter than that.
    """
    tokens = tokenize(model, text)[:LENGTH]
    if len(tokens) < LENGTH:
        raise ValueError(f"the text has {len(tokens)} tokens, {LENGTH} are needed")
    torch.set_num_threads(1)
    network = AutoModelForCausalLM.from_pretrained(
        model, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    with torch.no_grad():
        logits = network(torch.tensor([tokens])).logits[0].float().numpy()
    out.parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(out, tokens=np.array(tokens, np.int32), logits=logits.astype(np.float32))


def main() -> None:
    """Parse the command line and write the file."""
    parser = argparse.ArgumentParser(description="Write golden logits of a checkpoint.")
    parser.add_argument("model", type=Path, help="Hugging Face folder")
    parser.add_argument("text", type=Path, help="text whose first tokens are run")
    parser.add_argument("out", type=Path, help="the .npz file to write")
    args = parser.parse_args()
    write_golden_logits(args.model, args.text.read_text(encoding="utf-8"), args.out)


if __name__ == "__main__":
    main()
