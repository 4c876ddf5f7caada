"""Models that meet every rule of the mixes, their matrices, and what may differ from llama-quantize's file."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

import bitloss
from bitloss.convert.convert import SourceType, convert, source_path
from bitloss.errors import BitlossError
from bitloss.imatrix.file import Imatrix, ImatrixEntry, write_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, RandomType, random_gguf
from bitloss.quantize.quantize import QuantizeSpec, plan_candidates

SHAPES = {
    "dense": RandomShape(n_embd=256, n_head=2, n_head_kv=1, head_dim=128, n_ff=256),
    # Rows of 288 and 352 are no multiples of 256; rows of 60 (attn_output) no multiple of 32 either.
    "odd": RandomShape(n_embd=288, n_head=6, n_head_kv=2, head_dim=10, n_ff=352, tied=True),
    "experts": RandomShape(
        n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_expert=4, n_expert_used=2, n_layer=1
    ),
    # Eight layers and grouped heads: the mixes give some layers more bits.
    "deep": RandomShape(
        n_embd=256, n_head=4, n_head_kv=1, head_dim=32, n_ff=256, n_layer=8, n_vocab=300, tied=True
    ),
    # Rows of 320 fall back to blocks of 32 in one tensor only; eight experts have rules of their own.
    "mixed": RandomShape(
        n_embd=256, n_head=2, n_head_kv=2, head_dim=64, n_ff=320, n_expert=8, n_expert_used=1, n_layer=1
    ),
}
MODELS = (*SHAPES, "demo")


@dataclass(frozen=True)
class Case:
    model: Path
    imatrix: Path


def made_up_matrix(model: Path) -> Imatrix:
    """Importance of every layer's inputs, spread over three decades; the last expert of each was never used."""
    rng = np.random.default_rng(7)
    entries = {}
    for name, info in GgufFile.open(model).tensors.items():
        if name.startswith("blk.") and "norm" not in name and "gate_inp" not in name:
            n_mat = (*info.shape, 1, 1)[2]
            sums = 10 ** rng.uniform(-2, 1, (n_mat, info.shape[0])) * 64
            counts = np.full(n_mat, 64.0)
            if n_mat > 1:
                sums[-1], counts[-1] = 0, 0
            entries[name] = ImatrixEntry(sums, counts)
    return Imatrix(entries, 2, 32, ("text.txt",))


def model_case(folder: Path, name: str, dtype: RandomType) -> Case:
    """Make a model of `MODELS` and a matrix for it."""
    if name == "demo":
        assets = Path(bitloss.__file__).parent / "assets" / "demo-model"
        convert(assets, [SourceType(dtype)], folder)
        model = source_path(folder, "demo-model", dtype)
    else:
        model = random_gguf(folder / f"model-{dtype}.gguf", SHAPES[name], dtype=dtype)
    write_imatrix(made_up_matrix(model), folder / "m.gguf")
    return Case(model, folder / "m.gguf")


def possible(specs: list[QuantizeSpec]) -> list[QuantizeSpec]:
    """Those of the specs that are not refused."""
    kept = []
    for spec in specs:
        try:
            plan_candidates([spec])
        except BitlossError:
            continue
        kept.append(spec)
    return kept


def metadata(file: GgufFile) -> dict[str, Any]:
    """Keys as stored, but for the two that name a local path in the tool's file."""
    local = {"quantize.imatrix.file", "quantize.imatrix.dataset"}
    return {key: None if key in local else file.key_bytes(key) for key in file.metadata}


NEED_WEIGHTS = {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M", "Q2_K_S", "IQ3_XXS", "IQ3_XS"}
# A process that makes one of these first computes tables for up to ten seconds: the tool itself is asked for one
# model, the function it calls (in this process) for the others.
SLOW_START = NEED_WEIGHTS - {"Q2_K_S", "IQ3_XS"}
