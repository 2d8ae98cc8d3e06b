"""The text of a config file under its name: places in it, and what is said when it is refused."""

from __future__ import annotations

import bisect
import re

from batchplan.configfile.located import Span
from batchplan.errors import SpecError

_LINE_BREAK = re.compile(r"\r\n|\r|\n")
_LONGEST_QUOTE = 40


def printable(name: str) -> str:
    """Return a file name as one line."""
    return name if name.isprintable() else repr(name)


def quoted(value: object) -> str:
    """Return a key or value as a message shows it: short, on one line."""
    text = repr(value[: _LONGEST_QUOTE + 1] if isinstance(value, str) else value)
    return text if len(text) <= _LONGEST_QUOTE + 2 else f"{text[:_LONGEST_QUOTE]}…"


class Source:
    """The text of one file, and how many values were read from it so far."""

    def __init__(self, name: str, text: str, *, most_values: int) -> None:
        self.name = name
        self.text = text
        self.line_starts = [0, *(found.end() for found in _LINE_BREAK.finditer(text))]
        self._values_left = self._most_values = most_values

    def line(self, offset: int) -> int:
        """Return the line, from 1, of a character."""
        return bisect.bisect_right(self.line_starts, offset)

    def span(self, start: int, end: int) -> Span:
        """Return where characters ``start`` to before ``end`` stand."""
        line = self.line(start)
        return Span(start, end, line, start - self.line_starts[line - 1] + 1)

    def refusal(self, problem: str, offset: int) -> SpecError:
        """Return an error that names the file and the line."""
        return SpecError(f"{printable(self.name)}:{self.line(offset)}: {problem}")

    def count(self, values: int, offset: int) -> None:
        """Take note of values read.

        Raises:
            SpecError: when there are now more of them than a config may have.
        """
        self._values_left -= values
        if self._values_left < 0:
            raise self.refusal(
                f"stands for more than {self._most_values:,} values, the most a config may have, "
                "aliases written out. Give the trainer's config, not data.",
                offset,
            )
