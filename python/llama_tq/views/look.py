"""What tables look like."""

from __future__ import annotations

from collections.abc import Iterable

from rich import box
from rich.table import Table


def table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are numbers."""
    look = {"box": box.SIMPLE_HEAD, "pad_edge": False, "collapse_padding": True}
    made = Table(title=title or None, title_justify="left", title_style="bold", **look)
    for number, column in enumerate(columns):
        made.add_column(column, justify="right" if number else "left", no_wrap=True)
    return made


def facts(title: str, rows: Iterable[tuple[str, str]]) -> Table:
    """Names, and text that may take several lines."""
    made = table(title, "name", "value")
    made.columns[1].justify, made.columns[1].no_wrap = "left", False
    for row in rows:
        made.add_row(*row)
    return made
