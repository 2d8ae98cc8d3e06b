"""The pages of ``gpus``, ``models`` and ``runs``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import IO, Any

from batchplan.render.page import GAP, Page
from batchplan.units import format_bytes, format_count

MORE = "…"
"""Stands for names that have no room."""


def print_gpus(document: Mapping[str, Any], *, file: IO[str], width: int | None = None) -> None:
    """Print the GPUs found; all facts with their sources when it is one."""
    page, rows = Page(file, width), document["gpus"]
    if len(rows) == 1:
        print_facts(page, rows[0])
        return
    columns = [("name", "left"), ("usable GiB", "right"), ("16-bit TFLOP/s", "right")]
    columns += [("GB/s", "right"), ("arch", "left")]
    page.table(
        columns,
        (
            (
                row["alias"],
                "?" if row["usable_bytes"] is None else f"{row['usable_bytes'] / 2**30:.2f}",
                _number(row["bf16_tflops"] or row["fp16_tflops"]),
                _number(row["bandwidth_gb_per_s"]),
                row["arch"],
            )
            for row in rows
        ),
    )


def print_models(document: Mapping[str, Any], *, file: IO[str], width: int | None = None) -> None:
    """Print the models found; all facts with their sources when it is one."""
    page, rows = Page(file, width), document["models"]
    if len(rows) == 1:
        print_facts(page, rows[0])
        return
    columns = [("model", "whole"), ("parameters", "right"), ("also called", "left")]
    room = page.width - max(len(row["id"]) for row in rows) - len("parameters") - 2 * GAP
    cells = [
        (
            row["id"],
            "?" if row["num_params"] is None else format_count(row["num_params"]),
            _names(row["aliases"], room),
        )
        for row in rows
    ]
    page.table(columns, cells)
    if any(names.endswith(MORE) for *_, names in cells):
        page.line(f"{MORE}: longer names too; a wider terminal or --json shows them.", style="dim")


def print_runs(document: Mapping[str, Any], *, file: IO[str], width: int | None = None) -> None:
    """Print the published runs found; all facts with their sources when it is one."""
    page, rows = Page(file, width), document["runs"]
    if len(rows) == 1:
        print_facts(page, rows[0])
        return
    print_run_table(page, rows)


def print_run_table(page: Page, rows: list[Mapping[str, Any]]) -> None:
    """Print runs as a table: model, batch, length, learning rate."""
    columns = [("run", "left"), ("parameters", "right"), ("tokens a step", "right")]
    columns += [("seq len", "right"), ("peak LR", "right")]
    page.table(
        columns,
        (
            (
                row["run"],
                format_count(row["num_params"]),
                _batch(row["global_batch_tokens"], row["global_batch_tokens_end"]),
                "?" if row["seq_len"] is None else f"{row['seq_len']:,}",
                "?" if row["peak_lr"] is None else f"{row['peak_lr']:.3g}",
            )
            for row in rows
        ),
    )


def print_facts(page: Page, facts: Mapping[str, Any]) -> None:
    """Print every fact of one row, name beside value."""
    rows = []
    for name, value in facts.items():
        if value in (None, "", []):
            continue
        if name.endswith("_bytes"):
            shown = format_bytes(value)
        elif isinstance(value, list):
            shown = ", ".join(str(item) for item in value)
        else:
            is_count = isinstance(value, int) and not isinstance(value, bool)
            shown = f"{value:,}" if is_count else str(value)
        rows.append((name, shown))
    page.table([("fact", "left"), ("value", "left")], rows)


def _names(names: Sequence[str], room: int) -> str:
    """Return the names that fit a line each, and a mark where some do not.

    >>> _names(["olmo-2-7b", "OLMo-2-1124-7B-Instruct"], 20)
    'olmo-2-7b, …'
    """
    shown = [name for name in names if len(name) < room]
    return ", ".join([*shown, *([MORE] if len(shown) < len(names) else [])])


def _batch(first: int, last: int | None) -> str:
    return format_count(first) if last is None else f"{format_count(first)} to {format_count(last)}"


def _number(value: float | None) -> str:
    return "?" if value is None else f"{value:,.0f}"
