"""Which files of a run are worth publishing: those that no other file beats in both size and mean KLD.

    uv run python examples/shortlist_pandas.py RUN > shortlist.csv

Reads RUN/tables/files.parquet and figures.parquet (the same as CSV lies beside them).
"""

import sys
from pathlib import Path

import pandas as pd


def shortlist(run: Path) -> pd.DataFrame:
    """One row per file on the front, largest first, with what a bit less costs."""
    files = pd.read_parquet(run / "tables" / "files.parquet").set_index("name")
    files = files[files["identical_to"].isna()]  # the same weights in another file
    figures = pd.read_parquet(run / "tables" / "figures.parquet")
    kld = figures[figures["metric"] == "kld_mean"].set_index("candidate")
    table = files[["file", "bytes", "bits_per_weight"]].join(kld[["value", "se_clustered", "shown"]])
    table = table.sort_values("bytes")
    front = table[table["value"] < table["value"].cummin().shift(fill_value=float("inf"))]
    front = front.sort_values("bytes", ascending=False)
    # how many times the divergence of the next larger file, for how much less of it
    return front.assign(
        times_kld=front["value"] / front["value"].shift(),
        share_of_size=front["bytes"] / front["bytes"].shift(),
    )


if __name__ == "__main__":
    shortlist(Path(sys.argv[1])).to_csv(sys.stdout)
