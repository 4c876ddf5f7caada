"""Random models for tests and benchmarks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitloss.errors import BitlossError
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf


def test_random_models_are_reproducible_and_of_the_shape_asked(tmp_path: Path) -> None:
    shape = RandomShape(n_vocab=1200, n_expert=4, n_expert_used=2, n_embd=32, head_dim=6, tied=True)
    files = [
        GgufFile.open(random_gguf(tmp_path / n, shape, seed=s, dtype="f32"))
        for n, s in (("a", 1), ("b", 1), ("c", 2))
    ]
    one, same, other = (file.tensors_sha256() for file in files)
    assert one == same != other
    file = files[0]
    assert "output.weight" not in file.tensors
    assert file.info("blk.1.ffn_down_exps.weight").shape == (128, 32, 4)
    assert file.info("blk.0.attn_k.weight").shape == (32, 12)
    tokens, merges = file.value("tokenizer.ggml.tokens"), file.value("tokenizer.ggml.merges")
    assert len(tokens) == len(set(tokens)) == 1200
    assert ["".join(merge.split(" ")) for merge in merges] == tokens[259:]
    half = GgufFile.open(random_gguf(tmp_path / "h", shape, seed=1, dtype="f16"))
    name = "blk.0.attn_q.weight"
    assert np.array_equal(half.tensor_f32(name), file.tensor_f32(name).astype(np.float16).astype(np.float32))
    with pytest.raises(BitlossError, match="n_head a multiple of n_head_kv"):
        random_gguf(tmp_path / "x", RandomShape(n_head=3))
