"""Every type of every model with a matrix: the tool's tensors and metadata but for two local paths."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from tests.parity.quantize_cases import MODELS, SLOW_START, Case, metadata, model_case, possible

from bitloss.model.gguf import GgufFile
from bitloss.quantize.quantize import How, QuantizeSpec, quantize, quantize_all
from bitloss.quantize.types import QUANT_TYPES

pytestmark = pytest.mark.parity
Tool = Callable[..., str]


@pytest.fixture(scope="module", params=[(m, d) for m in MODELS for d in ("f32", "bf16")], ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return model_case(tmp_path_factory.mktemp("-".join(request.param)), *request.param)


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
