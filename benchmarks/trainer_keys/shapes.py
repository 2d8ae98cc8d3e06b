"""Keys of a dataclass, a pydantic model, an argparse parser or a signature, as plain data.

A key is ``{"type": …, "choices": […], "default": …}``. The type is one or more of bool, int, float,
str, list, dict and any, joined by ``|`` (None is left out: it is the default where it is allowed).
Choices are there when the set is closed, a default when JSON can say it.
"""

from __future__ import annotations

import argparse
import ast
import dataclasses
import enum
import inspect
import json
import textwrap
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

Keys = dict[str, dict[str, Any]]

_PLAIN = {bool: "bool", int: "int", float: "float", str: "str", list: "list", dict: "dict"}
_MISSING = object()


def key(annotation: Any, default: Any = _MISSING, choices: Iterable[Any] = ()) -> dict[str, Any]:
    """Return what is known of one key."""
    names, found = _kinds(annotation)
    found = list(choices) or found
    document: dict[str, Any] = {"type": "|".join(sorted(names)) or "any"}
    if "any" in names:
        document["type"] = "any"
    if found:
        document["choices"] = sorted({_plain(one) for one in found} - {_MISSING}, key=_order)
    value = _plain(default)
    if value is not _MISSING:
        document["default"] = value
    return document


def of_dataclass(cls: type) -> Keys:
    """Return the keys of a dataclass's ``__init__``."""
    hints = typing.get_type_hints(cls)
    found = {}
    for one in dataclasses.fields(cls):
        if one.init:
            default = one.default
            if one.default_factory is not dataclasses.MISSING:
                default = one.default_factory()
            missing = default is dataclasses.MISSING
            choices = one.metadata.get("choices") or ()
            found[one.name] = key(hints[one.name], _MISSING if missing else default, choices)
    return found


def of_pydantic(model: Any, prefix: str = "") -> Keys:
    """Return the keys of a pydantic model, nested models as dotted keys and aliases as keys."""
    found: Keys = {}
    for name, field in model.model_fields.items():
        default = _MISSING if field.is_required() else field.get_default(call_default_factory=True)
        row = found[prefix + name] = key(field.annotation, default)
        if str in typing.get_args(field.annotation):
            row.pop("choices", None)  # pydantic takes any text then, unlike the argument parsers
        if field.alias:
            found[prefix + field.alias] = found[prefix + name]
        for nested in models_in(field.annotation):
            found |= of_pydantic(nested, f"{prefix}{name}.")
    return found


def of_signature(function: Callable[..., Any]) -> Keys:
    """Return the keyword parameters of a callable."""
    try:
        hints = typing.get_type_hints(function)
    except (NameError, TypeError):  # an annotation that only a type checker can resolve
        hints = {}
    found = {}
    for one in inspect.signature(function).parameters.values():
        if one.kind in (one.POSITIONAL_OR_KEYWORD, one.KEYWORD_ONLY) and one.name != "self":
            missing = one.default is one.empty
            annotation = hints.get(one.name, Any if missing else type(one.default))
            found[one.name] = key(annotation, _MISSING if missing else one.default)
    return found


def of_parser(parser: argparse.ArgumentParser) -> Keys:
    """Return the destinations of an argparse parser's options."""
    found = {}
    for action in parser._actions:
        if action.option_strings and action.dest not in ("help", "version"):
            listed = action.nargs in ("*", "+") or (isinstance(action.nargs, int) and action.nargs)
            kind: Any = list if listed else _kind_of_action(action)
            found[action.dest] = key(kind, action.default, action.choices or ())
    return found


def read_by(function: Callable[..., Any], mapping: str) -> Keys:
    """Return the keys that a function's source reads from a dict of that name.

    Seen are ``d["k"]``, ``"k" in d`` and ``d.get("k", default)`` with its kin; a key that is only
    reached through a variable is not.
    """
    return read_in(ast.parse(textwrap.dedent(inspect.getsource(function))), mapping)


def read_in(tree: ast.AST, mapping: str) -> Keys:
    """Return the keys that a piece of source reads, as ``read_by`` does."""
    found: Keys = {}
    for node in ast.walk(tree):
        name, default = _key_read(node, mapping)
        if isinstance(name, str) and (name not in found or default is not _MISSING):
            found[name] = key(Any if default in (None, _MISSING) else type(default), default)
    return found


def models_in(annotation: Any) -> list[Any]:
    """Return the pydantic models that a value may be; those inside lists are left out."""
    if hasattr(annotation, "model_fields"):
        return [annotation]
    if typing.get_origin(annotation) in (typing.Union, types.UnionType, typing.Annotated):
        return [model for one in typing.get_args(annotation) for model in models_in(one)]
    return []


def under(prefix: str, keys: Mapping[str, dict[str, Any]]) -> Keys:
    """Return ``keys`` with ``prefix.`` before each, and the prefix itself as a dict."""
    return {prefix: {"type": "dict"}} | {f"{prefix}.{name}": one for name, one in keys.items()}


def _key_read(node: ast.AST, mapping: str) -> tuple[Any, Any]:
    """Return the key that one expression reads from ``mapping``, and its default."""

    def is_mapping(one: ast.AST) -> bool:
        return getattr(one, "attr", getattr(one, "id", None)) == mapping

    match node:
        case ast.Subscript(value=owner, slice=ast.Constant(value=name)) if is_mapping(owner):
            return name, _MISSING
        case ast.Compare(left=ast.Constant(value=name), comparators=[owner]) if is_mapping(owner):
            return name, _MISSING
        case ast.Call(
            func=ast.Attribute(value=owner, attr="get" | "pop" | "setdefault"),
            args=[ast.Constant(value=name), *rest],
        ) if is_mapping(owner):
            constant = rest and isinstance(rest[0], ast.Constant)
            return name, rest[0].value if constant else _MISSING
    return None, _MISSING


def _kind_of_action(action: argparse.Action) -> Any:
    if isinstance(action.const, bool):
        return bool
    kind: Any = action.type or str
    return kind if kind in _PLAIN or isinstance(kind, type) else _kind_of_function(kind, action)


def _kind_of_function(function: Any, action: argparse.Action) -> Any:
    if getattr(function, "__name__", "") in ("string_to_bool", "str_to_bool", "strtobool"):
        return bool
    return Any if action.default is None else type(action.default)


def _kinds(annotation: Any) -> tuple[set[str], list[Any]]:
    """Return type names and the closed set of values, if there is one."""
    origin = typing.get_origin(annotation)
    if annotation in (None, type(None)):
        return set(), []
    if origin is typing.Annotated:
        return _kinds(typing.get_args(annotation)[0])
    if origin is typing.Literal:
        values = [one for one in typing.get_args(annotation) if one is not None]
        return {_PLAIN.get(type(one), "any") for one in values}, values
    if origin in (typing.Union, types.UnionType):
        parts = [_kinds(one) for one in typing.get_args(annotation) if one is not type(None)]
        names = set().union(*(part[0] for part in parts)) if parts else set()
        # ``SchedulerType | str``: the enum given by its value, which the library casts back.
        closed = all(part[1] for part in parts) or _enum_by_value(annotation)
        return names, [value for part in parts for value in part[1]] if closed else []
    kind = origin or annotation
    if not isinstance(kind, type):
        return {"any"}, []
    if issubclass(kind, enum.Enum):
        values = [one.value for one in kind]
        return {_PLAIN.get(type(one), "any") for one in values}, values
    if kind in _PLAIN:
        return {_PLAIN[kind]}, []
    if issubclass(kind, (str, Path)):
        return {"str"}, []
    if dataclasses.is_dataclass(kind) or hasattr(kind, "model_fields") or issubclass(kind, Mapping):
        return {"dict"}, []
    if issubclass(kind, Iterable) and kind.__module__ in ("builtins", "collections.abc"):
        return {"list"}, []
    return {"any"}, []


def _enum_by_value(annotation: Any) -> bool:
    parts = [one for one in typing.get_args(annotation) if one is not type(None)]
    enums = [one for one in parts if isinstance(one, type) and issubclass(one, enum.Enum)]
    return bool(enums) and all(one is str or one in enums for one in parts)


def _order(value: Any) -> tuple[str, str]:
    return str(value), type(value).__name__  # "16" and 16 are two choices


def _plain(value: Any) -> Any:
    """Return a JSON value, or ``_MISSING`` where JSON cannot say it."""
    if isinstance(value, enum.Enum):
        value = value.value
    if isinstance(value, (tuple, set, frozenset)):
        value = sorted(value, key=str) if not isinstance(value, tuple) else list(value)
    if isinstance(value, Path):
        value = value.as_posix()
    if value is _MISSING:
        return value
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return _MISSING
    return value
