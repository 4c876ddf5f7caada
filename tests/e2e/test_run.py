"""Whole experiments on the smallest models, and experiments that are killed, interrupted or shared."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from bitloss.cli import main
from bitloss.errors import EngineCrash
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.progress import ProgressCallback, silent
from bitloss.records import Results, read_results
from bitloss.run.executor import InlineExecutor, LocalExecutor, StepResult
from bitloss.run.founding import run_experiment
from bitloss.run.steps import MeasureTogetherStep, Step
from bitloss.spec import ExperimentSpec, make_spec, read_spec
from bitloss.store import sha256_file

pytestmark = pytest.mark.e2e

CHECKPOINTS = Path(__file__).parent.parent / "data" / "checkpoints"
DENSE = RandomShape(n_vocab=300, n_embd=256, n_layer=1, n_head=4, n_head_kv=2, head_dim=64, n_ff=256)
EXPERTS = RandomShape(n_vocab=300, n_embd=256, n_layer=1, n_head=4, n_head_kv=2, head_dim=64, n_ff=256,
                      n_expert=4, n_expert_used=2)  # fmt: skip


@pytest.fixture
def text(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text(" ".join(f"the {n} cats sat on {n * n % 97} mats and ate" for n in range(60)) + "\n")
    return path


def _spec(model: Path, text: Path, **more: object) -> ExperimentSpec:
    values = {"model": str(model), "text": str(text), "calibration": str(text), "ctx": 64, "chunks": 4,
              "imatrix_chunks": 2, **more}  # fmt: skip
    return make_spec(values, where="test")


def _go(spec: ExperimentSpec, out: Path) -> Results:
    results = run_experiment(spec, out=out, executor=InlineExecutor(), progress=lambda _: None)
    assert read_results(out) == results
    return results


def _kld(results: Results) -> dict[str, float]:
    values = {c.name: c.metrics["kld_mean"].value for c in results.candidates}
    assert None not in values.values()
    return {name: value for name, value in values.items() if value is not None}


def _started(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "step-started"]


def _partials(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if ".partial-" in path.name]


# ------------------------------------------------------------------------------------------------ models


def test_rows_that_are_no_multiple_of_256_from_every_precision(text: Path, tmp_path: Path) -> None:
    spec = _spec(CHECKPOINTS / "mistral-odd", text, **{"from": ["f32", "f16", "bf16"]})
    results = _go(spec, tmp_path / "run")
    assert [c.name for c in results.candidates] == [
        f"{kind}/{source}" for kind in ("Q8_0", "Q4_K_M") for source in ("f32", "f16", "bf16")
    ]
    assert [source.name for source in results.sources] == ["f32", "f16", "bf16"]
    klds = _kld(results)
    assert all(0 < klds[f"Q8_0/{s}"] < klds[f"Q4_K_M/{s}"] for s in ("f32", "f16", "bf16"))
    file = GgufFile.open(tmp_path / "run" / "candidates" / "mistral-odd-f16-Q4_K_M.gguf")
    assert file.tensors["blk.0.attn_q.weight"].type_name == "Q5_0"  # Q4_K does not fit 96 columns
    assert results.model.architecture == "MistralForCausalLM"
    assert results.model.dtype == "BF16"


def test_models_are_hashed_while_they_are_written_and_not_once_more(
    text: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hashed: list[str] = []
    real = sha256_file

    def told(path: Path, progress: ProgressCallback = silent) -> str:
        hashed.append(path.name)
        return real(path, progress)

    monkeypatch.setattr("bitloss.store.folder.sha256_file", told)
    _go(_spec(CHECKPOINTS / "mistral-odd", text, quants=["Q8_0", "Q4_0"]), tmp_path / "run")
    assert "conversion.json" in hashed
    assert not [name for name in hashed if name.endswith(".gguf") and "imatrix" not in name]
    records = [json.loads(path.read_text()) for path in (tmp_path / "run" / "steps").glob("*.json")]
    outputs = [each for record in records for each in record["outputs"]]
    models = [each for each in outputs if each["path"].startswith(("sources/", "candidates/"))]
    assert len(models) == 2 + 1 + 4
    for each in models:
        file = tmp_path / "run" / each["path"]
        assert (each["bytes"], each["sha256"]) == (file.stat().st_size, real(file))


def test_a_model_whose_embedding_is_its_output(text: Path, tmp_path: Path) -> None:
    spec = _spec(CHECKPOINTS / "llama-tied", text, quants=["Q8_0"])
    results = _go(spec, tmp_path / "run")
    assert "output.weight" not in GgufFile.open(next((tmp_path / "run" / "candidates").iterdir())).tensors
    assert all(0 < value < 0.1 for value in _kld(results).values())
    assert results.text.scored_tokens == 4 * 31


@pytest.mark.parametrize("shape", [DENSE, EXPERTS], ids=["dense", "experts"])
def test_a_gguf_as_the_model(shape: RandomShape, text: Path, tmp_path: Path) -> None:
    model = random_gguf(tmp_path / "m.gguf", shape, seed=2, dtype="bf16")
    before = model.read_bytes()
    spec = _spec(model, text, **{"from": ["bf16"]})
    results = _go(spec, tmp_path / "run")
    klds = _kld(results)
    assert list(klds) == ["Q8_0/bf16", "Q4_K_M/bf16"]
    assert 0 < klds["Q8_0/bf16"] < klds["Q4_K_M/bf16"]
    assert model.read_bytes() == before
    assert results.base.file == "m.gguf"
    quantized = GgufFile.open(tmp_path / "run" / "candidates" / "m-Q4_K_M.gguf")
    name = "blk.0.ffn_gate_exps.weight" if shape.n_expert else "blk.0.ffn_gate.weight"
    assert quantized.tensors[name].type_name == "Q4_K"


def test_an_experiment_file(text: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
                            monkeypatch: pytest.MonkeyPatch) -> None:  # fmt: skip
    monkeypatch.setattr("bitloss.cli.experiments.LocalExecutor", InlineExecutor)
    random_gguf(tmp_path / "m.gguf", DENSE, dtype="f16")
    file = tmp_path / "small.toml"
    file.write_text(
        'model = "m.gguf"\nfrom = ["f16"]\nquants = ["q4_0"]\ntext = "text.txt"\nctx = 64\nchunks = 3\n'
        'out = "here"\n[[tensor_types]]\npattern = "ffn_up"\ntype = "Q6_K"\n[engine]\nubatch = 32\n'
    )
    assert main(["run", str(file), "--json", "--quiet"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert [c["name"] for c in document["candidates"]] == ["Q4_0/f16"]
    assert document["candidates"][0]["imatrix_from"] is None
    assert document["calibration"] is None
    made = GgufFile.open(tmp_path / "here" / "candidates" / "m-Q4_0.gguf")
    assert made.tensors["blk.0.ffn_up.weight"].type_name == "Q6_K"
    resolved = read_spec(tmp_path / "here" / "spec.toml")
    assert resolved.model == str(tmp_path / "m.gguf")
    assert resolved.quants == ("Q4_0",)
    assert resolved.engine.ubatch == 32


# ------------------------------------------------------------------------------------------------ crashes


class _CrashesOnce:
    """An executor under which the engine dies in the step `at`, as a bug in the C library would make it."""

    def __init__(self, at: int) -> None:
        self.at = at
        self.seen = 0

    def run(self, step: Step, progress: ProgressCallback) -> StepResult:
        self.seen += 1
        if self.seen != self.at:
            return InlineExecutor().run(step, progress)
        # a real child, killed for real: by its first word of progress
        assert isinstance(step, MeasureTogetherStep)

        def kill(_: object) -> None:
            for child in _children(os.getpid()):
                os.kill(child, signal.SIGKILL)

        with LocalExecutor() as executor:
            return executor.run(step, kill)


def _children(parent: int) -> list[int]:
    """Processes whose parent is `parent`, from /proc."""
    found = []
    for status in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = status.read_text().rpartition(")")[2].split()
        except OSError:
            continue
        if int(fields[1]) == parent and fields[0] != "Z":
            found.append(int(status.parent.name))
    return found


needs_proc = pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="finds children in /proc")


@needs_proc
def test_a_step_whose_process_dies_costs_that_step_only(text: Path, tmp_path: Path) -> None:
    model = random_gguf(tmp_path / "m.gguf", DENSE, dtype="f16")
    out = tmp_path / "run"
    spec = _spec(model, text, **{"from": ["f16"], "chunks": 10, "ctx": 32})
    with pytest.raises(EngineCrash, match=r"step measure-together died \(signal SIGKILL"):
        run_experiment(spec, out=out, executor=_CrashesOnce(6), progress=lambda _: None)
    done = _started(out)
    assert len(done) == 6
    assert not (out / "results.json").exists()
    assert _partials(out) == []
    results = _go(spec, out)
    assert _started(out)[6:][0] == done[-1]
    # two files are made in one step, and cost each its own
    assert [cost.reused for cost in results.costs] == [True] * 6 + [False] * (len(results.costs) - 6)
    whole = _go(spec, tmp_path / "undisturbed")
    assert results.candidates == whole.candidates


def _command(*arguments: object) -> list[str]:
    return [sys.executable, "-m", "bitloss", *map(str, arguments)]


def _wait_for(what: str, condition: object, process: subprocess.Popen[str]) -> None:
    assert callable(condition)
    deadline = time.monotonic() + 60
    while not condition():
        assert process.poll() is None, f"ended before {what}: {process.communicate()}"
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@needs_proc
def test_kill_interrupt_and_a_second_process(text: Path, tmp_path: Path) -> None:
    """One run: its child is killed, then it is interrupted, then shared, then left to finish."""
    model = random_gguf(tmp_path / "m.gguf", DENSE, dtype="f16")
    text.write_text(text.read_text() * 3)
    out = tmp_path / "run"
    command = _command("run", model, "--quants", "Q8_0", "--text", text, "--calibration", text, "--ctx", 64,
                       "--imatrix-chunks", 10, "--chunks", 10, "-t", 1, "-o", out)  # fmt: skip

    def start() -> subprocess.Popen[str]:
        return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    def imatrix_begun() -> bool:
        return (out / "events.jsonl").exists() and "imatrix f16" in _started(out)

    def last_word(process: subprocess.Popen[str]) -> str:
        printed, said = process.communicate(timeout=60)
        assert printed == ""
        assert "Traceback" not in said
        lines = [line for line in said.splitlines() if line.startswith("bitloss: ")]
        assert len(lines) == 1, said
        return lines[0]

    process = start()
    _wait_for("the imatrix step", lambda: imatrix_begun() and _children(process.pid), process)
    os.kill(_children(process.pid)[0], signal.SIGKILL)
    line = last_word(process)
    assert process.returncode == 1
    assert "step imatrix died (signal SIGKILL" in line
    assert "run the same command again" in line
    assert _partials(out) == []

    begun = len(_started(out))
    process = start()
    _wait_for("the step again", lambda: len(_started(out)) > begun and _children(process.pid), process)
    child = _children(process.pid)[0]
    os.kill(child, signal.SIGSTOP)  # so that it surely is still at work when the second comes
    second = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)
    assert second.returncode == 1
    assert "another process is at work" in second.stderr
    assert str(process.pid) in second.stderr
    process.send_signal(signal.SIGINT)
    os.kill(child, signal.SIGCONT)
    line = last_word(process)
    assert process.returncode == 130
    assert "interrupted; finished steps are kept" in line
    assert not Path(f"/proc/{child}").exists()
    assert _partials(out) == []
    assert not (out / "results.json").exists()

    process = start()
    printed, said = process.communicate(timeout=120)
    assert process.returncode == 0, said
    assert "Mean KLD" in printed
    assert _kld(read_results(out))["Q8_0/f16"] > 0
