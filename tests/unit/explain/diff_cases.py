"""Pairs of files to compare, and a diff whose account is checked."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tests.unit.explain.models import gguf

from bitloss.explain.diff import diff
from bitloss.model.gguf import GgufType, GgufValue
from bitloss.records.diff import Diff, Share, TensorDiff


def text(value: str) -> GgufValue:
    return GgufValue(GgufType.STRING, value)


def tensor(found: Diff, name: str) -> TensorDiff:
    return next(each for each in found.tensors if each.name == name)


def share(found: Diff, what: str) -> Share:
    return next(each for each in found.shares if each.what == what)


def pair(tmp_path: Path, a: Mapping[str, Any], b: Mapping[str, Any], **forms: Any) -> tuple[Path, Path]:
    return gguf(tmp_path / "a.gguf", a, **forms), gguf(tmp_path / "b.gguf", b, **forms)


def checked(a: Path, b: Path, **options: Any) -> Diff:
    """A diff, with the account held against the files' sizes and bytes."""
    found = diff(a, b, **options)
    assert sum(each.a for each in found.shares) == a.stat().st_size == found.a.bytes
    assert sum(each.b for each in found.shares) == b.stat().st_size == found.b.bytes
    same = hashlib.sha256(a.read_bytes()).digest() == hashlib.sha256(b.read_bytes()).digest()
    assert same == (found.conclusion == "same file") == (found.causes == ())
    assert Diff.model_validate_json(found.model_dump_json(), strict=True) == found
    return found
