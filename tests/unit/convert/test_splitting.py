"""Conversions in several parts, against llama.cpp's own splitting of the whole file."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path

import pytest

import bitloss
from bitloss.convert.convert import Conversion, ConvertOptions, SourceType, convert
from bitloss.engine.base import EngineOptions, Outputs
from bitloss.engine.llama import LlamaEngine
from bitloss.errors import FileProblem, UsageError
from bitloss.model.gguf_split import in_parts, open_model
from bitloss.run.proof import prove

DEMO = Path(bitloss.__file__).parent / "assets" / "demo-model"
MEGABYTE = 10**6
Tool = Callable[..., str]


def test_tensors_are_shared_out_in_order() -> None:
    def parts(most: int | None, *sizes: int) -> list[list[int]]:
        return in_parts([size * MEGABYTE for size in sizes], lambda size: size, most)

    m = MEGABYTE
    assert parts(None, 1, 2, 3) == [[m, 2 * m, 3 * m]]
    assert parts(3 * m, 1, 2, 3) == [[m, 2 * m], [3 * m]]
    assert parts(2 * m, 9, 1, 1, 1) == [[9 * m], [m, m], [m]]
    assert parts(2 * m) == [[]]
    with pytest.raises(UsageError, match="parts too small: expected 1M or more, found 999999"):
        parts(m - 1, 1)
    with pytest.raises(UsageError, match="too many parts: expected at most 65535, found 65536"):
        in_parts([m] * 65536, lambda size: size, m)


@pytest.mark.parity
def test_parts_are_those_of_llama_gguf_split(tmp_path: Path, llama_tool: Tool) -> None:
    whole = convert(DEMO, list(SourceType), tmp_path / "whole")
    record = convert(
        DEMO, list(SourceType), tmp_path / "parts", ConvertOptions(split_max_bytes=5 * MEGABYTE, prover=prove)
    )
    written = Conversion.model_validate_json((tmp_path / "parts" / "conversion.json").read_text())
    assert written == record
    assert record.proof is not None
    assert [each.file for each in record.proof.engine] == [each.file for each in record.outputs]
    for one, several in zip(whole.outputs, record.outputs, strict=True):
        source = tmp_path / "whole" / one.file
        llama_tool("llama-gguf-split", "--split", "--split-max-size", "5M", source, tmp_path / one.type)
        names = [part.name for part in several.parts]
        assert len(names) >= 2
        assert names[0] == several.file == f"demo-model-{one.type}-00001-of-{len(names):05d}.gguf"
        for part in several.parts:
            content = (tmp_path / "parts" / part.name).read_bytes()
            theirs = tmp_path / part.name.replace(f"demo-model-{one.type}", one.type)
            assert content == theirs.read_bytes(), part.name
            assert (part.bytes, part.sha256) == (len(content), hashlib.sha256(content).hexdigest())
        assert several.sha256 is None
        assert several.bytes == sum(part.bytes for part in several.parts)
        assert several.tensors_sha256 == one.tensors_sha256
        assert several.bits_per_weight == one.bits_per_weight
        assert open_model(tmp_path / "parts" / several.file).tensors_sha256() == one.tensors_sha256
    present = {path.name for path in (tmp_path / "parts").iterdir()}
    assert present == {"conversion.json", *(part.name for each in record.outputs for part in each.parts)}


def test_llama_cpp_computes_with_parts_as_with_the_whole(tmp_path: Path) -> None:
    whole = convert(DEMO, [SourceType.F16], tmp_path / "whole").outputs[0]
    options = ConvertOptions(split_max_bytes=MEGABYTE)
    parts = convert(DEMO, [SourceType.F16], tmp_path / "parts", options).outputs[0]
    logits = []
    for path in (tmp_path / "whole" / whole.file, tmp_path / "parts" / parts.file):
        with LlamaEngine(path, EngineOptions(threads=1, ubatch=32)) as engine:
            tokens = engine.tokenize("It was a dark and stormy night, and all the world was asleep. " * 4)
            rows = [rows.values.tobytes() for rows in engine.evaluate(tokens[None, :32], Outputs.LOGITS)]
            logits.append(rows)
    assert logits[0] == logits[1]
    (tmp_path / "parts" / parts.parts[1].name).unlink()
    with pytest.raises(FileProblem, match="a part of a split model is missing"):
        LlamaEngine(tmp_path / "parts" / parts.file)
    with pytest.raises(UsageError, match="not the first part of a split model"):
        LlamaEngine(tmp_path / "parts" / parts.parts[2].name)


def test_what_fits_into_one_file_is_one(tmp_path: Path) -> None:
    record = convert(DEMO, [SourceType.BF16], tmp_path, ConvertOptions(split_max_bytes=10**9))
    assert (record.outputs[0].file, record.outputs[0].parts) == ("demo-model-bf16.gguf", ())


def test_parts_are_converted_on(tmp_path: Path) -> None:
    options = ConvertOptions(split_max_bytes=3 * MEGABYTE)
    first = convert(DEMO, [SourceType.BF16], tmp_path / "a", options).outputs[0]
    again = convert(tmp_path / "a" / first.file, [SourceType.F32], tmp_path / "b", options).outputs[0]
    direct = convert(DEMO, [SourceType.F32], tmp_path / "c", options).outputs[0]
    assert again.tensors_sha256 == direct.tensors_sha256
    assert len(again.parts) == len(direct.parts) > 1
    with pytest.raises(UsageError, match="would take the place of the model"):
        convert(tmp_path / "a" / first.file, [SourceType.BF16], tmp_path / "a", options)
