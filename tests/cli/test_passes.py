"""`--max-memory`: as many candidates in one pass as fit, and the same figures however they are grouped."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Inputs

TINY = ("--ctx", 32, "--chunks", 3)


@pytest.fixture
def measured(cli: Cli, inputs: Inputs, tmp_path: Path) -> Any:
    """Measure three candidates with more flags: returns (results, passes as their events tell them)."""
    assert cli("base", inputs.source, "--text", inputs.text, *TINY, "-o", tmp_path / "base", "-q").code == 0
    types = "Q8_0,Q4_K_M,Q4_0"
    assert cli("quantize", inputs.source, "--types", types, "-o", tmp_path, "-q").code == 0
    files = [tmp_path / f"tiny-f32-{kind}.gguf" for kind in types.split(",")]

    def measure(name: str, *flags: object) -> tuple[Any, list[dict[str, Any]]]:
        done = cli("measure", *files, "--base", tmp_path / "base", "-o", tmp_path / name, *flags, "--json")
        assert done.code == 0, done.err
        events = [json.loads(line) for line in (tmp_path / name / "events.jsonl").read_text().splitlines()]
        started = [event for event in events if event["event"] == "step-started"]
        for event in started:
            assert event["plan"] in done.err
        return json.loads(done.out), started

    return measure


def _limit_for(plan: str) -> float:
    found = re.search(r"about ([\d.]+) MiB", plan)
    assert found
    return float(found[1])


def test_candidates_share_a_pass_as_far_as_memory_goes(measured: Any) -> None:
    whole, (one,) = measured("whole")
    assert one["step"] == "measure tiny-f32-Q8_0, tiny-f32-Q4_K_M, tiny-f32-Q4_0"
    assert one["plan"].startswith("one pass, about ")
    all_three = _limit_for(one["plan"])
    parts, passes = measured("parts", "--max-memory", f"{all_three - 1:.2f}MiB")
    assert [event["step"] for event in passes] == [
        "measure tiny-f32-Q8_0, tiny-f32-Q4_K_M",
        "measure tiny-f32-Q4_0",
    ]
    assert [event["plan"].partition(",")[0] for event in passes] == ["pass 1 of 2", "pass 2 of 2"]
    assert all(_limit_for(event["plan"]) < all_three for event in passes)
    assert parts["candidates"] == whole["candidates"]
    assert parts["comparisons"] == whole["comparisons"]
    assert [cost["step"] for cost in whole["costs"]] == [
        "measure tiny-f32-Q8_0",
        "measure tiny-f32-Q4_K_M",
        "measure tiny-f32-Q4_0",
    ]


def test_a_limit_below_one_candidate_is_refused(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    flags = ("--base", inputs.source, "--text", inputs.text, *TINY, "--max-memory", "1MB")
    done = cli("measure", inputs.source, *flags, "-o", tmp_path / "out", "-q")
    assert done.code == 2
    assert re.fullmatch(
        r"bitloss: --max-memory: too little memory to measure a candidate: expected [\d.]+ MiB for tiny-f32.gguf, "
        r"found 976.56 KiB. [Aa]llow more.*\n",
        done.err,
    ), done.err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("verb", ["base", "imatrix"])
def test_a_limit_below_the_model_is_refused_where_one_model_is_computed(
    cli: Cli, inputs: Inputs, tmp_path: Path, verb: str
) -> None:
    done = cli(
        verb, inputs.source, "--text", inputs.text, *TINY, "--max-memory", "1MB", "-o", tmp_path / "x", "-q"
    )
    assert done.code == 2
    assert done.err.startswith("bitloss: --max-memory: too little memory to compute this model: expected ")
    assert not (tmp_path / "x").exists()


def test_layers_for_a_gpu_that_the_build_has_not_are_told(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    import llama_cpp

    command = ("imatrix", inputs.source, "--text", inputs.text, *TINY, "-o", tmp_path / "m.gguf", "-q")
    done = cli(*command, "-ngl", 1)
    assert done.code == 0, done.err
    told = "" if llama_cpp.llama_supports_gpu_offload() else "bitloss: --gpu-layers has no effect"
    assert done.err.startswith(told)
    assert cli(*command, "--force").err == ""
