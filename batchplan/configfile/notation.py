"""How each format writes keys and values."""

from __future__ import annotations

import json
import keyword
import shlex
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import yaml

from batchplan.configfile.patches import NotInPlaceError
from batchplan.configfile.python_file import DTYPE
from batchplan.configfile.source import quoted
from batchplan.configfile.yaml_file import plain_scalar

_WIDE = 2**30  # columns, so that nothing is folded


@dataclass(frozen=True, slots=True, kw_only=True)
class Notation:
    """How items between commas are written."""

    key: Callable[[Any], str]
    value: Callable[[Any], str]
    between: str
    comment: str
    """What begins an end-of-line comment; empty where there are none."""


class _Dumper(yaml.SafeDumper):
    """Writes every value out, and text of several lines on one."""

    def ignore_aliases(self, data: object) -> bool:  # noqa: ARG002
        return True


def _represent_text(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = '"' if len(text.splitlines()) > 1 or text.endswith(("\n", "\r")) else None
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _represent_text)


def yaml_value(value: object) -> str:
    """Return a value on one line, fit to stand anywhere.

    >>> yaml_value(2e-5), yaml_value("a, b"), yaml_value([1, {"x": None}])
    ('2.0e-05', "'a, b'", '[1, {x: null}]')
    """
    # Within brackets, for there PyYAML quotes what would end a flow collection.
    dumped = _dump([value], default_flow_style=True)
    return dumped.strip()[1:-1]


def yaml_block(key: object, value: object) -> list[str]:
    """Return a key and its value as lines of block style."""
    is_nested = isinstance(value, dict | list) and value
    if not is_nested:
        return [f"{yaml_value(key)}: {yaml_value(value)}"]
    return _dump({key: value}, default_flow_style=False).splitlines()


def _dump(value: object, *, default_flow_style: bool) -> str:
    return yaml.dump(
        value,
        Dumper=_Dumper,
        default_flow_style=default_flow_style,
        sort_keys=False,
        allow_unicode=True,
        width=_WIDE,
    )


def shell_value(value: object) -> str:
    """Return a value as one word; text that YAML would read as a number or word is quoted.

    >>> shell_value(2e-5), shell_value("x y"), shell_value("true"), shell_value(True)
    ('2.0e-05', "'x y'", "'true'", 'true')
    """
    if not isinstance(value, str):
        return yaml_value(value)
    word = shlex.quote(value)
    return word if word != value or plain_scalar(value) == value else f"'{value}'"


def _argument_name(name: object) -> str:
    if isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name):
        return name
    raise NotInPlaceError(f"{quoted(name)} is no name of an argument")


def _python(value: object) -> str:
    is_dtype = isinstance(value, str) and DTYPE.fullmatch(value)
    return str(value) if is_dtype else repr(value)


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


YAML = Notation(key=yaml_value, value=yaml_value, between=": ", comment="#")
JSON = Notation(key=_json, value=_json, between=": ", comment="")
PYTHON_CALL = Notation(key=_argument_name, value=_python, between="=", comment="#")
PYTHON_DICT = Notation(key=repr, value=_python, between=": ", comment="#")
