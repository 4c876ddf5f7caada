"""A card that the hub can read, with the tables' numbers and nothing that is not known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from bitloss.convert.record import Conversion, keep_record
from bitloss.explain.findings import findings
from bitloss.model.random_model import RandomShape, random_gguf
from bitloss.records import Results
from bitloss.report.card import render_card

yaml = pytest.importorskip("yaml", reason="PyYAML reads the front matter as the hub does")


def front(card: str) -> Any:
    start, matter, _ = card.split("---\n", 2)
    assert start == ""
    return yaml.safe_load(matter)


def test_front_matter_as_the_hub_reads_it(sample_results: Results, tmp_path: Path) -> None:
    assert front(
        render_card(sample_results, tmp_path, base_model="mistralai/Mistral-Nemo-Instruct-2407")
    ) == {
        "base_model": "mistralai/Mistral-Nemo-Instruct-2407",
        "base_model_relation": "quantized",
        "library_name": "gguf",
        "pipeline_tag": "text-generation",
        "tags": ["gguf", "quantized", "imatrix"],
    }


@pytest.mark.parametrize("name", ["yes", "a: b # c", '"\n---\nevil: 1', "null", "\u202e<b>", "- x"])
def test_no_name_breaks_the_front_matter(sample_document: dict[str, Any], tmp_path: Path, name: str) -> None:
    sample_document["model"]["name"] = name
    card = render_card(Results.model_validate(sample_document), tmp_path)
    assert front(card).keys() == {"library_name", "pipeline_tag", "tags"}
    assert "<b>" not in card.split("---\n", 2)[2]


def test_numbers_are_the_tables(sample_results: Results, tmp_path: Path) -> None:
    explained = sample_results.model_copy(update={"findings": findings(sample_results)})
    card = render_card(explained, tmp_path)
    row = next(
        line for line in card.splitlines() if line.startswith("| Mistral-Nemo-Instruct-2407-f32-Q4_K_M.gguf")
    )
    for cell in ("Q4_K_M", "6.96 GiB", "4.8800", "0.018110 ± 0.000168", "93.893 ± 0.093 %"):
        assert f" {cell} " in row
    assert "163,710 tokens of wiki.test.raw (642 chunks of 512" in card
    assert "The engine's own noise is a mean KLD of 2.500e-08 ± 1.9e-09." in card
    assert "Q4_K_M/f32 and Q4_K_M/f16: a tie" in card
    assert explained.text.sha256 is not None
    assert explained.text.sha256 in card


def test_which_one_for_which_memory(sample_results: Results, tmp_path: Path) -> None:
    card = render_card(sample_results, tmp_path)
    part = card.split("## Which one\n")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.split("|")[1:-1]]
        for line in part.splitlines()
        if line.startswith("| from")
    ]
    assert rows == [
        [
            "from 8 GiB",
            "Mistral-Nemo-Instruct-2407-f16-Q4_K_M.gguf",
            "6.96 GiB",
            "Mistral-Nemo-Instruct-2407-f32-Q4_K_M.gguf",
        ],
        [
            "from 16 GiB",
            "Mistral-Nemo-Instruct-2407-f16-Q8_0.gguf",
            "12.13 GiB",
            "Mistral-Nemo-Instruct-2407-f32-Q8_0.gguf (same tensors)",
        ],
    ]
    assert "Weights alone are counted, because the files were gone" in part


def test_many_tied_files_are_all_named(sample_document: dict[str, Any], tmp_path: Path) -> None:
    twin = sample_document["candidates"][3]
    more = [twin | {"name": f"Q8_0/{i}", "file": f"{'long-name-' * 4}{i}.gguf"} for i in range(4)]
    sample_document["candidates"] += tuple(more)
    card = render_card(Results.model_validate(sample_document), tmp_path)
    part = card.split("## Which one\n")[1].split("\n## ")[0]
    assert all(f"{each['file']} (same tensors)" in part for each in more)


def test_a_files_licence_and_shape_are_used(sample_results: Results, tmp_path: Path) -> None:
    (tmp_path / "candidates").mkdir()
    shape = RandomShape(
        n_vocab=320, n_embd=256, n_layer=1, n_head=4, n_head_kv=2, head_dim=64, n_ff=256, n_ctx_train=2048
    )
    random_gguf(tmp_path / "candidates" / sample_results.candidates[0].file, shape, seed=7, dtype="f32")
    card = render_card(sample_results, tmp_path)
    assert "the cache for 2048 tokens of context" in card
    assert "it is not recorded in its files, so state it here" in card
    assert "license" not in front(card)


def test_with_few_chunks_errors_are_the_other_kind_and_said_to_be(
    sample_results: Results, tmp_path: Path
) -> None:
    few = tuple(
        each.model_copy(
            update={
                "metrics": {
                    name: figure.model_copy(update={"se_clustered": None})
                    for name, figure in each.metrics.items()
                }
            }
        )
        for each in sample_results.candidates
    )
    with_errors = render_card(sample_results, tmp_path)
    without = render_card(sample_results.model_copy(update={"candidates": few}), tmp_path)
    assert "clustered by chunk" in with_errors
    assert "tokens taken as independent (too few chunks" in without
    kld = few[0].metrics["kld_mean"]
    assert kld.value is not None
    assert f"{kld.value:.6f} ±" in without


def test_the_base_model_is_a_hub_id_or_left_out(sample_results: Results, tmp_path: Path) -> None:
    card = render_card(sample_results, tmp_path)
    assert not {"base_model", "base_model_relation"} & front(card).keys()
    assert (
        "Made from Mistral-Nemo-Instruct-2407 (MistralForCausalLM, 12,247,782,400 weights in BF16) and measured "
        "against f32 with bitloss" in card
    )
    converted = Conversion(
        model="Nemo",
        architecture="MistralForCausalLM",
        gguf_architecture="llama",
        weights=1,
        checkpoint=(),
        outputs=(),
        ignored_tensors=(),
        notes=(),
        hub=f"mistralai/Nemo@{'0' * 40}",
        bitloss="0.1.0",
        seconds=1.0,
    )
    keep_record(converted, tmp_path / "sources")
    fetched = front(render_card(sample_results, tmp_path))
    assert (fetched["base_model"], fetched["base_model_relation"]) == ("mistralai/Nemo", "quantized")
    given = front(render_card(sample_results, tmp_path, base_model="you/Nemo"))
    assert given["base_model"] == "you/Nemo"
    (tmp_path / "sources" / "conversion.json").write_text("{")
    assert "base_model" not in front(render_card(sample_results, tmp_path))


def test_files_of_unknown_origin_are_only_said_to_be_measured(
    sample_document: dict[str, Any], tmp_path: Path
) -> None:
    for each in sample_document["candidates"]:
        each |= {"weights_from": None, "imatrix_from": None}
    sample_document["model"] |= {"name": "f16.gguf", "architecture": "llama", "dtype": "F16"}
    sample_document["base"] |= {"name": "f16.gguf", "file": "f16.gguf"}
    card = render_card(Results.model_validate(sample_document), tmp_path)
    assert "\n\nMeasured against f16.gguf (llama, 12,247,782,400 weights in F16) with bitloss 0.1.0." in card
    assert "Made from" not in card
    assert not {"base_model", "base_model_relation"} & front(card).keys()
    sample_document["model"] |= {"dtype": "unknown", "sha256": None}
    assert "\n\nMeasured against f16.gguf with bitloss" in render_card(
        Results.model_validate(sample_document), tmp_path
    )


def test_files_with_the_same_tensors_are_named_as_files(
    sample_document: dict[str, Any], tmp_path: Path
) -> None:
    def told() -> tuple[list[str], str]:
        part = render_card(Results.model_validate(sample_document), tmp_path).split("## Which one")[0]
        rows = [line.split("|")[-2].strip() for line in part.splitlines() if ".gguf" in line and "|" in line]
        return rows, part

    rows, part = told()
    assert rows == ["", "", "", "Mistral-Nemo-Instruct-2407-f32-Q8_0.gguf"]
    assert "Files with the same tensors differ in metadata or layout alone." in part
    assert "the same file" not in part
    twin = sample_document["candidates"][3]
    twin["sha256"] = sample_document["candidates"][2]["sha256"]
    rows, part = told()
    assert rows[3] == "Mistral-Nemo-Instruct-2407-f32-Q8_0.gguf"
    assert "Files with the same sha256 are the same file." in part
    assert "differ in metadata" not in part
    twin["identical_to"] = None
    twin["tensors_sha256"] = twin["tensors_sha256"][::-1]
    rows, part = told()
    assert rows == [""] * 4
    assert "metadata" not in part
