r"""CSV (RFC 4180) that a spreadsheet can open: text stays text, whoever wrote it, and numbers stay numbers.

* Numbers are written as they are, None as an empty cell.
* Control characters, line breaks and other signs that cannot be printed are written as escapes (``\x0a``).
* Text that a spreadsheet would take for a formula, because it begins with ``=``, ``+``, ``-`` or ``@`` (or their
  full-width forms, after spaces or not), gets an apostrophe before it: ``'=HYPERLINK(...)``. So does such a text that
  has apostrophes before it already, so that taking one away gives the text back: where a cell matches ``'+ *[=+-@]``,
  cut its first character. Figures as they are shown (``-0.256 ± 0.010 %``, ``-5e-05 .. 3e-05``) are no such text.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Sequence
from typing import Any

from bitloss.display import visible

_NUMBER = r"-?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?"
_FIGURE = re.compile(
    rf"{_NUMBER}(?: ± {_NUMBER})?(?: \({_NUMBER}\))?(?: %)?(?: \.\. {_NUMBER}(?: %)?)?", re.ASCII
)
_FORMULA = re.compile(r"'*\s*[=+\-@＝＋－＠]")


def csv_text(rows: Iterable[Sequence[Any]]) -> str:
    """Rows of values as CSV, titles among them; cells are escaped as said above."""
    out = io.StringIO()
    csv.writer(out, lineterminator="\n").writerows([_cell(value) for value in row] for row in rows)
    return out.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    shown = visible(value, len(value) * 10 + 1)
    return f"'{shown}" if _FORMULA.match(shown) and not _FIGURE.fullmatch(shown) else shown
