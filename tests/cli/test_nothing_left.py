"""A command that is refused before a step was finished leaves no folder that it made, and all that was there before."""

from __future__ import annotations

import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from tests.cli.test_bad_input import refused, run_command

from bitloss.model.random_model import random_gguf
from bitloss.run.executor import InlineExecutor

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Inputs

    Snapshot = Callable[[Path], dict[str, str]]

TINY = ("--ctx", 32, "--chunks", 2)
FAULTS = ["memory", "model", "tokens", "shard", "damaged shard", "kld", "short text"]


@pytest.fixture
def base(cli: Cli, inputs: Inputs, tmp_path: Path) -> Path:
    words = ("base", inputs.source, "--text", inputs.text, *TINY, "-q")
    assert cli(*words, "-o", tmp_path / "base", "--kld", tmp_path / "base.kld").code == 0
    return tmp_path / "base"


def _faulty(fault: str, inputs: Inputs, base: Path) -> tuple[tuple[object, ...], str]:
    """Arguments of a measurement that fails only once the folder has been taken, and what is said of it."""
    from tests.cli.conftest import SHAPE

    (shard,) = base.glob("hidden-*")
    if fault == "memory":
        return ("--base", base, "--max-memory", "1KiB"), "memory"
    if fault == "model":
        other = random_gguf(base.parent / "other.gguf", SHAPE, seed=8, dtype="f32")
        return ("--base", base, "--base-model", other), "not the model the base was made from"
    if fault in ("tokens", "shard", "damaged shard"):
        file = base / "tokens.safetensors" if fault == "tokens" else shard
        if fault == "damaged shard":
            content = file.read_bytes()
            file.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
            return ("--base", base), "damaged"
        file.unlink()
        return ("--base", base), "missing"
    if fault == "kld":
        kld = base.with_suffix(".kld")
        rows = kld.read_bytes()
        at = 20 + 4 * 64
        kld.write_bytes(rows[:at] + struct.pack("<f", float("nan")) + rows[at + 4 :])
        return ("--base", kld), "damaged row"
    short = inputs.folder / "short.txt"
    short.write_text("a cat sat")
    return ("--base", inputs.source, "--text", short, "--ctx", 32), "too short"


@pytest.mark.parametrize("fault", FAULTS)
def test_a_measurement_that_fails_leaves_no_folder(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path, snapshot: Snapshot, fault: str
) -> None:
    more, said = _faulty(fault, inputs, base)
    before = snapshot(tmp_path)
    out = tmp_path / "above" / "m"
    code = 2 if fault == "memory" else 1
    refused(cli("measure", inputs.source, *more, "-o", out, "-q"), code, said)
    assert snapshot(tmp_path) == before


def test_a_folder_that_was_there_stays(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path, snapshot: Snapshot
) -> None:
    out = tmp_path / "m"
    words = ("measure", inputs.source, "--base", base, "-o", out, "-q")
    out.mkdir()
    more, said = _faulty("model", inputs, base)
    refused(cli(*words, *more[2:]), 1, said)
    assert (out / "run.json").is_file()
    assert cli(*words).code == 0
    measured = snapshot(out / "tokens")
    refused(cli(*words[:2], base.parent / "other.gguf", *words[2:], *more[2:]), 1, said)
    assert snapshot(out / "tokens") == measured
    assert (out / "results.json").is_file()


def test_a_finished_step_keeps_the_folder(cli: Cli, inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "m"
    words = ("measure", inputs.source, "--base", inputs.source, "--text", inputs.text, *TINY, "-o", out, "-q")

    class Failing(InlineExecutor):
        def run(self, step, progress):  # type: ignore[no-untyped-def]
            from bitloss.errors import EngineError

            if step.kind.startswith("measure"):
                raise EngineError("no more")
            return super().run(step, progress)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("bitloss.cli.experiments.LocalExecutor", Failing)
        refused(cli(*words), 1, "no more")
    assert [path.name.partition("-")[0] for path in (out / "steps").iterdir()] == ["base"]
    assert (out / "base" / "base.json").is_file()
    assert cli(*words).code == 0


def test_an_interrupted_command_keeps_its_folder(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Interrupted(InlineExecutor):
        def run(self, step, progress):  # type: ignore[no-untyped-def]
            raise KeyboardInterrupt

    monkeypatch.setattr("bitloss.cli.experiments.LocalExecutor", Interrupted)
    out = tmp_path / "m"
    assert cli("measure", inputs.source, "--base", base, "-o", out, "-q").code == 130
    assert (out / "run.json").is_file()


def test_a_run_and_a_ranking_that_fail_leave_no_folder(
    cli: Cli, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    class Failing(InlineExecutor):
        def run(self, step, progress):  # type: ignore[no-untyped-def]
            from bitloss.errors import EngineError

            raise EngineError("nothing works")

    monkeypatch.setattr("bitloss.cli.experiments.LocalExecutor", Failing)
    before = snapshot(tmp_path)
    refused(cli(*run_command(inputs, inputs.source, tmp_path / "run")), 1, "nothing works")
    ranking = ("sensitivity", inputs.source, "--type", "Q4_0", "--text", inputs.text, *TINY, "-q")
    refused(cli(*ranking, "-o", tmp_path / "deep" / "s"), 1, "nothing works")
    assert snapshot(tmp_path) == before
