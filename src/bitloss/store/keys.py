"""Names made from content: the hash of a file, the key of a step."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING

from bitloss.progress import Progress, ProgressCallback, silent
from bitloss.store.atomic import explained

if TYPE_CHECKING:
    from pathlib import Path

    from pydantic import JsonValue

_HASH_BLOCK = 1 << 24


def sha256_file(path: Path, progress: ProgressCallback = silent) -> str:
    """Hash a file's content in blocks of 16 MiB.

    Returns:
        The SHA-256 as 64 lower-case hexadecimal digits.

    Raises:
        FileProblem: the file is missing or cannot be read.
    """
    digest = hashlib.sha256()
    stage = f"hash {path.name}"
    with explained(path), path.open("rb", buffering=0) as file:
        total = os.fstat(file.fileno()).st_size
        block = memoryview(bytearray(max(1, min(total, _HASH_BLOCK))))
        done = 0
        while count := file.readinto(block):
            digest.update(block[:count])
            done += count
            progress(Progress(stage, done, total, "bytes"))
    return digest.hexdigest()


def _check_json(value: object, where: str) -> None:
    """Only what JSON keeps apart: a key 1 would be written like a key "1"."""
    if isinstance(value, Mapping):
        for key, item in value.items():
            if not isinstance(key, str):
                raise TypeError(f"{where}: keys must be text, found {key!r}")
            _check_json(item, f"{where}.{key}")
    elif isinstance(value, list | tuple):
        for index, item in enumerate(value):
            _check_json(item, f"{where}[{index}]")
    elif not (value is None or isinstance(value, str | int | float)):
        raise TypeError(f"{where}: {type(value).__name__} is not JSON")


def content_key(kind: str, parts: Mapping[str, JsonValue]) -> str:
    """Name a step by what goes into it.

    The key is the SHA-256 of the canonical JSON of ``[kind, parts]``: keys sorted, no spaces, ASCII, floats
    in Python's shortest form. The order in which `parts` was filled does not matter; 1 and 1.0 are different.

    Raises:
        ValueError: a number is NaN or infinite: it equals nothing, so it cannot name anything.
        TypeError: something in `parts` is not JSON.
    """
    _check_json(parts, kind)
    text = json.dumps([kind, parts], sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()
