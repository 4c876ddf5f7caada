"""What a user can get wrong: one clear line, exit code 1 or 2, nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitloss.model.random_model import RandomShape, random_gguf

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Done, Inputs

    Snapshot = Callable[[Path], dict[str, str]]

TINY = ("--ctx", 32, "--chunks", 2)


def refused(done: Done, code: int, *words: str) -> None:
    """One line, with these words in it, under this exit code, and nothing on standard output."""
    lines = done.err.splitlines()
    said = [line for line in lines if line.startswith("bitloss: ")]
    assert len(said) == 1, done.err
    assert lines[-1] == said[0], done.err
    assert "Traceback" not in done.err
    assert [word for word in words if word not in said[0]] == [], said[0]
    assert done.code == code, said[0]
    assert done.out == ""


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Where outputs go; each test proves that nothing is there afterwards."""
    return tmp_path / "out"


def run_command(inputs: Inputs, model: Path, out: Path, **other: object) -> tuple[object, ...]:
    values = {"--text": inputs.text, "--calibration": inputs.text, "--quants": "Q8_0", "--ctx": 32}
    values |= {f"--{name}": value for name, value in other.items()}
    return ("run", model, "--chunks", 2, "--imatrix-chunks", 2, "-o", out, "-q",
            *(item for pair in values.items() for item in pair))  # fmt: skip


# ------------------------------------------------------------------------------------------------ missing


@pytest.mark.parametrize(
    ("arguments", "word"),
    [
        (("run", "MISSING", "--text", "TEXT"), "no such model"),
        (("run", "MISSING.toml"), "no such experiment file"),
        (("run", "SOURCE", "--text", "MISSING"), "no such text"),
        (("run", "SOURCE", "--calibration", "MISSING"), "no such text"),
        (("convert", "MISSING"), "no such model"),
        (("imatrix", "MISSING", "--text", "TEXT"), "no such GGUF file"),
        (("imatrix", "SOURCE", "--text", "MISSING"), "no such text"),
        (("imatrix", "--in-file", "IMATRIX", "--in-file", "MISSING"), "no such importance matrix"),
        (("quantize", "MISSING", "--types", "Q8_0"), "no such GGUF file"),
        (("quantize", "SOURCE", "--types", "Q8_0", "--imatrix", "MISSING"), "no such importance matrix"),
        (("base", "MISSING", "--text", "TEXT"), "no such GGUF file"),
        (("base", "SOURCE", "--text", "MISSING"), "no such text"),
        (("measure", "SOURCE", "--base", "MISSING"), "no such file or folder. Give a folder made by"),
        (("measure", "MISSING", "--base", "SOURCE", "--text", "TEXT"), "no such candidate"),
        (("measure", "SOURCE", "--base", "SOURCE", "--text", "MISSING"), "no such text"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, tuple) else "",
)
def test_a_missing_file_is_named(
    cli: Cli, inputs: Inputs, out: Path, arguments: tuple[str, ...], word: str
) -> None:
    missing = inputs.folder / "not-there"
    names: dict[str, object] = {
        "MISSING": missing,
        "MISSING.toml": missing.with_suffix(".toml"),
        "TEXT": inputs.text,
        "SOURCE": inputs.source,
        "IMATRIX": inputs.imatrix,
    }
    done = cli(*(names.get(argument, argument) for argument in arguments), "-o", out, "-q")
    refused(done, 1, "not-there", word)
    assert not out.exists()


@pytest.mark.parametrize("verb", ["compare", "report"])
def test_a_folder_without_results(cli: Cli, inputs: Inputs, verb: str, snapshot: Snapshot) -> None:
    before = snapshot(inputs.folder)
    refused(cli(verb, inputs.folder), 1, "results.json")
    refused(cli(verb, inputs.folder / "nothing"), 1, "nothing")
    assert snapshot(inputs.folder) == before


# ------------------------------------------------------------------------------------------------ texts, context


def test_a_text_too_short(cli: Cli, inputs: Inputs, out: Path) -> None:
    short = inputs.folder / "short.txt"
    short.write_text("a cat sat")
    for verb in ("imatrix", "base"):
        done = cli(verb, inputs.source, "--text", short, "--ctx", 32, "-o", out, "-q")
        refused(done, 1, "short.txt", "too short", "at least 64", "found 8 tokens", "--ctx")
    refused(cli(*run_command(inputs, inputs.source, out, text=short)), 1, "short.txt", "too short")
    refused(cli(*run_command(inputs, inputs.source, out, calibration=short)), 1, "short.txt", "too short")
    assert not out.exists()


def test_a_text_that_is_not_utf8(cli: Cli, inputs: Inputs, out: Path) -> None:
    bad = inputs.folder / "latin1.txt"
    bad.write_bytes(b"caf\xe9 " * 500)
    for verb in ("imatrix", "base"):
        done = cli(verb, inputs.source, "--text", bad, "--ctx", 32, "-o", out, "-q")
        refused(done, 1, "latin1.txt", "not UTF-8 at byte 3")
    refused(cli(*run_command(inputs, inputs.source, out, text=bad)), 1, "latin1.txt", "not UTF-8 at byte 3")
    refused(cli(*run_command(inputs, inputs.checkpoint, out, calibration=bad)), 1, "latin1.txt", "not UTF-8")
    assert not out.exists()


def test_a_context_longer_than_the_models(cli: Cli, inputs: Inputs, out: Path) -> None:
    inputs.text.write_text("cats and dogs " * 5000)
    for verb in ("imatrix", "base"):
        done = cli(verb, inputs.source, "--text", inputs.text, "--ctx", 257, "-o", out, "-q")
        refused(done, 2, "--ctx", "at most 256", "found 257")
    refused(cli(*run_command(inputs, inputs.source, out, ctx=257)), 2, "--ctx", "at most 256", "found 257")
    refused(cli(*run_command(inputs, inputs.checkpoint, out, ctx=2049)), 2, "--ctx", "at most 2048")
    assert not out.exists()


def test_another_vocabulary(cli: Cli, inputs: Inputs, out: Path, snapshot: Snapshot) -> None:
    shape = RandomShape(n_vocab=321, n_embd=32, n_layer=1, head_dim=8)
    other = random_gguf(inputs.folder / "other.gguf", shape)
    base = inputs.folder / "base"
    assert cli("base", inputs.source, "--text", inputs.text, *TINY, "-o", base).code == 0
    before = snapshot(inputs.folder)
    refused(cli("measure", other, "--base", base, "-o", out, "-q"), 1, "other.gguf", "vocabulary", "321")
    done = cli("measure", other, "--base", inputs.source, "--text", inputs.text, *TINY, "-o", out, "-q")
    refused(done, 1, "other.gguf", "vocabulary", "321")
    assert not out.exists()
    assert snapshot(inputs.folder) == before


# ------------------------------------------------------------------------------------------------ wrong use


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("--quants", "Q4_KM"), ("Q4_KM", "Q4_K_M")),
        (("--quants", "banana"), ("banana",)),
        (("--quants", ""), ("--quants", "empty")),
        (("--quants", ","), ("--quants", "empty")),
        (("--quants", "Q8_0,Q8_0"), ("--quants", "twice", "Q8_0")),
        (("--quants", "Q8_0,q8_0"), ("--quants", "twice")),
        (("--from", "f64"), ("from", "f64", "bf16")),
        (("--from", "f32,f32"), ("--from", "twice")),
        (("--from", "f16"), ("--from", "f32", "f16", "GGUF is taken as it is")),
        (("-ngl", "-2"), ("-ngl", "-2")),
        (("-ngl", "many"), ("-ngl", "many")),
        (("-ngl", "4294967296"), ("--gpu-layers", "4294967296")),
        (("-fa", "maybe"), ("-fa", "maybe", "auto")),
        (("-sm", "column"), ("-sm", "column", "layer")),
        (("-t", "-1"), ("-t", "-1")),
        (("-t", "513"), ("--threads", "513", "512")),
        (("-b", "1"), ("-b", "1")),
        (("-ub", "0"), ("-ub", "0")),
        (("-ts", "1,two"), ("--tensor-split", "1,two", "3,1")),
        (("-ts", "1,,2"), ("--tensor-split", "1,,2")),
        (("-ts", "-1,2"), ("--tensor-split", "-1,2")),
        (("-ts", "nan"), ("--tensor-split", "nan")),
        (("-ts", "inf,1"), ("--tensor-split", "inf,1")),
        (("-ts", "0,0"), ("--tensor-split", "0,0")),
        (("--ctx", "7"), ("--ctx", "7", "8")),
        (("--chunks", "0"), ("--chunks", "0", "1")),
        (("--chunk", "2"), ("--chunk",)),
    ],
    ids=" ".join,
)
def test_wrong_use_of_run(
    cli: Cli, inputs: Inputs, out: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    common = ("run", inputs.source, "--text", inputs.text, "--calibration", inputs.text, "--chunks", 2)
    refused(cli(*common, "--quants", "Q8_0", "--ctx", 32, "-o", out, "-q", *arguments), 2, *words)
    assert not out.exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (("convert", "CHECKPOINT", "--to", "f64"), ("--to", "f64", "bf16")),
        (("convert", "CHECKPOINT", "--to", "f16", "--name", "../x"), ("plain name",)),
        (("quantize", "SOURCE", "--types", "Q4_KM"), ("Q4_KM", "Q4_K_M")),
        (("quantize", "SOURCE", "--types", ""), ("--types", "empty")),
        (("quantize", "SOURCE", "--types", "Q8_0", "--tensor-type", "ffn"), ("--tensor-type", "REGEX=TYPE")),
        (("quantize", "SOURCE", "--types", "Q8_0", "--tensor-type", "(=F16"), ("(",)),
        (("quantize", "SOURCE", "--types", "Q4_K,Q4_K_M"), ("two candidates of the same name",)),
        (("quantize", "SOURCE", "--types", "Q8_0", "--encoder", "ggml"), ("--encoder", "llama.cpp")),
        (("quantize", "SOURCE", "--types", "Q8_0", "--split-max-size", "2T"), ("--split-max-size", "500M")),
        (("quantize", "SOURCE", "--types", "Q8_0", "--split-max-size", "2M", "--keep-split"), ("--keep-split",)),
        (("quantize", "SOURCE", "--types", "Q8_0", "--tensor-type", "ffn=Q9_0"), ("Q9_0",)),
        (("imatrix", "SOURCE"), ("SOURCE with --text",)),
        (("imatrix", "--in-file", "IMATRIX"), ("at least two",)),
        (("measure", "SOURCE", "--base", "SOURCE"), ("--base", "--text")),
        (("nonsense",), ("nonsense",)),
    ],
)  # fmt: skip
def test_wrong_use_of_other_verbs(
    cli: Cli, inputs: Inputs, out: Path, arguments: tuple[str, ...], words: tuple[str, ...]
) -> None:
    names: dict[str, object] = {
        "SOURCE": inputs.source,
        "IMATRIX": inputs.imatrix,
        "CHECKPOINT": inputs.checkpoint,
    }
    done = cli(*(names.get(argument, argument) for argument in arguments), "-o", out)
    refused(done, 2, *words)
    assert not out.exists()


def test_more_shares_than_devices(cli: Cli, inputs: Inputs, out: Path) -> None:
    shares = ",".join(["1"] * 1000)
    done = cli("base", inputs.source, "--text", inputs.text, *TINY, "-ts", shares, "-o", out, "-q")
    refused(done, 2, "--tensor-split", "1000")
    assert not out.exists()


def test_settings_beside_an_experiment_file(cli: Cli, inputs: Inputs, out: Path) -> None:
    file = inputs.folder / "e.toml"
    file.write_text(f'model = "{inputs.source}"\nfrom = ["f32"]\ntext = "text.txt"\n')
    refused(cli("run", file, "--chunks", 3, "-ngl", 1, "-o", out), 2, "e.toml", "--chunks", "--gpu-layers")
    file.write_text('model = "m.gguf"\ntext = "text.txt"\nquant = ["Q8_0"]\n')
    refused(cli("run", file, "-o", out), 2, "e.toml", "quant", "quants")
    file.write_text("model = \n")
    refused(cli("run", file, "-o", out), 2, "e.toml", "TOML")
    assert not out.exists()


def test_two_candidates_of_one_name(cli: Cli, inputs: Inputs, out: Path) -> None:
    (inputs.folder / "b").mkdir()
    shutil.copy(inputs.source, inputs.folder / "b")
    done = cli("measure", inputs.source, inputs.folder / "b" / inputs.source.name, "--base", inputs.source,
               "--text", inputs.text, "-o", out)  # fmt: skip
    refused(done, 2, "same file name")
    assert not out.exists()


# ------------------------------------------------------------------------------------------------ outputs in the way


def test_the_folder_of_another_experiment_is_left_alone(
    cli: Cli, inputs: Inputs, out: Path, snapshot: Snapshot
) -> None:
    assert cli(*run_command(inputs, inputs.source, out)).code == 0
    before = snapshot(out)
    refused(cli(*run_command(inputs, inputs.source, out, ctx=64)), 1, "another experiment", "ctx 32 (now 64)")
    refused(cli(*run_command(inputs, inputs.source, out, quants="Q4_0")), 1, 'quants ["Q8_0"] (now ["Q4_0"])')
    assert snapshot(out) == before


def test_a_folder_that_is_no_run_is_left_alone(
    cli: Cli, inputs: Inputs, out: Path, snapshot: Snapshot
) -> None:
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    before = snapshot(out)
    refused(cli(*run_command(inputs, inputs.source, out)), 1, "no run of bitloss", "thesis.doc", "--out")
    refused(
        cli("measure", inputs.source, "--base", inputs.source, "--text", inputs.text, *TINY, "-o", out, "-q"),
        1,
        "no run of bitloss",
    )
    refused(cli("base", inputs.source, "--text", inputs.text, *TINY, "-o", out, "-q"), 1, "already there")
    refused(cli("imatrix", inputs.source, "--text", inputs.text, *TINY, "-o", out, "-q"), 1, "in the way")
    assert snapshot(out) == before


@pytest.mark.parametrize("verb", ["convert", "imatrix", "quantize", "base", "run"])
def test_a_full_disk(
    cli: Cli, inputs: Inputs, out: Path, verb: str, monkeypatch: pytest.MonkeyPatch, snapshot: Snapshot
) -> None:
    """The system refuses the final sync, the last moment at which a disk can turn out to be full."""
    out.mkdir()
    inputs_before = snapshot(inputs.folder)

    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    text = ("--text", inputs.text, *TINY, "-q")
    commands: dict[str, tuple[Any, ...]] = {
        "convert": ("convert", inputs.checkpoint, "-q", "-o", out),
        "imatrix": ("imatrix", inputs.source, *text, "-o", out / "i.gguf"),
        "quantize": ("quantize", inputs.source, "--types", "Q8_0", "-q", "-o", out),
        "base": ("base", inputs.source, *text, "-o", out / "base"),
        "run": run_command(inputs, inputs.source, out),
    }
    refused(cli(*commands[verb]), 1, "the disk is full", "nothing half-written")
    assert set(snapshot(out)) <= {".bitloss.lock"}
    assert snapshot(inputs.folder) == inputs_before


# ------------------------------------------------------------------------------------------------ damage in a run


def _started(folder: Path) -> list[str]:
    lines = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    return [line["step"] for line in lines if line["event"] == "step-started"]


@pytest.mark.parametrize("damage", ["cut", "flipped", "gone"])
def test_damaged_tokens_are_measured_again(cli: Cli, inputs: Inputs, out: Path, damage: str) -> None:
    assert cli(*run_command(inputs, inputs.source, out)).code == 0
    results = json.loads((out / "results.json").read_text())
    path = out / "tokens" / "Q8_0-f32.parquet"
    good = path.read_bytes()
    data = bytearray(good)
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data if damage == "flipped" else good[: len(good) // 2])
    if damage == "gone":
        path.unlink()
    before = _started(out)
    assert cli(*run_command(inputs, inputs.source, out)).code == 0
    assert _started(out)[len(before) :] == ["measure Q8_0/f32"]
    assert path.read_bytes() == good
    again = json.loads((out / "results.json").read_text())
    assert again["candidates"] == results["candidates"]
    assert again["comparisons"] == results["comparisons"]


def test_damaged_results_are_refused(cli: Cli, inputs: Inputs, out: Path) -> None:
    assert cli(*run_command(inputs, inputs.source, out)).code == 0
    path = out / "results.json"
    path.write_bytes(path.read_bytes()[:500])
    for verb in ("compare", "report"):
        refused(cli(verb, out), 1, "results.json")
    assert path.stat().st_size == 500


def test_a_name_that_is_not_utf8(cli: Cli, inputs: Inputs, out: Path) -> None:
    odd = os.fsdecode(b"odd\xff.txt")
    for command in (
        ("base", inputs.source, "--text", odd, *TINY, "-o", out),
        ("run", odd, *TINY, "-o", out),
        ("measure", odd, "--base", inputs.source, "--text", inputs.text, *TINY, "-o", out),
    ):
        refused(cli(*command), 2, "not UTF-8", "odd")
    assert not out.exists()


def test_micro_batches_too_small_for_an_importance_matrix(cli: Cli, inputs: Inputs, out: Path) -> None:
    done = cli("imatrix", inputs.source, "--text", inputs.text, *TINY, "-ub", 8, "-o", out)
    refused(done, 1, "fewer than 16 rows", "--ubatch-size")
