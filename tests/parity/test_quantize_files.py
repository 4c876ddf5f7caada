"""Sources that are split or quantized, small pieces, adversarial blocks: what llama-quantize gives, byte for byte."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from tests.parity.quantize_cases import NEED_WEIGHTS, SHAPES, SLOW_START, Case, made_up_matrix, possible

from bitloss.errors import BitlossError, UnsupportedError
from bitloss.imatrix.file import write_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import open_model
from bitloss.model.random_model import RandomType, random_gguf
from bitloss.quantize import onepass
from bitloss.quantize.quantize import How, Quantized, QuantizeSpec, quantize, quantize_all
from bitloss.quantize.types import QUANT_TYPES

pytestmark = pytest.mark.parity
Tool = Callable[..., str]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Case:
    folder = tmp_path_factory.mktemp("split")
    model = random_gguf(folder / "model-f32.gguf", SHAPES["dense"], dtype="f32")
    write_imatrix(made_up_matrix(model), folder / "m.gguf")
    return Case(model, folder / "m.gguf")


def test_a_quantized_source(dense: Case, tmp_path: Path, llama_tool: Tool) -> None:
    for first in ("Q8_0", "Q4_K_M", "IQ4_XS"):
        source = tmp_path / f"{first}.gguf"
        quantize(QuantizeSpec(dense.model, first, source))
        spec = QuantizeSpec(source, "Q5_K_M", tmp_path / "ours.gguf", allow_requantize=True)
        quantize(spec)
        llama_tool("llama-quantize", "--allow-requantize", source, tmp_path / "theirs.gguf", "Q5_K_M", 2)
        assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_small_pieces_and_threads_change_nothing(
    dense: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def made(folder: str, threads: int) -> list[Quantized]:
        specs = [
            QuantizeSpec(dense.model, kind, tmp_path / folder / f"{kind}.gguf", imatrix=dense.imatrix)
            for kind in ("Q4_K_M", "Q8_0", "IQ4_XS")
        ]
        return quantize_all(specs, how=How(threads=threads))

    whole = made("a", 1)
    monkeypatch.setattr(onepass, "PIECE_VALUES", 256 * 7)
    pieces = made("b", 3)
    assert [each.sha256 for each in whole] == [each.sha256 for each in pieces]


def test_split_sources_and_candidates(dense: Case, tmp_path: Path, llama_tool: Tool) -> None:
    prefix = tmp_path / "part-f32"
    llama_tool("llama-gguf-split", "--split", "--split-max-tensors", 7, dense.model, prefix)
    first = tmp_path / "part-f32-00001-of-00003.gguf"
    assert first.is_file()
    joined = quantize(QuantizeSpec(first, "Q4_K_M", tmp_path / "ours.gguf"))
    llama_tool("llama-quantize", first, tmp_path / "theirs.gguf", "Q4_K_M", 2)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()

    out = tmp_path / "kept"
    out.mkdir()
    kept = quantize(QuantizeSpec(first, "Q4_K_M", out / "ours.gguf", keep_split=True), how=How(verify=True))
    llama_tool("llama-quantize", "--keep-split", first, out / "theirs.gguf", "Q4_K_M", 2)
    assert [part.path.name for part in kept.parts] == [f"ours-0000{n}-of-00003.gguf" for n in (1, 2, 3)]
    for part in kept.parts:
        theirs = out / part.path.name.replace("ours", "theirs")
        assert part.path.read_bytes() == theirs.read_bytes()
    assert open_model(kept.out).tensors_sha256() == kept.tensors_sha256
    assert joined.bits_per_weight == kept.bits_per_weight


def test_parts_of_a_largest_size(dense: Case, tmp_path: Path, llama_tool: Tool) -> None:
    plain = quantize(QuantizeSpec(dense.model, "F16", tmp_path / "whole.gguf"))
    spec = QuantizeSpec(dense.model, "F16", tmp_path / "ours.gguf", split_max_bytes=10**6)
    made = quantize(spec, how=How(verify=True))
    llama_tool("llama-gguf-split", "--split", "--split-max-size", "1M", plain.out, tmp_path / "theirs")
    assert len(made.parts) == 3
    for part in made.parts:
        theirs = tmp_path / part.path.name.replace("ours", "theirs")
        assert part.path.read_bytes() == theirs.read_bytes()
    assert made.tensors_sha256 == plain.tensors_sha256


def adversarial(path: Path, dtype: RandomType, sizes: tuple[float, ...]) -> Path:
    """A dense model whose matrices have rows of every kind: zeros, a spike, constant, denormal, alternating, mixed."""
    random_gguf(path, SHAPES["dense"], dtype=dtype)
    rng = np.random.default_rng(5)
    kind = np.dtype(np.float32 if dtype == "f32" else ml_dtypes.bfloat16)
    for info in list(GgufFile.open(path).tensors.values()):
        if len(info.shape) < 2 or "gate_inp" in info.name:
            continue
        n_in, n_rows = info.shape
        values = np.empty((n_rows, n_in), np.float32)
        for row in range(n_rows):
            size, spike = sizes[row // 8 % len(sizes)], np.zeros(n_in)
            spike[rng.integers(n_in)] = size
            normal = rng.standard_normal(n_in) * size
            values[row] = (
                np.zeros(n_in),
                np.full(n_in, -0.0),
                spike,
                np.full(n_in, size),
                rng.integers(-3, 4, n_in) * 1.4e-45,
                normal * 1e-38,
                np.where(np.arange(n_in) % 2, size, -size),
                normal * np.exp(rng.uniform(-12, 0, n_in // 16).repeat(16)),
            )[row % 8]
        with path.open("r+b") as file:
            file.seek(info.offset)
            file.write(values.astype(kind).tobytes())
    return path


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "matrix"])
@pytest.mark.parametrize("dtype", ["f32", "bf16"])
def test_adversarial_blocks(tmp_path: Path, llama_tool: Tool, dtype: RandomType, weighted: bool) -> None:
    model = adversarial(tmp_path / f"model-{dtype}.gguf", dtype, (0.02, 3.0))
    write_imatrix(made_up_matrix(model), tmp_path / "m.gguf")
    imatrix = tmp_path / "m.gguf" if weighted else None
    asked = [QuantizeSpec(model, kind, tmp_path / f"{kind}.gguf", imatrix=imatrix) for kind in QUANT_TYPES]
    specs = possible(asked)
    assert {spec.type for spec in asked} - {spec.type for spec in specs} <= (
        set() if weighted else NEED_WEIGHTS
    )
    quantize_all(specs, how=How(threads=2))
    theirs, called = tmp_path / "theirs.gguf", tmp_path / "called.gguf"
    for spec in specs:
        quantize(replace(spec, out=called), how=How("llama.cpp", threads=2))
        assert called.read_bytes() == spec.out.read_bytes(), spec.type
        if spec.type not in SLOW_START and not weighted:
            llama_tool("llama-quantize", model, theirs, spec.type, 2)
            assert theirs.read_bytes() == spec.out.read_bytes(), spec.type


@pytest.mark.parametrize("weighted", [False, True], ids=["plain", "matrix"])
def test_blocks_that_llama_cpp_gives_up_on(tmp_path: Path, llama_tool: Tool, weighted: bool) -> None:
    """1e30 has no half for a scale, and ends the tool's process in the codebook types: no file of it or of ours."""
    model = adversarial(tmp_path / "model-f32.gguf", "f32", (0.02, 1e30))
    write_imatrix(made_up_matrix(model), tmp_path / "m.gguf")
    imatrix = tmp_path / "m.gguf" if weighted else None
    specs = possible(
        [QuantizeSpec(model, kind, tmp_path / f"{kind}.gguf", imatrix=imatrix) for kind in QUANT_TYPES]
    )
    with pytest.raises(
        UnsupportedError, match=r"cannot hold this tensor.*; failed likewise: .*; finished: "
    ) as caught:
        quantize_all(specs, how=How(threads=2))
    made = {spec.type for spec in specs if spec.out.exists()}
    assert {"F32", "BF16"} <= made
    assert not made & {"F16", "Q8_0", "Q4_K_M", "IQ3_S"}
    assert all(f"{spec.type}.gguf" in str(caught.value) for spec in specs)
    flags = ("--imatrix", imatrix) if imatrix else ()
    for spec in specs:
        if spec.type in SLOW_START - {"IQ2_XS"}:
            continue
        theirs = tmp_path / f"theirs-{spec.type}.gguf"
        llama_tool("llama-quantize", *flags, model, theirs, spec.type, 2, check=False)
        if spec.type in made:
            assert GgufFile.open(theirs).tensors_sha256() == GgufFile.open(spec.out).tensors_sha256(), (
                spec.type
            )
        else:
            with pytest.raises(BitlossError):
                GgufFile.open(theirs)


def test_where_llama_cpp_ends_the_process_one_line_is_said(tmp_path: Path) -> None:
    model = adversarial(tmp_path / "model-f32.gguf", "f32", (0.02, 1e30))
    asked = (
        "quantize",
        model,
        "--types",
        "IQ3_S",
        "--encoder",
        "llama.cpp",
        "-o",
        tmp_path / "out",
        "--quiet",
    )
    done = subprocess.run(
        [sys.executable, "-m", "bitloss", *map(str, asked)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1, done.stderr
    assert re.search(
        r"died \(signal SIGABRT\): found ggml-quants\.c:\d+: GGML_ASSERT\(.*\) failed\. ", done.stderr
    )
    assert "the same command ends here again" in done.stderr
    assert "the default encoder gives up single types" in done.stderr
    assert list((tmp_path / "out").iterdir()) == []
