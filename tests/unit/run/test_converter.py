"""Another converter's files get the same proof. Here it is a script that has ours make them, and may spoil them."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest

from bitloss.convert.convert import ConvertOptions, SourceType, convert
from bitloss.errors import BitlossError, CheckpointError, FileProblem, UsageError
from bitloss.progress import Progress
from bitloss.run.converter import Converter, convert_by
from bitloss.run.proof import prove

DATA = Path(__file__).parents[2] / "data" / "families"
SCRIPT = """
import sys, shutil
from pathlib import Path
from bitloss.convert.convert import SourceType, convert
model, _, kind, _, out = sys.argv[1:]
work = Path(out + "-work")
convert(Path(model), [SourceType(kind)], work)
path, = work.glob("*.gguf")
data = path.read_bytes()
{spoil}
Path(out).write_bytes(data)
shutil.rmtree(work)
"""


def converter(tmp_path: Path, spoil: str = "") -> Converter:
    script = tmp_path / "convert_hf_to_gguf.py"
    script.write_text(SCRIPT.format(spoil=spoil))
    return Converter(script, sys.executable)


def test_sound_files_are_proven_and_recorded(tmp_path: Path) -> None:
    kinds = [SourceType.F16, SourceType.BF16]
    record = convert_by(
        converter(tmp_path), DATA / "mixtral", kinds, tmp_path / "out", ConvertOptions(prover=prove)
    )
    ours = convert(DATA / "mixtral", kinds, tmp_path / "ours", ConvertOptions(prover=prove))
    assert record.outputs == tuple(each.model_copy(update={"casts": None}) for each in ours.outputs)
    assert record.proof == ours.proof
    assert record.notes == ("made by convert_hf_to_gguf.py",)
    assert record.checkpoint[-1].name == "convert_hf_to_gguf.py"
    assert json.loads((tmp_path / "out" / "conversion.json").read_text())["model"] == "mixtral"
    unproven = convert_by(
        converter(tmp_path), DATA / "mixtral", kinds, tmp_path / "out", ConvertOptions(name="x")
    )
    assert unproven.proof is None
    assert (tmp_path / "out" / "x-f16.gguf").is_file()


SPOILT: dict[str, tuple[str, type[BitlossError], str]] = {
    "a weight": (
        "data = data[:-40] + bytes([data[-40] ^ 1]) + data[-39:]",
        CheckpointError,
        r"^the f16 file of convert_hf_to_gguf\.py\[output_norm\.weight\]: another value than bitloss makes of "
        r".*mixtral\[model\.norm\.weight, row \d+, column 0\]: expected [\d.]+, found [\d.]+\. The converter",
    ),
    "a name": (
        "data = data.replace(b'blk.0.ffn_up_exps', b'blk.0.ffn_up_expz')",
        BitlossError,
        r"could not load the model|other tensors",
    ),
    "failure": ("sys.exit('not known')", FileProblem, r"failed \(exit code 1\): found not known$"),
    "a package": (
        "import torch_of_another_interpreter",
        FileProblem,
        r"failed \(exit code 1\): found ModuleNotFoundError: .*--converter-python",
    ),
    "nothing": ("print('done, elsewhere'); sys.exit(0)", FileProblem, "wrote no file.*found done, elsewhere"),
    "no gguf": (
        "data = b'nothing'",
        BitlossError,
        r"/out/mixtral-f16\.gguf: not a GGUF file: .*at its start",
    ),
}


@pytest.mark.parametrize("case", SPOILT)
def test_spoilt_files_are_refused_and_nothing_is_left(case: str, tmp_path: Path) -> None:
    spoil, kind, message = SPOILT[case]
    options = ConvertOptions(prover=prove)
    with pytest.raises(kind, match=message) as caught:
        convert_by(converter(tmp_path, spoil), DATA / "mixtral", [SourceType.F16], tmp_path / "out", options)
    assert ".partial-" not in str(caught.value)
    assert not [path for path in (tmp_path / "out").iterdir() if not path.name.endswith("-work")]


def test_no_interpreter(tmp_path: Path) -> None:
    other = Converter(converter(tmp_path).script, str(tmp_path / "nowhere"))
    with pytest.raises(FileProblem, match=r"nowhere: the interpreter cannot be run \(No such file"):
        convert_by(other, DATA / "mixtral", [SourceType.F16], tmp_path / "out", ConvertOptions())


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    convert(DATA / "mixtral", [SourceType.F16], tmp_path)
    with pytest.raises(
        UsageError, match=r"mixtral-f16\.gguf: another converter takes an HF folder, not a file"
    ):
        convert_by(
            converter(tmp_path),
            tmp_path / "mixtral-f16.gguf",
            [SourceType.F32],
            tmp_path / "out",
            ConvertOptions(),
        )
    assert not (tmp_path / "out").exists()


def test_a_converter_written_by_somebody_else(tmp_path: Path) -> None:
    """By the gguf package, in the order of the checkpoint's file, with other keys than ours."""
    folder = DATA / "olmo2"
    script = Converter(Path(__file__).parents[2] / "data" / "other_converter.py", sys.executable)
    seen: list[Progress] = []
    options = ConvertOptions(prover=prove)
    record = convert_by(
        script, folder, [SourceType.F32, SourceType.F16], tmp_path / "out", options, seen.append
    )
    ours = convert(folder, [SourceType.F32, SourceType.F16], tmp_path / "ours", options)
    assert [each.tensors_sha256 for each in record.outputs] == [each.tensors_sha256 for each in ours.outputs]
    assert [each.sha256 for each in record.outputs] != [each.sha256 for each in ours.outputs]
    assert record.proof == ours.proof
    stages = {each.stage for each in seen}
    assert {"run other_converter.py", "prove", "compare the f16 file of other_converter.py"} <= stages


def test_an_architecture_without_a_table_is_proven_by_tokens_and_logits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "unknown"
    shutil.copytree(DATA / "granite", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"architectures": ["UnheardOfForCausalLM"]}))
    spoil = "pass"
    script = converter(tmp_path, spoil)
    text = script.script.read_text().replace("Path(model),", f"Path({str(DATA / 'granite')!r}),")
    script.script.write_text(text)
    record = convert_by(script, folder, [SourceType.F16], tmp_path / "out", ConvertOptions(prover=prove))
    assert record.architecture == "UnheardOfForCausalLM"
    assert record.gguf_architecture == "granite"
    assert record.proof is not None
    assert record.proof.tensors is None
    assert record.proof.tokens is not None
    assert record.notes[1].endswith("converted here: UnheardOfForCausalLM")
