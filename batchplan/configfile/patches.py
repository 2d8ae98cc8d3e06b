"""Changes to a text by offsets, and the cuts and insertions that keep its lines tidy."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass

_BLANK = re.compile(r"[ \t]*")
_LINE_BREAK = re.compile(r"\r\n|\r|\n")


class NotInPlaceError(Exception):
    """The text has no place for an edit; the message says why."""


@dataclass(frozen=True, slots=True)
class Patch:
    """Characters ``start`` to before ``end`` become ``text``."""

    start: int
    end: int
    text: str = ""


def patched(text: str, patches: Iterable[Patch]) -> str:
    """Return the text with all patches made, which must not overlap."""
    parts: list[str] = []
    offset = 0
    for patch in sorted(patches, key=lambda patch: (patch.start, patch.end)):
        parts += [text[offset : patch.start], patch.text]
        offset = patch.end
    return "".join([*parts, text[offset:]])


def line_break(text: str) -> str:
    """Return how lines of the text end."""
    found = _LINE_BREAK.search(text)
    return found[0] if found else "\n"


def line_start(text: str, offset: int) -> int:
    """Return where the line of a character begins."""
    return max(text.rfind("\n", 0, offset), text.rfind("\r", 0, offset)) + 1


def line_end(text: str, offset: int) -> int:
    """Return where the line of a character ends, before its line break."""
    found = _LINE_BREAK.search(text, offset)
    return found.start() if found else len(text)


def indentation(text: str, offset: int) -> str | None:
    """Return the blanks before a character that begins its line; None where it does not."""
    before = text[line_start(text, offset) : offset]
    return None if before.strip() else before


def is_rest_blank(text: str, offset: int, comment: str) -> bool:
    """Return whether nothing but a comment follows on the line."""
    rest = text[offset : line_end(text, offset)].strip()
    return not rest or bool(comment and rest.startswith(comment))


def cut(text: str, start: int, end: int, *, comment: str) -> Patch:
    """Return a patch that removes a piece: with its lines and end-of-line comment, if alone there.

    Otherwise with the blanks between it and its neighbour.
    """
    if indentation(text, start) is not None and is_rest_blank(text, end, comment):
        ending = _LINE_BREAK.match(text, line_end(text, end))
        return Patch(line_start(text, start), ending.end() if ending else len(text))
    after = _BLANK.match(text, end)
    following = after.end() if after else end
    if following < line_end(text, end):
        return Patch(start, following)
    return Patch(line_start(text, start) + len(text[line_start(text, start) : start].rstrip()), end)


def skip(text: str, offset: int, *, comment: str) -> int:
    """Return where the next thing stands that is neither blank nor comment."""
    while offset < len(text):
        if text[offset].isspace():
            offset += 1
        elif comment and text.startswith(comment, offset):
            offset = line_end(text, offset)
        else:
            break
    return offset
