"""Write the generated pages of ``docs/reference``; ``--check`` only says whether they are fresh.

    python scripts/generate_reference.py [--check]

Exit code 1 when ``--check`` finds a page that is not what the code says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from bitloss.records import Audit, Diff, json_schema
from bitloss.spec import EngineSpec, ExperimentSpec, StopSpec, TensorTypeSpec

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"


EXPERIMENT_INTRO = """`bitloss run EXPERIMENT.toml` reads what to make from a model and on what text to measure it;
`examples/` has some to start from. Relative paths start at the folder the file lies in. Unknown keys and values of
another type are refused; numbers are written without quotes."""
TABLES: dict[str, type[BaseModel]] = {
    "": ExperimentSpec,
    "stop": StopSpec,
    "engine": EngineSpec,
    "tensor_types": TensorTypeSpec,
}
HEADINGS = {
    "": "Keys",
    "stop": "Table `[stop]`",
    "engine": "Table `[engine]`",
    "tensor_types": "Tables `[[tensor_types]]`",
}


def experiment_page() -> str:
    """Return the page of an experiment file's keys, from the fields of `bitloss.spec`."""
    lines = ["# Experiment files", "", EXPERIMENT_INTRO]
    for name, part in TABLES.items():
        lines += [
            "",
            f"## {HEADINGS[name]}",
            "",
            "| Key | Value | When left out | Meaning |",
            "|---|---|---|---|",
        ]
        schema = part.model_json_schema(by_alias=True)
        for key, field in schema["properties"].items():
            if key in TABLES:
                continue
            if key in schema.get("required", ()):
                default = "has to be given"
            else:
                default = "nothing" if field["default"] is None else f"`{json.dumps(field['default'])}`"
            meaning = " ".join(field["description"].split()).replace("``", "`").replace("|", "\\|")
            lines.append(f"| `{key}` | {_value(field)} | {default} | {meaning} |")
    return "\n".join(lines) + "\n"


def _value(field: dict[str, Any]) -> str:
    """Say in words what a field of a JSON Schema holds."""
    options = [option for option in field.get("anyOf", [field]) if option.get("type") != "null"]
    (option,) = options
    if "enum" in option:
        return " or ".join(f"`{json.dumps(value)}`" for value in option["enum"])
    if option["type"] == "array":
        return f"list of {_value(option['items'])}"
    words = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
    least, most = option.get("minimum"), option.get("maximum")
    bounds = [f"at least {least}"] if least is not None else []
    bounds += [f"at most {most}"] if most is not None else []
    bounds += [f"above {option['exclusiveMinimum']:g}"] if "exclusiveMinimum" in option else []
    bounds += [f"below {option['exclusiveMaximum']:g}"] if "exclusiveMaximum" in option else []
    word = "path" if option.get("format") == "path" else words[option["type"]]
    return ", ".join([word, *bounds])


def pages() -> dict[str, str]:
    """Return each generated page by its file name."""
    return {
        "experiment.md": experiment_page(),
        "results.schema.json": _schema(json_schema()),
        "audit.schema.json": _schema(json_schema(Audit, "bitloss/audit@1")),
        "diff.schema.json": _schema(json_schema(Diff, "bitloss/diff@1")),
    }


def _schema(schema: dict[str, Any]) -> str:
    return json.dumps(schema, indent=2, ensure_ascii=False) + "\n"


def stale(folder: Path = FOLDER) -> list[str]:
    """Return the names of the pages that are missing or differ, sorted."""
    return sorted(
        name
        for name, text in pages().items()
        if not (folder / name).is_file() or (folder / name).read_text(encoding="utf-8") != text
    )


def main() -> int:
    """Write or check the pages."""
    parser = argparse.ArgumentParser(description="Generate the pages of docs/reference.")
    parser.add_argument("--check", action="store_true", help="write nothing, fail when a page is stale")
    check = parser.parse_args().check
    names = stale()
    for name in names:
        print(f"{'stale' if check else 'wrote'}: {FOLDER / name}")
        if not check:
            FOLDER.mkdir(parents=True, exist_ok=True)
            (FOLDER / name).write_text(pages()[name], encoding="utf-8")
    return 1 if check and names else 0


if __name__ == "__main__":
    sys.exit(main())
