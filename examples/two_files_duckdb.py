"""Two files of a run on the same tokens, in SQL: the paired difference of mean KLD, and where they part most.

    uv run python examples/two_files_duckdb.py RUN Q4_K_M-f32 Q4_K_M-f16

The names are those of RUN/tokens/*.parquet. The standard error is clustered by chunk, as in the report's comparisons of
one text without documents:
sqrt(m / (m - 1) * sum over the m chunks of (sum of (difference - mean))^2) / n.
"""

import sys
from pathlib import Path

import duckdb

PAIRED = """
create or replace view paired as
select a.chunk, a.position, a.target, a.kld as kld_a, b.kld as kld_b, a.kld - b.kld as difference
from read_parquet($a) a join read_parquet($b) b using (chunk, position)
"""
DIFFERENCE = """
with mean as (select avg(difference) as m, count(*) as n from paired),
     chunks as (select sum(difference - m) as s from paired, mean group by chunk)
select m, sqrt(count(*) / (count(*) - 1) * sum(s * s)) / n from chunks, mean group by m, n
"""
APART = """
select chunk, position, target, kld_a, kld_b, difference from paired order by abs(difference) desc limit 10
"""


def two_files(run: Path, a: str, b: str) -> tuple[float, float, list[tuple[float, ...]]]:
    """Difference a - b of mean KLD, its standard error, and the ten tokens on which they differ most."""
    with duckdb.connect() as db:
        paths = [str(run / "tokens" / f"{name}.parquet").replace("'", "''") for name in (a, b)]
        db.execute(PAIRED.replace("$a", f"'{paths[0]}'").replace("$b", f"'{paths[1]}'"))
        found = db.execute(DIFFERENCE).fetchone()
        assert found is not None, "no tokens"
        return found[0], found[1], db.execute(APART).fetchall()


if __name__ == "__main__":
    difference, error, tokens = two_files(Path(sys.argv[1]), sys.argv[2], sys.argv[3])
    sys.stdout.write(f"mean KLD {sys.argv[2]} - {sys.argv[3]}: {difference:.3e} ± {error:.1e}\n")
    for chunk, position, target, kld_a, kld_b, apart in tokens:
        sys.stdout.write(
            f"chunk {chunk:4} position {position:4} token {target:6}: {kld_a:.6f} and {kld_b:.6f}, {apart:+.6f}\n"
        )
