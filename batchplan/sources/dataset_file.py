"""The lengths of a data set: from a column that has them, or by tokenizing its text."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from batchplan.errors import SpecError
from batchplan.sequences import LengthDistribution
from batchplan.sources.data_rows import VALUE, DataFile, open_data
from batchplan.sources.lengths_file import (
    LENGTH_COLUMNS,
    Measured,
    count_column,
    found_length_column,
)
from batchplan.sources.tokenizer import TokenizerName
from batchplan.spec import Caveat

TEXT_COLUMNS = (("messages",), ("text",), ("prompt", "completion"), ("content",), (VALUE,))
"""Columns taken for text without being named, joined where they are two.

Source: the first three are the formats TRL's ``SFTTrainer`` takes (its page "Dataset formats").
"""
Chat = Callable[[Sequence[Mapping[str, Any]], str], str]
"""Messages and their place to text: ``Tokenizer.chat``."""
_BATCH = 1000
"""Rows tokenized together."""


def measure(
    path: Path,
    *,
    tokenizer: TokenizerName | None,
    length_column: str | None = None,
    text_column: str | None = None,
    retokenize: bool = False,
    on_progress: Callable[[str], None] | None = None,
) -> Measured:
    """Return the lengths in tokens of every sequence of a data set.

    Args:
        path: jsonl, json, csv, Parquet, or text with one sequence a line.
        tokenizer: which to load when text must be counted; None when none is known.
        length_column: a column of lengths, or of lists whose entries count.
        text_column: a column of text or of chat messages.
        retokenize: whether text is counted even where there is a column of lengths.
        on_progress: told in words how far it is.

    Raises:
        SpecError: when the file or a row of it is not what it should be.
        SourceError: when the tokenizer cannot be had.
    """
    if length_column is not None and text_column is not None:
        raise SpecError("Give --length-column or --text-column, not both.")
    file = open_data(path)
    if text_column is None and not retokenize and length_column is None:
        length_column = found_length_column(file)
    if length_column is not None:
        return count_column(file, length_column)
    columns = text_columns(file, text_column)
    if tokenizer is None:
        raise SpecError(
            f"{path} holds text and no lengths: name a tokenizer with --tokenizer, or a column "
            f"with --length-column (found by itself: {', '.join(LENGTH_COLUMNS)})."
        )
    return _tokenized(file, columns, tokenizer, on_progress or (lambda _: None))


def text_columns(file: DataFile, given: str | None) -> Sequence[str]:
    """Return the columns whose text is joined: the one given, or the first known ones.

    Raises:
        SpecError: when there is none.
    """
    if given is not None:
        return (file.require(given),)
    for names in TEXT_COLUMNS:
        if set(names) <= set(file.columns):
            return names
    raise SpecError(
        f"{file.path}: which column is the text? Name it with --text-column, or one of lengths "
        f"with --length-column: {', '.join(file.columns)}."
    )


def _tokenized(
    file: DataFile, columns: Sequence[str], name: TokenizerName, say: Callable[[str], None]
) -> Measured:
    say(f"loading the tokenizer of {name.text}")
    tokenizer = name.load()
    rows = file.rows(columns)
    texts = (text_of(place, columns, values, tokenizer.chat) for place, values in rows)
    counts: Counter[int] = Counter()
    empty = done = 0
    while batch := list(islice(texts, _BATCH)):
        for has_special_tokens in (False, True):
            held = [t.text for t in batch if t.has_special_tokens is has_special_tokens]
            real = [text for text in held if text.strip()]
            empty += len(held) - len(real)
            counts.update(tokenizer.lengths(real, add_special_tokens=not has_special_tokens))
        done += len(batch)
        say(f"counting the tokens of {file.path.name}: {done:,} sequences")
    empty += counts.pop(0, 0)
    if not counts:
        raise SpecError(f"{file.path} has no text{_in(columns)}.")
    return Measured(
        distribution=LengthDistribution.counted(counts),
        source=f"{file.path.name}{_in(columns)}, tokenized by {name.text}",
        caveats=_left_out(empty),
    )


class Text(NamedTuple):
    """Text to tokenize."""

    text: str
    has_special_tokens: bool
    """Whether they are written out, as a chat template does."""


def text_of(place: str, columns: Sequence[str], values: Sequence[Any], chat: Chat) -> Text:
    """Return the text of one row.

    Args:
        place: where it is, for messages.
        columns: as ``text_columns`` returns them.
        values: the row's.
        chat: turns messages into text.

    Raises:
        SpecError: when it holds none.
    """
    if all(isinstance(value, str) for value in values):
        return Text("".join(values), has_special_tokens=False)
    if all(_is_chat(value) for value in values):
        messages = [message for value in values for message in value]
        return Text(chat(messages, place), has_special_tokens=True)
    raise SpecError(
        f"{place}: {' and '.join(columns)} must be text or a list of chat messages with role and "
        "content."
    )


def _is_chat(value: Any) -> bool:
    return isinstance(value, list) and all(
        isinstance(message, dict) and "role" in message for message in value
    )


def _in(columns: Sequence[str]) -> str:
    return "" if VALUE in columns else f", column {' and '.join(columns)}"


def _left_out(empty: int) -> tuple[Caveat, ...]:
    if not empty:
        return ()
    text = f"Rows without text are left out: {empty:,}."
    return (Caveat(code="empty-sequences", text=text),)
