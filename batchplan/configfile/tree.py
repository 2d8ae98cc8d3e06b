"""What the readers of the formats build: values with their places, nested as in the text."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from batchplan.configfile.located import ConfigFile, Entry, Format, Path, Span
from batchplan.configfile.source import Source


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Node:
    """A value and, for a mapping or list, what it holds."""

    value: Any
    written: Span
    items: tuple[Item, ...] = ()
    body: Span | None = None
    """Of a mapping whose items stand between commas: what is between its brackets."""
    size: int = 1
    """Values in all, this one included."""

    @property
    def is_mapping(self) -> bool:
        """Whether it holds keys rather than list items or nothing."""
        return isinstance(self.value, dict)

    def child(self, name: object) -> Item | None:
        """Return the item that counts under this name: the last."""
        return next((item for item in reversed(self.items) if item.name == name), None)

    @property
    def own_items(self) -> tuple[Item, ...]:
        """The items written here, and not borrowed from elsewhere."""
        return tuple(item for item in self.items if not item.borrowed)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Item:
    """One key of a mapping, or one position of a list."""

    name: str | int
    key: Span | None
    node: Node
    end: int
    """Where all of it ends, a closing parenthesis around the value included."""
    borrowed: bool = False
    """Written elsewhere: a YAML merge key or Python's ``**`` brought it here."""

    @property
    def start(self) -> int:
        """Where all of it begins."""
        return (self.key or self.node.written).start


def mapping(items: Iterable[Item], written: Span, body: Span | None = None) -> Node:
    """Return a mapping; of a repeated key the last counts."""
    held = tuple(items)
    return Node(
        value={item.name: item.node.value for item in held},
        written=written,
        items=held,
        body=body,
        size=1 + sum(item.node.size for item in held),
    )


def sequence(
    nodes: Sequence[Node],
    written: Span,
    *,
    kind: Callable[[Iterable[Any]], Any] = list,
) -> Node:
    """Return a list, or what else ``kind`` makes of the values."""
    return Node(
        value=kind(node.value for node in nodes),
        written=written,
        items=tuple(
            Item(name=position, key=None, node=node, end=node.written.end)
            for position, node in enumerate(nodes)
        ),
        size=1 + sum(node.size for node in nodes),
    )


def located(source: Source, form: Format, root: Node) -> ConfigFile:
    """Return a tree as what the rest of the program sees of a file."""
    repeated: list[Entry] = []
    return ConfigFile(
        name=source.name,
        format=form,
        text=source.text,
        data=root.value,
        entries={entry.path: entry for entry in _entries((), root, repeated)},
        repeated=tuple(repeated),
    )


def _entries(path: Path, node: Node, repeated: list[Entry]) -> Iterator[Entry]:
    counts = {item.name: item for item in node.items}
    for item in node.items:
        here = (*path, item.name)
        entry = Entry(path=here, value=item.node.value, key=item.key, written=item.node.written)
        if counts[item.name] is item:
            yield entry
            yield from _entries(here, item.node, repeated)
        elif not item.borrowed:
            repeated.append(entry)
