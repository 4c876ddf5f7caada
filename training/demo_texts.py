"""Texts of the demo model: what it is trained on, calibrated with and measured on.

Input is a folder of plain-text novels, one file a book, paragraphs parted by blank lines. Three texts come
out:

- training: all books but the held-out one, less the calibration excerpts;
- calibration: one contiguous excerpt from each of `CALIBRATION_BOOKS`, cut out of the training text;
- evaluation: the opening of the held-out book, from its first chapter heading on.

Every cut is at a paragraph border. Inside a paragraph, runs of white space become one space, because
transcribers differ in how many spaces follow a full stop and that habit is no property of the language.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

HELD_OUT_BOOK = "sherlock-holmes"
HELD_OUT_START = "ADVENTURE I. A SCANDAL IN BOHEMIA"
CALIBRATION_BOOKS = (
    "bleak-house",
    "emma",
    "great-expectations",
    "middlemarch",
    "moby-dick",
    "war-and-peace",
)
CALIBRATION_CHARS_PER_BOOK = 25_000
CALIBRATION_POSITION = 0.6  # past the opening chapters, before the ending
EVALUATION_CHARS = 250_000

# Lines a transcriber added; no part of the novel.
_NOTE = re.compile(r"Project Gutenberg|Transcriber's Note")


@dataclass(frozen=True, slots=True)
class DemoTexts:
    """The three texts, disjoint by construction; `training` holds one string a book."""

    training: dict[str, str]
    calibration: str
    evaluation: str


def read_paragraphs(path: Path) -> list[str]:
    """Return the paragraphs of a book, white space normalised, transcribers' notes left out."""
    blocks = re.split(r"\n\s*\n", path.read_text(encoding="utf-8"))
    paragraphs = [re.sub(r"\s+", " ", block).strip() for block in blocks]
    return [p for p in paragraphs if p and not _NOTE.search(p)]


def join_paragraphs(paragraphs: list[str]) -> str:
    """Return paragraphs as one text: a blank line between two, one line end after the last."""
    return "\n\n".join(paragraphs) + "\n"


def take(paragraphs: list[str], start: int, chars: int) -> int:
    """Return the end of the shortest run of paragraphs from `start` with at least `chars` characters."""
    total = 0
    for index in range(start, len(paragraphs)):
        total += len(paragraphs[index]) + 2
        if total >= chars:
            return index + 1
    return len(paragraphs)


def split_texts(books: Path) -> DemoTexts:
    """Read every `*.txt` in `books` and return the three texts.

    Raises FileNotFoundError if the held-out book or a calibration book is missing.
    """
    paths = {path.stem: path for path in sorted(books.glob("*.txt"))}
    for name in (HELD_OUT_BOOK, *CALIBRATION_BOOKS):
        if name not in paths:
            raise FileNotFoundError(
                f"{books / name}.txt is missing; see training/README.md for the list of books"
            )
    held_out = read_paragraphs(paths.pop(HELD_OUT_BOOK))
    first = held_out.index(HELD_OUT_START)
    evaluation = join_paragraphs(held_out[first : take(held_out, first, EVALUATION_CHARS)])
    training: dict[str, str] = {}
    excerpts: list[str] = []
    for name, path in paths.items():
        paragraphs = read_paragraphs(path)
        if name in CALIBRATION_BOOKS:
            start = int(len(paragraphs) * CALIBRATION_POSITION)
            end = take(paragraphs, start, CALIBRATION_CHARS_PER_BOOK)
            excerpts += paragraphs[start:end]
            del paragraphs[start:end]
        training[name] = join_paragraphs(paragraphs)
    return DemoTexts(training, join_paragraphs(excerpts), evaluation)


def write_texts(texts: DemoTexts, folder: Path) -> None:
    """Write `calibration.txt` and `evaluation.txt` into `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in (("calibration", texts.calibration), ("evaluation", texts.evaluation)):
        (folder / f"{name}.txt").write_text(text, encoding="utf-8", newline="\n")
