"""Colours of the pictures, on a page and as files of their own.

Kinds (`COLOURS`): dark enough for 3:1 on white, apart for the common kinds of colour blindness (by luminance as well
as hue). Amounts (`HEAT`, `HEAT_DARK`): steps from least to most, each as much further from the paper as the one before
in OKLCH lightness, so that more is more in either theme and without colour; hue turns along, which tells neighbours
apart better than lightness alone.
"""

from __future__ import annotations

from typing import Final

COLOURS: Final = ("#1d5fc4", "#b4470f", "#0b7a5c", "#8a3fa8", "#8f6a00", "#c02a5e", "#3d5a73", "#5b7d12")
INK: Final = "#1c2127"
_MUTED, _GRID = "#5b6570", "#d9dde2"
FONT: Final = "bitloss-sans, 'DejaVu Sans', sans-serif"

HEAT: Final = (
    *("#f7f3ae", "#e2eca2", "#cbe59a", "#b3de96", "#99d794"),
    *("#7dcf95", "#5fc798", "#3ebe9b", "#03b39f", "#04a7a1"),
    *("#18999f", "#068e9e", "#07819b", "#017599", "#006998"),
    *("#135c92", "#244f88", "#2d437c", "#31376e", "#322d60"),
)
HEAT_DARK: Final = (
    *("#2d285a", "#2c3268", "#273d76", "#1d4981", "#03568b"),
    *("#07628b", "#006e8e", "#047a91", "#078693", "#019295"),
    *("#129e95", "#19aa93", "#3ab58f", "#5dbe8a", "#7ac588"),
    *("#96cd87", "#b0d388", "#c8da8e", "#dee096", "#f2e7a2"),
)


def luminance(colour: str) -> float:
    """Relative luminance of ``#rrggbb``, 0 to 1 (WCAG 2)."""
    channels = (int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5))
    r, g, b = (v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in channels)
    return 0.2126 * r + 0.7152 * g + 0.0722 * b


def ink_on(colour: str) -> str:
    """Black or white, whichever stands out more from a colour: by 4.5:1 at least."""
    return "#000000" if luminance(colour) > _HALFWAY else "#ffffff"


_HALFWAY = 0.1791
"""Luminance from which black and white stand out by the same ratio."""

STYLE: Final = (
    f"text{{font-family:{FONT};font-size:12px;fill:{INK}}}.tick,.small{{font-size:11px;fill:{_MUTED}}}"
    f".title{{font-size:12px}}.head{{font-size:16px;font-weight:600}}.grid{{stroke:{_GRID};stroke-width:1}}"
    f".axis{{stroke:{_MUTED};stroke-width:1;fill:none}}"
    f".rule{{stroke:{_MUTED};stroke-width:1.2;stroke-dasharray:4 4;fill:none}}"
    f".none{{fill:none;stroke:{_MUTED};stroke-width:.6}}.strong{{font-weight:600;fill:{INK}}}"
    f".hit{{fill:none}}.hollow{{fill:#fff}}.range{{fill:#e3eaf3}}.range.less{{fill:#f1f5f9}}"
    f".halo{{stroke:#fff;stroke-width:3;paint-order:stroke}}"
    f".kn{{color:{_MUTED}}}.lead{{stroke:{_MUTED};stroke-width:.8;fill:none}}"
    f".front{{stroke-width:1.2;stroke-dasharray:3 3;fill:none;stroke:{_MUTED}}}"
    + "".join(f".k{i}{{color:{colour}}}" for i, colour in enumerate(COLOURS))
    + "".join(f".h{i}{{fill:{colour}}}" for i, colour in enumerate(HEAT))
    + "".join(f"text.o{i}{{font-size:10.5px;fill:{ink}}}" for i, ink in enumerate(map(ink_on, HEAT)))
)
"""Style sheet of a picture as a file."""
