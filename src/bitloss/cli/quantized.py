"""What `bitloss quantize` prints: files that were made or would be, errors of their tensors, warnings."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from bitloss.cli.show import output_console
from bitloss.display import many, percent, size, visible

_WORST = 3
_NAMED = 5


def say_made(folder: Path, made: Sequence[dict[str, Any]]) -> None:
    """Print a line for each file (`bitloss.quantize.request.Quantized.as_json`), then errors where they are told."""
    for each in made:
        facts = ["already made, kept"] if each["reused"] else []
        facts += ["verified"] if each["verified"] else []
        facts += [f"{each['bits_per_weight']:.2f} bits per weight", size(each["bytes"]), _types(each)]
        _say(f"{folder / each['out']}  ({'; '.join([*facts, *_notes(each)])})")
    told = [each for each in made if each["errors"] is not None]
    if told:
        _say_errors(told)
    _say_warnings(made)


def say_planned(folder: Path, planned: Sequence[dict[str, Any]]) -> None:
    """Print a table of files that would be made (`bitloss.quantize.candidate.Candidate.as_json`)."""
    from bitloss.report.tables import Table
    from bitloss.report.terminal import Fitted

    rows = [
        (
            each["out"],
            size(each["bytes"]),
            f"{each['bits_per_weight']:.2f}",
            _types(each),
            "; ".join(_notes(each)),
        )
        for each in planned
    ]
    needed = sum(each["bytes"] for each in planned)
    sums = (many(len(planned), "file"), size(needed), "", "", "")
    columns = ("File", "Size", "Bits per weight", "Types of tensors", "Notes")
    used = [at for at in range(len(columns)) if at < 4 or any(row[at] for row in rows)]
    cells = [tuple(row[at] for at in used) for row in (columns, *rows, sums)]
    output_console().print(Fitted(Table(cells[0], tuple(cells[1:]), right=frozenset({1, 2}), sums=1)))
    _say_warnings(planned)
    there = next(parent for parent in (folder.absolute(), *folder.absolute().parents) if parent.exists())
    free = shutil.disk_usage(there).free
    _say(
        f"nothing was written; {size(free)} free in {there}{'' if free > needed else ', which is not enough'}"
    )


def _say(line: str) -> None:
    sys.stdout.write(f"{line}\n")


def _types(each: dict[str, Any]) -> str:
    return ", ".join(f"{count} {kind}" for kind, count in each["type_counts"].items())


_ODD = {
    "without_imatrix": "without importance",
    "unused_experts": "with experts no token reached (importance 1)",
    "zero_weights": "with importance 0 (of all, or of some experts)",
}


def _notes(each: dict[str, Any]) -> Iterator[str]:
    if each["parts"]:
        yield many(len(each["parts"]), "part")
    for key, words in _ODD.items():
        if each[key]:
            yield f"{many(len(each[key]), 'tensor')} {words}"
    if each["n_fallback"]:
        yield f"{each['n_fallback']} of other types, as rows do not fit the blocks"


def _say_errors(made: Sequence[dict[str, Any]]) -> None:
    """Print how far each file is from its source, and its worst tensors."""
    from bitloss.report.tables import Table
    from bitloss.report.terminal import Fitted

    weighted = any(each["error"]["rms_weighted"] is not None for each in made)
    rows = []
    for each in made:
        known = {name: error for name, error in each["errors"].items() if error["rms"] is not None}
        worst = sorted(known, key=lambda name: -known[name]["rms"])[:_WORST]
        told = [f"{name} ({known[name]['type']}) {percent(known[name]['rms'])}" for name in worst]
        overall = [
            _share(each["error"]["rms"]),
            *([_share(each["error"]["rms_weighted"])] if weighted else []),
        ]
        rows.append((each["type"], *overall, ", ".join(told) or "no tensor was quantized"))
    columns = ("Type", "RMS error", *(("By importance",) if weighted else ()), "Worst tensors")
    right = frozenset({1, 2} if weighted else {1})
    output_console().print(Fitted(Table(columns, tuple(rows), right=right)))
    _say("Errors are shares of a tensor's own root mean square; --json has every tensor's.")


def _share(value: float | None) -> str:
    return "n/a" if value is None else percent(value)


def _say_warnings(made: Sequence[dict[str, Any]]) -> None:
    """Name what importance 0 leaves without its values: such a file loads, and is broken."""
    for each in made:
        for becomes, words in (("zeros", "zeros"), ("noise", "mostly noise")):
            lost = {name: facts for name, facts in each["lost"].items() if facts["becomes"] == becomes}
            if lost:
                named = ", ".join(_lost(name, facts) for name, facts in list(lost.items())[:_NAMED])
                more = f" and {len(lost) - _NAMED} more" if len(lost) > _NAMED else ""
                hold = "tensor holds" if len(lost) == 1 else "tensors hold"
                _say(
                    f"warning: {each['out']}: {len(lost)} {hold} {words}, as the importance of all columns is 0: "
                    f"{named}{more}"
                )
    if any(each["lost"] for each in made):
        _say(
            "llama-quantize does the same. Compute the matrix on a text that reaches these tensors, or give them a "
            "type that takes no notice of importance: --tensor-type REGEX=Q8_0"
        )


def _lost(name: str, facts: dict[str, Any]) -> str:
    which: list[int] = facts["experts"]
    if facts["n_experts"] == 1:
        return visible(name)
    numbers = ", ".join(map(str, which[:_NAMED])) + (", ..." if len(which) > _NAMED else "")
    return f"{visible(name)} (expert{'' if len(which) == 1 else 's'} {numbers} of {facts['n_experts']})"
