"""What a user can get wrong: one clear line, exit code 1 or 2, nothing half-written, nothing lost."""

from __future__ import annotations

import errno
import json
import os
import pickle
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from bitloss.imatrix.file import read_imatrix
from bitloss.imatrix.legacy import write_legacy_imatrix
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


def _run(inputs: Inputs, model: Path, out: Path, **other: object) -> tuple[object, ...]:
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
        (("measure", "SOURCE", "--base", "MISSING"), "base.json is missing"),
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


# ------------------------------------------------------------------------------------------------ checkpoints


class _Bomb:
    """A pickle that leaves a file where it is loaded."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return (Path.touch, (self.path,))


def _no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def _other_architecture(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["MambaForCausalLM"]}))


def _cut_weights(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(data[: len(data) // 2])


def _bad_header(folder: Path) -> None:
    data = bytearray((folder / "model.safetensors").read_bytes())
    data[8:40] = b"\xff" * 32
    (folder / "model.safetensors").write_bytes(data)


def _huge_header(folder: Path) -> None:
    data = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", 1 << 62) + data[8:])


def _pickle_only(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(_Bomb(folder.parent / "was-unpickled")))


def _bad_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").write_text("{")


@pytest.mark.parametrize("verb", ["convert", "run"])
@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (_no_config, ("mistral-odd", "no config.json")),
        (_other_architecture, ("MambaForCausalLM", "MistralForCausalLM", "GGUF")),
        (_cut_weights, ("model.safetensors",)),
        (_bad_header, ("model.safetensors",)),
        (_huge_header, ("model.safetensors", "header")),
        (_pickle_only, ("pytorch_model.bin", "pickle", "safetensors")),
    ],
)
def test_a_damaged_checkpoint(
    cli: Cli, inputs: Inputs, out: Path, verb: str, damage: Callable[[Path], None], words: tuple[str, ...]
) -> None:
    damage(inputs.checkpoint)
    if verb == "convert":
        done = cli("convert", inputs.checkpoint, "-o", out, "-q")
    else:
        done = cli(*_run(inputs, inputs.checkpoint, out))
    refused(done, 1, *words)
    assert not out.exists()
    assert not (inputs.folder / "was-unpickled").exists()


def test_the_pickle_would_have_run(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(_Bomb(tmp_path / "was-unpickled")))
    assert (tmp_path / "was-unpickled").exists()


def test_a_damaged_tokenizer_leaves_no_file(cli: Cli, inputs: Inputs, out: Path) -> None:
    _bad_tokenizer(inputs.checkpoint)
    refused(cli("convert", inputs.checkpoint, "-o", out, "-q"), 1, "tokenizer.json")
    assert not out.exists()


# ------------------------------------------------------------------------------------------------ GGUF, imatrix


@pytest.mark.parametrize("damage", ["cut header", "cut data", "magic", "type", "empty"])
def test_a_damaged_gguf(cli: Cli, inputs: Inputs, out: Path, damage: str) -> None:
    data = bytearray(inputs.source.read_bytes())
    if damage == "cut header":
        data = data[:200]
    elif damage == "cut data":
        data = data[:-1000]
    elif damage == "magic":
        data[:4] = b"LOSS"
    elif damage == "type":
        at = data.index(b"output.weight") + len(b"output.weight")
        data[at + 4 + 16 : at + 4 + 20] = struct.pack("<I", 777)
    else:
        data = bytearray()
    bad = inputs.folder / "bad.gguf"
    bad.write_bytes(data)
    text = ("--text", inputs.text, *TINY, "-o", out, "-q")
    refused(cli("imatrix", bad, *text), 1, "bad.gguf")
    refused(cli("base", bad, *text), 1, "bad.gguf")
    refused(cli("quantize", bad, "--types", "Q8_0", "-o", out, "-q"), 1, "bad.gguf")
    refused(cli("measure", bad, "--base", inputs.source, *text), 1, "bad.gguf")
    refused(cli("measure", inputs.source, "--base", bad, *text), 1, "bad.gguf")
    refused(cli(*_run(inputs, bad, out)), 1, "bad.gguf")
    assert not out.exists()


@pytest.mark.parametrize("legacy", [False, True], ids=["gguf", "dat"])
@pytest.mark.parametrize("damage", ["cut", "count", "rubbish"])
def test_a_damaged_imatrix(cli: Cli, inputs: Inputs, out: Path, legacy: bool, damage: str) -> None:
    path = inputs.imatrix
    if legacy:
        path = inputs.folder / "old.dat"
        write_legacy_imatrix(read_imatrix(inputs.imatrix), path)
    data = bytearray(path.read_bytes())
    if damage == "cut":
        data = data[: len(data) * 2 // 3]
    elif damage == "count":
        data[0 if legacy else 8 : 4 if legacy else 16] = b"\x7f" * (4 if legacy else 8)
    else:
        data = bytearray(b"\xab" * 300)
    path.write_bytes(data)
    kept = inputs.folder / "kept.gguf"
    kept.write_bytes(b"an importance matrix made before")
    done = cli("imatrix", inputs.source, "--text", inputs.text, *TINY, "--in-file", path, "-o", kept, "-q")
    refused(done, 1, path.name)
    assert kept.read_bytes() == b"an importance matrix made before"
    refused(
        cli("quantize", inputs.source, "--types", "Q4_K_M", "--imatrix", path, "-o", out, "-q"), 1, path.name
    )
    assert not out.exists()


def test_matrices_of_another_model_leave_the_earlier_output(
    cli: Cli, inputs: Inputs, snapshot: Snapshot
) -> None:
    other = random_gguf(
        inputs.folder / "other.gguf", RandomShape(n_embd=32, n_layer=1, head_dim=8), dtype="f32"
    )
    before = snapshot(inputs.folder)
    done = cli("imatrix", other, "--text", inputs.text, *TINY, "--in-file", inputs.imatrix,
               "-o", inputs.imatrix, "--force", "-q")  # fmt: skip
    refused(done, 1, "blk.0.")
    assert snapshot(inputs.folder) == before


def test_a_type_that_needs_an_importance_matrix(cli: Cli, inputs: Inputs, out: Path) -> None:
    refused(cli("quantize", inputs.source, "--types", "IQ2_XS", "-o", out, "-q"), 1, "IQ2_XS", "mportance")
    assert not out.exists()


def test_quantizing_what_is_quantized(cli: Cli, inputs: Inputs, out: Path, snapshot: Snapshot) -> None:
    assert cli("quantize", inputs.source, "--types", "Q8_0", "-o", inputs.folder).code == 0
    made = inputs.folder / "tiny-f32-Q8_0.gguf"
    before = snapshot(inputs.folder)
    refused(cli("quantize", made, "--types", "Q4_K_M", "-o", out, "-q"), 1, made.name, "quantized")
    refused(cli(*_run(inputs, made, out)), 2, made.name, "quantized already")
    assert not out.exists()
    assert snapshot(inputs.folder) == before


# ------------------------------------------------------------------------------------------------ texts, context


def test_a_text_too_short(cli: Cli, inputs: Inputs, out: Path) -> None:
    short = inputs.folder / "short.txt"
    short.write_text("a cat sat")
    for verb in ("imatrix", "base"):
        done = cli(verb, inputs.source, "--text", short, "--ctx", 32, "-o", out, "-q")
        refused(done, 1, "short.txt", "too short", "at least 64", "found 8 tokens", "--ctx")
    refused(cli(*_run(inputs, inputs.source, out, text=short)), 1, "short.txt", "too short")
    refused(cli(*_run(inputs, inputs.source, out, calibration=short)), 1, "short.txt", "too short")
    assert not out.exists()


def test_a_text_that_is_not_utf8(cli: Cli, inputs: Inputs, out: Path) -> None:
    bad = inputs.folder / "latin1.txt"
    bad.write_bytes(b"caf\xe9 " * 500)
    for verb in ("imatrix", "base"):
        done = cli(verb, inputs.source, "--text", bad, "--ctx", 32, "-o", out, "-q")
        refused(done, 1, "latin1.txt", "not UTF-8 at byte 3")
    refused(cli(*_run(inputs, inputs.source, out, text=bad)), 1, "latin1.txt", "not UTF-8 at byte 3")
    refused(cli(*_run(inputs, inputs.checkpoint, out, calibration=bad)), 1, "latin1.txt", "not UTF-8")
    assert not out.exists()


def test_a_context_longer_than_the_models(cli: Cli, inputs: Inputs, out: Path) -> None:
    inputs.text.write_text("cats and dogs " * 5000)
    for verb in ("imatrix", "base"):
        done = cli(verb, inputs.source, "--text", inputs.text, "--ctx", 257, "-o", out, "-q")
        refused(done, 2, "--ctx", "at most 256", "found 257")
    refused(cli(*_run(inputs, inputs.source, out, ctx=257)), 2, "--ctx", "at most 256", "found 257")
    refused(cli(*_run(inputs, inputs.checkpoint, out, ctx=2049)), 2, "--ctx", "at most 2048")
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
    assert cli(*_run(inputs, inputs.source, out)).code == 0
    before = snapshot(out)
    refused(cli(*_run(inputs, inputs.source, out, ctx=64)), 1, "another experiment", "ctx 32 (now 64)")
    refused(cli(*_run(inputs, inputs.source, out, quants="Q4_0")), 1, 'quants ["Q8_0"] (now ["Q4_0"])')
    assert snapshot(out) == before


def test_a_folder_that_is_no_run_is_left_alone(
    cli: Cli, inputs: Inputs, out: Path, snapshot: Snapshot
) -> None:
    out.mkdir()
    (out / "thesis.doc").write_text("years of work")
    before = snapshot(out)
    refused(cli(*_run(inputs, inputs.source, out)), 1, "no run of bitloss", "thesis.doc", "--out")
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
        "run": _run(inputs, inputs.source, out),
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
    assert cli(*_run(inputs, inputs.source, out)).code == 0
    results = json.loads((out / "results.json").read_text())
    path = out / "tokens" / "Q8_0-f32.parquet"
    good = path.read_bytes()
    data = bytearray(good)
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data if damage == "flipped" else good[: len(good) // 2])
    if damage == "gone":
        path.unlink()
    before = _started(out)
    assert cli(*_run(inputs, inputs.source, out)).code == 0
    assert _started(out)[len(before) :] == ["measure Q8_0/f32"]
    assert path.read_bytes() == good
    again = json.loads((out / "results.json").read_text())
    assert again["candidates"] == results["candidates"]
    assert again["comparisons"] == results["comparisons"]


def test_damaged_results_are_refused(cli: Cli, inputs: Inputs, out: Path) -> None:
    assert cli(*_run(inputs, inputs.source, out)).code == 0
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
