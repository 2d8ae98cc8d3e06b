"""JSON with places, as ``json.loads`` reads it."""

from __future__ import annotations

import json
import re

from batchplan.configfile.limits import MAX_DEPTH, MAX_DIGITS
from batchplan.configfile.source import Source
from batchplan.configfile.tree import Item, Node, mapping, sequence

_SPACE = re.compile(r"[ \t\n\r]*")
_DIGITS = re.compile(r"-?[0-9]+")
_COMMENTS = ("//", "/*", "#")
_DECODER = json.JSONDecoder()


def read_json(source: Source) -> Node:
    """Return the tree of a JSON file.

    Raises:
        SpecError: when ``json.loads`` would refuse it, it is no object, or is beyond the limits.
    """
    reader = _Reader(source)
    start = reader.skip(0)
    root = reader.value(start, depth=0)
    if not root.is_mapping:
        raise source.refusal("is no JSON object. Write the keys between { and }.", start)
    end = reader.skip(root.written.end)
    if end < len(source.text):
        raise reader.unexpected(end, "the end of the file")
    return root


class _Reader:
    """One pass over the text; each method takes and returns offsets."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.text = source.text

    def skip(self, offset: int) -> int:
        found = _SPACE.match(self.text, offset)
        return found.end() if found else offset

    def at(self, offset: int) -> str:
        return self.text[offset : offset + 1]

    def unexpected(self, offset: int, wanted: str) -> Exception:
        if self.text.startswith(_COMMENTS, offset):
            return self.source.refusal("JSON takes no comments. Remove this one.", offset)
        found = repr(self.at(offset)) if self.at(offset) else "the end of the file"
        return self.source.refusal(f"not valid JSON: expected {wanted}, found {found}.", offset)

    def value(self, offset: int, *, depth: int) -> Node:
        self.source.count(1, offset)
        if depth > MAX_DEPTH:
            raise self.source.refusal(
                f"is nested deeper than {MAX_DEPTH} levels. Write fewer [ and {{.", offset
            )
        opening = self.at(offset)
        if opening == "{":
            return self._object(offset, depth)
        if opening == "[":
            return self._array(offset, depth)
        return self._scalar(offset)

    def _scalar(self, offset: int) -> Node:
        digits = _DIGITS.match(self.text, offset)
        if digits and len(digits[0]) > MAX_DIGITS:
            raise self.source.refusal(
                f"a number of {len(digits[0]):,} digits. Write at most {MAX_DIGITS:,}.", offset
            )
        try:
            value, end = _DECODER.raw_decode(self.text, offset)
        except json.JSONDecodeError as error:
            if error.pos == offset and self.at(offset) != '"':
                raise self.unexpected(offset, "a value") from None
            raise self.source.refusal(f"not valid JSON: {error.msg}.", error.pos) from None
        return Node(value=value, written=self.source.span(offset, end))

    def _array(self, start: int, depth: int) -> Node:
        nodes: list[Node] = []
        offset = self.skip(start + 1)
        while self.at(offset) != "]":
            nodes.append(self.value(offset, depth=depth + 1))
            offset = self._after_item(nodes[-1].written.end, "]")
        return sequence(nodes, self.source.span(start, offset + 1))

    def _object(self, start: int, depth: int) -> Node:
        items: list[Item] = []
        offset = self.skip(start + 1)
        while self.at(offset) != "}":
            if self.at(offset) != '"':
                raise self.unexpected(offset, "a key in double quotes")
            key = self._scalar(offset)
            colon = self.skip(key.written.end)
            if self.at(colon) != ":":
                raise self.unexpected(colon, "':'")
            node = self.value(self.skip(colon + 1), depth=depth + 1)
            items.append(Item(name=key.value, key=key.written, node=node, end=node.written.end))
            offset = self._after_item(node.written.end, "}")
        span = self.source.span
        return mapping(items, span(start, offset + 1), body=span(start + 1, offset))

    def _after_item(self, offset: int, closing: str) -> int:
        """Return where the next item begins, or the bracket that closes the list."""
        offset = self.skip(offset)
        if self.at(offset) == closing:
            return offset
        if self.at(offset) != ",":
            raise self.unexpected(offset, f"',' or '{closing}'")
        following = self.skip(offset + 1)
        if self.at(following) == closing:
            raise self.source.refusal(
                f"not valid JSON: a comma before '{closing}'. Remove it.", offset
            )
        return following
