"""The report holds everything the results do, in words and tables."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
from tests.tokens import token_table, with_worst, write_table

from bitloss.display import decimal
from bitloss.errors import FileProblem
from bitloss.explain.findings import findings
from bitloss.explain.questions import QUESTIONS
from bitloss.records import Results
from bitloss.report.render import render_markdown, write_markdown
from bitloss.report.uncertainty import Uncertainty
from bitloss.report.write import write_report

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def explained(sample_results: Results) -> Results:
    return sample_results.model_copy(update={"findings": findings(sample_results)})


def section(text: str, title: str) -> str:
    return text.split(f"\n## {title}\n", 1)[1].split("\n## ", 1)[0]


def test_sections_in_order(explained: Results) -> None:
    text = render_markdown(explained)
    assert text.startswith("# Mistral-Nemo-Instruct-2407: what the bits cost\n")
    assert [line[3:] for line in text.splitlines() if line.startswith("## ")] == [
        "In short",
        "Measurements",
        "Noise floor",
        "Comparisons",
        "Files",
        "Time and disk",
        "How it was made",
        "All figures",
    ]
    assert "\n\n\n" not in text
    assert text.endswith("\n")
    assert not text.endswith("\n\n")


def test_a_noise_floor_of_fewer_chunks_says_that_its_perplexity_is_another(explained: Results) -> None:
    floor = explained.noise_floor
    assert floor is not None
    note = "measured on these chunks only: its perplexity is theirs and not to be set beside the files'"
    assert note not in section(render_markdown(explained), "Noise floor")
    fewer = floor.model_copy(update={"how": "the base again, on 8 of its 64 chunks drawn at random"})
    results = explained.model_copy(update={"noise_floor": fewer})
    assert note in section(render_markdown(results), "Noise floor")


def test_the_answer_comes_first(explained: Results) -> None:
    text = section(render_markdown(explained), "In short")
    assert text.count("\n- **") == 7
    questions = [line for line in text.splitlines() if line.startswith("### ")]
    assert questions == [f"### {number}. {question}" for number, question in QUESTIONS.items()]
    assert "**Q8\\_0" not in text  # an underscore inside a word is no markup and stays readable
    assert (
        "- **Q8_0/f32 and Q8_0/f16 are the same weights in different files** (proven). Every tensor" in text
    )


def test_everything_needed_to_repeat_it(explained: Results) -> None:
    text = section(render_markdown(explained), "How it was made")
    for part in (
        "commit 0c1e570",
        "AMD EPYC 9354, 32 cores, 128.00 GiB of memory, NVIDIA H200, backend CUDA",
        explained.model.sha256,
        explained.text.sha256,
        "128 chunks of 512",
        "\n    bitloss run founding.toml\n",
    ):
        assert part is not None
        assert part in text


def test_a_base_with_limits_and_without_a_model_is_said_to_be_so(sample_document: dict[str, Any]) -> None:
    plain = render_markdown(Results.model_validate(sample_document))
    assert "What this base cannot tell" not in plain
    sample_document["base"]["limits"] = "no *more* than 16 bits"
    sample_document["model"]["sha256"] = sample_document["text"]["sha256"] = None
    text = render_markdown(Results.model_validate(sample_document))
    assert "\nWhat this base cannot tell: no \\*more\\* than 16 bits.\n" in text
    assert (
        "| Model | not known; the files measured are MistralForCausalLM of 12,247,782,400 weights |" in text
    )
    assert f"which holds its tokens alone, their sha256 {sample_document['text']['tokens_sha256']}" in text
    assert "None" not in text


def test_the_error_that_is_shown_is_named(explained: Results) -> None:
    tokens = section(render_markdown(explained, uncertainty=Uncertainty.TOKENS), "Measurements")
    clustered = section(render_markdown(explained, uncertainty=Uncertainty.CLUSTERED), "Measurements")
    both = section(render_markdown(explained), "Measurements")
    assert "takes tokens as independent" in tokens
    assert "6.445459 ± 0.059650" in clustered
    assert "not the one that llama-perplexity prints" in clustered
    assert "6.445459 ± 0.059650 (0.039767)" in both
    assert "in brackets" in both


def test_a_run_with_little_in_it(sample_results: Results) -> None:
    changes = {"noise_floor": None, "calibration": None, "comparisons": (), "commands": (), "costs": ()}
    bare = sample_results.model_copy(update={**changes, "candidates": sample_results.candidates[:1]})
    text = render_markdown(bare)
    assert "1 file measured against f32" in text
    assert "It was not measured in this run." in text
    assert "None: this run has one candidate, Q4_K_M/f32, and a comparison takes two." in text
    assert "Nothing here calls for a remark" in text
    assert "Calibration" not in text
    assert "To repeat it" not in text
    assert "\n\n\n" not in text


def test_pictures_and_worst_tokens(sample_document: dict[str, Any], tmp_path: Path) -> None:
    sample_document["text"] |= {"chunks": 12, "scored_tokens": 12 * 63}
    results = Results.model_validate(sample_document)
    pieces = {5: "<b>\u202e|", 9: "\n"}
    table = with_worst(token_table(12, 63), pieces)
    write_table(table, tmp_path, "q4", results.candidates[0].tensors_sha256)
    text = write_report(results, tmp_path).markdown.read_text(encoding="utf-8")
    for link in re.findall(r"!\[.+?\]\((.+?)\)", text):
        assert (tmp_path / link).is_file()
    assert text.count("![") == len(list((tmp_path / "plots").glob("*.png"))) == 5
    (first, *others) = [r for r in section(text, "Worst tokens").splitlines() if r.startswith("| Q4_K_M/f32")]
    assert len(others) == 4
    line = r"word3 word4&lt;b&gt;\\u202e\| word6 word7 word8⏎\[ target\] word10 word11"
    assert f" | {line} | " in first
    assert "word3 50.000 %, word4 25.000 %" in first
    assert decimal(float(table.metrics.kld.max())) in first


def test_written_beside_the_results(explained: Results, tmp_path: Path) -> None:
    path = write_markdown(explained, tmp_path)
    assert path == tmp_path / "report.md"
    assert path.read_text(encoding="utf-8") == render_markdown(explained)
    (tmp_path / "file").write_text("")
    with pytest.raises(FileProblem):
        write_markdown(explained, tmp_path / "file")
