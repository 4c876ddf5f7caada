"""Write the generated pages of ``docs/reference``; ``--check`` only says whether they are fresh.

    python scripts/generate_reference.py [--check]

Exit code 1 when ``--check`` finds a page that is not what the code says.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from bitloss.records import json_schema

FOLDER = Path(__file__).resolve().parent.parent / "docs" / "reference"


def pages() -> dict[str, str]:
    """Return each generated page by its file name."""
    return {"results.schema.json": json.dumps(json_schema(), indent=2, ensure_ascii=False) + "\n"}


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
