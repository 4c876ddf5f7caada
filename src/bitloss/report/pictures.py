"""Pictures as files: SVG, and PNG drawn from it by resvg, without a browser and with a font of our own."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import bitloss
from bitloss.report.svg import WIDE, standalone
from bitloss.store import atomic_write_bytes
from bitloss.store.atomic import explained

if TYPE_CHECKING:
    from collections.abc import Sequence

    from bitloss.report.looks import Plot

PLOTS, TABLES = "plots", "tables"
NAMES = (
    "size-kld",
    "kld-percentiles",
    "dp",
    "ppl-kld",
    "kld-position",
    "kld-confidence",
    "exponents",
    "error-map",
    "difference-map",
    "sensitivity-map",
)
"""Of the pictures that a report may have (`Plot.id`), and of the tables beside them."""
_ZOOM = 2
_FONT = "bitloss-sans"  # no other program's pictures name it
_HEADER = 33  # bytes of a PNG before its second chunk: signature and IHDR
_SIGN = b"tEXtSoftware\0bitloss"
_SIGNED = struct.pack(">I", len(_SIGN) - 4) + _SIGN + struct.pack(">I", zlib.crc32(_SIGN))
_HEAD_BYTES = 4096


def write_pictures(plots: Sequence[Plot], folder: Path, *, model: str) -> list[Path]:
    """Write each picture into ``folder/plots`` as SVG and PNG.

    Args:
        plots: what to draw.
        folder: the run's.
        model: name of the model, for the headings.

    Returns:
        The files.

    Raises:
        FileProblem: one cannot be written.
    """
    written = []
    for plot in plots:
        svg = standalone(plot.draw(WIDE), f"{model}: {plot.title[:1].lower()}{plot.title[1:]}", plot.legend)
        for suffix, data in (("svg", svg.encode()), ("png", png(svg))):
            path = folder / PLOTS / f"{plot.id}.{suffix}"
            path.parent.mkdir(parents=True, exist_ok=True)
            atomic_write_bytes(path, data)
            written.append(path)
    return written


def remove_stale(folder: Path, written: Sequence[Path]) -> None:
    """Remove what an earlier report of `folder` has that this one has not: pictures and tables that would mislead.

    Args:
        folder: of the report.
        written: its pictures and tables; files of other names than a report gives are left alone.
    """
    pictures = [folder / PLOTS / f"{name}{suffix}" for name in NAMES for suffix in (".svg", ".png")]
    tables = [
        folder / TABLES / f"{name}{suffix}"
        for name in (*NAMES, "worst-tokens")
        for suffix in (".csv", ".parquet")
    ]
    for path in {*pictures, *tables} - set(written):
        with explained(path):
            path.unlink(missing_ok=True)


def png(svg: str) -> bytes:
    """Draw an SVG at twice its size; a chunk ``Software`` says who did.

    Fonts of the system are looked through (slow, and different everywhere) only for characters ours does not have.
    """
    import resvg_py

    ours = all(ord(c) < 0x180 or c in "–—‘’“”…−∆ΔΣσ≈≤≥·←↑→↓↕⁻⁰⁴⁵⁶⁷⁸⁹" for c in svg)
    font = Path(bitloss.__file__).parent / "assets" / "fonts" / f"{_FONT}.ttf"
    drawn = bytes(
        resvg_py.svg_to_bytes(
            svg_string=svg,
            zoom=_ZOOM,
            skip_system_fonts=ours,
            font_files=[str(font)],
            font_family=_FONT,
            sans_serif_family=_FONT,
        )
    )
    return drawn[:_HEADER] + _SIGNED + drawn[_HEADER:]


def is_picture(path: Path) -> bool:
    """Whether a file is an SVG or PNG drawn here, which may be replaced; one that cannot be read is not."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return (head.startswith(b"<svg ") and _FONT.encode() in head) or head[_HEADER:].startswith(_SIGNED)
