"""Pages that the tests open."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from tests.ladder import ladder_run
from tests.tokens import token_table, with_worst, write_table

from bitloss.explain.findings import findings
from bitloss.records import Figure, Results, TensorError
from bitloss.report.page import PAGE_NAME
from bitloss.report.write import write_report

EVIL = '<img src=x onerror="document.title=1">\u202e\x07 </script><script>document.title=2</script>'


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("run")


@pytest.fixture
def page(sample_document: dict[str, Any], folder: Path) -> Path:
    """The founding experiment's page, with tokens, and with names nobody should give."""
    if not (folder / PAGE_NAME).exists():
        sample_document["text"] |= {"chunks": 12, "scored_tokens": 12 * 63, "n_ctx": 128}
        for each in sample_document["candidates"]:
            each["metrics"] |= {
                f"dp_{name}": Figure(value=0.001 * k)
                for k, name in enumerate(
                    ("p0_1", "p1", "p5", "p25", "median", "p75", "p95", "p99", "p99_9"), -4
                )
            }
            each["file"] = each["file"].replace("Mistral", EVIL.replace("/", "\u2215"))
        results = Results.model_validate(sample_document)
        results = results.model_copy(update={"findings": findings(results)})
        for k, each in enumerate(results.candidates[:3]):
            table = with_worst(token_table(12, 63, scale=1 / (1 + 5 * (k == 2)), seed=k), {5: EVIL, 9: "\n"})
            write_table(table, folder, each.name.replace("/", "-"), each.tensors_sha256)
        write_report(results, folder)
    return folder / PAGE_NAME


@pytest.fixture(scope="module")
def ladder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of twenty files, with the 50 worst tokens of each in their text."""
    folder = tmp_path_factory.mktemp("ladder")
    results = ladder_run(folder, chunks=20)
    names = [f"blk.{k}.{kind}.weight" for k in range(48) for kind in ("attn_q", "attn_output", "ffn_down")]
    errors = tuple(
        TensorError(name=name, type="Q4_K", rms=0.01 + 0.001 * k, rms_weighted=None)
        for k, name in enumerate([*names, "output.weight"])
    )
    told = tuple(c.model_copy(update={"tensor_errors": errors}) for c in results.candidates)
    audit = {
        "matrices": {"lowest_exponent": -30, "exponents": [5, 0, 7, *(10 ** (k // 4) for k in range(28)), 3]}
    }
    return write_report(results.model_copy(update={"candidates": told, "audit": audit}), folder).html


@pytest.fixture(scope="module")
def long(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A page whose names have 150 characters and more, none of them a space."""
    folder = tmp_path_factory.mktemp("long")
    document = json.loads(ladder_run(folder, chunks=12).model_dump_json(by_alias=True))
    names = {c["name"]: "Merge" * 34 + c["name"] for c in document["candidates"][:5]}
    document["candidates"] = document["candidates"][:5]
    for each in document["candidates"]:
        each["name"], each["file"] = names[each["name"]], "7" * 170 + each["file"]
        each["weights_from"] = each["imatrix_from"] = None
        tensor = "blk.0." + "x" * 150
        each["tensor_errors"] = [{"name": tensor, "type": "Q4_K", "rms": 0.01, "rms_weighted": None}]
    document["candidates"][1]["identical_to"] = document["candidates"][0]["name"]
    document["candidates"][1]["tensors_sha256"] = document["candidates"][0]["tensors_sha256"]
    rows = [c for c in document["comparisons"] if {c["a"], c["b"]} <= names.keys()]
    document["comparisons"] = [c | {"a": names[c["a"]], "b": names[c["b"]]} for c in rows]
    document["model"]["name"], document["text"]["name"] = "M" * 160, "t" * 200
    document["costs"] = [c | {"step": "quantize " + "y" * 150} for c in document["costs"]]
    document["base"]["forced"] = ["z" * 300]
    results = Results.model_validate_json(json.dumps(document))
    results = results.model_copy(update={"findings": findings(results)})
    return write_report(results, folder).html


@pytest.fixture(scope="module")
def few(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of files measured on too few chunks for any test."""
    folder = tmp_path_factory.mktemp("few")
    return write_report(ladder_run(folder, chunks=3), folder).html
