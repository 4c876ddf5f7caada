"""Make the bundled demo model: texts, tokenizer, training, evaluation, Hugging Face folder.

    python training/train_demo_model.py BOOKS --out WORK

Everything is seeded. A run repeats itself on one machine with one thread count; elsewhere the sums round
differently and the weights differ in their last digits, not in their quality. A run that was stopped goes on
with `--resume`.

The step size stays level and then falls linearly to nothing (warmup-stable-decay), so a stopped run can also
be finished early: `--resume --steps N` with N smaller gives exactly what a whole run of N steps would have
given, as long as the decay of N has not begun. Sequences are 256 tokens while the step size is level and 512,
the length the model is measured at, while it falls.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors.torch import save_file
from torch.nn import functional

from demo_card import model_card
from demo_evaluate import Evaluation, evaluate
from demo_network import Muon, Network, Shape
from demo_texts import DemoTexts, split_texts, write_texts
from demo_tokenizer import (
    MISTRAL_SPECIALS,
    TEKKEN,
    mistral_tokenizer_config,
    train_tokenizer,
    write_json,
    write_tokenizer,
)

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from tokenizers import Tokenizer

BOS = MISTRAL_SPECIALS.index("<s>")
N_CTX = 512


@dataclass(frozen=True, slots=True)
class Recipe:
    """Settings of one training run."""

    steps: int
    seed: int
    batch_tokens: int = 4096
    level_length: int = 256
    decay_length: int = 512
    warmup_steps: int = 50
    decay_share: float = 0.4
    muon_lr: float = 0.02
    adam_lr: float = 0.004
    weight_decay: float = 0.1
    momentum: float = 0.95

    @property
    def decay_start(self) -> int:
        """The first step of the decay."""
        return round(self.steps * (1 - self.decay_share))

    def rate(self, step: int) -> float:
        """Return the share of the full step size used at `step`."""
        warm = min(1.0, (step + 1) / self.warmup_steps)
        return warm * min(1.0, (self.steps - step) / (self.steps - self.decay_start))


def batch_at(tokens: NDArray[np.uint16], recipe: Recipe, step: int) -> torch.Tensor:
    """Return the batch of `step`, [sequences, length + 1], each sequence BOS and a window of the tokens.

    Each pass over the tokens cuts them at another offset and takes the windows in another order, both drawn
    from (seed, length, pass), so the batch depends on nothing but its arguments.
    """
    level = step < recipe.decay_start
    length = recipe.level_length if level else recipe.decay_length
    sequences = recipe.batch_tokens // length
    per_pass = (len(tokens) - length) // length // sequences
    number, index = divmod(step if level else step - recipe.decay_start, per_pass)
    random = np.random.default_rng([recipe.seed, length, number])
    offset = int(random.integers(length))
    order = random.permutation((len(tokens) - offset) // length)[: per_pass * sequences]
    starts = offset + order[index * sequences : (index + 1) * sequences].astype(np.int64) * length
    batch = np.full((sequences, length + 1), BOS, dtype=np.int64)
    for row, start in enumerate(starts):
        batch[row, 1:] = tokens[start : start + length]
    return torch.from_numpy(batch)


def make_optimizers(network: Network, recipe: Recipe) -> list[torch.optim.Optimizer]:
    """Return Muon for the layers' matrices, AdamW for the rest; `initial_lr` is the full step size."""
    inner = [p for name, p in network.named_parameters() if p.ndim == 2 and ".layers." in name]
    # An embedding row moves only when its token occurs, so decaying it at every step would erase rare tokens.
    plain = [p for name, p in network.named_parameters() if p.ndim == 1 or "embed" in name]
    groups = [
        {"params": plain, "weight_decay": 0.0},
        {"params": [network.lm_head.weight], "weight_decay": recipe.weight_decay},
    ]
    optimizers: list[torch.optim.Optimizer] = [
        Muon(inner, lr=recipe.muon_lr, momentum=recipe.momentum, weight_decay=recipe.weight_decay),
        torch.optim.AdamW(groups, lr=recipe.adam_lr, betas=(0.9, 0.95), eps=1e-10),
    ]
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            group["initial_lr"] = group["lr"]
    return optimizers


def train(
    network: Network, tokens: NDArray[np.uint16], recipe: Recipe, work: Path, args: argparse.Namespace
) -> float:
    """Train `network` in place, logging and checkpointing into `work`, and return the seconds it took."""
    optimizers = make_optimizers(network, recipe)
    checkpoint = work / "checkpoint.pt"
    first, spent = 0, 0.0
    if not args.resume:
        (work / "loss.jsonl").unlink(missing_ok=True)
    else:
        saved = torch.load(checkpoint, weights_only=True)
        first, spent = saved["step"], saved["seconds"]
        if first > recipe.decay_start and saved["steps"] != recipe.steps:
            raise SystemExit(
                f"{checkpoint}: step {first} is past this run's decay start {recipe.decay_start}"
            )
        network.load_state_dict(saved["network"])
        for optimizer, state in zip(optimizers, saved["optimizers"], strict=True):
            optimizer.load_state_dict(state)
    began, losses = time.monotonic() - spent, []
    for step in range(first, recipe.steps):
        for optimizer in optimizers:
            for group in optimizer.param_groups:
                group["lr"] = group["initial_lr"] * recipe.rate(step)
        batch = batch_at(tokens, recipe, step)
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(batch[:, :-1])
        loss = functional.cross_entropy(logits.flatten(0, 1).float(), batch[:, 1:].flatten())
        loss.backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
        losses.append(loss.item())
        seconds, done = time.monotonic() - began, step + 1
        if done % 20 == 0 or done == recipe.steps:
            line = {"step": done, "tokens": done * recipe.batch_tokens, "loss": float(np.mean(losses))}
            line["seconds"] = round(seconds, 1)
            losses.clear()
            print(json.dumps(line), flush=True)
            with (work / "loss.jsonl").open("a", encoding="utf-8") as log:
                log.write(json.dumps(line) + "\n")
        if done % args.checkpoint_every == 0 or done == recipe.steps:
            states = [optimizer.state_dict() for optimizer in optimizers]
            saved = {"step": done, "steps": recipe.steps, "seconds": seconds}
            saved |= {"network": network.state_dict(), "optimizers": states}
            torch.save(saved, checkpoint.with_suffix(".tmp"))
            checkpoint.with_suffix(".tmp").replace(checkpoint)
    return time.monotonic() - began


def write_checkpoint(network: Network, folder: Path) -> None:
    """Write weights, rounded from F32 to BF16, and both configs; `network` keeps the rounded weights."""
    rounded = {name: value.bfloat16().contiguous() for name, value in network.state_dict().items()}
    save_file(rounded, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    network.load_state_dict(rounded)
    write_json(folder / "config.json", dict(sorted(network.shape.hf_config().items())))
    write_json(folder / "generation_config.json", {"bos_token_id": 1, "eos_token_id": 2})


def encode(tokenizer: Tokenizer, texts: DemoTexts) -> tuple[NDArray[np.uint16], NDArray[np.int32]]:
    """Return the training tokens, all books in a row, and the evaluation tokens, BOS first."""
    training = [tokenizer.encode(text, add_special_tokens=False).ids for text in texts.training.values()]
    evaluation = tokenizer.encode(texts.evaluation).ids
    return np.concatenate([np.array(ids, np.uint16) for ids in training]), np.array(evaluation, np.int32)


def arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description="Train the bundled demo model.")
    parser.add_argument("books", type=Path, help="folder of novels, one .txt each (see training/README.md)")
    parser.add_argument("--out", type=Path, required=True, help="folder for texts, model, log, checkpoint")
    parser.add_argument("--steps", type=int, default=1300)
    parser.add_argument("--seed", type=int, default=20240718)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--muon-lr", type=float, default=0.02)
    parser.add_argument("--adam-lr", type=float, default=0.004)
    parser.add_argument("--checkpoint-every", type=int, default=100)
    parser.add_argument("--resume", action="store_true", help="go on from the checkpoint in --out")
    return parser.parse_args()


def main() -> None:
    """Run all stages and write `training.json`, the figures of the run."""
    args = arguments()
    torch.set_num_threads(args.threads)
    torch.manual_seed(args.seed)
    folder = args.out / "demo-model"
    folder.mkdir(parents=True, exist_ok=True)
    shape = Shape()
    texts = split_texts(args.books)
    write_texts(texts, args.out / "texts")
    books = texts.training.values()
    tokenizer = train_tokenizer(
        books, vocab_size=shape.vocab_size, split=TEKKEN, specials=MISTRAL_SPECIALS, bos="<s>"
    )
    write_tokenizer(tokenizer, folder, config=mistral_tokenizer_config(shape.max_position_embeddings))
    training, evaluation = encode(tokenizer, texts)
    print(f"{len(training)} training tokens, {len(evaluation)} evaluation tokens", flush=True)
    network = Network(shape)
    recipe = Recipe(steps=args.steps, seed=args.seed, muon_lr=args.muon_lr, adam_lr=args.adam_lr)
    seconds = train(network, training, recipe, args.out, args)
    write_checkpoint(network, folder)
    result: Evaluation = evaluate(network, training, evaluation, n_ctx=N_CTX, bos=BOS)
    parameters = sum(parameter.numel() for parameter in network.parameters())
    figures = {"parameters": parameters, "training_tokens": len(training), "seconds": seconds}
    figures |= asdict(recipe)
    (folder / "README.md").write_text(model_card(figures, result), encoding="utf-8", newline="\n")
    figures["held_out"] = asdict(result)
    write_json(args.out / "training.json", figures)
    print(json.dumps(figures, indent=2))


if __name__ == "__main__":
    main()
