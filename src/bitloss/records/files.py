"""``results.json`` on the disk, and its JSON Schema."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ValidationError

from bitloss.display import plain_fault
from bitloss.errors import FileProblem, RecordError, unreadable
from bitloss.records.results import SCHEMA, Results
from bitloss.store import atomic_write_text

if TYPE_CHECKING:
    from pathlib import Path

RESULTS_NAME = "results.json"
_MAX_BYTES = 1 << 28
_RUN_FOLDER = (
    f"give a run's folder or its {RESULTS_NAME}; `bitloss run`, `bitloss measure`, `bitloss sensitivity` and "
    "`bitloss demo` make one"
)


def write_results(results: Results, path: Path) -> None:
    """Write `results` as JSON, atomically; raises as `bitloss.store.atomic_path`."""
    atomic_write_text(path, results.model_dump_json(by_alias=True, indent=2) + "\n")


def read_results(path: Path) -> Results:
    """Read a ``results.json``, or the one in a run folder.

    Raises:
        FileProblem: the file is missing or cannot be read.
        RecordError: it is damaged, of a newer schema, or no results at all.
    """
    if path.is_dir():
        if not (path / RESULTS_NAME).exists():
            raise FileProblem(
                f"no results in this folder ({RESULTS_NAME} is missing)", where=path, mend=_RUN_FOLDER
            )
        path = path / RESULTS_NAME
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise RecordError("too large to be results of a run", where=path, expected="at most 256 MiB")
        data = path.read_bytes()
    except OSError as error:
        what = "results" if path.name == RESULTS_NAME else "run folder or results"
        raise unreadable(error, where=path, what=what, mend=_RUN_FOLDER) from error
    try:
        return Results.model_validate_json(data, strict=True)
    except ValidationError as error:
        raise _refusal(data, error, path) from error


def _refusal(data: bytes, error: ValidationError, path: Path) -> RecordError:
    """Say in one line why a file is no record: its schema first, then the first fault."""
    schema = _schema_of(data)
    if schema is not None and schema != SCHEMA:
        newer = schema.startswith("bitloss/results@")
        return RecordError(
            "results of another version of bitloss" if newer else "not the results of a run",
            where=path,
            expected=SCHEMA,
            found=schema[:80],
            mend="read it with the bitloss that wrote it, or run again" if newer else _RUN_FOLDER,
        )
    if schema is None and _is_json(data):
        return RecordError(
            "not a results.json that bitloss wrote", where=path, expected=f"schema {SCHEMA}", mend=_RUN_FOLDER
        )
    fault = error.errors(include_url=False, include_context=False)[0]
    if fault["type"] == "json_invalid" and path.name != RESULTS_NAME:
        return RecordError("not the results of a run: no JSON", where=path, mend=_RUN_FOLDER)
    place = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in fault["loc"]).lstrip(".")
    shown = fault["input"]
    missing = fault["type"] == "missing"
    return RecordError(
        f"damaged record: {f'{place} is missing' if missing else plain_fault(fault['msg'])[:200]}",
        where=f"{path}: {place}" if place and not missing else path,
        found=repr(shown)[:80] if isinstance(shown, str | int | float | bool) and place else None,
        mend="restore the file, or run again",
    )


def _is_json(data: bytes) -> bool:
    try:
        json.loads(data)
    except (ValueError, RecursionError):
        return False
    return True


def _schema_of(data: bytes) -> str | None:
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return None
    schema = document.get("schema") if isinstance(document, dict) else None
    return schema if isinstance(schema, str) else None


def json_schema(record: type[BaseModel] = Results, name: str = SCHEMA) -> dict[str, Any]:
    """Return the JSON Schema (draft 2020-12) of ``results.json``, or of another record by its name."""
    schema = record.model_json_schema(by_alias=True, mode="serialization")
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "$id": name, **schema}
