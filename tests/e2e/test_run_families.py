"""Whole experiments from HF folders of other families than Llama: from the checkpoint to the report."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from bitloss.cli import main
from bitloss.model.gguf import GgufFile
from bitloss.records import read_results

pytestmark = pytest.mark.e2e

FAMILIES = Path(__file__).parent.parent / "data" / "families"
# A row must be whole blocks of 32: the tiny checkpoints have 32 to 96 columns, which K-quants fall back from.
CASES = {
    "qwen3": ("Qwen3ForCausalLM", "qwen3"),
    "qwen3-moe": ("Qwen3MoeForCausalLM", "qwen3moe"),
    "gemma2": ("Gemma2ForCausalLM", "gemma2"),
    "gemma3": ("Gemma3ForCausalLM", "gemma3"),
}


@pytest.mark.parametrize("family", CASES)
def test_a_folder_goes_the_whole_way(family: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = tmp_path / "text.txt"
    text.write_text(" ".join(f"the {n} cats sat on {n * n % 97} mats and ate" for n in range(80)) + "\n")
    out = tmp_path / "run"
    arguments = ["run", str(FAMILIES / family), "--from", "f32,f16,bf16", "--quants", "Q8_0,Q4_0"]
    arguments += ["--calibration", str(text), "--text", str(text), "--ctx", "64", "--chunks", "8", "-t", "1"]
    assert main([*arguments, "--out", str(out), "-q"]) == 0, capsys.readouterr().err

    results = read_results(out)
    architecture, name = CASES[family]
    assert results.model.architecture == architecture
    assert [source.name for source in results.sources] == ["f32", "f16", "bf16"]
    klds = {each.name: each.metrics["kld_mean"].value for each in results.candidates}
    assert list(klds) == [f"{kind}/{s}" for kind in ("Q8_0", "Q4_0") for s in ("f32", "f16", "bf16")]
    for source in ("f32", "f16", "bf16"):
        q8, q4 = klds[f"Q8_0/{source}"], klds[f"Q4_0/{source}"]
        assert q8 is not None
        assert q4 is not None
        assert 0 < q8 < q4
    # The weights are BF16: the bytes of F32 and of BF16 say the same.
    same = {each.name: each.identical_to for each in results.candidates}
    assert same["Q8_0/bf16"] == "Q8_0/f32"

    proof = json.loads((out / "sources" / "conversion.json").read_text())["proof"]
    assert proof["tensors"]["checkpoint"] == proof["tensors"]["used"]
    assert proof["tokens"]["tokens"] > 1000
    assert len(proof["engine"]) == 3
    for kind in ("f32", "f16", "bf16"):
        assert GgufFile.open(out / "sources" / f"{family}-{kind}.gguf").architecture == name
    assert (out / "report.html").stat().st_size > 10_000
    assert "Q4_0" in (out / "report.md").read_text()
