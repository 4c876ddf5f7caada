"""What is written is read again; what breaks the form is refused with its place named."""

from __future__ import annotations

import dataclasses
import json
import math
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from bitloss.errors import FileProblem, RecordError
from bitloss.records import Figure, Results, json_schema, read_results, write_results

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

finite = st.floats(allow_nan=False, allow_infinity=False)


def test_round_trip(sample_results: Results, tmp_path: Path) -> None:
    write_results(sample_results, tmp_path / "results.json")
    assert read_results(tmp_path / "results.json") == sample_results
    assert read_results(tmp_path) == sample_results
    document = json.loads((tmp_path / "results.json").read_text())
    assert document["schema"] == "bitloss/results@1"
    assert document["candidates"][0]["metrics"]["kld_mean"] == {
        "value": 0.01811,
        "se": 0.000112,
        "se_clustered": pytest.approx(0.000168),
        "reason": None,
    }


@given(value=finite, se=finite.map(abs), clustered=finite.map(abs))
def test_figures_keep_every_bit(value: float, se: float, clustered: float) -> None:
    figure = Figure(value=value, se=se, se_clustered=clustered)
    again = Figure.model_validate_json(figure.model_dump_json(), strict=True)
    assert again == figure
    assert math.copysign(1, again.value or 0.0) == math.copysign(1, figure.value or 0.0)


def test_a_figure_from_a_dataclass() -> None:
    @dataclasses.dataclass(frozen=True, slots=True)
    class Other:
        value: float | None
        se: float | None
        se_clustered: float | None
        reason: str | None

    made = Figure(**dataclasses.asdict(Other(1.5, 0.1, None, None)))
    assert (made.value, made.se, made.se_clustered) == (1.5, 0.1, None)


@pytest.mark.parametrize(
    ("fields", "fault"),
    [
        ({"value": None}, "needs a reason"),
        ({"value": None, "reason": ""}, "at least 1 character"),
        ({"value": None, "se": 0.1, "reason": "x"}, "no standard error"),
        ({"value": math.nan}, "finite"),
        ({"value": math.inf, "reason": "x"}, "finite"),
        ({"value": 1.0, "se": -1.0}, "greater than or equal to 0"),
        ({"value": 1.0, "se": math.nan}, "finite"),
        ({"value": 1.0, "unit": "nats"}, "not permitted"),
        ({}, "required"),
    ],
)
def test_figures_refused(fields: dict[str, Any], fault: str) -> None:
    with pytest.raises(ValidationError, match=fault):
        Figure.model_validate(fields)


FINDING = {"id": "x", "title": "t", "text": "t", "evidence": {"a": 1}, "confidence": "proven"}


def change(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def apply(document: dict[str, Any]) -> None:
        *steps, last = path.split("/")
        place: Any = document
        for step in steps:
            place = place[int(step) if isinstance(place, list) else step]
        place[int(last) if isinstance(place, list) else last] = value

    return apply


@pytest.mark.parametrize(
    ("edit", "message"),
    [
        (change("extra", 1), "extra: damaged record: extra inputs are not permitted"),
        (change("model/name", "/home/me/model"), "model.name: damaged record: .*bare name"),
        (change("base/file", ".."), "base.file: .*bare name"),
        (change("text/sha256", "0" * 63), "text.sha256: "),
        (change("text/chunks", 0), "text.chunks: .*should be at least 1.*found 0"),
        (change("text/chunks", True), "text.chunks: .*should be a whole number"),
        (change("text/chunks", "12"), "text.chunks: .*should be a whole number.*found '12'"),
        (change("candidates/0/bytes", -1), r"candidates\[0\]\.bytes: "),
        (change("candidates/0/metrics/Mean PPL", {"value": 1.0}), r"candidates\[0\]\.metrics"),
        (change("candidates/1/name", "Q4_K_M/f32"), "two candidates have the same name"),
        (change("candidates/3/identical_to", "Q8_0/f64"), "names no earlier candidate"),
        (change("candidates/3/identical_to", "Q8_0/f16"), "names no earlier candidate"),
        (change("candidates/3/identical_to", "Q4_K_M/f32"), "their tensors differ"),
        (change("comparisons/0/b", "Q2_K/f32"), "which is no candidate"),
        (change("comparisons/0/verdict", "equal"), r"comparisons\[0\]\.verdict"),
        (change("comparisons/0/verdict", None), r"comparisons\[0\]: .*needs a reason"),
        (change("comparisons/0/ci95", [1.0, 0.0]), "must be ordered"),
        (change("comparisons/1/p_holm", None), "need a p-value"),
        (change("comparisons/1/p_value", 1.5), r"comparisons\[1\]\.p_value"),
        (change("findings", [FINDING | {"evidence": {"deep": [1.0, {"x": math.nan}]}}]), "finite"),
        (change("findings", [FINDING | {"question": 6}]), "at most 5"),
        (change("noise_floor/metrics/ppl/value", math.inf), r"noise_floor\.metrics\.ppl\.value: .*finite"),
        (change("schema", "bitloss/results@2"), "another version of bitloss: expected .*@1, found .*@2"),
        (change("schema", "something/else@1"), "not the results of a run"),
        (change("schema", 7), "schema"),
    ],
)
def test_damaged_results(
    sample_results: Results, tmp_path: Path, edit: Callable[[dict[str, Any]], None], message: str
) -> None:
    document = json.loads(sample_results.model_dump_json(by_alias=True))
    edit(document)
    path = tmp_path / "results.json"
    path.write_text(json.dumps(document))
    with pytest.raises(RecordError, match=message) as caught:
        read_results(path)
    assert "results.json" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_is_missing_is_named(sample_results: Results, tmp_path: Path) -> None:
    document = json.loads(sample_results.model_dump_json(by_alias=True))
    del document["base"]["file"]
    (tmp_path / "results.json").write_text(json.dumps(document))
    with pytest.raises(RecordError, match=r"results\.json: damaged record: base\.file is missing\. Restore"):
        read_results(tmp_path)


def test_missing_files(tmp_path: Path) -> None:
    with pytest.raises(
        FileProblem, match=r"no results in this folder \(results\.json is missing\)\. Give a run's"
    ):
        read_results(tmp_path)
    for missing in ("gone", "gone.json"):
        with pytest.raises(
            FileProblem, match=rf"{missing}: no such run folder or results\. Give .*bitloss run"
        ):
            read_results(tmp_path / missing)
    (tmp_path / "notes.md").write_text("# notes")
    with pytest.raises(
        RecordError, match=r"notes\.md: not the results of a run: no JSON\. Give a run's folder"
    ):
        read_results(tmp_path / "notes.md")


@pytest.mark.parametrize("text", ["{}", "[1]", "3", '{"schema": null}'])
@pytest.mark.parametrize("name", ["results.json", "e.json"])
def test_other_json_is_not_called_damaged(tmp_path: Path, name: str, text: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(
        RecordError,
        match=rf"{name}: not a results\.json that bitloss wrote: expected schema .*\. Give a run's",
    ):
        read_results(tmp_path / name)


def test_records_are_frozen(sample_results: Results) -> None:
    with pytest.raises(ValidationError, match="frozen"):
        sample_results.bitloss = "2"
    assert sample_results.candidate("Q8_0/f16").identical_to == "Q8_0/f32"
    with pytest.raises(KeyError):
        sample_results.candidate("Q2_K/f32")


def test_the_json_schema_describes_every_field(sample_document: dict[str, Any]) -> None:
    schema = json_schema()
    classes = [schema, *schema["$defs"].values()]
    objects = [c for c in classes if c.get("type") == "object"]
    assert len(objects) == 40
    for entry in objects:
        assert entry["additionalProperties"] is False
        for name, field in entry["properties"].items():
            assert field.get("description", "").endswith("."), name
    assert set(schema["properties"]) == set(sample_document)


def test_stopping_names_candidates_only(sample_document: dict[str, Any]) -> None:
    stopping = {"rule": "decided", "met": True, "alpha": 0.05, "margin": None, "precision": None, "seed": 0,
                "chunks_available": 564}  # fmt: skip
    pair = {"a": "Q8_0/f32", "b": "Q8_0/f16", "outcome": "identical", "chunks": 0, "low": None, "high": None}
    known = {"candidate": "Q8_0/f32", "low": 0.1, "high": 0.2, "relative": 0.3}
    good = sample_document | {"stopping": stopping | {"settled": (pair,), "known": (known,)}}
    assert Results.model_validate(good).stopping is not None
    for bad in ({"settled": (pair | {"b": "Q2_K"},)}, {"known": (known | {"candidate": "Q2_K"},)}):
        with pytest.raises(ValidationError, match="Q2_K"):
            Results.model_validate(sample_document | {"stopping": stopping | bad})


def test_chunks_of_documents_and_texts_add_up(sample_document: dict[str, Any]) -> None:
    text = sample_document["text"]
    split = {"split": "jsonl", "scored": 2, "cut": 1, "unscored": 0, "unused": 0}
    n = text["chunks"]
    for each, good in (((n - 1, 1), True), ((n, 1), False), ((n, 0), False), ((), True)):
        document = sample_document | {"text": text | {"documents": split | {"chunks": each}}}
        if good:
            found = Results.model_validate(document).text
            assert found.cluster == ("document" if each else "chunk")
        else:
            with pytest.raises(ValidationError, match=r"chunks"):
                Results.model_validate(document)
    with pytest.raises(ValidationError, match="not those of all of them"):
        Results.model_validate(sample_document | {"text": text | {"stratified": True}})
