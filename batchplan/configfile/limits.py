"""How large a config file may be, and its bytes as text.

PyYAML reads about a million characters or 75,000 words a second, and a page of nested anchors can
stand for more values than there is memory. So that a broken or hostile file is refused within a
second, a file is bounded in bytes, and what it stands for in depth, values and digits.
"""

from __future__ import annotations

import codecs
import os
import re
import stat
from pathlib import Path as FilePath

from batchplan.configfile.source import printable
from batchplan.errors import SpecError
from batchplan.units import KIB

MAX_BYTES = 256 * KIB
"""Several times the longest training scripts that libraries publish (about 50 KiB)."""
MAX_DEPTH = 100
"""Mappings and lists inside one another; trainers use four at most."""
MAX_VALUES = 10_000
"""Values in all, each alias counted as what it stands for; a large config has 500;
PyYAML needs a quarter of a second for them."""
MAX_TOKENS = 50_000
"""Words and signs of a Python file, some 25 MB as a syntax tree; 3,000 lines have 30,000."""
MAX_DIGITS = 1_000
"""Characters of a number; Python itself prints no integer above 4,300."""

# What no text holds: all below space but tab, line feed, form feed and carriage return.
_CONTROL = re.compile(rb"[\x00-\x08\x0b\x0e-\x1f]")
_WIDE = {
    codecs.BOM_UTF32_LE: "UTF-32",
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}


def read_bytes(path: str | os.PathLike[str]) -> bytes:
    """Return the content of a regular file, at most one byte more than is allowed.

    Raises:
        SpecError: when it cannot be opened, or is a folder, pipe or device.
    """
    name = printable(os.fspath(path))
    try:
        # Opening a pipe for reading would otherwise wait for somebody to write.
        handle = os.open(FilePath(path), os.O_RDONLY | getattr(os, "O_NONBLOCK", 0))
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SpecError(f"{name}: cannot be read: {reason}.") from None
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise SpecError(f"{name}: is no regular file. Give the path of a config file.")
    with os.fdopen(handle, "rb") as file:
        return file.read(MAX_BYTES + 1)


def decode(name: str, content: bytes) -> str:
    """Return the text of a config file, without a byte order mark.

    Raises:
        SpecError: when it is too long, empty, binary, or not UTF-8.
    """
    name = printable(name)
    if len(content) > MAX_BYTES:
        raise SpecError(
            f"{name}: has more than {MAX_BYTES:,} bytes, the most a config file may have. "
            "Give the trainer's config or launch script, not data or weights."
        )
    for mark, encoding in _WIDE.items():
        if content.startswith(mark):
            raise SpecError(f"{name}:1: is {encoding}. Save it as UTF-8.")
    control = _CONTROL.search(content)
    if control is not None:
        raise SpecError(
            f"{name}:{_line(content, control.start())}: is binary: byte {control[0][0]:#04x} at "
            f"offset {control.start():,}. Give a text file in UTF-8."
        )
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise SpecError(
            f"{name}:{_line(content, error.start)}: is not UTF-8: byte {content[error.start]:#04x} "
            f"at offset {error.start:,}. Save it as UTF-8."
        ) from None
    if not text.strip():
        raise SpecError(f"{name}: is empty. Give a config with at least one key.")
    return text


def _line(content: bytes, offset: int) -> int:
    return len(re.findall(rb"\r\n|\r|\n", content[:offset])) + 1
