"""The gallery is small, and every picture a page names is there."""

from __future__ import annotations

import importlib.util
import re
import sys
import xml.etree.ElementTree as ET
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from tests.ladder import ladder_run

from bitloss.report.write import write_report

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


@pytest.fixture
def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_gallery", ROOT / "scripts" / "make_gallery.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def gallery(maker: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A gallery with an old photograph, an old chart, and no browser about."""
    folder = tmp_path / "gallery"
    folder.mkdir()
    (folder / "report.png").write_bytes(b"old")
    (folder / "gone.svg").write_bytes(b"<svg/>")
    monkeypatch.setattr(maker, "GALLERY", folder)
    monkeypatch.setattr(maker, "photographs", lambda page, into: [])
    return folder


def test_without_a_run_the_demo_is_run(
    maker: ModuleType, gallery: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The demo itself is left out here: a made-up run lies where it was told to write."""
    commands = []

    def demo(command: list[str], *, check: bool) -> None:
        assert check
        commands.append(command)
        out = Path(command[command.index("--out") + 1])
        write_report(ladder_run(out, chunks=12), out)

    monkeypatch.setattr(maker, "subprocess", SimpleNamespace(run=demo))
    monkeypatch.setattr(sys, "argv", ["make_gallery.py"])
    maker.main()
    assert [command[:4] for command in commands] == [[sys.executable, "-m", "bitloss", "demo"]]
    names = {path.name for path in gallery.iterdir()}
    assert {"README.md", "report.png", "size-kld.svg", "kld-percentiles.svg"} <= names
    assert "gone.svg" not in names
    assert (gallery / "report.png").read_bytes() == b"old"  # no browser: the photograph stays
    page = (gallery / "README.md").read_text(encoding="utf-8")
    assert all(name in page for name in names - {"README.md"})
    assert not Path(commands[0][5]).exists()


def test_a_gallery_that_cannot_be_made_leaves_the_old_one(
    maker: ModuleType, gallery: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = tmp_path / "run"
    write_report(ladder_run(run, chunks=12), run)
    monkeypatch.setattr(maker, "MOST_BYTES", 10)
    monkeypatch.setattr(sys, "argv", ["make_gallery.py", str(run)])
    with pytest.raises(SystemExit, match="more than 10"):
        maker.main()
    assert {path.name for path in gallery.iterdir()} == {"report.png", "gone.svg"}
    assert {path.name for path in tmp_path.iterdir()} == {"gallery", "run"}
