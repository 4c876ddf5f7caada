"""``.kld`` against llama-perplexity of the same build: its file read, ours given to it.

Random models have logits a few units wide; the "peaked" one has them wide enough to be cut, 16 nats below the top.

What can differ for the same logits is the last digit of min_log_prob (the tool adds ``expf`` in double, we add float64
exponentials), and so of nothing else: header, tokens, scales and every 16-bit value are asserted equal outright.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from numpy.typing import NDArray

from bitloss.divergence.basefile import Base, TextSource
from bitloss.divergence.basewrite import write_base
from bitloss.divergence.kldfile import KldFile, write_kld
from bitloss.divergence.measure import TokenTable, measure
from bitloss.divergence.metrics import LEFT_OUT
from bitloss.divergence.statistics import summarize
from bitloss.engine.base import EngineOptions, Outputs, chunks_of_text
from bitloss.engine.llama import LlamaEngine
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize.quantize import QuantizeSpec, quantize

pytestmark = pytest.mark.parity

N_CTX, CHUNKS, SCORED = 128, 12, 63
STEP = 16 / 65535
OPTIONS = EngineOptions(threads=2, batch=N_CTX, ubatch=N_CTX)
SHAPES = {
    "peaked": RandomShape(
        n_vocab=900, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=512, n_ctx_train=512
    ),
    "odd vocabulary": RandomShape(
        n_vocab=777, n_embd=160, n_head=5, n_head_kv=1, head_dim=32, n_ff=416, n_ctx_train=512
    ),
}


class Made(NamedTuple):
    """One experiment with either file as the base."""

    told: Path
    made: Path
    source: Path
    candidate: Path
    exact: TokenTable
    printed_of_told: str
    printed_of_made: str
    n_vocab: int


def a_text(path: Path) -> Path:
    rng = np.random.default_rng(11)
    words = ["alpha", "beta", "gamma", "delta", "of", "the", "and", "ünï", "10", "\n"]
    path.write_text(" ".join(rng.choice(words, 2000)), encoding="utf-8")
    return path


def widen_logits(path: Path, factor: float) -> None:
    """Multiply the weight of the last norm, and with it every logit."""
    info = GgufFile.open(path).tensors["output_norm.weight"]
    with path.open("r+b") as stream:
        stream.seek(info.offset)
        weight = np.frombuffer(stream.read(4 * info.n_elements), np.float32)
        stream.seek(info.offset)
        stream.write((weight * np.float32(factor)).tobytes())


@pytest.fixture(scope="module", params=list(SHAPES))
def made(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, llama_tool: Callable[..., str]
) -> Made:
    folder = tmp_path_factory.mktemp("kld")
    shape = SHAPES[request.param]
    source = random_gguf(folder / "f32.gguf", shape, seed=31, dtype="f32")
    if request.param == "peaked":
        widen_logits(source, 3)
    candidate = folder / "q.gguf"
    quantize(QuantizeSpec(source=source, type="Q4_K_M", out=candidate))
    text = a_text(folder / "text.txt")
    common = ["-f", text, "-c", N_CTX, "-b", N_CTX, "-t", 2, "--chunks", CHUNKS]
    told, ours = folder / "told.kld", folder / "ours.kld"
    llama_tool("llama-perplexity", "-m", source, *common, "--kl-divergence-base", told)
    with LlamaEngine(source, OPTIONS) as engine:
        chunks = chunks_of_text(engine, text, n_ctx=N_CTX, n_chunks=CHUNKS)
        write_base(engine, chunks, text=TextSource(text.name, "0" * 64), out=folder / "base")
    base = Base(folder / "base", threads=2)
    write_kld(ours, base)
    with LlamaEngine(candidate, OPTIONS) as engine:
        exact = measure(engine, base, threads=2)
    printed = [
        llama_tool(
            *("llama-perplexity", "-m", candidate, *common, "--kl-divergence-base", kld, "--kl-divergence"),
            until="Same top p:",
        )
        for kld in (told, ours)
    ]
    return Made(told, ours, source, candidate, exact, printed[0], printed[1], shape.n_vocab)


def rows_of(path: Path, n_vocab: int) -> tuple[bytes, NDArray[np.float32], NDArray[np.uint16]]:
    """Header with tokens, [rows, 2] of scale and min_log_prob, [rows, n_vocab] of q; without our reader."""
    content = path.read_bytes()
    at = 20 + 4 * N_CTX * CHUNKS
    units = np.frombuffer(content[at:], "<u2").reshape(CHUNKS * SCORED, 2 * ((n_vocab + 1) // 2) + 4)
    return content[:at], np.ascontiguousarray(units[:, :4]).view("<f4"), units[:, 4 : 4 + n_vocab]


NUMBER = re.compile(r"-?\d+\.\d+")


def statistics(printed: str) -> dict[str, list[str]]:
    """Numbers of every line the tool prints about the text, its running table included: by what precedes them."""
    lines = printed[printed.index("chunk             PPL") :].splitlines()
    table = [(line.split()[0], line) for line in lines if re.match(r" *\d+ {4}", line)]
    figures = [tuple(line.split(":")) for line in lines if re.match(r"[^:]+: +-?\d", line)]
    return {label: NUMBER.findall(rest) for label, rest in (*table, *figures)}


def test_files_are_equal_but_for_the_last_digit_of_the_offset(made: Made) -> None:
    assert made.told.stat().st_size == made.made.stat().st_size
    told_head, told, told_q = rows_of(made.told, made.n_vocab)
    our_head, ours, our_q = rows_of(made.made, made.n_vocab)
    assert our_head == told_head
    assert np.array_equal(ours[:, 0], told[:, 0])
    np.testing.assert_array_max_ulp(ours[:, 1], told[:, 1], maxulp=1)
    assert np.array_equal(our_q, told_q)
    assert int(told_q.max()) == 65535


def test_the_tool_prints_the_same_from_our_file(made: Made) -> None:
    told, ours = statistics(made.printed_of_told), statistics(made.printed_of_made)
    common = told.keys() & ours.keys()
    # of 12 chunks and 35 figures; the log may lose a line on a busy machine
    assert len(common) >= CHUNKS + 30
    for label in common:
        for x, y in zip(told[label], ours[label], strict=True):
            digit = 10.0 ** -len(x.partition(".")[2])
            assert abs(float(x) - float(y)) <= 1.01 * digit + 1e-6 * abs(float(x)), label


class Measured(NamedTuple):
    """The candidate measured against the tool's file, and what takes our figures to the tool's, row by row.

    Attributes:
        table: as we measure.
        z: sum of the file's probabilities as they stand (the target's included, others below the cut not).
        q: sum of the candidate's probabilities of the same entries.
        skipped: what entries with ln p ≤ -16 contribute to KLD: the file has some of them, the tool skips all.
        targets_cut: as `KldFile` counts.
        at_cut: rows whose target stands at the cut.
    """

    table: TokenTable
    z: NDArray[np.float64]
    q: NDArray[np.float64]
    skipped: NDArray[np.float64]
    targets_cut: int
    at_cut: NDArray[np.bool_]

    @property
    def kld_of_the_tool(self) -> NDArray[np.float64]:
        """See `bitloss.divergence.partial`."""
        return self.table.metrics.kld + self.z * np.log(self.z / self.q) - self.skipped


@pytest.fixture(scope="module")
def measured(made: Made) -> Measured:
    with LlamaEngine(made.candidate, OPTIONS) as engine:
        assert engine.facts.add_bos
        with KldFile(made.told, bos=engine.facts.bos) as base:
            table = measure(engine, base, threads=2)
            chunks, targets_cut = base.chunks, base.targets_cut
        logits = np.concatenate(
            [r.values.copy() for r in engine.evaluate(chunks.as_computed(), Outputs.LOGITS)]
        )
    _, head, q = rows_of(made.told, made.n_vocab)
    base_logs = (head[:, :1] * q + head[:, 1:]).astype(np.float64)
    held = (q > 0) | (head[:, :1] * 65535 < 15.9)
    at_target = np.zeros_like(held)
    at_target[np.arange(len(q)), table.target] = True
    assert targets_cut == np.count_nonzero(at_target & ~held)
    p = np.where(held | at_target, np.exp(base_logs), 0)
    wide = logits.astype(np.float64)
    logs = wide - np.log(np.exp(wide - wide.max(axis=1, keepdims=True)).sum(axis=1, keepdims=True))
    logs -= wide.max(axis=1, keepdims=True)
    skipped = np.where(base_logs <= -16, p * (base_logs - logs), 0).sum(axis=1)
    q_held = np.where(held | at_target, np.exp(logs), 0).sum(axis=1)
    return Measured(table, p.sum(axis=1), q_held, skipped, targets_cut, np.any(at_target & ~held, axis=1))


def test_the_tools_figures_follow_token_by_token(made: Made, measured: Measured) -> None:
    """Figures of the base are the tool's; KLD follows from ours by a known term.

    Left are the digits printed and the tool's float32: 2e-6 nats, 60 times less than a half step of the file.
    """
    metrics, kld = measured.table.metrics, measured.kld_of_the_tool
    expected = {
        "Mean    KLD": kld.mean(),
        "Maximum KLD": kld.max(),
        "99.9%   KLD": np.quantile(kld, 0.999),
        "99.0%   KLD": np.quantile(kld, 0.99),
        "90.0%   KLD": np.quantile(kld, 0.9),
        "Median  KLD": np.median(kld),
        "10.0%   KLD": np.quantile(kld, 0.1),
        " 1.0%   KLD": np.quantile(kld, 0.01),
        "Minimum KLD": kld.min(),
        "Mean ln(PPL(Q)/PPL(base))     ": (metrics.nll - metrics.nll_base).mean(),
        "Mean    Δp": 100 * metrics.dp.mean(),
        "RMS Δp    ": 100 * np.sqrt((metrics.dp**2).mean()),
        "Same top p": 100 * metrics.same_top.mean(),
    }
    for label, value in expected.items():
        match = re.search(rf"^{re.escape(label)}:\s+(-?[\d.]+)", made.printed_of_told, re.MULTILINE)
        assert match, label
        tolerance = 5.1e-4 if label[0:4] == "Same" or "Δp" in label else 2e-6 + 5.1e-7
        assert abs(value - float(match[1])) <= tolerance, (label, value, match[1])


def test_the_cut_is_met_where_it_should_be(made: Made, measured: Measured) -> None:
    _, head, _ = rows_of(made.told, made.n_vocab)
    was_cut = head[:, 0] * 65535 > 15.9
    metrics = measured.table.metrics
    assert np.array_equal(metrics.nonfinite == LEFT_OUT, was_cut)
    assert np.array_equal(np.isinf(metrics.kld_reverse), was_cut)
    figures = summarize(metrics, measured.table.chunk)
    assert figures["nonfinite_tokens"].value == 0
    assert figures["ppl_base"].value is not None
    assert figures["kld_mean"].value is not None
    if was_cut.any():
        assert was_cut.all()
        assert measured.targets_cut > 0
        assert figures["kld_reverse_mean"].value is None
        assert "leaves out improbable tokens" in (figures["kld_reverse_mean"].reason or "")
    else:
        assert measured.targets_cut == 0
        assert figures["kld_reverse_mean"].value is not None


def test_from_the_same_file_ours_are_nearer_the_truth(made: Made, measured: Measured) -> None:
    """Errors of a token's KLD against the base with exact logits."""
    exact = made.exact.metrics
    ours = measured.table.metrics.kld - exact.kld
    told = measured.kld_of_the_tool - exact.kld
    below_cut = made.n_vocab * np.exp(-16) * bool(measured.targets_cut)  # most that can be left out
    assert np.abs(told).max() <= STEP / 2 * (1 + exact.kld.max()) + below_cut
    spread = np.sqrt(2 * exact.kld.max()) + exact.kld.max()
    assert np.abs(ours).max() <= STEP / 2 * spread + below_cut
    assert np.sqrt((ours**2).mean()) < np.sqrt((told**2).mean())
    nll = measured.table.metrics.nll_base
    np.testing.assert_allclose(nll[~measured.at_cut], exact.nll_base[~measured.at_cut], atol=STEP)
    assert (nll <= exact.nll_base + STEP).all()
    np.testing.assert_allclose(measured.table.metrics.nll, exact.nll, rtol=1e-9)
    assert np.array_equal(measured.table.target, made.exact.target)


def test_a_model_against_its_own_file_measures_the_steps_alone(made: Made, measured: Measured) -> None:
    with (
        LlamaEngine(made.source, OPTIONS) as engine,
        KldFile(made.told, bos=engine.facts.bos) as base,
    ):
        kld = measure(engine, base, threads=2).metrics.kld
    assert (kld >= 0).all()
    # rounding to a step has the variance step²/12, and KLD is half of the variance
    assert 0 < kld[~measured.at_cut].mean() <= 1.1 * STEP**2 / 24
    assert kld.max() <= 40 * np.exp(-16)  # a target at the cut, at most 40 nats above where it really is
