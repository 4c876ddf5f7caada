"""Every type of every model without a matrix: whole files as llama-quantize writes them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tests.parity.quantize_cases import MODELS, NEED_WEIGHTS, Case, model_case, possible

from bitloss.quantize.quantize import How, QuantizeSpec, quantize_all
from bitloss.quantize.types import QUANT_TYPES

pytestmark = pytest.mark.parity
Tool = Callable[..., str]


@pytest.fixture(scope="module", params=[(m, d) for m in MODELS for d in ("f32", "bf16")], ids="-".join)
def case(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Case:
    return model_case(tmp_path_factory.mktemp("-".join(request.param)), *request.param)


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
