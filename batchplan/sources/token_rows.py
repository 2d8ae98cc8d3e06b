"""Rows of tokens drawn from a data set, each at most once, in the order of a seed."""

from __future__ import annotations

import random
from array import array
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from batchplan.errors import SpecError
from batchplan.sources.data_rows import DataFile, open_data
from batchplan.sources.dataset_file import text_columns, text_of
from batchplan.sources.tokenizer import Tokenizer, TokenizerName

IGNORED = -100
"""Label of a token that is no target, in transformers and TRL."""
IDS, LABELS = "input_ids", "labels"
MASKS = ("completion_mask", "assistant_masks")
"""Columns of ones where a token is a target. Source: TRL's ``DataCollatorForLanguageModeling``."""
MOST_ROWS = 100_000
"""Rows that are held in memory; of a larger data set this many are drawn."""
_TOGETHER = 32
"""Rows tokenized together."""


class TokenRow(NamedTuple):
    """One sequence."""

    ids: array[int]
    labels: array[int] | None
    """As long; None where every token is a target."""

    @property
    def num_targets(self) -> int:
        """Tokens that count in the loss; nothing predicts the first one."""
        if self.labels is None:
            return len(self.ids) - 1
        return sum(label != IGNORED for label in self.labels[1:])


@dataclass(slots=True, kw_only=True)
class DrawnRows:
    """Rows in the order in which they were drawn; iterate once."""

    source: str
    num_rows: int
    """Of the data set."""
    targets: str
    """Which tokens count in the loss, in words."""
    num_left_out: int = 0
    """Rows without targets, so far."""
    _rows: Iterator[TokenRow]

    def __iter__(self) -> Iterator[TokenRow]:
        """Yield rows that have targets.

        Raises:
            SpecError: when none has, at the end.
        """
        num_yielded = 0
        for row in self._rows:
            if row.num_targets > 0:
                num_yielded += 1
                yield row
            else:
                self.num_left_out += 1
        if not num_yielded:
            raise SpecError(
                f"{self.source}: none of {self.num_left_out:,} rows has a token that counts in the "
                "loss. The first token of a row is predicted by nothing, and labels of -100 do not "
                "count."
            )


def draw_rows(
    path: Path,
    *,
    seq_len: int,
    seed: int,
    tokenizer: TokenizerName | None = None,
    text_column: str | None = None,
    vocabulary: int | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> DrawnRows:
    """Return the rows of a data set in a random order, without replacement.

    Text is tokenized as it is asked for. In plain ``prompt`` and ``completion`` columns only the
    completion counts, as TRL has it; in chats every token does.

    Args:
        path: jsonl, json, csv, Parquet with ``input_ids`` (and ``labels``), or any of text.
        seq_len: where rows are cut.
        seed: decides which are drawn, and their order.
        tokenizer: which to load when there is only text.
        text_column: a column of text or chat messages.
        vocabulary: token ids that the model has; None is not known.
        on_progress: told in words what is being done.

    Raises:
        SpecError: when the file or a row of it is not what it should be.
        SourceError: when the tokenizer cannot be had.
    """
    say = on_progress or (lambda _: None)
    file = open_data(path)
    rng = random.Random(seed)
    if text_column is None and IDS in file.columns:
        masks = [name for name in (LABELS, *MASKS) if name in file.columns][:1]
        say(f"reading {path.name}")
        rows = (
            _token_row(place, values, masks, seq_len, vocabulary)
            for place, values in file.rows((IDS, *masks))
        )
        held, count = _drawn(rows, rng)
        return DrawnRows(
            source=path.name,
            num_rows=count,
            targets=f"those that {masks[0]} marks" if masks else "all",
            _rows=iter(held),
        )
    return _from_text(file, text_columns(file, text_column), rng, seq_len, tokenizer, say)


def _from_text(
    file: DataFile,
    columns: Sequence[str],
    rng: random.Random,
    seq_len: int,
    name: TokenizerName | None,
    say: Callable[[str], None],
) -> DrawnRows:
    if name is None:
        raise SpecError(
            f"{file.path} holds text and no {IDS}: name a tokenizer with --tokenizer, or tokenize "
            "it."
        )
    say(f"loading the tokenizer of {name.text}")
    tokenizer = name.load()
    say(f"reading {file.path.name}")
    held, count = _drawn(file.rows(columns), rng)
    by_completion = len(columns) > 1 and all(isinstance(value, str) for value in held[0][1])

    def rows() -> Iterator[TokenRow]:
        left = iter(held)
        while chunk := list(islice(left, _TOGETHER)):
            yield from _tokenized(chunk, columns, tokenizer, seq_len, by_completion=by_completion)

    return DrawnRows(
        source=f"{file.path.name}, tokenized by {name.text}",
        num_rows=count,
        targets="the completions'" if by_completion else "all",
        _rows=rows(),
    )


def _tokenized(
    rows: Sequence[tuple[str, Sequence[Any]]],
    columns: Sequence[str],
    tokenizer: Tokenizer,
    seq_len: int,
    *,
    by_completion: bool,
) -> Iterator[TokenRow]:
    texts = [text_of(place, columns, values, tokenizer.chat) for place, values in rows]
    prompts: Sequence[list[int]] = [[]] * len(texts)
    if by_completion:
        prompts = tokenizer.ids([values[0] for _, values in rows], add_special_tokens=True)
    for text, prompt in zip(texts, prompts, strict=True):
        special = not text.has_special_tokens
        (found,) = tokenizer.ids([text.text], add_special_tokens=special)
        ids = array("i", found[:seq_len])
        labels = None
        if by_completion:
            hidden = min(len(prompt), len(ids))
            labels = array("i", [IGNORED] * hidden) + ids[hidden:]
        yield TokenRow(ids, labels)


def _drawn(rows: Iterator[Any], rng: random.Random) -> tuple[list[Any], int]:
    """Return up to ``MOST_ROWS`` rows in random order, and how many there are.

    Source: Vitter 1985, "Random sampling with a reservoir", algorithm R.
    """
    held: list[Any] = []
    count = 0
    for count, row in enumerate(rows, start=1):
        if len(held) < MOST_ROWS:
            held.append(row)
        elif (place := rng.randrange(count)) < MOST_ROWS:
            held[place] = row
    rng.shuffle(held)
    return held, count


def _token_row(
    place: str,
    values: Sequence[Any],
    masks: Sequence[str],
    seq_len: int,
    vocabulary: int | None,
) -> TokenRow:
    ids = _numbers(place, IDS, values[0])[:seq_len]
    _refuse_unknown(place, "token", ids, vocabulary)
    if not masks:
        return TokenRow(ids, None)
    (name,) = masks
    marked = _numbers(place, name, values[1])
    if len(marked) != len(values[0]):
        raise SpecError(
            f"{place}: {len(values[0]):,} {IDS} and {len(marked):,} {name}; they must be as many."
        )
    if name == LABELS:
        labels = marked[:seq_len]
        targets = (label for label in labels if label != IGNORED)
        _refuse_unknown(place, "label", targets, vocabulary)
        return TokenRow(ids, labels)
    pairs = zip(ids, marked, strict=False)
    return TokenRow(ids, array("i", (token if mark else IGNORED for token, mark in pairs)))


def _refuse_unknown(place: str, kind: str, found: Iterable[int], vocabulary: int | None) -> None:
    for token in found:
        if token < 0 or (vocabulary is not None and token >= vocabulary):
            known = "0 or more" if vocabulary is None else f"0 to {vocabulary - 1:,}"
            raise SpecError(f"{place}: {kind} {token:,} is none of the model's, {known}.")


def _numbers(place: str, name: str, value: Any) -> array[int]:
    try:
        if isinstance(value, list):
            return array("i", value)
    except (TypeError, OverflowError):
        pass
    raise SpecError(f"{place}: {name} must be a list of whole numbers.")
