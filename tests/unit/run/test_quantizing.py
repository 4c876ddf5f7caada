"""Candidates of a source come from one pass; what is there is not made again."""

from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.progress import ProgressCallback
from bitloss.quantize.quantize import How, QuantizeSpec, quantize
from bitloss.run.executor import InlineExecutor, StepResult
from bitloss.run.quantizing import quantize_in_passes
from bitloss.run.stepping import Quantization, Stepper
from bitloss.run.steps import QuantizeStep, QuantizeTogetherStep, Step
from bitloss.store import RunFolder, sha256_file

SHAPE = RandomShape(n_embd=64, n_ff=64, n_layer=1, n_vocab=259)


class Counting(InlineExecutor):
    """Remembers what it was asked to do."""

    def __init__(self) -> None:
        self.types: list[list[str]] = []

    def run(self, step: Step, progress: ProgressCallback) -> StepResult:
        assert isinstance(step, QuantizeTogetherStep)
        self.types.append([each.type for each in step.steps])
        return super().run(step, progress)


def quantization(folder: Path, source: Path, kind: str) -> Quantization:
    step = QuantizeStep(
        source=source,
        source_sha256=sha256_file(source),
        type=kind,
        imatrix=None,
        imatrix_sha256=None,
        out=folder / "candidates" / f"{source.stem}-{kind}.gguf",
    )
    return Quantization(step, f"quantize {kind}/{source.stem}", source.stem)


def test_a_run_that_was_stopped_makes_only_the_rest(tmp_path: Path) -> None:
    a = random_gguf(tmp_path / "a.gguf", SHAPE, dtype="f32")
    b = random_gguf(tmp_path / "b.gguf", SHAPE, dtype="bf16")
    executor = Counting()
    with RunFolder.open(tmp_path / "run", "a" * 64, {}) as folder:
        todo = [
            quantization(folder.path, source, kind) for kind in ("Q8_0", "Q4_0", "F16") for source in (a, b)
        ]
        first = Stepper(folder, executor, lambda _: None)
        quantize_in_passes(first, [todo[0], todo[3]])
        assert executor.types == [["Q8_0"], ["Q4_0"]]
        steps = Stepper(folder, executor, lambda _: None)
        records = quantize_in_passes(steps, todo)
        assert executor.types[2:] == [["Q4_0", "F16"], ["Q8_0", "F16"]]
        assert [cost.step for cost in steps.costs if cost.reused] == ["quantize Q8_0/a", "quantize Q4_0/b"]
        assert len(steps.costs) == 6
        again = quantize_in_passes(Stepper(folder, executor, lambda _: None), todo)
        assert len(executor.types) == 4
        assert [record.key for record in again] == [record.key for record in records]
    for each, record in zip(todo, records, strict=True):
        spec = QuantizeSpec(each.step.source, each.step.type, tmp_path / "alone.gguf")
        assert record.outputs[0].sha256 == quantize(spec, how=How("llama.cpp")).sha256


def test_one_pass_has_one_source() -> None:
    step = QuantizeStep(
        source=Path("/a"), source_sha256="", type="Q8_0", imatrix=None, imatrix_sha256=None, out=Path("/o")
    )
    for change in ({"source": Path("/b")}, {"encoder": "llama.cpp"}, {"errors": True}):
        with pytest.raises(ValidationError, match="one source"):
            QuantizeTogetherStep(steps=(step, step.model_copy(update=change)))
