"""Every figure of `llama-perplexity --kl-divergence`, from the tool of the same build.

What llama.cpp's base file can resolve: it holds log-probabilities as 16-bit integers over at most 16 nats below the
top, so each is off by up to half a step, STEP / 2 = 16 / 65535 / 2 = 1.22e-4 nats, and what lies lower is cut off. One
token's KLD is a p-weighted mean of such errors and p itself is off by the same relative amount, so it differs by at
most about STEP / 2 x (1 + KLD); a mean over tokens by much less, because the errors are independent: the tolerance
taken for means is STEP / 8. Probabilities of the base differ by p x STEP / 2. Figures that do not involve the file
(PPL(Q), PPL(base) of the tool's first pass) must agree to 1e-5 relative.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

import bitloss
from bitloss.convert.convert import SourceType, convert, source_path
from bitloss.divergence.basefile import Base, TextSource
from bitloss.divergence.basewrite import write_base
from bitloss.divergence.measure import TokenTable, measure
from bitloss.divergence.statistics import summarize
from bitloss.engine.base import EngineOptions, chunks_of_text
from bitloss.engine.llama import LlamaEngine
from bitloss.imatrix.collect import collect_imatrix
from bitloss.imatrix.file import read_imatrix, write_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize.quantize import QuantizeSpec, quantize
from bitloss.records import Figure

pytestmark = pytest.mark.parity

STEP = 16 / 65535
N_CTX = 128
CHUNKS = 12
OPTIONS = EngineOptions(threads=2, batch=N_CTX, ubatch=N_CTX)

SHAPES = {
    "dense": RandomShape(
        n_vocab=900, n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=512, n_ctx_train=512
    ),
    "odd rows": RandomShape(
        n_vocab=777, n_embd=160, n_head=5, n_head_kv=1, head_dim=32, n_ff=416, n_ctx_train=512
    ),
    "experts": RandomShape(
        n_vocab=900,
        n_embd=256,
        n_head=4,
        n_head_kv=2,
        head_dim=64,
        n_ff=256,
        n_expert=4,
        n_expert_used=2,
        n_ctx_train=512,
    ),
}

# printed label -> (our key, unit of what is printed, tolerance: relative part, absolute part in our unit)
MEAN = STEP / 8
LINES: dict[str, tuple[str, float, float, float]] = {
    "Mean PPL(Q)": ("ppl", 1, 1e-5, 0),
    "Mean PPL(base)": ("ppl_base", 1, STEP / 4, 0),
    "Cor(ln(PPL(Q)), ln(PPL(base)))": ("cor_ln_ppl", 100, 0, 1e-4),
    "Mean ln(PPL(Q)/PPL(base))": ("ln_ppl_ratio", 1, 0, MEAN),
    "Mean PPL(Q)/PPL(base)": ("ppl_ratio", 1, 0, 2 * MEAN),
    "Mean PPL(Q)-PPL(base)": ("ppl_difference", 1, 0, 1000 * STEP / 4),
    "Mean    KLD": ("kld_mean", 1, STEP, MEAN),
    "Maximum KLD": ("kld_max", 1, 1e-3, STEP),
    "99.9%   KLD": ("kld_p99_9", 1, 1e-3, STEP),
    "99.0%   KLD": ("kld_p99", 1, 1e-3, STEP),
    "95.0%   KLD": ("kld_p95", 1, 1e-3, STEP),
    "90.0%   KLD": ("kld_p90", 1, 1e-3, STEP),
    "Median  KLD": ("kld_median", 1, 1e-3, STEP),
    "10.0%   KLD": ("kld_p10", 1, 1e-3, STEP),
    " 5.0%   KLD": ("kld_p5", 1, 1e-3, STEP),
    " 1.0%   KLD": ("kld_p1", 1, 1e-3, STEP),
    " 0.1%   KLD": ("kld_p0_1", 1, 1e-3, STEP),
    "Minimum KLD": ("kld_min", 1, 1e-3, STEP),
    "Mean    Δp": ("dp_mean", 100, 0, MEAN),
    "Maximum Δp": ("dp_max", 100, 0, STEP),
    "99.9%   Δp": ("dp_p99_9", 100, 0, STEP),
    "99.0%   Δp": ("dp_p99", 100, 0, STEP),
    "95.0%   Δp": ("dp_p95", 100, 0, STEP),
    "90.0%   Δp": ("dp_p90", 100, 0, STEP),
    "75.0%   Δp": ("dp_p75", 100, 0, STEP),
    "Median  Δp": ("dp_median", 100, 0, STEP),
    "25.0%   Δp": ("dp_p25", 100, 0, STEP),
    "10.0%   Δp": ("dp_p10", 100, 0, STEP),
    " 5.0%   Δp": ("dp_p5", 100, 0, STEP),
    " 1.0%   Δp": ("dp_p1", 100, 0, STEP),
    " 0.1%   Δp": ("dp_p0_1", 100, 0, STEP),
    "Minimum Δp": ("dp_min", 100, 0, STEP),
    "RMS Δp": ("dp_rms", 100, 1e-3, MEAN),
    # two nearly equal tops of the base may become equal in 16 bits: a token or two may flip
    "Same top p": ("same_top", 100, 0, 2 / (CHUNKS * 63)),
}


def printed_digits(label: str) -> float:
    """Half of the last digit printed, in our unit."""
    if "Δp" in label or "Same top" in label:
        return 5.1e-6
    return 5.1e-5 if label.startswith("Cor") else 5.1e-7


def parse(printed: str) -> dict[str, tuple[float, float | None]]:
    """label -> (value, error or None) as printed."""
    found = {}
    for line in printed.splitlines():
        match = re.match(r"^(.+?)\s*:\s+(-?[\d.]+|nan)%?(?:\s+±\s+([\d.]+|nan))?", line)
        if match and match[1] in LINES:
            found[match[1]] = (float(match[2]), float(match[3]) if match[3] else None)
    return found


ASSETS = Path(bitloss.__file__).parent / "assets"
MODELS = ["demo", *SHAPES]


def make_model(name: str, folder: Path, *, seed: int, dtype: str = "f32") -> Path:
    """The bundled model, converted, or a random one of a shape."""
    if name == "demo":
        convert(ASSETS / "demo-model", [SourceType(dtype)], folder)
        return source_path(folder, "demo-model", dtype)
    return random_gguf(folder / f"{dtype}.gguf", SHAPES[name], seed=seed, dtype=dtype)  # type: ignore[arg-type]


def a_text(path: Path) -> Path:
    rng = np.random.default_rng(11)
    words = ["alpha", "beta", "gamma", "delta", "of", "the", "and", "ünï", "10", "\n"]
    path.write_text(" ".join(rng.choice(words, 2000)), encoding="utf-8")
    return path


def ours(source: Path, candidate: Path, text: Path, folder: Path) -> TokenTable:
    with LlamaEngine(source, OPTIONS) as engine:
        chunks = chunks_of_text(engine, text, n_ctx=N_CTX, n_chunks=CHUNKS)
        write_base(engine, chunks, text=TextSource(text.name, "0" * 64), out=folder / "base")
    base = Base(folder / "base", threads=2)
    with LlamaEngine(candidate, OPTIONS) as engine:
        return measure(engine, base, threads=2)


@pytest.fixture(scope="module", params=MODELS)
def experiment(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, llama_tool: Callable[..., str]
) -> tuple[str, str, dict[str, Figure]]:
    """What the tool printed on its two passes, and our figures, for a Q4_K_M file of one shape."""
    folder = tmp_path_factory.mktemp("parity")
    source = make_model(request.param, folder, seed=21)
    candidate = folder / "q.gguf"
    quantize(QuantizeSpec(source=source, type="Q4_K_M", out=candidate))
    # words thrown together would be so unlikely to a trained model (beyond 16 nats) that the 16-bit file cuts them off
    text = ASSETS / "texts" / "evaluation.txt" if request.param == "demo" else a_text(folder / "text.txt")
    common = ["-f", text, "-c", N_CTX, "-b", N_CTX, "-t", 2, "--chunks", CHUNKS]
    kld = folder / "base.kld"
    first = llama_tool(
        "llama-perplexity", "-m", source, *common, "--kl-divergence-base", kld, until="Final est"
    )
    second = llama_tool(
        *("llama-perplexity", "-m", candidate, *common, "--kl-divergence-base", kld, "--kl-divergence"),
        until="Same top p:",
    )
    table = ours(source, candidate, text, folder)
    return first, second, dict(summarize(table.metrics, table.chunk))


def test_every_printed_figure_agrees(experiment: tuple[str, str, dict[str, Figure]]) -> None:
    _, printed, figures = experiment
    found = parse(printed)
    assert set(found) == set(LINES), f"llama-perplexity printed other lines than expected:\n{printed[-1500:]}"
    for label, (key, unit, relative, absolute) in LINES.items():
        value = figures[key].value
        assert value is not None, label
        told = found[label][0] / unit
        tolerance = relative * abs(told) + absolute + printed_digits(label)
        assert abs(value - told) <= tolerance, (
            f"{label}: ours {value!r}, printed {told!r}, tolerance {tolerance}"
        )


def test_standard_errors_agree(experiment: tuple[str, str, dict[str, Figure]]) -> None:
    _, printed, figures = experiment
    for label, (_, error) in parse(printed).items():
        key, unit, _, _ = LINES[label]
        if error is None:
            continue
        se = figures[key].se
        assert se is not None, label
        assert se == pytest.approx(error / unit, rel=0.02, abs=printed_digits(label)), label


def test_perplexity_of_the_base_agrees(experiment: tuple[str, str, dict[str, Figure]]) -> None:
    first, _, figures = experiment
    match = re.search(r"Final estimate: PPL = ([\d.]+)", first)
    assert match
    assert figures["ppl_base"].value == pytest.approx(float(match[1]), rel=1e-5, abs=5.1e-5)


@pytest.mark.parametrize("dtype", ["f32", "f16", "bf16"])
@pytest.mark.parametrize("model", MODELS)
def test_a_model_against_itself_diverges_by_exactly_nothing(tmp_path: Path, model: str, dtype: str) -> None:
    source = make_model(model, tmp_path, seed=22, dtype=dtype)
    table = ours(source, source, a_text(tmp_path / "t.txt"), tmp_path)
    assert len(table) == CHUNKS * 63
    assert (table.metrics.kld == 0).all()
    assert (table.metrics.nll == table.metrics.nll_base).all()
    assert table.metrics.same_top.all()


@pytest.mark.parametrize("model", MODELS)
def test_imatrix_sums_agree(tmp_path: Path, model: str, llama_tool: Callable[..., str]) -> None:
    source = make_model(model, tmp_path, seed=23)
    text = a_text(tmp_path / "t.txt")
    told_file, our_file = tmp_path / "told.gguf", tmp_path / "ours.gguf"
    llama_tool(
        "llama-imatrix",
        "-m",
        source,
        "-f",
        text,
        "-o",
        told_file,
        "-c",
        N_CTX,
        "-b",
        N_CTX,
        "-t",
        2,
        "--chunks",
        8,
    )
    with LlamaEngine(source, OPTIONS) as engine:
        chunks = chunks_of_text(engine, text, n_ctx=N_CTX, n_chunks=8)
        write_imatrix(collect_imatrix(engine, chunks, dataset=text.name), our_file)
    told, made = read_imatrix(told_file), read_imatrix(our_file)
    assert list(made.entries) == list(told.entries)
    assert (made.chunk_count, made.chunk_size) == (told.chunk_count, told.chunk_size)
    for name, entry in told.entries.items():
        assert made.entries[name].counts.tolist() == entry.counts.tolist(), name
        np.testing.assert_allclose(made.entries[name].sums, entry.sums, rtol=1e-5, err_msg=name)


@pytest.mark.parametrize("model", MODELS)
def test_llama_quantize_makes_the_same_tensors_from_our_imatrix(
    tmp_path: Path, model: str, llama_tool: Callable[..., str]
) -> None:
    source = make_model(model, tmp_path, seed=24, dtype="bf16")
    matrix = tmp_path / "m.imatrix.gguf"
    with LlamaEngine(source, OPTIONS) as engine:
        chunks = chunks_of_text(engine, a_text(tmp_path / "t.txt"), n_ctx=N_CTX, n_chunks=4)
        write_imatrix(collect_imatrix(engine, chunks, dataset="t.txt"), matrix)
    for kind in ("Q4_K_M", "IQ2_XS"):
        told = tmp_path / f"told-{kind}.gguf"
        llama_tool("llama-quantize", "--imatrix", matrix, source, told, kind, 2)
        made = quantize(QuantizeSpec(source=source, type=kind, out=tmp_path / f"{kind}.gguf", imatrix=matrix))
        assert made.tensors_sha256 == GgufFile.open(told).tensors_sha256()
