"""Our candidates are llama-quantize's, tensor byte for tensor byte."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from bitloss.engine.ggml import ggml
from bitloss.imatrix.file import read_imatrix, write_imatrix
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.quantize import call
from bitloss.quantize.quantize import How, QuantizeSpec, quantize
from bitloss.quantize.types import ALIASES, QUANT_TYPES, TENSOR_TYPES

pytestmark = pytest.mark.parity
Tool = Callable[..., str]

SHAPES = {
    "dense": RandomShape(n_embd=256, n_head=2, n_head_kv=1, head_dim=128, n_ff=256),
    # Rows of 288 and 352 are no multiples of 256; rows of 60 (attn_output) no multiple of 32 either.
    "odd": RandomShape(n_embd=288, n_head=6, n_head_kv=2, head_dim=10, n_ff=352, tied=True),
    "experts": RandomShape(
        n_embd=256, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_expert=4, n_expert_used=2
    ),
}
TYPES = ("Q8_0", "Q4_K_M", "Q4_0", "Q6_K", "IQ4_XS", "IQ2_XS")


@dataclass(frozen=True)
class Case:
    model: Path
    imatrix: Path


@pytest.fixture(scope="module", params=list(SHAPES))
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory, llama_tool: Tool) -> Case:
    folder = tmp_path_factory.mktemp(request.param)
    model = random_gguf(folder / "model-f32.gguf", SHAPES[request.param], dtype="f32")
    text = folder / "calibration.txt"
    text.write_text("the quick brown fox jumps over the lazy dog and thinks of nothing in particular " * 20)
    out = folder / "imatrix.gguf"
    llama_tool(
        "llama-imatrix", "-m", model, "-f", text, "-o", out, "-c", 64, "--chunks", 4, "--no-ppl", "-t", 1
    )
    return Case(model, out)


def metadata(file: GgufFile) -> dict[str, Any]:
    """Keys as plain values, but for the two that name a local path in the tool's file."""
    plain = {key: entry.value for key, entry in file.metadata.items()}
    return {
        key: value.tolist() if hasattr(value, "tolist") else value
        for key, value in plain.items()
        if key not in {"quantize.imatrix.file", "quantize.imatrix.dataset"}
    }


@pytest.mark.parametrize(
    ("kind", "with_imatrix"),
    # IQ2_XS without a matrix is refused by both: tests/unit/quantize.
    [(kind, True) for kind in TYPES] + [(kind, False) for kind in TYPES if kind != "IQ2_XS"],
)
def test_same_tensors(case: Case, tmp_path: Path, llama_tool: Tool, kind: str, with_imatrix: bool) -> None:
    ours, theirs = tmp_path / "ours.gguf", tmp_path / "theirs.gguf"
    flags = ["--imatrix", case.imatrix] if with_imatrix else []
    llama_tool("llama-quantize", *flags, case.model, theirs, kind, 1)
    made = quantize(
        QuantizeSpec(case.model, kind, ours, imatrix=case.imatrix if with_imatrix else None),
        how=How(threads=2),
    )
    a, b = GgufFile.open(ours), GgufFile.open(theirs)
    assert list(a.tensors) == list(b.tensors)
    assert made.tensors_sha256 == b.tensors_sha256()
    assert list(a.metadata) == list(b.metadata)
    assert metadata(a) == metadata(b)
    if not with_imatrix:
        assert ours.read_bytes() == theirs.read_bytes()


def test_our_matrix_and_the_tools_give_the_same_tensors(case: Case, tmp_path: Path, llama_tool: Tool) -> None:
    rewritten = tmp_path / "rewritten.gguf"
    write_imatrix(read_imatrix(case.imatrix), rewritten)
    for imatrix, out in ((case.imatrix, "a.gguf"), (rewritten, "b.gguf")):
        llama_tool("llama-quantize", "--imatrix", imatrix, case.model, tmp_path / out, "Q4_K_M", 1)
    a, b = (GgufFile.open(tmp_path / name).tensors_sha256() for name in ("a.gguf", "b.gguf"))
    assert a == b


def test_legacy_matrix(case: Case, tmp_path: Path, llama_tool: Tool) -> None:
    legacy = tmp_path / "imatrix.dat"
    args = ("--in-file", case.imatrix, "-o", legacy, "-c", 64, "-b", 64, "--output-format", "dat")
    llama_tool("llama-imatrix", "-m", "unused.gguf", *args)
    llama_tool("llama-quantize", "--imatrix", legacy, case.model, tmp_path / "theirs.gguf", "Q4_K_M", 1)
    made = quantize(QuantizeSpec(case.model, "Q4_K_M", tmp_path / "ours.gguf", imatrix=legacy))
    assert made.tensors_sha256 == GgufFile.open(tmp_path / "theirs.gguf").tensors_sha256()


def test_forced_types(case: Case, tmp_path: Path, llama_tool: Tool) -> None:
    flags = [
        "--tensor-type",
        "attn_v=q8_0",
        "--tensor-type",
        r"blk\.0\.ffn=q5_1",
        "--token-embedding-type",
        "q5_0",
    ]
    llama_tool("llama-quantize", "--pure", *flags, case.model, tmp_path / "theirs.gguf", "Q4_0", 1)
    spec = QuantizeSpec(
        case.model,
        "q4_0",
        tmp_path / "ours.gguf",
        tensor_types=(("attn_v", "Q8_0"), (r"blk\.0\.ffn", "Q5_1")),
        token_embedding_type="Q5_0",
        pure=True,
    )
    quantize(spec)
    assert (tmp_path / "ours.gguf").read_bytes() == (tmp_path / "theirs.gguf").read_bytes()


def test_small_buffers_and_threads_change_nothing(
    case: Case, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = QuantizeSpec(case.model, "Q4_K_M", tmp_path / "a.gguf", imatrix=case.imatrix)
    whole = quantize(spec, how=How("llama.cpp", threads=1))
    monkeypatch.setattr(call, "MAX_BUFFER_BYTES", 10_000)
    sliced = quantize(replace(spec, out=tmp_path / "b.gguf"), how=How("llama.cpp", threads=3))
    assert whole.sha256 == sliced.sha256


def test_the_table_of_types_is_the_tools(llama_tool: Tool) -> None:
    printed = llama_tool("llama-quantize", "--help", check=False)
    listed = {
        name: int(number)
        for number, name in re.findall(r"^ +(\d+) +or +(\w+) *:", printed, flags=re.MULTILINE)
    }
    assert listed == {
        **{name: kind.ftype for name, kind in QUANT_TYPES.items()},
        **{alias: QUANT_TYPES[name].ftype for alias, name in ALIASES.items()},
    }


def test_tensor_types_are_ggmls_by_name() -> None:
    for name, kind in TENSOR_TYPES.items():
        assert ggml().ggml_type_name(int(kind)).decode().upper() == name
