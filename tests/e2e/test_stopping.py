"""Measuring that stops when it is decided: the same numbers as without, on fewer chunks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from bitloss.cli import main
from bitloss.divergence.measure import TokenTable, read_tokens
from bitloss.divergence.metrics import COLUMNS
from bitloss.divergence.stopping import chunk_order
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.progress import silent
from bitloss.records import Outcome, Results, Verdict, read_results
from bitloss.run.executor import InlineExecutor
from bitloss.run.founding import run_experiment
from bitloss.run.measuring import Measuring, measure_files
from bitloss.run.steps import BaseStep, EvaluationTexts, QuantizeStep
from bitloss.spec import EngineSpec, ExperimentSpec, StopSpec, make_spec
from bitloss.store import sha256_file

pytestmark = pytest.mark.e2e

SHAPE = RandomShape(n_vocab=300, n_embd=256, n_layer=1, n_head=4, n_head_kv=2, head_dim=64, n_ff=256)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("model") / "tiny-f16.gguf"
    random_gguf(path, SHAPE, seed=1)
    return path


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("text") / "text.txt"
    path.write_text(" ".join(f"the {n} cats sat on {n * n % 97} mats and ate" for n in range(150)))
    return path


def _spec(model: Path, text: Path, **more: object) -> ExperimentSpec:
    values = {
        "model": str(model),
        "from": ["f16"],
        "text": str(text),
        "ctx": 64,
        "chunks": 60,
        "engine": {"threads": 1},
        **more,
    }
    return make_spec(values, where="test")


def _go(spec: ExperimentSpec, out: Path) -> Results:
    results = run_experiment(spec, out=out, executor=InlineExecutor(), progress=lambda _: None)
    assert read_results(out) == results
    return results


def _chunks(table: TokenTable) -> dict[int, TokenTable]:
    """Its chunks by their index in the text."""
    found = {}
    for chunk in np.unique(table.chunk):
        rows = table.chunk == chunk
        found[int(chunk)] = TokenTable(
            table.chunk[rows], table.position[rows], table.target[rows], table.metrics[rows]
        )
    return found


def _same_numbers(part: Path, whole: Path) -> None:
    """Every chunk of the part has the numbers of that chunk in the whole."""
    some, every = _chunks(read_tokens(part)[0]), _chunks(read_tokens(whole)[0])
    assert set(some) < set(every)
    for chunk, mine in some.items():
        theirs = every[chunk]
        assert np.array_equal(mine.position, theirs.position)
        assert np.array_equal(mine.target, theirs.target)
        for name in COLUMNS:
            # chunks computed side by side in one micro-batch may be summed in another order
            np.testing.assert_allclose(
                getattr(mine.metrics, name).astype(float),
                getattr(theirs.metrics, name).astype(float),
                rtol=1e-4,
                atol=1e-7,
                err_msg=name,
            )


def test_stops_early_with_the_numbers_of_the_whole_text(model: Path, text: Path, tmp_path: Path) -> None:
    whole = _go(_spec(model, text, quants=["Q8_0", "Q4_0"]), tmp_path / "whole")
    early = _go(_spec(model, text, quants=["Q8_0", "Q4_0"], stop={"when": "decided"}), tmp_path / "early")
    assert whole.stopping is None
    assert early.stopping is not None
    assert early.stopping.met
    assert early.stopping.chunks_available == whole.text.chunks == 60
    assert early.text.chunks == 16
    assert early.text.tokens_sha256 == whole.text.tokens_sha256
    (pair,) = early.stopping.settled
    assert pair.outcome is Outcome.BETTER
    assert pair.chunks is not None
    assert 10 <= pair.chunks <= 16
    verdicts = {c.metric: c.verdict for c in early.comparisons}
    assert verdicts["kld_mean"] is Verdict.BETTER
    for name in ("Q8_0-f16", "Q4_0-f16"):
        part = tmp_path / "early" / "tokens" / f"{name}.parquet"
        _same_numbers(part, tmp_path / "whole" / "tokens" / f"{name}.parquet")
        chunk = read_tokens(part)[0].chunk
        assert (
            chunk[np.sort(np.unique(chunk, return_index=True)[1])].tolist()
            == chunk_order(60, 0)[:16].tolist()
        )
    needed = f"Settled after {pair.chunks} of 60 chunks"
    assert needed in (tmp_path / "early" / "report.md").read_text()
    again = _go(_spec(model, text, quants=["Q8_0", "Q4_0"], stop={"when": "decided"}), tmp_path / "early")
    assert all(cost.reused for cost in again.costs)
    assert again.comparisons == early.comparisons


def test_goes_on_to_the_end_of_the_text_where_nothing_is_settled(
    model: Path, text: Path, tmp_path: Path
) -> None:
    spec = _spec(model, text, quants=["Q8_0"], chunks=40, stop={"when": "precise", "precision": 1e-4})
    results = _go(spec, tmp_path / "run")
    assert results.stopping is not None
    assert not results.stopping.met
    assert results.text.chunks == results.stopping.chunks_available == 40
    (known,) = results.stopping.known
    assert known.low is not None
    assert known.high is not None
    mean = results.candidates[0].metrics["kld_mean"].value
    assert mean is not None
    assert known.low < mean < known.high
    parts = sorted(path.name for path in (tmp_path / "run" / "base").iterdir())
    assert parts == ["000000-000016", "000016-000032", "000032-000040"]


def test_measure_stops_on_a_base_that_is_there(model: Path, text: Path, tmp_path: Path) -> None:
    candidates = []
    for kind in ("Q4_0", "Q8_0"):
        candidates.append(tmp_path / f"{kind}.gguf")
        QuantizeStep(
            source=model, source_sha256=sha256_file(model), type=kind, imatrix=None, imatrix_sha256=None,
            out=candidates[-1],
        ).execute(silent)  # fmt: skip
    base = tmp_path / "base"
    BaseStep(
        source=model, source_sha256=sha256_file(model), texts=EvaluationTexts.of([text], n_ctx=64, chunks=60),
        engine=EngineSpec(threads=1), out=base,
    ).execute(silent)  # fmt: skip

    def go(name: str, stop: StopSpec | None) -> Results:
        plan = Measuring(candidates, tmp_path / name, EngineSpec(threads=1), base, stop=stop)
        return measure_files(plan, executor=InlineExecutor(), progress=lambda _: None)

    early = go("early", StopSpec(margin=0.05))
    assert early.stopping is not None
    assert early.stopping.met
    assert early.stopping.margin == 0.05
    assert early.text.chunks == 16
    assert go("whole", None).text.chunks == 60
    parts = list((tmp_path / "early" / "tokens").iterdir())
    assert len(parts) == 2
    for part in parts:
        _same_numbers(part, tmp_path / "whole" / "tokens" / part.name)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--margin", "5%"], "nothing to stop by"),
        (["--stop-when", "decided", "--margin", "5"], "a share such as 5% or 0.05"),
        (["--stop-when", "decided", "--precision", "2%"], "a precision belongs to precise"),
        (["--precision", "2%", "--margin", "5%"], "a margin belongs to decided"),
        (["--stop-when", "precise"], "precise needs a precision"),
        (["--stop-when", "decided", "--quants", "Q8_0"], "nothing to decide between"),
    ],
)
def test_rules_that_make_no_sense(
    model: Path,
    text: Path,
    tmp_path: Path,
    flags: list[str],
    message: str,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code = main(
        ["run", str(model), "--text", str(text), "--ctx", "64", "--out", str(tmp_path / "run"), *flags]
    )
    assert code == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "run").exists()


def test_a_base_file_of_llama_perplexity_is_measured_whole(
    model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "base.kld").write_bytes(b"_logits_" + bytes(12))
    code = main(
        [
            "measure",
            str(model),
            "--base",
            str(tmp_path / "base.kld"),
            "-o",
            str(tmp_path / "out"),
            "--precision",
            "2%",
        ]
    )
    assert code == 2
    assert "--stop-when" in capsys.readouterr().err
