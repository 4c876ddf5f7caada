"""Models in several GGUF files, as llama.cpp names and marks them.

    NAME-00001-of-00003.gguf, NAME-00002-of-00003.gguf, ...
    split.no u16 (from 0), split.count u16, split.tensors.count i32 (of all parts), in each; the rest of the
    metadata in the first only

Follows llama.cpp's loader, and is stricter: it takes the tensors it finds, here their number must be that of
`split.tensors.count`.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, TypeVar

from bitloss.errors import FileProblem, GgufError, UsageError
from bitloss.model.gguf import GgufFile, GgufType, GgufValue

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from pathlib import Path

T = TypeVar("T")

NO, COUNT, TENSORS = "split.no", "split.count", "split.tensors.count"
SPLIT_KEYS = (NO, COUNT, TENSORS)
MAX_PARTS = 65535  # split.count is u16
MIN_PART_BYTES = 1_000_000  # llama-gguf-split counts in whole megabytes
_NAME = re.compile(r"(.+)-(\d{5,})-of-(\d{5,})", re.DOTALL)


def part_path(whole: Path, index: int, count: int) -> Path:
    """Return where part `index` (from 0) of `count` lies, for a model that would be `whole` (NAME.gguf) in one."""
    return whole.with_name(f"{whole.name.removesuffix('.gguf')}-{index + 1:05d}-of-{count:05d}.gguf")


def absolute(path: Path) -> Path:
    """Return an absolute path that keeps the name the file was given.

    What a link leads to may have a name that says nothing (Hugging Face's cache), and no other parts beside it.
    """
    return path.resolve() if path.is_dir() else path.parent.resolve() / path.name


def whole_stem(path: Path) -> str:
    """Return the stem of a model's file name, without the number of its part."""
    match = _NAME.fullmatch(path.stem)
    return match[1] if match else path.stem


def is_part(path: Path) -> bool:
    """Whether a file is named as a part of a split model."""
    return _NAME.fullmatch(path.stem) is not None


def in_parts(items: Iterable[T], size: Callable[[T], int], most: int | None) -> list[list[T]]:
    """Share tensors out to parts in their order, as `llama-gguf-split --split-max-size` does.

    Args:
        items: the tensors.
        size: bytes of one, padding included.
        most: bytes of tensors of a part; a larger tensor has a part of its own. None: one part.

    Returns:
        The tensors of each part; at least one part.

    Raises:
        UsageError: parts too small, or more than the format counts.
    """
    if most is not None and most < MIN_PART_BYTES:
        raise UsageError("parts too small", expected="1M or more", found=most)
    groups: list[list[T]] = [[]]
    filled = 0
    for item in items:
        if most is not None and groups[-1] and filled + size(item) > most:
            groups.append([])
            filled = 0
        groups[-1].append(item)
        filled += size(item)
    if len(groups) > MAX_PARTS:
        raise UsageError("too many parts", expected=f"at most {MAX_PARTS}", found=len(groups))
    return groups


def split_metadata(index: int, count: int, tensors: int) -> dict[str, GgufValue]:
    """Return the marks of part `index` (from 0) of `count`, in the order llama-gguf-split leaves them in."""
    return {
        NO: GgufValue(GgufType.UINT16, index),
        # Set again at the end there, when it is known.
        TENSORS: GgufValue(GgufType.INT32, tensors),
        COUNT: GgufValue(GgufType.UINT16, count),
    }


def open_model(path: Path, *, unknown_types: bool = False) -> GgufFile:
    """Open a GGUF model, of one file or of several; of a split one `path` is the first part.

    `unknown_types` as for `GgufFile.open`.

    Raises:
        FileProblem: a part is missing or unreadable.
        UsageError: `path` is a later part.
        GgufError: a file breaks the format, or the parts do not belong together.
        UnsupportedError: as `GgufFile.open`.
    """
    first = GgufFile.open(path, part_of_split=True, unknown_types=unknown_types)
    count = _number(first, COUNT, 1)
    if count <= 1:
        return first
    if count > MAX_PARTS:
        raise GgufError("impossible number of parts", where=f"{path}[{COUNT}]", found=count)
    match = _NAME.fullmatch(path.stem)
    number = _number(first, NO)
    whole = path.with_name(f"{match[1] if match else path.stem}.gguf")
    if number != 0 or path.name != part_path(whole, 0, count).name:
        expected = part_path(whole, 0, count).name
        raise UsageError(
            "not the first part of a split model",
            where=path,
            expected=expected,
            mend="give the first part; the others are found beside it",
        )
    first.join(
        [
            _part(first, part_path(whole, index, count), index, unknown_types=unknown_types)
            for index in range(1, count)
        ]
    )
    wanted = _number(first, TENSORS, len(first.tensors))
    if wanted != len(first.tensors):
        raise GgufError(
            "the parts do not hold all tensors", where=path, expected=wanted, found=len(first.tensors)
        )
    return first


def _part(first: GgufFile, path: Path, index: int, *, unknown_types: bool) -> GgufFile:
    count = _number(first, COUNT)
    if not path.is_file():
        raise FileProblem(
            "a part of a split model is missing",
            where=path,
            expected=f"{count} parts",
            mend="put all parts into one folder, under the names they were made with",
        )
    part = GgufFile.open(path, part_of_split=True, unknown_types=unknown_types)
    for key, expected in ((NO, index), (COUNT, count), (TENSORS, _number(first, TENSORS, -1))):
        found = _number(part, key, -1)
        if found != expected:
            raise GgufError("a part of another model", where=f"{path}[{key}]", expected=expected, found=found)
    return part


def _number(file: GgufFile, key: str, default: int | None = None) -> int:
    return file.integer(key, default)
