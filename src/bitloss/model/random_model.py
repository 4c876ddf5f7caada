"""Random-weight GGUF models of any shape, loadable by llama.cpp: for benchmarks, tests and trying things out.

The graph is llama.cpp's `llama` architecture (Llama, Mistral; with experts, Mixtral). Weights are normal with
a spread that keeps activations near one and logits a few units wide, so that divergences are neither 0 nor
infinite. The vocabulary is a synthetic byte-level BPE under the "tekken" splitting rule: three special
tokens, the 256 byte symbols, then all strings over a-z and space by length, each with its merge, until
`n_vocab` is reached. Nothing is learned: texts tokenize, but predictions mean nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType

from bitloss.errors import UsageError
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.model.gguf_writer import GgufStream, TensorPlan
from bitloss.model.tokenizer import byte_symbols
from bitloss.progress import Progress, ProgressCallback, silent

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

RandomType = Literal["f32", "f16", "bf16"]

_TYPES: dict[str, tuple[GGMLQuantizationType, int, Any]] = {
    # name -> (tensor type, general.file_type, NumPy type)
    "f32": (GGMLQuantizationType.F32, 0, np.float32),
    "f16": (GGMLQuantizationType.F16, 1, np.float16),
    "bf16": (GGMLQuantizationType.BF16, 32, ml_dtypes.bfloat16),
}
SPECIALS = ("<unk>", "<s>", "</s>")


@dataclass(frozen=True, slots=True)
class RandomShape:
    """Shape of a random model; the defaults make a file of about 0.4 MB in F16.

    Attributes:
        n_vocab: tokens, at least 259 (3 special tokens and 256 bytes).
        n_embd: width; any even number, but quantized types other than Q8_0 & co need a multiple of 256.
        n_layer: blocks.
        n_head: query heads.
        n_head_kv: key/value heads, a divisor of `n_head`.
        head_dim: width of a head, even; need not be `n_embd / n_head`.
        n_ff: feed-forward width.
        n_expert: experts per block, 0 for a dense model.
        n_expert_used: experts used per token, at most `n_expert`.
        tied: no output tensor, the token embedding serves.
        n_ctx_train: context length claimed.
    """

    n_vocab: int = 512
    n_embd: int = 64
    n_layer: int = 2
    n_head: int = 4
    n_head_kv: int = 2
    head_dim: int = 16
    n_ff: int = 128
    n_expert: int = 0
    n_expert_used: int = 0
    tied: bool = False
    n_ctx_train: int = 8192

    def check(self) -> None:
        """Raise `UsageError` for a shape that llama.cpp could not run."""
        rules = {
            "n_vocab of at least 259": self.n_vocab >= 259,
            "n_layer, n_embd and n_ff of at least 1": min(self.n_layer, self.n_embd, self.n_ff) >= 1,
            "an even head_dim": self.head_dim >= 2 and self.head_dim % 2 == 0,
            "n_head a multiple of n_head_kv": self.n_head_kv >= 1 and self.n_head % self.n_head_kv == 0,
            "n_expert_used from 1 to n_expert (both 0 for a dense model)": (
                0 < self.n_expert_used <= self.n_expert or self.n_expert_used == self.n_expert == 0
            ),
        }
        for rule, holds in rules.items():
            if not holds:
                raise UsageError("impossible model shape", expected=rule, found=self)


def random_gguf(
    path: Path,
    shape: RandomShape | None = None,
    *,
    seed: int = 0,
    dtype: RandomType = "f16",
    progress: ProgressCallback = silent,
) -> Path:
    """Write a random model and return `path`.

    The same shape, seed and dtype give the same bytes; another dtype gives the same weights, rounded. Tensors
    are drawn and written one at a time. Norms and expert routers are F32 in every type, as converters write
    them.

    Raises:
        UsageError: an impossible shape.
        DiskFull, FileProblem: the file cannot be written.
    """
    shape = shape or RandomShape()
    shape.check()
    kind, file_type, numpy_type = _TYPES[dtype]
    draws = list(_draws(shape))
    plans = [
        TensorPlan(name, ne, GGMLQuantizationType.F32 if plain else kind) for name, ne, _, plain in draws
    ]
    metadata = {
        "general.architecture": _text("llama"),
        "general.type": _text("model"),
        "general.name": _text(f"random {seed}"),
        **_hyperparameters(shape),
        "general.file_type": _u32(file_type),
        "general.quantization_version": _u32(2),
        **_vocabulary(shape.n_vocab),
    }
    with GgufStream(path, metadata, plans) as out:
        for index, (name, ne, spread, plain) in enumerate(draws):
            rng = np.random.default_rng([seed, index])
            values = rng.standard_normal(ne[::-1], dtype=np.float32)
            values *= np.float32(spread)
            if name.endswith("norm.weight"):
                values += np.float32(1)
            out.write(values if plain else values.astype(numpy_type))
            progress(Progress("write random model", index + 1, len(draws), "tensors"))
    return path


def _draws(s: RandomShape) -> Iterator[tuple[str, tuple[int, ...], float, bool]]:
    """Yield (name, shape in ggml order, standard deviation, always F32?) in the order converters write."""

    def matrix(
        name: str, n_in: int, n_out: int, gain: float = 1.0
    ) -> tuple[str, tuple[int, ...], float, bool]:
        return name, (n_in, n_out), gain / n_in**0.5, False

    yield "token_embd.weight", (s.n_embd, s.n_vocab), 2 / s.n_embd**0.5 if s.tied else 1.0, False
    for layer in range(s.n_layer):
        b = f"blk.{layer}."
        yield b + "attn_norm.weight", (s.n_embd,), 0.1, True
        if s.n_expert:
            yield b + "ffn_gate_inp.weight", (s.n_embd, s.n_expert), 1 / s.n_embd**0.5, True
            yield b + "ffn_down_exps.weight", (s.n_ff, s.n_embd, s.n_expert), 1 / s.n_ff**0.5, False
            yield b + "ffn_gate_exps.weight", (s.n_embd, s.n_ff, s.n_expert), 1 / s.n_embd**0.5, False
            yield b + "ffn_up_exps.weight", (s.n_embd, s.n_ff, s.n_expert), 1 / s.n_embd**0.5, False
        else:
            yield matrix(b + "ffn_down.weight", s.n_ff, s.n_embd)
            yield matrix(b + "ffn_gate.weight", s.n_embd, s.n_ff)
            yield matrix(b + "ffn_up.weight", s.n_embd, s.n_ff)
        yield b + "ffn_norm.weight", (s.n_embd,), 0.1, True
        yield matrix(b + "attn_k.weight", s.n_embd, s.n_head_kv * s.head_dim)
        yield matrix(b + "attn_output.weight", s.n_head * s.head_dim, s.n_embd)
        yield matrix(b + "attn_q.weight", s.n_embd, s.n_head * s.head_dim)
        yield matrix(b + "attn_v.weight", s.n_embd, s.n_head_kv * s.head_dim)
    yield "output_norm.weight", (s.n_embd,), 0.1, True
    if not s.tied:
        yield matrix("output.weight", s.n_embd, s.n_vocab, gain=2.0)


def _hyperparameters(s: RandomShape) -> dict[str, GgufValue]:
    keys = {
        "llama.block_count": _u32(s.n_layer),
        "llama.context_length": _u32(s.n_ctx_train),
        "llama.embedding_length": _u32(s.n_embd),
        "llama.feed_forward_length": _u32(s.n_ff),
        "llama.attention.head_count": _u32(s.n_head),
        "llama.attention.head_count_kv": _u32(s.n_head_kv),
        "llama.rope.freq_base": GgufValue(GgufType.FLOAT32, 10000.0),
        "llama.attention.layer_norm_rms_epsilon": GgufValue(GgufType.FLOAT32, 1e-5),
        "llama.attention.key_length": _u32(s.head_dim),
        "llama.attention.value_length": _u32(s.head_dim),
        "llama.vocab_size": _u32(s.n_vocab),
        "llama.rope.dimension_count": _u32(s.head_dim),
    }
    if s.n_expert:
        keys |= {"llama.expert_count": _u32(s.n_expert), "llama.expert_used_count": _u32(s.n_expert_used)}
    return keys


def _vocabulary(n_vocab: int) -> dict[str, GgufValue]:
    tokens, merges = synthetic_bpe(n_vocab)
    control, normal = 3, 1
    types = np.array([control] * len(SPECIALS) + [normal] * (n_vocab - len(SPECIALS)), dtype=np.int32)
    return {
        "tokenizer.ggml.model": _text("gpt2"),
        "tokenizer.ggml.pre": _text("tekken"),
        "tokenizer.ggml.tokens": GgufValue(GgufType.ARRAY, tokens, GgufType.STRING),
        "tokenizer.ggml.token_type": GgufValue(GgufType.ARRAY, types, GgufType.INT32),
        # llama.cpp refuses a BPE vocabulary without merges; one that can never apply does no harm.
        "tokenizer.ggml.merges": GgufValue(GgufType.ARRAY, merges or ["Ġ Ġ"], GgufType.STRING),
        "tokenizer.ggml.bos_token_id": _u32(1),
        "tokenizer.ggml.eos_token_id": _u32(2),
        "tokenizer.ggml.unknown_token_id": _u32(0),
        "tokenizer.ggml.add_bos_token": GgufValue(GgufType.BOOL, True),
        "tokenizer.ggml.add_eos_token": GgufValue(GgufType.BOOL, False),
    }


def synthetic_bpe(n_vocab: int) -> tuple[list[str], list[str]]:
    """Return (tokens, merges) of the vocabulary described above, for `n_vocab` of at least 259."""
    letters = ["Ġ", *"etaoinshrdlucmfwypvbgkjqxz"]
    fillers: list[str] = []
    merges: list[str] = []
    wanted = n_vocab - len(SPECIALS) - 256
    # Every string arises once, from its prefix and its last letter, so no two merges give the same token.
    level = letters
    while len(fillers) < wanted:
        pairs = [(prefix, last) for prefix in level for last in letters][: wanted - len(fillers)]
        merges += [f"{prefix} {last}" for prefix, last in pairs]
        level = [prefix + last for prefix, last in pairs]
        fillers += level
    return [*SPECIALS, *byte_symbols(), *fillers], merges


def _text(value: str) -> GgufValue:
    return GgufValue(GgufType.STRING, value)


def _u32(value: int) -> GgufValue:
    return GgufValue(GgufType.UINT32, value)
