"""Data files as rows of named columns, read one at a time: jsonl, JSON, CSV, Parquet, text."""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from itertools import count
from pathlib import Path
from typing import Any

from batchplan.errors import SpecError

MAX_LINE_BYTES = 64 * 2**20
"""Longest line we read; a line of text that long is no sequence of tokens."""
MAX_JSON_BYTES = 2**30
"""Largest file that is one JSON value, which must be read whole."""
VALUE = "value"
"""Name of the one column of what has no names: a line of text, a number in a list."""

Row = tuple[str, Mapping[str, Any]]
"""Where it is, for messages, and its values by column."""


@dataclass(frozen=True, slots=True)
class DataFile:
    """A file that was opened: its columns, and its rows when they are asked for."""

    path: Path
    columns: tuple[str, ...]
    read: Callable[[Sequence[str]], Iterator[Row]]
    """Yields rows with at least the columns named."""

    def rows(self, columns: Sequence[str]) -> Iterator[tuple[str, tuple[Any, ...]]]:
        """Yield where each row is and its values of ``columns``.

        Raises:
            SpecError: at the first row that lacks one, or is none.
        """
        for place, row in self.read(columns):
            missing = next((name for name in columns if name not in row), None)
            if missing is not None:
                raise SpecError(f"{place}: there is no {missing!r}, only {_listed(row)}.")
            yield place, tuple(row[name] for name in columns)

    def require(self, column: str) -> str:
        """Return the name of a column that is there.

        Raises:
            SpecError: naming those there are.
        """
        if column in self.columns:
            return column
        raise SpecError(f"{self.path} has no column {column!r}, only {_listed(self.columns)}.")


def open_data(path: Path) -> DataFile:
    """Open a data file by its suffix; no suffix that we know means lines of text.

    Raises:
        SpecError: when it cannot be read, is empty, or is not what its suffix says.
    """
    if path.is_dir():
        raise SpecError(f"{path} is a folder. Name one file: jsonl, json, csv, parquet or text.")
    if not path.exists():
        raise SpecError(f"{path}: no such file.")
    return _OPENERS.get(path.suffix.lower(), _text)(path)


def _json_lines(path: Path) -> DataFile:
    def read(_: Sequence[str] = ()) -> Iterator[Row]:
        for place, line in _lines(path):
            if line.strip():
                yield place, _named(_parsed(line, place))

    return _with_columns_of_first(path, read)


def _json(path: Path) -> DataFile:
    first = next((line.lstrip() for _, line in _lines(path) if line.strip()), "")
    if first.startswith("{"):
        # Many data sets call their JSON lines .json.
        return _json_lines(path)
    if path.stat().st_size > MAX_JSON_BYTES:
        raise SpecError(f"{path} is one JSON value of more than 1 GiB. Write it as jsonl.")
    text = "\n".join(line for _, line in _lines(path))
    content = _parsed(text, str(path))
    if not isinstance(content, list):
        raise SpecError(f"{path} must hold a JSON list, not {_kind(content)}.")

    def read(_: Sequence[str] = ()) -> Iterator[Row]:
        for number, value in enumerate(content, start=1):
            yield f"{path}, entry {number:,}", _named(value)

    return _with_columns_of_first(path, read)


def _csv(path: Path) -> DataFile:
    def read(_: Sequence[str] = ()) -> Iterator[Row]:
        reader = csv.DictReader(
            (f"{line}\n" for _, line in _lines(path)), delimiter="\t" if _is_tsv(path) else ","
        )
        try:
            for row in reader:
                yield f"{path}, line {reader.line_num:,}", row
        except csv.Error as error:
            raise SpecError(f"{path}, line {reader.line_num:,}: {error}.") from None

    file = _with_columns_of_first(path, read)
    if all(name.strip().isdecimal() for name in file.columns):
        raise SpecError(f"{path} has no header, only numbers. Add one, or name the file .txt.")
    return file


def _is_tsv(path: Path) -> bool:
    return path.suffix.lower() == ".tsv"


def _parquet(path: Path) -> DataFile:
    if find_spec("pyarrow") is None:
        raise SpecError(
            f"{path}: Parquet needs pyarrow, which datasets brings too: pip install pyarrow. "
            "Or write the lengths to a text file and give --lengths."
        )
    from pyarrow import ArrowException
    from pyarrow.parquet import ParquetFile

    try:
        file = ParquetFile(path)
    except (ArrowException, OSError) as error:
        raise SpecError(f"{path} is not Parquet: {_first_line(error)}.") from None

    def read(columns: Sequence[str] = ()) -> Iterator[Row]:
        number = 0
        try:
            for batch in file.iter_batches(columns=list(columns)):
                for row in batch.to_pylist():
                    number += 1
                    yield f"{path}, row {number:,}", row
        except (ArrowException, OSError) as error:
            raise SpecError(f"{path}, after row {number:,}: {_first_line(error)}.") from None

    if not file.metadata.num_rows:
        raise SpecError(f"{path} is empty.")
    return DataFile(path, tuple(file.schema_arrow.names), read)


def _text(path: Path) -> DataFile:
    def read(_: Sequence[str] = ()) -> Iterator[Row]:
        for place, line in _lines(path):
            if line.strip():
                yield place, {VALUE: line}

    return _with_columns_of_first(path, read)


_OPENERS: Mapping[str, Callable[[Path], DataFile]] = {
    ".jsonl": _json_lines,
    ".ndjson": _json_lines,
    ".json": _json,
    ".csv": _csv,
    ".tsv": _csv,
    ".parquet": _parquet,
}


def _with_columns_of_first(path: Path, read: Callable[[], Iterator[Row]]) -> DataFile:
    first = next(read(), None)
    if first is None:
        raise SpecError(f"{path} is empty.")
    return DataFile(path, tuple(str(name) for name in first[1]), lambda _: read())


def _lines(path: Path) -> Iterator[tuple[str, str]]:
    """Yield where each line is and its text, without its end."""
    number = 0
    try:
        with path.open("rb") as file:
            for number in count(1):
                raw = file.readline(MAX_LINE_BYTES + 1)
                if not raw:
                    return
                place = f"{path}, line {number:,}"
                if len(raw) > MAX_LINE_BYTES:
                    raise SpecError(f"{place} has more than 64 MiB.")
                # Written on Windows, a file may start with a byte order mark.
                yield place, raw.decode("utf-8-sig" if number == 1 else "utf-8").rstrip("\r\n")
    except UnicodeDecodeError:
        raise SpecError(f"{path}, line {number:,} is not UTF-8 text.") from None
    except OSError as error:
        raise SpecError(f"Cannot read {path}: {error.strerror or error}.") from None


def _named(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {VALUE: value}


def _parsed(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        what = getattr(error, "msg", "a number or a nesting that is too long")
        raise SpecError(f"{place} is not JSON: {what}.") from None


def _kind(value: object) -> str:
    return {dict: "an object", str: "text", type(None): "null"}.get(type(value), "a number")


def _listed(names: Iterable[object]) -> str:
    shown = [str(name) for name in names]
    return ", ".join(shown[:12]) + (", …" if len(shown) > 12 else "")


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or ["no reason given"])[0].rstrip(".")
