"""The gallery is small, and every picture a page names is there."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
GALLERY = ROOT / "docs" / "gallery"


@pytest.mark.parametrize("page", ["README.md", "docs/gallery/README.md"])
def test_pictures_are_there_and_described(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    pictures = re.findall(r"!\[(.*?)\]\((.+?)\)", text)
    assert pictures
    for words, target in pictures:
        assert len(words) > 8
        assert ((ROOT / page).parent / target).is_file(), target


def test_pictures_are_small() -> None:
    sizes = {path.name: path.stat().st_size for path in GALLERY.iterdir()}
    assert max(sizes.values()) < 300_000, sizes
    assert sum(sizes.values()) < 2_000_000
    named = (GALLERY / "README.md").read_text(encoding="utf-8")
    assert [name for name in sizes if name != "README.md" and name not in named] == []
    for path in GALLERY.glob("*.svg"):
        ET.fromstring(path.read_text(encoding="utf-8"))
