"""Edits made in the text of a config file; all that they do not touch stays as it is."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import yaml

from batchplan.configfile.edit_styles import style_of
from batchplan.configfile.finding import Change, Edit
from batchplan.configfile.located import ConfigFile, Format, Path
from batchplan.configfile.patches import NotInPlaceError, Patch, patched
from batchplan.configfile.reading import read_tree
from batchplan.configfile.source import quoted
from batchplan.configfile.tree import Item, Node
from batchplan.errors import SpecError


def apply(file: ConfigFile, edits: Sequence[Edit]) -> str:
    """Return the text of a file with the edits made, one after another.

    Comments, order, quotes, indentation and line ends of everything else stay. A key that is
    added goes to the end of its mapping, missing mappings around it with it; one that is removed
    takes its end-of-line comment along, and a key written several times goes altogether. After
    each edit the text is read again and compared with what it should now say.

    Raises:
        SpecError: when an edit cannot be made in place: it would change another value too (a YAML
            anchor, a Python name used twice), or there is no such key.
    """
    text = file.text
    for edit in edits:
        text = _with_edit(file.name, file.format, text, edit)
    return text


# What else may stand in the way, once the result reads but does not say what it should.
_TIES = {
    Format.YAML: "an anchor, a merge key or the layout ties it to something else",
    Format.JSON: "the layout leaves no place for it",
    Format.PYTHON: "something else is made from the same expression",
    Format.SHELL: "the words of a command cannot say it",
}


def _with_edit(name: str, form: Format, text: str, edit: Edit) -> str:
    source, root = read_tree(name, text, form)
    steps = _steps(root, edit.path)
    try:
        result = _edited(name, form, text, root, edit)
        outcome = read_tree(name, result, form)[1].value
        reason = None if _is_same(outcome, _wanted(form, root, edit, steps)) else _TIES[form]
    except NotInPlaceError as error:
        reason = str(error)
    except SpecError:  # the result does not read
        reason = _TIES[form]
    except (yaml.YAMLError, TypeError, ValueError):
        reason = f"{form} has no way to write {quoted(edit.value)}"
    if reason is not None:
        key = quoted(".".join(map(str, edit.path)))
        raise source.refusal(
            f"cannot {edit.change} {key} in place: {reason}. Change it by hand.",
            steps[-1].start if steps else 0,
        )
    return result


def _steps(root: Node, path: Path) -> list[Item]:
    """Return the items along a path, as far as there are any."""
    steps: list[Item] = []
    node = root
    for name in path:
        item = node.child(name)
        if item is None:
            break
        steps.append(item)
        node = item.node
    return steps


def _edited(name: str, form: Format, text: str, root: Node, edit: Edit) -> str:
    """Return the text with an edit made; a key that is repeated is removed as often."""
    steps = _steps(root, edit.path)
    result = patched(text, _patches(form, text, root, edit, steps))
    if edit.change is Change.REMOVE:
        holder = [root, *(step.node for step in steps)][-2]
        if [item.name for item in holder.own_items].count(edit.path[-1]) > 1:
            return _edited(name, form, result, read_tree(name, result, form)[1], edit)
    return result


def _patches(form: Format, text: str, root: Node, edit: Edit, steps: Sequence[Item]) -> list[Patch]:
    nodes = [root, *(step.node for step in steps)]
    for holder, step in zip(nodes, steps, strict=False):
        if step.borrowed or not _is_within(step.start, holder):
            raise NotInPlaceError("it is written elsewhere, for several places")
    if len(steps) < len(edit.path):
        return _additions(form, text, root, edit, steps)
    holder, item = nodes[-2], steps[-1]
    style = style_of(form, text, root, holder)
    if edit.change is Change.SET:
        return style.replace(item, edit.value)
    if not holder.is_mapping:
        raise NotInPlaceError("it is an item of a list")
    if edit.change is Change.REMOVE:
        return style.remove(holder, item)
    if holder.child(edit.value) is not None:
        raise NotInPlaceError(f"there is {quoted(edit.value)} already")
    same = [other for other in holder.own_items if other.name == item.name]
    return [patch for other in same for patch in style.rename(other, edit.value)]


def _additions(
    form: Format, text: str, root: Node, edit: Edit, steps: Sequence[Item]
) -> list[Patch]:
    """Return the patches that add what of a path is missing."""
    if edit.change is not Change.SET:
        raise NotInPlaceError("there is no such key")
    nodes = [root, *(step.node for step in steps)]
    holder, missing = nodes[-1], edit.path[len(steps) :]
    if holder.is_mapping:
        if not all(_is_within(item.start, holder) for item in holder.own_items):
            raise NotInPlaceError("it is written elsewhere, for several places")
        style = style_of(form, text, root, holder)
        return style.add(holder, missing[0], _nested(missing[1:], edit.value))
    if holder.value is None and steps:
        style = style_of(form, text, root, nodes[-2])
        return style.replace(steps[-1], _nested(missing, edit.value))
    raise NotInPlaceError(f"{quoted(holder.value)} is no mapping")


def _is_within(offset: int, holder: Node) -> bool:
    return holder.written.start <= offset <= holder.written.end


def _nested(path: Path, value: object) -> object:
    for name in reversed(path):
        value = {name: value}
    return value


def _places(form: Format, root: Node, path: Path, steps: Sequence[Item]) -> list[Path]:
    """Return every path under which the edited place is listed.

    One, but for a Python call that is the value of a keyword: it is listed by itself too.
    """
    nodes = [root, *(step.node for step in steps)]
    depth = min(len(steps), len(path) - 1)
    body = nodes[depth].body
    if form is not Format.PYTHON or body is None:
        return [path]
    is_there = len(steps) > depth
    return [
        (*start, *path[depth:])
        for start, node in _mappings((), root)
        if node.body == body and (node.child(path[depth]) is not None) == is_there
    ]


def _wanted(form: Format, root: Node, edit: Edit, steps: Sequence[Item]) -> Any:
    """Return the values that the file should have afterwards."""
    wanted = root.value
    for path in _places(form, root, edit.path, steps):
        wanted = _changed(wanted, path, edit)
    return wanted


def _mappings(path: Path, node: Node) -> Iterator[tuple[Path, Node]]:
    yield path, node
    for item in node.items:
        yield from _mappings((*path, item.name), item.node)


def _changed(value: Any, path: Path, edit: Edit) -> Any:
    """Return a value with an edit made in it."""
    if not path:
        return edit.value
    head, rest = path[0], path[1:]
    if isinstance(value, list | tuple):
        return type(value)(
            _changed(item, rest, edit) if at == head else item for at, item in enumerate(value)
        )
    held = value if isinstance(value, dict) else {}
    if rest or edit.change is Change.SET:
        return {**held, head: _changed(held.get(head), rest, edit)}
    if edit.change is Change.REMOVE:
        return {name: item for name, item in held.items() if name != head}
    return {edit.value if name == head else name: item for name, item in held.items()}


def _is_same(one: Any, other: Any) -> bool:
    """Return whether two values are equal in type too; not a number equals itself."""
    if type(one) is not type(other):
        return False
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(_is_same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(_is_same, one, other))
    return bool(one == other) or (isinstance(one, float) and math.isnan(one) and math.isnan(other))
