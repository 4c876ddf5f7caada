"""Evidence for the rules of the five questions, made up."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tests.unit.explain.models import folder, normal

from bitloss.divergence.factorial import Cells, attribute
from bitloss.explain.audit import audit
from bitloss.records import (
    Attribution,
    Audit,
    Blocks,
    Cross,
    CrossedTensor,
    Likeness,
)


def audited(tmp_path: Path, **tensors: Any) -> Audit:
    return audit(folder(tmp_path / "model", tensors))


def with_values(values: list[float], dtype: Any = np.float32) -> np.ndarray[Any, Any]:
    data = normal(4, 256).copy()
    data.reshape(-1)[: len(values)] = values
    return data.astype(dtype)


CHUNK = np.repeat(np.arange(12), 20)
PARTS = ("weights", "imatrix", "both")
NONE = dict.fromkeys(Blocks.model_fields, 0) | {"total": 100}


def attribution_of(kind: str, blocks: Blocks, cells: Cells | None = None) -> Attribution:
    if cells is None:
        a, b = np.random.default_rng(0).exponential(1.0, (2, len(CHUNK)))
        cells = Cells(a, a, b, b)
    tensors: tuple[CrossedTensor, ...] = ()
    if blocks.whole or blocks.undone:
        tensor = CrossedTensor(
            name="blk.0.ffn_up.weight", type="Q4_K", blocks=blocks, first=(3, 40), first_weights=(3,)
        )
        tensors = (tensor,)
    return Attribution(
        type=kind,
        a="f32",
        b="f16",
        file_a=f"{kind}/f32",
        file_b=f"{kind}/f16",
        weights_of_b=f"{kind}/f16+f32",
        imatrix_of_b=f"{kind}/f32+f16",
        blocks=blocks,
        tensors=tensors,
        kld=attribute(cells, CHUNK),
    )


def cross_of(*attributions: Attribution) -> Cross:
    return Cross(attributions=attributions, imatrices=(), halves=())


def blocks_of(**counts: int) -> Blocks:
    return Blocks.model_validate(NONE | counts | {"whole": sum(counts.get(k, 0) for k in PARTS)})


def likeness_of(spread: float | None) -> Likeness:
    return Likeness(
        columns=10 if spread is not None else 0,
        left_out=0,
        correlation_lowest=None,
        correlation_lowest_at=None,
        correlation_median=None,
        largest_ratio=None if spread is None else 1.0 + spread,
        largest_ratio_at=None if spread is None else "blk.0.w",
        spread=spread,
    )
