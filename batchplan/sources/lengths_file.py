"""Lengths that someone counted already: one a line, a JSON list, or a column of a table."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchplan.errors import SpecError
from batchplan.sequences import LengthDistribution
from batchplan.sources.data_rows import VALUE, DataFile, open_data
from batchplan.spec import MAX_SEQ_LEN, Caveat

LENGTH_COLUMNS = ("length", "num_tokens", "input_ids")
"""Columns taken for lengths without being named; a list counts its entries.

Source: ``length`` is where transformers' Trainer looks for them (``length_column_name``) and
``input_ids`` what tokenised data sets hold; ``num_tokens`` is common beside them.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """Lengths of a data set, and where they come from."""

    distribution: LengthDistribution
    source: str
    caveats: tuple[Caveat, ...] = ()


def read_lengths(path: Path, *, column: str | None = None) -> Measured:
    """Return the lengths that a file holds.

    Args:
        path: whole numbers, one a line or as a JSON list; or a table with a column of them.
        column: which column; None finds one of ``LENGTH_COLUMNS``, or takes the only one.

    Raises:
        SpecError: when there is none, or one is no whole number from 1 to ``MAX_SEQ_LEN``.
    """
    file = open_data(path)
    if column is None:
        only = file.columns if len(file.columns) == 1 else ()
        column = found_length_column(file) or next(iter(only), None)
    if column is None:
        raise SpecError(
            f"{path}: which column holds the lengths? Name it with --length-column: "
            f"{', '.join(file.columns)}."
        )
    return count_column(file, column)


def found_length_column(file: DataFile) -> str | None:
    """Return the column that holds lengths by its name, None without one."""
    return next((name for name in LENGTH_COLUMNS if name in file.columns), None)


def count_column(file: DataFile, column: str) -> Measured:
    """Return the lengths in one column.

    Raises:
        SpecError: when it is not there, or holds something else at some line.
    """
    counts: Counter[int] = Counter()
    wanted: Sequence[str] = (file.require(column),)
    for place, (value,) in file.rows(wanted):
        counts[_length(value, place)] += 1
    named = "" if column == VALUE or len(file.columns) == 1 else f", column {column}"
    return Measured(
        distribution=LengthDistribution.counted(counts), source=f"{file.path.name}{named}"
    )


def _length(value: Any, place: str) -> int:
    if isinstance(value, list) and all(isinstance(token, int) for token in value[:1]):
        number = len(value)
    elif isinstance(value, str) and value.strip().isdecimal() and len(value) < 40:
        number = int(value)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    else:
        raise SpecError(
            f"{place}: {_shown(value)} is no whole number of tokens; text needs --tokenizer."
        )
    if number < 1:
        raise SpecError(f"{place}: a length of {number} tokens; it is at least 1.")
    if number > MAX_SEQ_LEN:
        raise SpecError(f"{place}: {number:.4g} tokens are too many: at most {MAX_SEQ_LEN:,}.")
    return number


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
