"""Where an edit goes in each kind of text: between commas, on lines of YAML, in a command."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any, Protocol

from batchplan.configfile.located import Format
from batchplan.configfile.notation import (
    JSON,
    PYTHON_CALL,
    PYTHON_DICT,
    YAML,
    Notation,
    shell_value,
    yaml_block,
    yaml_value,
)
from batchplan.configfile.patches import (
    NotInPlaceError,
    Patch,
    cut,
    indentation,
    is_rest_blank,
    line_break,
    line_end,
    line_start,
    skip,
)
from batchplan.configfile.tree import Item, Node


class Style(Protocol):
    """How the items of one mapping are changed. Every method returns what to do to the text."""

    def replace(self, item: Item, value: object) -> list[Patch]:
        """Give an item another value."""

    def add(self, holder: Node, name: Any, value: object) -> list[Patch]:
        """Append an item to a mapping."""

    def rename(self, item: Item, name: Any) -> list[Patch]:
        """Give an item another key."""

    def remove(self, holder: Node, item: Item) -> list[Patch]:
        """Take an item out of its mapping."""


def style_of(form: Format, text: str, root: Node, holder: Node) -> Style:
    """Return how the items of ``holder`` are written."""
    if form is Format.SHELL:
        return _Command(text, root)
    if form is Format.YAML:
        return _Commas(text, YAML) if holder.body else _Lines(text)
    if form is Format.JSON:
        return _Commas(text, JSON)
    is_call = holder.body is not None and text[holder.body.start - 1] == "("
    return _Commas(text, PYTHON_CALL if is_call else PYTHON_DICT)


def _key_patch(item: Item, written: str) -> Patch:
    if item.key is None:
        raise NotInPlaceError("it has no name of its own")
    return Patch(item.key.start, item.key.end, written)


def _value_patch(item: Item, written: str) -> Patch:
    place = item.node.written
    blank = " " if place.start == place.end else ""  # behind the colon or flag
    return Patch(place.start, place.end, blank + written)


@dataclass(frozen=True, slots=True)
class _Commas:
    """JSON, flow mappings of YAML, calls and dicts of Python."""

    text: str
    notation: Notation

    def replace(self, item: Item, value: object) -> list[Patch]:
        return [_value_patch(item, self.notation.value(value))]

    def rename(self, item: Item, name: Any) -> list[Patch]:
        return [_key_patch(item, self.notation.key(name))]

    def add(self, holder: Node, name: Any, value: object) -> list[Patch]:
        if holder.body is None:
            raise NotInPlaceError("only values that are there can be changed here")
        start = holder.body.start
        written = self.notation.key(name) + self.notation.between + self.notation.value(value)
        if not holder.own_items:
            is_empty = self._next(start) == holder.body.end
            return [Patch(start, start, written if is_empty else f"{written}, ")]
        last = max(holder.own_items, key=lambda item: item.end)
        indent = indentation(self.text, last.start)
        comma = self._next(last.end)
        has_comma = self.text.startswith(",", comma)
        end = comma + 1 if has_comma else last.end
        if indent is None or not is_rest_blank(self.text, end, self.notation.comment):
            return [Patch(last.end, last.end, f", {written}")]
        at = line_end(self.text, end)
        line = line_break(self.text) + indent + written
        if has_comma:
            return [Patch(at, at, f"{line},")]
        return [Patch(last.end, last.end, ","), Patch(at, at, line)]

    def remove(self, holder: Node, item: Item) -> list[Patch]:
        if holder.body is None:
            raise NotInPlaceError("only values that are there can be changed here")
        comma = self._next(item.end)
        if self.text.startswith(",", comma):
            if self.text[item.end : comma].strip():
                return [self._cut(item.start, item.end), Patch(comma, comma + 1)]
            return [self._cut(item.start, comma + 1)]
        before = [other.end for other in holder.own_items if other.end <= item.start]
        previous = max(before, default=holder.body.start)
        comma = self._next(previous)
        if not self.text.startswith(",", comma):
            return [self._cut(item.start, item.end)]
        if indentation(self.text, item.start) is None:
            return [Patch(comma, item.end)]
        return [Patch(comma, comma + 1), self._cut(item.start, item.end)]

    def _next(self, offset: int) -> int:
        return skip(self.text, offset, comment=self.notation.comment)

    def _cut(self, start: int, end: int) -> Patch:
        return cut(self.text, start, end, comment=self.notation.comment)


@dataclass(frozen=True, slots=True)
class _Lines:
    """Block mappings of YAML."""

    text: str

    def replace(self, item: Item, value: object) -> list[Patch]:
        written = item.node.written
        end_of_key = item.key.end if item.key else written.start
        if "\n" not in self.text[end_of_key : written.start]:
            return [_value_patch(item, yaml_value(value))]
        # The value begins below its key: the new one goes behind the colon, before a comment.
        colon = self.text.index(":", end_of_key) + 1
        return [
            Patch(colon, colon, f" {yaml_value(value)}"),
            Patch(line_end(self.text, colon), line_end(self.text, written.end)),
        ]

    def rename(self, item: Item, name: Any) -> list[Patch]:
        return [_key_patch(item, yaml_value(name))]

    def add(self, holder: Node, name: Any, value: object) -> list[Patch]:
        if not holder.own_items:
            raise NotInPlaceError("its mapping has no line of its own to put it below")
        last = max(holder.own_items, key=lambda item: item.end)
        start = last.start
        indent = " " * (start - line_start(self.text, start))
        at = line_end(self.text, last.end)
        ending = line_break(self.text)
        lines = yaml_block(name, value)
        return [Patch(at, at, "".join(f"{ending}{indent}{line}" for line in lines))]

    def remove(self, holder: Node, item: Item) -> list[Patch]:
        if len(holder.items) == 1:
            return [Patch(item.start, item.end, "{}")]
        if indentation(self.text, item.start) is not None:
            return [cut(self.text, item.start, item.end, comment="#")]
        # Behind the dash of a list: what stands next, a comment too, moves up.
        return [Patch(item.start, skip(self.text, line_end(self.text, item.end), comment=""))]


_BEFORE_EXPORTED = re.compile(r"[ \t]*(?:export|declare|typeset|readonly)[ \t]+")


@dataclass(frozen=True, slots=True)
class _Command:
    """The environment and flags of a shell script."""

    text: str
    root: Node

    def replace(self, item: Item, value: object) -> list[Patch]:
        return [_value_patch(item, self._words(value))]

    def rename(self, item: Item, name: Any) -> list[Patch]:
        return [_key_patch(item, str(name))]

    def add(self, holder: Node, name: Any, value: object) -> list[Patch]:
        if holder is self._group("flags"):
            return [self._new_flag(str(name), value)]
        if holder is self._group("env"):
            return [self._new_export(f"export {name}={shell_value(value)}")]
        raise NotInPlaceError("a script has an environment, a program and flags only")

    def remove(self, holder: Node, item: Item) -> list[Patch]:
        if holder is self._group("flags"):
            return [Patch(item.start - len(self._gap(item.start)), item.end)]
        start = line_start(self.text, item.start)
        exported = _BEFORE_EXPORTED.fullmatch(self.text, start, item.start)
        is_alone = exported and is_rest_blank(self.text, item.end, "#")
        return [cut(self.text, start if is_alone else item.start, item.end, comment="#")]

    def _group(self, name: str) -> Node | None:
        item = self.root.child(name)
        return item.node if item else None

    def _words(self, value: object) -> str:
        values = value if isinstance(value, list) and value else [value]
        return " ".join(map(shell_value, values))

    def _gap(self, offset: int) -> str:
        """Return the blanks and continued line ends before a word."""
        before = self.text[:offset]
        return before[len(before.rstrip(" \t\r\n\\")) :]

    def _new_flag(self, name: str, value: object) -> Patch:
        program, flags = self._group("program"), self._group("flags")
        if program is None or flags is None or not program.items:
            raise NotInPlaceError("there is no launch command")
        last = max([*program.items, *flags.items], key=lambda item: item.end)
        gap = self._gap(last.start) if last in flags.items else " "
        written = name if value is True else f"{name} {self._words(value)}"
        return Patch(last.end, last.end, (gap if "\\" in gap else " ") + written)

    def _new_export(self, line: str) -> Patch:
        program = self._group("program")
        ending = line_break(self.text)
        if program is None or not program.items:
            at = len(self.text.rstrip())
            return Patch(at, at, ending + line)
        start = line_start(self.text, program.items[0].start)
        while self.text[:start].rstrip("\r\n").endswith("\\"):
            start = line_start(self.text, start - len(ending))
        blanks = re.match(r"[ \t]*", self.text[start:])
        return Patch(start, start, (blanks[0] if blanks else "") + line + ending)
