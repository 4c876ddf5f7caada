"""Words and cells of the page: sentences with whole numbers, findings in points, cells that say why they are empty."""

from __future__ import annotations

import re
from itertools import pairwise
from typing import Final, NamedTuple

from markupsafe import Markup

from bitloss.display import visible
from bitloss.report.svg import power

LONG: Final = 36
"""Characters from which on a cell may be broken over lines."""
_NAME, _WHOLE = 80, 400
_MOST_IN_ONE_PIECE = 48  # characters; a name of digits alone would else push the page sideways

# a number with what belongs to it: sign, exponent, error, unit
_UNIT = r"(?: (?:%|nats|[KMGT]iB|B|ms|s|min(?: \d+ s)?|h(?: \d+ min)?)(?![\w]))?"
_NUMBER = re.compile(rf"(?<![\w.])-?\d[\d.,]*(?:e[-+]\d+)?(?: ± [\d.]+(?:e[-+]\d+)?)?{_UNIT}")
_WORD = 60
_APART = re.compile(rf"(`[^`]+`|\S{{{_WORD + 1},}})")  # what is not prose: code, long names
_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[^\sa-z])")
_MISSING = re.compile(r"n/a \((\d+)\)")
_POWER = re.compile(r"2\^(-?\d+)")


class Said(NamedTuple):
    """A sentence.

    Attributes:
        words: of it; where it lists parts, what stands before them.
        parts: what it lists.
    """

    words: Markup
    parts: tuple[Markup, ...] = ()


def prose(text: str) -> Markup:
    """Sentences whose numbers are not broken at the end of a line: ``1.946e-08``, ``-0.010 %``.

    Code is code, and of a long name the middle is cut out, with the whole in a title.
    """
    made = Markup()
    for i, piece in enumerate(_APART.split(visible(text, 2000))):
        if i % 2 == 0:
            made += _whole_numbers(piece)
        elif piece.startswith("`"):
            made += Markup("<code>{}</code>").format(piece.strip("`"))
        else:
            made += whole_in_title(piece, _WORD)
    return made


def _whole_numbers(text: str) -> Markup:
    made, at = Markup(), 0
    for found in _NUMBER.finditer(text):
        number = found[0].rstrip(".,")
        made += text[at : found.start()]  # escaped by Markup
        if len(number) <= _MOST_IN_ONE_PIECE:
            made += Markup('<span class="n">{}</span>').format(number)
        else:
            made += number
        made += found[0][len(number) :]
        at = found.end()
    return made + text[at:]


def sentences(text: str) -> list[Said]:
    """A paragraph as sentences, and those of the form ``lead: a; b; c.`` as a lead with its parts.

    Nothing is left out or added: joined by spaces, and parts by ``; ``, they are the paragraph again.
    """
    return [_sentence(each) for each in _SENTENCE.split(visible(" ".join(text.split()), 2000)) if each]


def _sentence(text: str) -> Said:
    outside = _outside(text)
    colon = next((i for i in outside if text[i : i + 2] == ": "), None)
    cuts = [i for i in outside if text[i : i + 2] == "; "]
    if colon is None or not cuts or cuts[0] < colon:
        return Said(prose(text))
    ends = [colon, *cuts, len(text)]
    parts = [text[a + 2 : b] for a, b in pairwise(ends)]
    return Said(prose(text[: colon + 1]), tuple(prose(part) for part in parts))


def _outside(text: str) -> list[int]:
    """Indices of the characters outside brackets."""
    depth, found = 0, []
    for i, character in enumerate(text):
        depth += (character in "([") - (character in ")]")
        if depth <= 0:
            found.append(i)
    return found


def whole_in_title(text: str, limit: int = _NAME) -> Markup:
    """A name; where its middle is cut out, the whole of it in a title."""
    shown = visible(text, limit)
    if shown == visible(text, _WHOLE):
        return Markup("{}").format(shown)
    return Markup('<span title="{}">{}</span>').format(visible(text, _WHOLE), shown)


def cell(text: str, notes: int = 0, limit: int = 240) -> Markup:
    """A cell: one without a value is a dash with the number of its note, whose words the script lets it say.

    Short, because a table of comparisons can have thousands of them.

    Args:
        text: as in every rendering.
        notes: how many the table has; the number of the only one is left out.
        limit: characters from which on the middle is cut out.
    """
    if (missing := _MISSING.fullmatch(text)) or text == "n/a":
        number = missing[1] if missing else ""
        return Markup('<span class="na" role="img" aria-label="{}">–{}</span>').format(
            text, Markup("<sup>{}</sup>").format(number) if missing and notes > 1 else ""
        )
    if raised := _POWER.fullmatch(text):
        return Markup("{}").format(power(2, int(raised[1])))
    return whole_in_title(text, limit)
