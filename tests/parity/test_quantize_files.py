"""One pass for all types gives what llama-quantize gives one by one: tensors always, whole files where it may be."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import bitloss
from bitloss.convert.convert import SourceType, convert, source_path
from bitloss.errors import BitlossError, UnsupportedError
from bitloss.imatrix.file import Imatrix, ImatrixEntry, write_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.model.gguf_split import open_model
from bitloss.model.random_model import RandomShape, RandomType, random_gguf
from bitloss.quantize import onepass
from bitloss.quantize.quantize import How, Quantized, QuantizeSpec, plan_candidates, quantize, quantize_all
from bitloss.quantize.types import QUANT_TYPES

pytestmark = pytest.mark.parity
Tool = Callable[..., str]

SHAPES = {
    "dense": RandomShape(n_embd=256, n_head=2, n_head_kv=1, head_dim=128, n_ff=256),
    # Rows of 288 and 352 are no multiples of 256; rows of 60 (attn_output) no multiple of 32 either.
    "odd": RandomShape(n_embd=288, n_head=6, n_head_kv=2, head_dim=10, n_ff=352, tied=True),
    "experts": RandomShape(
        n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_expert=4, n_expert_used=2, n_layer=1
    ),
    # Eight layers and grouped heads: the mixes give some layers more bits.
    "deep": RandomShape(
        n_embd=256, n_head=4, n_head_kv=1, head_dim=32, n_ff=256, n_layer=8, n_vocab=300, tied=True
    ),
    # Rows of 320 fall back to blocks of 32 in one tensor only; eight experts have rules of their own.
    "mixed": RandomShape(
        n_embd=256, n_head=2, n_head_kv=2, head_dim=64, n_ff=320, n_expert=8, n_expert_used=1, n_layer=1
    ),
}
MODELS = (*SHAPES, "demo")


@dataclass(frozen=True)
class Case:
    model: Path
    imatrix: Path


def made_up_matrix(model: Path) -> Imatrix:
    """Importance of every layer's inputs, spread over three decades; the last expert of each was never used."""
    rng = np.random.default_rng(7)
    entries = {}
    for name, info in GgufFile.open(model).tensors.items():
        if name.startswith("blk.") and "norm" not in name and "gate_inp" not in name:
            n_mat = (*info.shape, 1, 1)[2]
            sums = 10 ** rng.uniform(-2, 1, (n_mat, info.shape[0])) * 64
            counts = np.full(n_mat, 64.0)
            if n_mat > 1:
                sums[-1], counts[-1] = 0, 0
            entries[name] = ImatrixEntry(sums, counts)
    return Imatrix(entries, 2, 32, ("text.txt",))


@pytest.fixture(scope="module", params=[(m, d) for m in MODELS for d in ("f32", "bf16")], ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    name, dtype = request.param
    folder = tmp_path_factory.mktemp(f"{name}-{dtype}")
    if name == "demo":
        assets = Path(bitloss.__file__).parent / "assets" / "demo-model"
        convert(assets, [SourceType(dtype)], folder)
        model = source_path(folder, "demo-model", dtype)
    else:
        model = random_gguf(folder / f"model-{dtype}.gguf", SHAPES[name], dtype=dtype)
    write_imatrix(made_up_matrix(model), folder / "m.gguf")
    return Case(model, folder / "m.gguf")


def possible(specs: list[QuantizeSpec]) -> list[QuantizeSpec]:
    """Those of the specs that are not refused."""
    kept = []
    for spec in specs:
        try:
            plan_candidates([spec])
        except BitlossError:
            continue
        kept.append(spec)
    return kept


def metadata(file: GgufFile) -> dict[str, Any]:
    """Keys as stored, but for the two that name a local path in the tool's file."""
    local = {"quantize.imatrix.file", "quantize.imatrix.dataset"}
    return {key: None if key in local else file.key_bytes(key) for key in file.metadata}


NEED_WEIGHTS = {"IQ2_XXS", "IQ2_XS", "IQ2_S", "IQ2_M", "IQ1_S", "IQ1_M", "Q2_K_S", "IQ3_XXS", "IQ3_XS"}
# A process that makes one of these first computes tables for up to ten seconds: the tool itself is asked for one
# model, the function it calls (in this process) for the others.
SLOW_START = NEED_WEIGHTS - {"Q2_K_S", "IQ3_XS"}


def test_every_type(case: Case, tmp_path: Path, llama_tool: Tool) -> None:
    asked = [QuantizeSpec(case.model, kind, tmp_path / f"{kind}.gguf") for kind in QUANT_TYPES]
    specs = possible(asked)
    made = {each.type for each in quantize_all(specs, how=How(threads=2))}
    theirs = tmp_path / "theirs.gguf"
    for spec in asked:
        printed = llama_tool("llama-quantize", case.model, theirs, spec.type, 2, check=False)
        if spec.type in made:
            assert theirs.read_bytes() == spec.out.read_bytes(), spec.type
        else:  # Q1_0 has no fallback for rows that are no multiple of its block
            assert spec.type in NEED_WEIGHTS | {"Q1_0"}
            assert "failed to quantize" in printed, printed[-1000:]


def test_every_type_with_a_matrix(case: Case, tmp_path: Path, llama_tool: Tool) -> None:
    kinds = list(QUANT_TYPES)
    if case.model.parent.name in {"demo-bf160", "deep-bf160", "mixed-bf160"}:
        # Slow types see float32; that BF16 becomes it rightly the other types and models show.
        kinds = [kind for kind in kinds if kind not in SLOW_START]
    asked = [
        QuantizeSpec(case.model, kind, tmp_path / f"{kind}.gguf", imatrix=case.imatrix) for kind in kinds
    ]
    specs = possible(asked)
    assert {spec.type for spec in asked} - {spec.type for spec in specs} <= {"Q1_0"}
    theirs, called = tmp_path / "theirs.gguf", tmp_path / "called.gguf"
    for made, spec in zip(quantize_all(specs, how=How(threads=2)), specs, strict=True):
        by_call = quantize(replace(spec, out=called), how=How("llama.cpp", threads=2))
        assert called.read_bytes() == spec.out.read_bytes(), spec.type
        assert (by_call.sha256, by_call.tensors_sha256) == (made.sha256, made.tensors_sha256)
        if spec.type in SLOW_START and case.model.parent.name != "dense-f320":
            continue
        llama_tool("llama-quantize", "--imatrix", case.imatrix, case.model, theirs, spec.type, 2)
        a, b = GgufFile.open(spec.out), GgufFile.open(theirs)
        assert list(a.tensors) == list(b.tensors)
        assert made.tensors_sha256 == b.tensors_sha256(), spec.type
        assert list(metadata(a).items()) == list(metadata(b).items()), spec.type


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
