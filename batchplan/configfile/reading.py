"""Config files in, values with their places out."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import PurePath

from batchplan.configfile.json_file import read_json
from batchplan.configfile.limits import MAX_VALUES, decode, read_bytes
from batchplan.configfile.located import ConfigFile, Format
from batchplan.configfile.python_file import read_python
from batchplan.configfile.shell_file import read_shell
from batchplan.configfile.source import Source
from batchplan.configfile.tree import Node, located
from batchplan.configfile.yaml_file import read_yaml

_SUFFIXES = {
    ".yaml": Format.YAML,
    ".yml": Format.YAML,
    ".json": Format.JSON,
    ".py": Format.PYTHON,
    ".sh": Format.SHELL,
}
_READERS: dict[Format, Callable[[Source], Node]] = {
    Format.YAML: read_yaml,
    Format.JSON: read_json,
    Format.PYTHON: read_python,
    Format.SHELL: read_shell,
}


def read(path: str | os.PathLike[str]) -> ConfigFile:
    """Read a config file. No more of it is read than a config may have, and nothing is executed.

    Raises:
        SpecError: when it is no regular file, is no valid YAML, JSON, Python or shell script, or
            is beyond the limits; one line that names file and line.
    """
    return parse(os.fspath(path), read_bytes(path))


def parse(name: str, content: bytes, *, format: Format | None = None) -> ConfigFile:  # noqa: A002
    """Read the content of a config file, as :func:`read` does.

    Args:
        name: path as messages shall show it; its suffix tells the format.
        content: UTF-8, with or without a byte order mark.
        format: how it is written, where the suffix does not tell; else guessed from the content.
    """
    text = decode(name, content)
    form = format or _SUFFIXES.get(PurePath(name).suffix.lower()) or _guessed(text)
    source, root = read_tree(name, text, form)
    return located(source, form, root)


def read_tree(name: str, text: str, form: Format) -> tuple[Source, Node]:
    """Return a text as a tree, with the source that its places refer to."""
    source = Source(name, text, most_values=MAX_VALUES)
    return source, _READERS[form](source)


def _guessed(text: str) -> Format:
    return Format.JSON if text.lstrip().startswith("{") else Format.YAML
