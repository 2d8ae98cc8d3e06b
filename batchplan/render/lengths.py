"""The page of ``batchplan lengths``, and the same block on the pages of plans."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from batchplan.render.page import Page
from batchplan.units import format_count

_TEXT_WIDTH = 44
"""Columns that the bounds and numbers of the histogram take."""
_MOST_BARS = 40
_LAYOUTS = (
    ("fixed", "to seq-len"),
    ("longest", "to longest"),
    ("grouped", "by length"),
    ("packed", "packed"),
)
"""Layouts in the order of the columns, and their headings."""


def print_lengths(document: Mapping[str, Any], *, file: IO[str], width: int | None = None) -> None:
    """Print the answer of ``lengths``."""
    page = Page(file, width)
    print_distribution(page, document["lengths"])
    page.caveats(document["caveats"])


def print_data(page: Page, document: Mapping[str, Any]) -> None:
    """Print the data set under a plan, when there is one."""
    lengths = document.get("lengths")
    if lengths is None:
        return
    page.title("Data set")
    print_distribution(page, lengths)
    plan = lengths["plan"]
    if plan is None:
        return
    row = "packed row" if plan["packing"] else "sequence"
    page.line(
        f"A step: {_count(plan['rows_per_step'], row)} = {plan['tokens_per_step']:,.0f} tokens of "
        f"the data in {plan['slots_per_step']:,.0f} with padding ({plan['waste']:.1%} wasted); "
        f"priced as {plan['rows_per_step'] * plan['row_tokens']:,}."
    )
    page.line(f"One epoch: {_count(plan['rows'], row)}, {_count(plan['steps_per_epoch'], 'step')}.")


def print_distribution(page: Page, lengths: Mapping[str, Any]) -> None:
    """Print the counts, the histogram, and what each sequence length costs."""
    page.line(lengths["source"], style="bold")
    marks = ", ".join(f"{name} {value:,}" for name, value in lengths["percentiles"].items())
    page.line(
        f"{_count(lengths['num_sequences'], 'sequence')}, {lengths['total_tokens']:,} tokens; "
        f"a sequence: mean {lengths['mean_tokens']:,.0f}, {marks}."
    )
    _print_histogram(page, lengths["histogram"], lengths["num_sequences"])
    _print_seq_lens(page, lengths["seq_lens"])
    page.line(
        "Wasted: share of padding. To longest: of a micro-batch of "
        f"{lengths['micro_batch']:,} in random order, expected; by length: the epoch sorted; both "
        f"rounded up to {lengths['pad_to_multiple_of']}. Packed: first-fit decreasing.",
        style="dim",
    )


def _count(number: int, thing: str) -> str:
    """Return a number of things.

    >>> _count(1, "step"), _count(2048, "step")
    ('1 step', '2,048 steps')
    """
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


def _print_histogram(page: Page, bins: Sequence[Mapping[str, Any]], total: int) -> None:
    most = max(held["num_sequences"] for held in bins)
    room = max(8, min(_MOST_BARS, page.width - _TEXT_WIDTH))
    # Piped into a file or another program, a bar should survive any encoding.
    mark = "█" if page.console.is_terminal and page.console.encoding.startswith("utf") else "#"
    rows = [
        (
            f"{held['low']:,}-{held['high']:,}",
            f"{held['num_sequences']:,}",
            f"{held['num_sequences'] / total:.1%}",
            mark * -(-room * held["num_sequences"] // most),
        )
        for held in bins
    ]
    columns = [("tokens", "right"), ("sequences", "right"), ("share", "right"), ("", "left")]
    page.table(columns, rows)


def _print_seq_lens(page: Page, seq_lens: Sequence[Mapping[str, Any]]) -> None:
    columns = [("seq-len", "right"), ("cut", "right"), ("lost", "right")]
    columns += [(heading, "right") for _, heading in _LAYOUTS]
    columns += [("bins", "right")]
    rows = []
    for row in seq_lens:
        layouts = {layout["name"]: layout for layout in row["layouts"]}
        lost = row["lost_tokens"] / (row["lost_tokens"] + row["tokens"])
        rows.append(
            (
                f"{row['seq_len']:,}",
                format_count(row["num_truncated"]),
                f"{lost:.1%}" if lost >= 0.001 or not lost else "<0.1%",
                *(f"{layouts[name]['waste']:.1%}" for name, _ in _LAYOUTS),
                format_count(layouts["packed"]["rows"]),
            )
        )
    page.table(columns, rows)
