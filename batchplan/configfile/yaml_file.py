"""YAML with places, as ``yaml.safe_load`` reads it.

PyYAML parses, resolves and constructs scalars; only the nesting is put together here, because
PyYAML's own composer builds loops, and keeps no account of what its aliases stand for.

Leaves out: sets, ordered maps and every other tag beyond the plain ones; several documents.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import yaml

from batchplan.configfile.limits import MAX_DEPTH, MAX_DIGITS
from batchplan.configfile.located import Span
from batchplan.configfile.source import Source, quoted
from batchplan.configfile.tree import Item, Node, mapping, sequence
from batchplan.errors import SpecError

_TAG = "tag:yaml.org,2002:"
_NUMBERS = {_TAG + kind for kind in ("int", "float")}
_PLAIN = {_TAG + kind for kind in ("null", "bool")} | _NUMBERS
_SCALARS = {_TAG + kind for kind in ("str", "binary", "timestamp")} | _PLAIN
_MERGE, _VALUE = _TAG + "merge", _TAG + "value"


def read_yaml(source: Source) -> Node:
    """Return the tree of a YAML file.

    Raises:
        SpecError: when ``yaml.safe_load`` would refuse it, it is no mapping, or is beyond the
            limits.
    """
    try:
        return _Reader(source).document()
    except yaml.reader.ReaderError as error:
        raise source.refusal(
            f"character {error.character:#04x} is not allowed in YAML. Remove it.", error.position
        ) from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        raise source.refusal(
            f"not valid YAML: {' '.join(str(error.problem or error.context).split())}.",
            mark.index if mark else 0,
        ) from None


def plain_scalar(text: str) -> bool | int | float | str | None:
    """Return what YAML makes of an unquoted word; dates and merge signs stay text.

    >>> plain_scalar("2.0e-5"), plain_scalar("2e-5"), plain_scalar("yes")
    (2e-05, '2e-5', True)
    """
    loader: Any = yaml.SafeLoader("")
    tag = loader.resolve(yaml.ScalarNode, text, (True, False))
    if tag not in _PLAIN or len(text) > MAX_DIGITS:
        return text
    try:
        value: bool | int | float | None = loader.construct_object(yaml.ScalarNode(tag, text))
    except (ValueError, OverflowError):
        return text
    return value


class _Reader:
    """Events in, nodes out."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.loader: Any = yaml.SafeLoader(source.text)  # PyYAML's stubs leave out its events
        self.anchors: dict[str, Node | None] = {}
        """None while the anchored value is still being read."""

    def document(self) -> Node:
        """Return the one document of the file."""
        self.loader.get_event()
        if self.loader.check_event(yaml.StreamEndEvent):
            raise self.source.refusal("is empty. Give a config with at least one key.", 0)
        self.loader.get_event()
        root = self.node(depth=0)
        self.loader.get_event()
        after = self.loader.get_event()
        if not root.is_mapping:
            raise self.source.refusal(
                f"is no mapping but {quoted(type(root.value).__name__)}. Write 'key: value' lines.",
                root.written.start,
            )
        if not isinstance(after, yaml.StreamEndEvent):
            raise self.source.refusal(
                "a second document begins here. Give one config per file.", _start(after)
            )
        return root

    def node(self, *, depth: int) -> Node:
        """Return the next value."""
        event = self.loader.get_event()
        start = _start(event)
        if isinstance(event, yaml.AliasEvent):
            return self._alias(str(event.anchor), self._span(event))
        self.source.count(1, start)
        if depth > MAX_DEPTH:
            raise self.source.refusal(
                f"is nested deeper than {MAX_DEPTH} levels. Write it flatter.", start
            )
        if event.anchor in self.anchors:
            raise self.source.refusal(
                f"the anchor {quoted('&' + event.anchor)} is used twice. Rename one.", start
            )
        if event.anchor is not None:
            self.anchors[event.anchor] = None
        if isinstance(event, yaml.ScalarEvent):
            node = self._scalar(event)
        elif isinstance(event, yaml.SequenceStartEvent):
            node = self._sequence(event, depth)
        else:
            node = self._mapping(event, depth)
        if event.anchor is not None:
            self.anchors[event.anchor] = node
        return node

    def _alias(self, name: str, written: Span) -> Node:
        if name not in self.anchors:
            raise self.source.refusal(
                f"the alias {quoted('*' + name)} has no anchor. Add &{name[:40]} to a value above.",
                written.start,
            )
        node = self.anchors[name]
        if node is None:
            raise self.source.refusal(
                f"the alias {quoted('*' + name)} stands inside its own anchor, without end. "
                "Write the value out.",
                written.start,
            )
        self.source.count(node.size, written.start)
        return Node(value=node.value, written=written, items=node.items, size=node.size)

    def _span(self, event: yaml.NodeEvent) -> Span:
        start, end = _start(event), _end(event)
        # The mark after a block scalar stands behind the line break that ends it.
        return self.source.span(start, start + len(self.source.text[start:end].rstrip()))

    def _tag(self, event: yaml.ScalarEvent) -> str:
        if event.tag is None or event.tag == "!":
            return str(self.loader.resolve(yaml.ScalarNode, event.value, event.implicit))
        return str(event.tag)

    def _scalar(self, event: yaml.ScalarEvent) -> Node:
        tag = self._tag(event)
        start = _start(event)
        if tag not in _SCALARS:
            raise self._unknown_tag(tag, start)
        if tag in _NUMBERS and len(event.value) > MAX_DIGITS:
            raise self.source.refusal(
                f"a number of {len(event.value):,} characters. Write at most {MAX_DIGITS:,}.", start
            )
        try:
            value = self.loader.construct_object(yaml.ScalarNode(tag, event.value))
        except (ValueError, OverflowError, LookupError, AttributeError):
            kind = tag.removeprefix(_TAG)
            raise self.source.refusal(
                f"{quoted(event.value)} looks like a {kind} and is none. Write it in quotes.", start
            ) from None
        return Node(value=value, written=self._span(event))

    def _unknown_tag(self, tag: str, start: int) -> SpecError:
        if tag in (_MERGE, _VALUE):
            return self.source.refusal(
                "'<<' and '=' are no values in YAML. Write it in quotes.", start
            )
        shown = "!!" + tag.removeprefix(_TAG) if tag.startswith(_TAG) else tag
        return self.source.refusal(
            f"the tag {quoted(shown)} is not read: a config holds plain values only. Remove it.",
            start,
        )

    def _check_tag(self, event: yaml.CollectionStartEvent, kind: str) -> None:
        if event.tag not in (None, "!", _TAG + kind):
            raise self._unknown_tag(event.tag, _start(event))

    def _sequence(self, event: yaml.SequenceStartEvent, depth: int) -> Node:
        self._check_tag(event, "seq")
        nodes: list[Node] = []
        while not self.loader.check_event(yaml.SequenceEndEvent):
            nodes.append(self.node(depth=depth + 1))
        ending = self.loader.get_event()
        start = _start(event)
        if event.flow_style:
            return sequence(nodes, self.source.span(start, _end(ending)))
        return sequence(nodes, self.source.span(start, nodes[-1].written.end if nodes else start))

    def _mapping(self, event: yaml.MappingStartEvent, depth: int) -> Node:
        self._check_tag(event, "map")
        merged: list[Item] = []
        own: list[Item] = []
        # The mark at the end of the event of a block mapping is where its first key begins.
        start = end = _end(event)
        while not self.loader.check_event(yaml.MappingEndEvent):
            key = self._key(depth)
            node = self.node(depth=depth + 1)
            end = node.written.end
            if key is None:
                merged += self._merged(node)
            else:
                own.append(Item(name=key.value, key=key.written, node=node, end=end))
        ending = self.loader.get_event()
        items = [*merged, *own]
        if event.flow_style:
            return mapping(items, *self._bracketed(event, ending))
        return mapping(items, self.source.span(start, end))

    def _bracketed(
        self, opening: yaml.MappingStartEvent, closing: yaml.MappingEndEvent
    ) -> tuple[Span, Span | None]:
        """Return the place of a flow mapping, and of what stands between its brackets."""
        start, inside = _start(opening), _end(opening)
        end = _end(closing)
        if self.source.text[inside - 1] != "{":  # a lone pair, as in [a: 1], has none
            return self.source.span(start, end), None
        return self.source.span(start, end), self.source.span(inside, end - 1)

    def _key(self, depth: int) -> Node | None:
        """Return the next key; None for a merge key."""
        event = self.loader.peek_event()
        tag = self._tag(event) if isinstance(event, yaml.ScalarEvent) else None
        if tag in (_MERGE, _VALUE) and event.anchor is not None:
            raise self.source.refusal("'<<' and '=' take no anchor. Remove it.", _start(event))
        if tag == _MERGE:
            self.loader.get_event()
            return None
        if tag == _VALUE:
            self.loader.get_event()
            return Node(value=event.value, written=self._span(event))
        key = self.node(depth=depth + 1)
        try:
            hash(key.value)
        except TypeError:
            raise self.source.refusal(
                "a mapping or list is no key. Write a word.", key.written.start
            ) from None
        return key

    def _merged(self, node: Node) -> list[Item]:
        """Return what a merge key brings in; of a list the first mapping counts."""
        from_list = isinstance(node.value, list)
        sources = [item.node for item in reversed(node.items)] if from_list else [node]
        if not all(source.is_mapping for source in sources):
            raise self.source.refusal(
                "'<<' merges mappings only. Give it an alias of one.", node.written.start
            )
        return [replace(item, borrowed=True) for source in sources for item in source.items]


def _start(event: yaml.Event) -> int:
    return event.start_mark.index if event.start_mark else 0


def _end(event: yaml.Event) -> int:
    return event.end_mark.index if event.end_mark else 0
