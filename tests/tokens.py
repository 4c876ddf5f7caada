"""Made-up per-token results, for tests of what is made from them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from bitloss.divergence.measure import TokenTable, write_tokens
from bitloss.divergence.metrics import COLUMNS, TokenMetrics
from bitloss.divergence.worst import Worst, WorstToken


def token_table(chunks: int, per_chunk: int, *, scale: float = 1.0, seed: int = 0) -> TokenTable:
    """Tokens with a lognormal KLD of median about ``0.003 * scale``."""
    random = np.random.default_rng(seed)
    n = chunks * per_chunk
    values = {name: random.random(n).astype(dtype) for name, dtype in COLUMNS.items()}
    values["kld"] = 0.003 * scale * np.exp(random.normal(0, 1.5, n))
    values["entropy_base"] = 6 * random.random(n)
    values["same_top"] = random.random(n) > 0.05 * scale
    values["nonfinite"] = np.zeros(n, np.uint8)
    return TokenTable(
        chunk=np.repeat(np.arange(chunks, dtype=np.int32), per_chunk),
        position=np.tile(np.arange(per_chunk + 1, 2 * per_chunk + 1, dtype=np.int32), chunks),
        target=random.integers(3, 400, n).astype(np.int32),
        metrics=TokenMetrics(**values),
    )


def with_worst(table: TokenTable, pieces: dict[int, str]) -> TokenTable:
    """The table with its two worst tokens kept in their text; ids of their text are 3, 4, 5 and so on."""
    import dataclasses

    rows = np.argsort(-table.metrics.kld)[:2]
    tokens = tuple(
        WorstToken(
            chunk=int(table.chunk[row]),
            position=int(table.position[row]),
            kld=float(table.metrics.kld[row]),
            first=int(table.position[row]) - 6,
            tokens=(3, 4, 5, 6, 7, 8, 9, int(table.target[row]), 10, 11),
            base=((3, 0.5), (4, 0.25), (5, 0.125), (6, 0.0625), (7, 0.03125)),
            candidate=((4, 0.4), (3, 0.2), (5, 0.1), (6, 0.05), (8, 0.025)),
        )
        for row in rows
    )
    words = {i: f" word{i}" for i in range(3, 12)} | {int(table.target[row]): " target" for row in rows}
    return dataclasses.replace(table, worst=Worst(tokens=tokens, pieces=words | pieces))


def write_table(table: TokenTable, folder: Path, name: str, tensors_sha256: str = "") -> Path:
    """Write a table as a run does."""
    path = folder / "tokens" / f"{name}.parquet"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_tokens(table, path, {"candidate": f"{name}.gguf", "tensors_sha256": tensors_sha256})
    return path
