"""``lengths``: how long a data set's sequences are, and what each sequence length would waste."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchplan.api.checks import shown, whole
from batchplan.api.documents import SCHEMA_VERSION, caveats_document, plain
from batchplan.errors import SpecError
from batchplan.sequences import (
    PAD_TO_MULTIPLE,
    LengthDistribution,
    SeqLenRow,
    candidate_seq_lens,
    survey,
)
from batchplan.spec import MAX_MICRO_BATCH, MAX_SEQ_LEN

if TYPE_CHECKING:
    from batchplan.api.profiles import OnProgress
    from batchplan.sources.lengths_file import Measured

DEFAULT_MICRO_BATCH = 8
"""What transformers' Trainer takes (``per_device_train_batch_size``)."""
PERCENTILES = (50, 90, 99)


@dataclass(frozen=True, slots=True, kw_only=True)
class LengthsAnswer:
    """Lengths of a data set, and one epoch at each sequence length."""

    inputs: dict[str, Any]
    measured: Measured
    micro_batch: int
    rows: tuple[SeqLenRow, ...]

    @property
    def distribution(self) -> LengthDistribution:
        """The lengths, exact."""
        return self.measured.distribution

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan lengths --json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "lengths",
            "inputs": self.inputs,
            "lengths": lengths_document(self.measured, self.rows, micro_batch=self.micro_batch),
            "caveats": caveats_document(self.measured.caveats),
        }


def lengths(
    file: str | PathLike[str],
    *,
    seq_len: int | str | None = None,
    micro_batch: int | str | None = None,
    tokenizer: str | None = None,
    length_column: str | None = None,
    text_column: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
    on_progress: OnProgress | None = None,
) -> LengthsAnswer:
    """Return how long a data set's sequences are, and what each sequence length would waste.

    Args:
        file: lengths (one a line, a JSON list, a column), or text that ``tokenizer`` counts.
        seq_len: shown beside the powers of two.
        micro_batch: sequences padded together; None is 8, transformers' default.
        tokenizer: Hub id or folder; its tokens are counted even where there is a length column.
        length_column: column of lengths, or of lists whose entries count.
        text_column: column of text or chat messages.
        trust_remote_code: whether a tokenizer's own code may run.
        offline: never ask the network.
        on_progress: told in words how far it is.

    Raises:
        SpecError: when an input, or a row of the file, is wrong.
        SourceError: when the tokenizer cannot be had.
    """
    given = () if seq_len is None else (_seq_len(seq_len),)
    together = DEFAULT_MICRO_BATCH if micro_batch is None else whole("micro_batch", micro_batch)
    if together > MAX_MICRO_BATCH:
        raise SpecError(f"--micro-batch {together:.4g} is too large: at most {MAX_MICRO_BATCH:,}.")
    measured = _measured(
        Path(file).expanduser(),
        tokenizer=tokenizer,
        length_column=length_column,
        text_column=text_column,
        trust_remote_code=trust_remote_code,
        offline=offline,
        on_progress=on_progress,
    )
    spread = measured.distribution
    return LengthsAnswer(
        inputs={
            "file": str(file),
            "seq_len": next(iter(given), None),
            "micro_batch": together,
            "tokenizer": tokenizer,
            "length_column": length_column,
            "text_column": text_column,
            "trust_remote_code": trust_remote_code,
            "offline": offline,
        },
        measured=measured,
        micro_batch=together,
        rows=survey(spread, seq_lens=candidate_seq_lens(spread, given), micro_batch=together),
    )


def _measured(
    path: Path,
    *,
    tokenizer: str | None,
    length_column: str | None,
    text_column: str | None,
    trust_remote_code: bool,
    offline: bool,
    on_progress: OnProgress | None,
) -> Measured:
    if tokenizer is None and text_column is None:
        from batchplan.sources.lengths_file import read_lengths

        return read_lengths(path, column=length_column)
    from batchplan.sources.dataset_file import measure
    from batchplan.sources.tokenizer import TokenizerName

    name = tokenizer and TokenizerName(
        text=tokenizer, offline=offline, trust_remote_code=trust_remote_code
    )
    return measure(
        path,
        tokenizer=name or None,
        length_column=length_column,
        text_column=text_column,
        retokenize=True,
        on_progress=on_progress,
    )


def _seq_len(value: object) -> int:
    """Return a sequence length.

    Raises:
        SpecError: when it is no whole number from 1 to ``MAX_SEQ_LEN``.
    """
    seq_len = whole("seq_len", value)
    if seq_len > MAX_SEQ_LEN:
        raise SpecError(f"--seq-len {shown(value)} is too large: at most {MAX_SEQ_LEN:,}.")
    return seq_len


def lengths_document(
    measured: Measured, rows: Iterable[SeqLenRow], *, micro_batch: int
) -> dict[str, Any]:
    """Return the distribution and what each sequence length costs."""
    spread = measured.distribution
    return {
        "source": measured.source,
        "num_sequences": spread.num_sequences,
        "total_tokens": spread.total_tokens,
        "mean_tokens": spread.mean,
        "percentiles": {
            **{f"p{percent}": spread.percentile(percent) for percent in PERCENTILES},
            "max": spread.longest,
        },
        "histogram": [plain(held) for held in spread.histogram()],
        "micro_batch": micro_batch,
        "pad_to_multiple_of": PAD_TO_MULTIPLE,
        "seq_lens": [_row_document(row) for row in rows],
    }


def _row_document(row: SeqLenRow) -> dict[str, Any]:
    return {
        "seq_len": row.seq_len,
        "num_truncated": row.num_truncated,
        "lost_tokens": row.lost_tokens,
        "tokens": row.tokens,
        "layouts": [
            {
                "name": layout.name.value,
                "rows": layout.rows,
                "slots": layout.slots,
                "waste": layout.waste,
            }
            for layout in row.layouts
        ],
    }
