"""Tables on a terminal, with rich: the cells of `bitloss.report.tables`, as text, never as markup.

Columns that do not fit beside each other follow below, the first one again before them, so that no number is broken.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from rich import box
from rich.cells import cell_len
from rich.table import Table as RichTable
from rich.text import Text

from bitloss.display import visible
from bitloss.report.tables import Table

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderResult


class Fitted:
    """A table for the terminal, notes below it. Print it with rich.

    Args:
        table: what to show.
    """

    def __init__(self, table: Table) -> None:
        self.table = table
        cells = ([visible(c, 240) for c in row] for row in (table.columns, *table.rows))
        self.columns = list(zip(*cells, strict=True))
        self.widths = [max(cell_len(cell) for cell in column) + 2 for column in self.columns]

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        """See rich's protocol."""
        for group in self._groups(options.max_width if console.is_terminal else None):
            yield self._part(group)
        for i, note in enumerate(self.table.notes, 1):
            yield Text(f"({i}) {visible(note, 300)}")

    def _groups(self, width: int | None) -> list[list[int]]:
        """Indices of the columns that stand beside each other, the first column in every group."""
        groups: list[list[int]] = [[0]]
        for index in range(1, len(self.columns)):
            taken = 2 + sum(self.widths[i] for i in groups[-1]) + self.widths[index]
            if width is not None and taken > width and len(groups[-1]) > 1:
                groups.append([0])
            groups[-1].append(index)
        return groups

    def _part(self, group: Sequence[int]) -> RichTable:
        shown = RichTable(box=box.SIMPLE_HEAD)
        for index in group:
            side: Literal["left", "right"] = "right" if index in self.table.right else "left"
            shown.add_column(Text(self.columns[index][0]), justify=side, overflow="fold")
        for row in range(1, len(self.table.rows) + 1):
            if group[1:2] != [1] and not any(self.columns[i][row] for i in group[1:]):
                continue  # says nothing of these columns, and stands above
            before_sums = bool(self.table.sums) and row == len(self.table.rows) - self.table.sums
            shown.add_row(*(Text(self.columns[i][row]) for i in group), end_section=before_sums)
        return shown
