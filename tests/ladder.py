"""A made-up run of twenty files, for tests and benchmarks of reports: no model, figures true of its tokens.

KLD of a type falls by a constant factor a bit; files of a run share the text, its base and half of every token's luck,
so that neighbours are paired as real ones are.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from tests.conftest import cost, founding_document, sha

from bitloss.divergence.comparison import compare_all, table_pairs
from bitloss.divergence.measure import TokenTable, write_tokens
from bitloss.divergence.metrics import COLUMNS, TokenMetrics
from bitloss.divergence.statistics import summarize
from bitloss.divergence.worst import KEPT, Worst, WorstToken
from bitloss.explain.findings import findings
from bitloss.records import RESULTS_NAME, Comparison, Results, write_results

BITS = {
    "Q8_0": 8.50,
    "Q6_K": 6.57,
    "Q5_K_M": 5.67,
    "Q5_K_S": 5.54,
    "Q5_0": 5.53,
    "Q4_K_M": 4.89,
    "Q4_K_S": 4.66,
    "Q4_0": 4.64,
    "IQ4_NL": 4.65,
    "IQ4_XS": 4.41,
    "Q3_K_L": 4.27,
    "Q3_K_M": 3.95,
    "IQ3_M": 3.75,
    "IQ3_S": 3.62,
    "Q3_K_S": 3.59,
    "IQ3_XXS": 3.20,
    "Q2_K": 3.17,
    "IQ2_M": 2.90,
    "IQ2_XS": 2.49,
    "IQ2_XXS": 2.22,
}
_WEIGHTS = 8_030_261_248
_BEFORE, _AFTER = 60, 12


def ladder_table(bits: float, chunks: int, per_chunk: int, *, seed: int) -> TokenTable:
    """Tokens of a file of `bits` bits a weight; chunk, position, target and base are the same for every `bits`."""
    shared, own = np.random.default_rng(0), np.random.default_rng(seed + 1)
    n = chunks * per_chunk
    p_base, luck = shared.beta(0.6, 0.7, n), shared.normal(0, 1, n)
    entropy = 6 * shared.random(n)
    target = shared.integers(3, 32_000, n).astype(np.int32)
    kld = 0.9 * np.exp(-1.25 * (bits - 1.5) + 1.1 * luck + 0.3 * own.normal(0, 1, n))
    p = np.clip(p_base + 0.3 * np.sqrt(kld) * own.normal(-0.05, 0.5, n), 1e-7, 1 - 1e-9)
    p_base = np.clip(p_base, 1e-7, 1 - 1e-9)
    values: dict[str, Any] = {"kld": kld, "kld_reverse": kld * 1.02, "js": kld / 4, "p_base": p_base, "p": p}
    values |= {
        "nll_base": -np.log(p_base),
        "nll": -np.log(p),
        "entropy_base": entropy,
        "entropy": entropy + kld,
    }
    overlap = np.clip(1 - np.sqrt(kld) * own.random(n), 0, 1).astype(np.float32)
    values |= {
        "top5_overlap": overlap,
        "top10_overlap": overlap,
        "same_top": own.random(n) > np.sqrt(kld) / 2,
    }
    values["nonfinite"] = np.zeros(n, np.uint8)
    metrics = TokenMetrics(**{name: values[name].astype(dtype) for name, dtype in COLUMNS.items()})
    table = TokenTable(
        chunk=np.repeat(np.arange(chunks, dtype=np.int32), per_chunk),
        position=np.tile(np.arange(per_chunk + 1, 2 * per_chunk + 1, dtype=np.int32), chunks),
        target=target,
        metrics=metrics,
    )
    return TokenTable(table.chunk, table.position, table.target, metrics, _worst(table, own))


def _worst(table: TokenTable, random: np.random.Generator) -> Worst:
    tokens, ids = [], set()
    for row in np.argsort(-table.metrics.kld)[:KEPT]:
        text = random.integers(3, 32_000, _BEFORE + _AFTER).tolist()
        text[_BEFORE] = int(table.target[row])
        tops = [
            tuple((int(i), 0.5 / 2**k) for k, i in enumerate(random.integers(3, 32_000, 5))) for _ in range(2)
        ]
        ids |= {*text, *(i for top in tops for i, _ in top)}
        position = int(table.position[row])
        tokens.append(
            WorstToken(
                chunk=int(table.chunk[row]),
                position=position,
                kld=float(table.metrics.kld[row]),
                first=position + 1 - _BEFORE,
                tokens=tuple(text),
                base=tops[0],
                candidate=tops[1],
            )
        )
    return Worst(tokens=tuple(tokens), pieces={i: f" word{i}" for i in ids})


def ladder_run(folder: Path, *, chunks: int, per_chunk: int = 255) -> Results:
    """Write a finished run of `BITS`, without models, into `folder`."""
    document = founding_document()
    document["text"] |= {"chunks": chunks, "n_ctx": 2 * per_chunk + 2, "scored_tokens": chunks * per_chunk}
    tokens: dict[str, TokenMetrics] = {}
    candidates = []
    for seed, (kind, bits) in enumerate(BITS.items()):
        table = ladder_table(bits, chunks, per_chunk, seed=seed)
        name, size = f"{kind}/bf16", int(_WEIGHTS * bits / 8)
        path = folder / "tokens" / f"{kind}.parquet"
        path.parent.mkdir(parents=True, exist_ok=True)
        write_tokens(table, path, {"candidate": f"{kind}.gguf", "tensors_sha256": sha(name)})
        tokens[name] = table.metrics
        candidates.append(
            {
                "name": name,
                "type": kind,
                "weights_from": "bf16",
                "imatrix_from": "bf16",
                "file": f"Mistral-Nemo-Instruct-2407-bf16-{kind}.gguf",
                "bytes": size,
                "bits_per_weight": bits,
                "sha256": sha(f"file {kind}"),
                "tensors_sha256": sha(name),
                "metrics": dict(summarize(table.metrics, table.chunk)),
                "tokens": path.name,
            }
        )
        document["costs"] = (*document["costs"], cost(f"quantize {name}", "bf16", 60.0 + seed, size))
    rows = compare_all(tokens, table_pairs({name: name for name in tokens}), table.chunk)
    document |= {
        "candidates": tuple(candidates),
        "comparisons": tuple(
            Comparison(
                a=pair.a,
                b=pair.b,
                metric=metric.value,
                difference=row.difference,
                ci95=row.ci95,
                p_value=row.p_value,
                p_holm=row.p_holm,
                verdict=row.verdict,
                reason=row.reason,
            )
            for (pair, metric), row in rows.items()
        ),
    }
    results = Results.model_validate(document)
    results = results.model_copy(update={"findings": findings(results)})
    write_results(results, folder / RESULTS_NAME)
    return results
