"""Step keys change with whatever changes a result, and with nothing else; done steps are found again."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue, ValidationError

from bitloss.errors import EngineError
from bitloss.progress import Progress, ProgressCallback
from bitloss.run import stepping
from bitloss.run.executor import StepResult
from bitloss.run.stepping import Measurement, Stepper, StepProgress, step_key
from bitloss.run.steps import (
    MEASUREMENT_VERSION,
    AuditStep,
    BaseStep,
    BlocksStep,
    ConvertStep,
    EvaluationTexts,
    ImatrixStep,
    MeasureStep,
    MeasureTogetherStep,
    OverlapStep,
    QuantizeStep,
    QuantizeTogetherStep,
    Repair,
    Step,
    step_from_json,
)
from bitloss.spec import EngineSpec
from bitloss.store import RunFolder

A, B = "a" * 64, "b" * 64
ENGINE = EngineSpec()
CONVERT = ConvertStep(model=Path("/m/x"), model_sha256=A, types=("f32", "f16"), out=Path("/o"))
IMATRIX = ImatrixStep(source=Path("/s"), source_sha256=A, text=Path("/t/t.txt"), text_sha256=A, n_ctx=64,
                      chunks=3, engine=ENGINE, out=Path("/o"))  # fmt: skip
QUANTIZE = QuantizeStep(source=Path("/s"), source_sha256=A, type="Q8_0", imatrix=Path("/i/i.gguf"),
                        imatrix_sha256=A, out=Path("/o"))  # fmt: skip
TEXTS = EvaluationTexts(paths=(Path("/t/t.txt"),), sha256=(A,), n_ctx=64, chunks=3)
BASE = BaseStep(source=Path("/s"), source_sha256=A, texts=TEXTS, engine=ENGINE, out=Path("/o"))
OVERLAP = OverlapStep(source=Path("/s"), source_sha256=A, texts=TEXTS, calibration=Path("/c.txt"),
                      calibration_sha256=A, calibration_chunks=None, out=Path("/o"))  # fmt: skip
AUDIT = AuditStep(model=Path("/m/x"), model_sha256=A, out=Path("/o"))
FOUR = (Path("/a"), Path("/b"), Path("/c"), Path("/d"))
BLOCKS = BlocksStep(files=FOUR, tensors_sha256=(A, A, B, B), out=Path("/o"))
MEASURE = MeasureStep(candidate=Path("/c"), candidate_tensors_sha256=A, base=Path("/b"), base_key=A,
                      engine=ENGINE, out=Path("/o"))  # fmt: skip

ROUNDING: list[dict[str, Any]] = [
    {"engine": EngineSpec(n_gpu_layers=5)},
    {"engine": EngineSpec(flash_attn="off")},
    {"engine": EngineSpec(split_mode="row")},
    {"engine": EngineSpec(tensor_split=(1.0, 2.0))},
    {"engine": EngineSpec(ubatch=256)},
    {"engine": EngineSpec(batch=128)},  # lowers the micro-batch
    {"engine": EngineSpec(batch=512)},  # fewer chunks side by side
]
TEXT: list[dict[str, Any]] = [{"source_sha256": B}, {"text_sha256": B}, {"n_ctx": 65}, {"chunks": None}]
TEXTS_MATTER: list[dict[str, Any]] = [
    {"texts": TEXTS.model_copy(update=change)}
    for change in (
        {"sha256": (B,)},
        {"n_ctx": 65},
        {"chunks": None},
        {"paths": TEXTS.paths * 2, "sha256": (A, B)},
        {"paths": TEXTS.paths * 2, "sha256": (B, A)},
        {"documents": "file"},
        {"documents": "line=---"},
        {"chat_template": True},
    )
]
MATTERS: list[tuple[Step, list[dict[str, Any]]]] = [
    (CONVERT, [{"model_sha256": B}, {"types": ("f32",)}, {"types": ("f16", "f32")}, {"name": "other"},
               {"model": Path("/m/y")}]),  # the folder's name becomes the model's
    (IMATRIX, [*TEXT, *ROUNDING, {"text": Path("/t/u.txt")}]),  # the text's name goes into the file
    (QUANTIZE, [{"source_sha256": B}, {"type": "Q4_0"}, {"imatrix_sha256": B}, {"imatrix": Path("/i/j.gguf")},
                {"imatrix": None, "imatrix_sha256": None}, {"tensor_types": (("a", "F16"),)},
                {"output_tensor_type": "F16"}, {"token_embedding_type": "F16"}, {"pure": True},
                {"encoder": "llama.cpp"}, {"keep_split": True}, {"split_max_bytes": 10**9}, {"errors": True}]),
    (BASE, [{"source_sha256": B}, *TEXTS_MATTER, *ROUNDING]),
    (OVERLAP, [{"source_sha256": B}, {"calibration_sha256": B}, {"calibration_chunks": 3}, *TEXTS_MATTER]),
    (AUDIT, [{"model_sha256": B}, {"formats": ("Q4_K",)}, {"model": Path("/m/y")}]),
    (BLOCKS, [{"tensors_sha256": (A, B, A, B)}, {"tensors_sha256": (A, A, A, B)}]),
    (MEASURE, [{"candidate_tensors_sha256": B}, {"base_key": B}, *ROUNDING]),
]  # fmt: skip
ELSEWHERE: list[tuple[Step, dict[str, Any]]] = [
    (CONVERT, {"model": Path("/elsewhere/x"), "out": Path("/p")}),
    (IMATRIX, {"source": Path("/z"), "text": Path("/z/t.txt"), "out": Path("/p")}),
    (IMATRIX, {"engine": EngineSpec(threads=7)}),
    (QUANTIZE, {"source": Path("/z"), "imatrix": Path("/z/i.gguf"), "threads": 3, "out": Path("/p")}),
    (QUANTIZE, {"verify": True, "allow_requantize": True}),
    (BASE, {"source": Path("/z"), "out": Path("/p"), "engine": EngineSpec(threads=7)}),
    (BASE, {"texts": TEXTS.model_copy(update={"paths": (Path("/z/z.txt"),)}), "repair": Repair.ONLY}),
    (OVERLAP, {"source": Path("/z"), "calibration": Path("/z"), "out": Path("/p")}),
    (AUDIT, {"model": Path("/elsewhere/x"), "out": Path("/p")}),
    (AUDIT, {"threads": 3}),
    (BLOCKS, {"files": (Path("/z"), *FOUR[1:]), "out": Path("/p")}),
    (MEASURE, {"candidate": Path("/z"), "base": Path("/z"), "base_model": Path("/z"), "out": Path("/p")}),
    (MEASURE, {"engine": EngineSpec(threads=7)}),
    (MEASURE, {"engine": EngineSpec(max_memory=7)}),
]


@pytest.mark.parametrize(("step", "changes"), MATTERS, ids=lambda value: getattr(value, "kind", ""))
def test_what_changes_a_result_changes_the_key(step: Step, changes: list[dict[str, Any]]) -> None:
    keys = [step_key(step), *(step_key(step.model_copy(update=change)) for change in changes)]
    assert len(set(keys)) == len(keys)


@pytest.mark.parametrize(("step", "change"), ELSEWHERE)
def test_paths_and_threads_do_not_change_the_key(step: Step, change: dict[str, Any]) -> None:
    moved = step.model_copy(update=change)
    assert moved != step
    assert step_key(moved) == step_key(step)


def test_one_text_has_the_key_it_always_had() -> None:
    engine = dict(BASE.identity())["engine"]
    assert BASE.identity() == {"source": A, "text": A, "n_ctx": 64, "chunks": 3, "engine": engine}


def test_the_versions_are_part_of_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    before = step_key(BASE)
    monkeypatch.setattr(stepping, "MEASUREMENT_VERSION", MEASUREMENT_VERSION + 1)
    raised = step_key(BASE)
    monkeypatch.setattr("bitloss.engine.llama.engine_version", lambda: "another llama.cpp")
    assert len({before, raised, step_key(BASE)}) == 3


TOGETHER = QuantizeTogetherStep(steps=(QUANTIZE,), dry_run=True)


@pytest.mark.parametrize(
    "step", [CONVERT, IMATRIX, QUANTIZE, TOGETHER, OVERLAP, BASE, MEASURE], ids=lambda step: step.kind
)
def test_a_step_survives_the_trip_to_the_child(step: Step) -> None:
    assert step_from_json(step.model_dump_json()) == step


class _Writer:
    """Stands in for an executor: writes a file, counts."""

    def __init__(self) -> None:
        self.calls = 0
        self.fails = False

    def run(self, step: Step, progress: ProgressCallback) -> StepResult:
        self.calls += 1
        if self.fails:
            raise EngineError("gone wrong")
        progress(Progress("measure", 1, 1, "chunks"))
        for out in step.outs:
            out.write_bytes(b"tokens")
        if isinstance(step, MeasureTogetherStep):
            results: list[JsonValue] = [
                {"call": self.calls, "seconds": 0.5 + i} for i in range(len(step.steps))
            ]
            return StepResult(results, 5.0, 1000)
        return StepResult({"call": self.calls}, 1.5, 1000)


def test_a_step_is_done_once_and_again_when_its_output_changed(tmp_path: Path) -> None:
    writer = _Writer()
    out = tmp_path / "run" / "tokens" / "x.parquet"
    step = MEASURE.model_copy(update={"out": out})

    def do() -> tuple[Stepper, list[StepProgress], Any]:
        seen: list[StepProgress] = []
        with RunFolder.open(tmp_path / "run", A, {}) as folder:
            stepper = Stepper(folder, writer, seen.append)
            return stepper, seen, stepper.do(step, "measure x", "f16", [out]).result

    stepper, seen, result = do()
    assert result == {"call": 1}
    assert [cost.model_dump() for cost in stepper.costs] == [
        {"step": "measure x", "kind": "measure", "route": "f16", "seconds": 1.5, "bytes": 6, "reused": False}
    ]
    assert [(p.detail is not None, p.seconds) for p in seen] == [(False, None), (True, None), (False, 1.5)]

    stepper, seen, result = do()
    assert (result, writer.calls) == ({"call": 1}, 1)
    assert (stepper.costs[0].reused, stepper.costs[0].seconds) == (True, 1.5)
    assert [p.reused for p in seen] == [True]

    for damage in (b"TOKENS", b"tok", None):  # the first has the recorded size
        out.unlink() if damage is None else out.write_bytes(damage)
        calls = writer.calls
        _, _, result = do()
        assert (result, writer.calls) == ({"call": calls + 1}, calls + 1)
        assert out.read_bytes() == b"tokens"


def test_a_failed_step_leaves_no_record_and_is_tried_again(tmp_path: Path) -> None:
    writer = _Writer()
    writer.fails = True
    out = tmp_path / "run" / "x"
    step = MEASURE.model_copy(update={"out": out})
    with RunFolder.open(tmp_path / "run", A, {}) as folder:
        stepper = Stepper(folder, writer, lambda _: None)
        with pytest.raises(EngineError, match="gone wrong"):
            stepper.do(step, "measure x", None, [out])
        assert stepper.costs == []
        assert not list((tmp_path / "run").glob("steps/*"))
        writer.fails = False
        stepper.do(step, "measure x", None, [out])
    assert writer.calls == 2
    events = [json.loads(line) for line in (tmp_path / "run" / "events.jsonl").read_text().splitlines()]
    assert [e["event"] for e in events] == ["step-started", "step-failed", "step-started", "step-finished"]
    assert events[1]["error"] == "gone wrong"


def test_measurements_of_one_pass_are_kept_one_by_one(tmp_path: Path) -> None:
    writer = _Writer()
    tokens = tmp_path / "run" / "tokens"
    todo = [
        Measurement(
            MEASURE.model_copy(update={"candidate_tensors_sha256": c * 64, "out": tokens / f"{c}.parquet"}),
            f"measure {c}",
            "f16",
        )
        for c in "abc"
    ]
    with RunFolder.open(tmp_path / "run", A, {}) as folder:
        stepper = Stepper(folder, writer, lambda _: None)
        records = stepper.measure(todo[:2], "measure a, b", "one pass")
        # 5 s in all, 0.5 and 1.5 s of it the candidates' own
        assert [record.seconds for record in records] == [0.5 + 1.5, 1.5 + 1.5]
        assert [cost.step for cost in stepper.costs] == ["measure a", "measure b"]
        assert [stepper.found(each.step, [each.step.out]) for each in todo] == [*records, None]
        todo[0].step.out.unlink()
        assert [stepper.found(each.step, [each.step.out]) is None for each in todo] == [True, False, True]


def test_steps_of_one_pass_have_one_base() -> None:
    other = MEASURE.model_copy(update={"base_key": B})
    with pytest.raises(ValidationError, match="one base"):
        MeasureTogetherStep(steps=(MEASURE, other))
    together = MeasureTogetherStep(steps=(MEASURE, MEASURE.model_copy(update={"candidate": Path("/d")})))
    assert step_from_json(together.model_dump_json()) == together
