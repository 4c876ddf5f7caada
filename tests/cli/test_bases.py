"""A base that does not fit is refused or marked, one that lost a file is made whole; NaN logits are told."""

from __future__ import annotations

import json
import re
import shlex
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from tests.cli.test_bad_input import refused

from bitloss.divergence.basefile import header_hash
from bitloss.errors import DiskFull
from bitloss.model.gguf import GgufFile
from bitloss.model.random_model import RandomShape, random_gguf

if TYPE_CHECKING:
    from tests.cli.conftest import Cli, Done, Inputs


def _document(done: Done) -> dict[str, Any]:
    assert done.code == 0, done.err
    document: dict[str, Any] = json.loads(done.out)
    return document


@pytest.fixture
def base(cli: Cli, inputs: Inputs, tmp_path: Path) -> Path:
    done = cli(
        "base", inputs.source, "-f", inputs.text, "--ctx", 32, "--chunks", 4, "-o", tmp_path / "base", "-q"
    )
    assert done.code == 0, done.err
    return tmp_path / "base"


def _other_engine(base: Path) -> None:
    header = json.loads((base / "base.json").read_text()) | {"engine": "0.0.1 (abcdefg)"}
    (base / "base.json").write_text(json.dumps(header | {"header_sha256": header_hash(header)}))


def test_a_base_of_something_else_is_refused_by_name_or_marked(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path
) -> None:
    other = inputs.folder / "other.txt"
    other.write_text("another text " * 200)
    deeper = random_gguf(
        tmp_path / "deeper.gguf",
        RandomShape(
            n_vocab=320, n_embd=128, n_layer=2, n_head=4, n_head_kv=2, head_dim=32, n_ff=128, n_ctx_train=256
        ),
    )
    fits = ("--text", inputs.text, "--ctx", 32)
    plain = _document(
        cli("measure", inputs.source, "--base", base, *fits, "-o", tmp_path / "ok", "--json", "-q")
    )
    assert plain["base"]["forced"] == []
    cases: list[tuple[Path, tuple[object, ...], str]] = [
        (inputs.source, ("--text", other), "text: base text.txt, asked for other.txt"),
        (inputs.source, ("--ctx", 64), "n_ctx: base 32, asked for 64"),
        (inputs.source, ("--documents", "file"), "documents: base none, asked for file"),
        (inputs.source, ("-fa", "off"), "--flash-attn: base auto, asked for off"),
        (inputs.source, ("-ub", 128), "--ubatch-size: base 512, asked for 128"),
        (inputs.source, ("-b", 1024), "--batch-size (chunks side by side): base 64, asked for 32"),
        (deeper, (), "model: embedding_length of the base 256, of deeper.gguf 128"),
    ]
    for i, (candidate, options, named) in enumerate(cases):
        words = ("measure", candidate, "--base", base, *options, "-o", tmp_path / f"m{i}")
        refused(cli(*words, "-q"), 1, "base: the base was made from something else", named, "--force")
        assert not (tmp_path / f"m{i}").exists()
        forced = _document(cli(*words, "--force", "--json", "-q"))
        assert named in forced["base"]["forced"]
        assert any(f["id"] == "base-of-something-else" for f in forced["findings"])
        assert "accepted with --force" in (tmp_path / f"m{i}" / "report.md").read_text()
        assert forced["text"] == plain["text"]
    _other_engine(base)
    words = ("measure", inputs.source, "--base", base, "-o", tmp_path / "e")
    refused(cli(*words, "-q"), 1, "engine build: base by 0.0.1 (abcdefg), candidates by ")
    forced = _document(cli(*words, "--force", "--json", "-q"))
    assert forced["base"]["forced"][0].startswith("engine build: base by 0.0.1 (abcdefg)")


def test_another_vocabulary_is_refused_even_by_force(cli: Cli, base: Path, tmp_path: Path) -> None:
    other = random_gguf(tmp_path / "other.gguf", RandomShape(n_vocab=321))
    done = cli("measure", other, "--base", base, "--force", "-o", tmp_path / "m", "-q")
    refused(done, 1, "other.gguf", "vocabulary differs")


def _content(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize("flags", [("--chat-template",), ("--documents", "blank-line")])
def test_kld_of_documents_is_refused_before_anything_is_computed(
    cli: Cli, inputs: Inputs, tmp_path: Path, flags: tuple[str, ...]
) -> None:
    out, kld = tmp_path / "b", tmp_path / "b.kld"
    done = cli("base", inputs.source, "-f", inputs.text, "-o", out, "--kld", kld, *flags, "-q")
    refused(done, 2, "--kld: llama-perplexity's file", flags[0])
    assert not out.exists()


def test_a_kld_that_fails_tells_how_to_go_on(
    cli: Cli, inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> int:
        raise DiskFull("the disk is full", where="b.kld", mend="free some space")

    words = ("base", inputs.source, "-f", inputs.text, "--ctx", 32, "--chunks", 2, "-o", tmp_path / "b", "-q",
             "--kld", tmp_path / "b.kld")  # fmt: skip
    with monkeypatch.context() as patch:
        patch.setattr("bitloss.divergence.kldfile.write_kld", full)
        refused(cli(*words), 1, "Free some space. The base itself is made", "with --repair writes this file")
    assert cli(*words, "--repair").code == 0
    assert (tmp_path / "b.kld").is_file()


def test_a_damaged_shard_is_named_and_made_again_alone(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path
) -> None:
    before = _content(base)
    header = shutil.copy(base / "base.json", tmp_path / "base.json")
    (shard,) = base.glob("hidden-*")
    data = bytearray(shard.read_bytes())
    data[-3] ^= 4
    shard.write_bytes(data)
    measure = ("measure", inputs.source, "--base", base, "-o", tmp_path / "m", "-q")
    refused(cli(*measure), 1, shard.name, "damaged", "--repair")
    said = cli(*measure).err
    mending = shlex.split(said[said.index("bitloss base ") :])[1:]  # what the line says works as it stands
    mending[mending.index("--text") + 1] = str(inputs.text)
    assert f"made again: {shard.name}" in cli(*mending, "-q").out
    shard.unlink()
    refused(cli(*measure), 1, shard.name, "missing", "--repair")
    words = ("base", inputs.source, "-f", inputs.text, "--ctx", 32, "--chunks", 4, "-o", base)
    refused(cli(*words, "-q"), 1, "already there", "--repair")
    done = cli(*words, "--repair", "-q")
    assert done.code == 0, done.err
    assert f"made again: {shard.name}" in done.out
    assert _content(base) == before
    assert "nothing to make again" in cli(*words, "--repair", "-q").out
    assert _document(cli(*words, "--repair", "--json"))["repaired"] == []
    assert cli(*measure).code == 0
    shard.unlink()
    for changed, named in ((("--ctx", 16), "n_ctx 32 (now 16)"), (("-ub", 16), "ubatch 512 (now 16)")):
        refused(cli(*words, "--repair", *changed, "-q"), 1, "made from something else", named)
    refused(cli(*words[:-1], tmp_path / "none", "--repair", "-q"), 1, "no base here")
    (base / "base.json").write_text("{")
    for command in (measure, (*words, "--repair", "-q")):
        refused(
            cli(*command), 1, "base.json: header is damaged: no JSON", "remove the folder and make the base"
        )
        assert ": :" not in cli(*command).err
    shutil.copy(header, base / "base.json")
    _other_engine(base)
    refused(cli(*words, "--repair", "-q"), 1, "engine build 0.0.1 (abcdefg) (now ")


@pytest.mark.parametrize("damage", ["missing", "flipped", "tokens"])
def test_a_run_mends_its_own_base(cli: Cli, inputs: Inputs, tmp_path: Path, damage: str) -> None:
    def run(*more: object) -> dict[str, Any]:
        return _document(
            cli(
                *("run", inputs.source, "--text", inputs.text, "--calibration", inputs.text, "--ctx", 32),
                *(
                    "--quants",
                    "Q8_0",
                    "--chunks",
                    4,
                    "--imatrix-chunks",
                    2,
                    "-o",
                    tmp_path / "run",
                    "--json",
                    "-q",
                ),
            )
        )

    first = run()
    base = tmp_path / "run" / "base"
    before = _content(base)
    (shard,) = base.glob("hidden-*")
    if damage == "missing":
        shard.unlink()
    elif damage == "flipped":
        data = bytearray(shard.read_bytes())
        data[-3] ^= 4
        shard.write_bytes(data)
    else:
        (base / "tokens.safetensors").write_bytes(b"x" * (base / "tokens.safetensors").stat().st_size)
    shutil.rmtree(tmp_path / "run" / "tokens")
    again = run()
    assert _content(base) == before
    assert again["candidates"] == first["candidates"]
    mended = [cost["step"] for cost in again["costs"] if cost["kind"] == "base" and not cost["reused"]]
    assert mended == (["base f32"] if damage == "missing" else ["base f32, repaired"])


# ------------------------------------------------------------------------------------------ NaN, few chunks


def _doctored(source: Path, out: Path, name: str, value: float) -> Path:
    """A copy with one weight of a tensor set to a value."""
    info = GgufFile.open(source).info(name)
    data = bytearray(source.read_bytes())
    at = info.offset + 4 * (info.n_elements // 2)
    data[at : at + 4] = np.array([value], np.float32).tobytes()
    out.write_bytes(data)
    return out


@pytest.mark.parametrize("value", [np.nan, np.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("tensor", ["output.weight", "blk.0.ffn_down.weight"])
def test_a_candidate_with_faulty_logits_is_counted_named_and_not_averaged(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path, value: float, tensor: str
) -> None:
    bad = _doctored(inputs.source, tmp_path / "bad.gguf", tensor, value)
    out = tmp_path / "m"
    results = _document(cli("measure", bad, inputs.source, "--base", base, "-o", out, "--json", "-q"))
    faulty, good = (each["metrics"] for each in results["candidates"])
    count = faulty["nonfinite_tokens"]["value"]
    assert count == results["text"]["scored_tokens"] == 4 * 15
    for name in ("kld_mean", "kld_max", "kld_p99", "dp_rms", "same_top", "js_mean", "ppl_ratio"):
        assert faulty[name]["value"] is None, name
        assert faulty[name]["se"] is None
        assert "of 60 tokens have no finite value" in faulty[name]["reason"]
        assert f"candidate in {int(count)}, base in 0" in faulty[name]["reason"]
    assert faulty["kld_mean"]["reason"].startswith(f"{int(count)} of 60 tokens")
    assert faulty["ppl_base"]["value"] == good["ppl_base"]["value"]
    assert good["nonfinite_tokens"]["value"] == 0
    assert good["kld_max"]["value"] == 0
    (finding,) = [f for f in results["findings"] if f["id"] == "logits-not-finite"]
    assert finding["evidence"] == {"tokens": {"bad": int(count)}, "base": 0}
    assert all(c["verdict"] is None and c["reason"] for c in results["comparisons"])
    report = (out / "report.md").read_text()
    assert "Tokens with non-finite logits" in report
    assert "bad (60 tokens)" in report
    assert "NaN" not in json.dumps(results["candidates"][1]["metrics"])


def test_two_files_of_faulty_logits_are_not_called_identical(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path
) -> None:
    files = [
        _doctored(inputs.source, tmp_path / f"bad{i}.gguf", tensor, np.nan)
        for i, tensor in enumerate(("output.weight", "blk.0.ffn_down.weight"))
    ]
    out = tmp_path / "m"
    results = _document(cli("measure", *files, "--base", base, "-o", out, "--json", "-q"))
    assert len(results["comparisons"]) == 3
    for each in results["comparisons"]:
        assert (each["difference"], each["verdict"]) == (None, None)
        assert "A in 60, B in 60, base in 0 tokens" in each["reason"]
    assert not re.search(r"\| identical +\|", (out / "report.md").read_text())


def test_a_rule_to_stop_by_says_what_can_never_be_decided_and_what_is_known_exactly(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path
) -> None:
    files = [
        _doctored(inputs.source, tmp_path / f"bad{i}.gguf", tensor, np.nan)
        for i, tensor in enumerate(("output.weight", "blk.0.ffn_down.weight"))
    ]
    words = ("--base", base, "--json", "-q")
    never = _document(cli("measure", *files, *words, "--stop-when", "decided", "-o", tmp_path / "never"))
    assert not never["stopping"]["met"]
    (finding,) = [each for each in never["findings"] if each["id"] == "stopped-by-rule"]
    assert finding["title"] == "It could not be decided: no two candidates can be compared"
    assert finding["title"] in (tmp_path / "never" / "report.md").read_text()
    same = _document(cli("measure", inputs.source, *words, "--precision", "5%", "-o", tmp_path / "same"))
    assert same["stopping"]["met"]
    assert same["stopping"]["known"] == [{"candidate": "tiny-f32", "low": 0.0, "high": 0.0, "relative": 0.0}]
    (finding,) = [each for each in same["findings"] if each["id"] == "stopped-by-rule"]
    assert finding["title"] == "4 of 4 chunks were enough"
    assert "its KLD is 0 in every token" in finding["text"]


def test_fewer_chunks_than_a_base_has_are_refused(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path
) -> None:
    words = ("measure", inputs.source, "--base", base, "-o", tmp_path / "m", "-q")
    refused(cli(*words, "--chunks", 3), 2, "--chunks", "at least the 4 chunks of", "found 3", "--stop-when")
    assert not (tmp_path / "m").exists()
    assert cli(*words, "--chunks", 4).code == 0


def test_fewer_than_ten_chunks_give_figures_without_clustered_errors(
    cli: Cli, inputs: Inputs, base: Path, tmp_path: Path
) -> None:
    assert cli("quantize", inputs.source, "--types", "Q4_K_M,Q8_0", "-o", tmp_path, "-q").code == 0
    files = [tmp_path / "tiny-f32-Q4_K_M.gguf", tmp_path / "tiny-f32-Q8_0.gguf"]
    results = _document(cli("measure", *files, "--base", base, "-o", tmp_path / "m", "--json", "-q"))
    for candidate in results["candidates"]:
        for name in ("kld_mean", "ppl", "dp_mean", "same_top"):
            figure = candidate["metrics"][name]
            assert figure["value"] is not None
            assert figure["se"] is not None
            assert figure["se_clustered"] is None
            assert "4 chunks, at least 10 needed" in figure["reason"]
    assert results["comparisons"]
    for comparison in results["comparisons"]:
        assert comparison["difference"] is not None
        assert comparison["ci95"] is None
        assert comparison["verdict"] is None
        assert "chunks" in comparison["reason"]
