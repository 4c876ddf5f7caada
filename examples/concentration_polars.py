"""Where a file's divergence comes from: how much of it the worst 1 % of tokens hold, and how sure the base was there.

    uv run python examples/concentration_polars.py RUN

Reads RUN/tokens/*.parquet, a row for each scored token, lazily: no file is held whole.
"""

import sys
from pathlib import Path

import polars as pl


def concentration(run: Path) -> pl.DataFrame:
    """One row per file of tokens: mean KLD, the worst hundredth's share of it, the base's mean p there and anywhere."""
    worst = pl.col("kld") >= pl.col("kld").quantile(0.99)
    rows = [
        pl.scan_parquet(path)
        .filter(pl.col("kld").is_finite())
        .select(
            pl.lit(path.stem).alias("file"),
            pl.len().alias("tokens"),
            pl.col("kld").mean().alias("kld_mean"),
            (pl.col("kld").filter(worst).sum() / pl.col("kld").sum()).alias("worst_1_percent_hold"),
            pl.col("p_base").filter(worst).mean().alias("p_base_there"),
            pl.col("p_base").mean().alias("p_base_anywhere"),
        )
        for path in sorted((run / "tokens").glob("*.parquet"))
    ]
    return pl.concat(rows).collect().sort("kld_mean")


if __name__ == "__main__":
    with pl.Config(tbl_rows=-1, tbl_cols=-1, tbl_width_chars=160):
        sys.stdout.write(f"{concentration(Path(sys.argv[1]))}\n")
