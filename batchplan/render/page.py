"""A page of text: a rich console that is plain unless it is a terminal."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import IO, Any, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2
"""Spaces between the columns of a table."""


class _Trimmed:
    """A text file that drops the spaces tables leave at the ends of lines."""

    def __init__(self, file: IO[str]) -> None:
        self._file = file
        self.encoding = getattr(file, "encoding", "utf-8")

    def write(self, text: str) -> int:
        self._file.write(re.sub(r" +$", "", text, flags=re.MULTILINE))
        return len(text)

    def flush(self) -> None:
        self._file.flush()

    def isatty(self) -> bool:
        return self._file.isatty()

    def fileno(self) -> int:
        return self._file.fileno()


class _Console(Console):
    def on_broken_pipe(self) -> None:
        """Let whoever prints decide what a closed stdout means; rich would exit with 1."""
        raise BrokenPipeError


class Page:
    """Where the parts of an answer are printed, one after another."""

    def __init__(self, file: IO[str], width: int | None = None) -> None:
        self.console = _Console(
            file=cast("IO[str]", _Trimmed(file)),
            width=width,
            highlight=False,
            markup=False,
            emoji=False,
            soft_wrap=False,
        )

    @property
    def width(self) -> int:
        """Columns there are."""
        return self.console.width

    def title(self, text: str) -> None:
        """Print the heading of a part, with a blank line above."""
        self.console.print()
        self.console.print(Text(text, style="bold"))

    def line(self, text: str = "", *, style: str = "", indent: int = 0) -> None:
        """Print wrapped text; further lines keep the indent."""
        if not indent:
            self.console.print(Text(text, style=style))
            return
        grid = Table.grid(padding=0)
        grid.add_column(width=indent)
        grid.add_column()
        grid.add_row("", Text(text, style=style))
        self.console.print(grid)

    def bullet(self, text: str, *, mark: str = "-", style: str = "") -> None:
        """Print one item of a list; further lines are indented."""
        grid = Table.grid(padding=(0, 1, 0, 0))
        grid.add_column(width=len(mark))
        grid.add_column()
        grid.add_row(mark, Text(text, style=style))
        self.console.print(grid)

    def verbatim(self, text: str) -> None:
        """Print text as it is, never wrapped: it is to be copied."""
        self.console.print(Text(text), soft_wrap=True, end="")

    def table(
        self, columns: Iterable[tuple[str, str]], rows: Iterable[Iterable[str]], **options: Any
    ) -> None:
        """Print a table; a column is its heading and ``left``, ``right`` or ``whole``.

        ``whole`` is left and never folded.
        """
        table = Table(
            box=None, pad_edge=False, padding=(0, GAP, 0, 0), header_style="bold", **options
        )
        for heading, side in columns:
            table.add_column(
                Text(heading),
                justify="right" if side == "right" else "left",
                no_wrap=side != "left",
                overflow="fold",
            )
        for row in rows:
            table.add_row(*(Text(cell) for cell in row))
        self.console.print(table)

    def caveats(self, caveats: Iterable[Mapping[str, Any]]) -> None:
        """Print what the user should know, one item each."""
        caveats = list(caveats)
        if not caveats:
            return
        self.title("Keep in mind")
        for caveat in caveats:
            self.bullet(str(caveat["text"]))
