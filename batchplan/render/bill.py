"""The memory bill: its terms, its timeline and whether it fits."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from batchplan.render.page import Page
from batchplan.units import GB, GIB, format_bytes

_TEXT_WIDTH = 56
"""Columns that names and numbers of the bill take."""
_SMALL = GIB // 200
"""Bytes below which a term is 0.00 GiB, and left out of a table unless all are asked for."""
_STEPS = "▁▂▃▄▅▆▇█"


def print_bill(
    page: Page, memory: Mapping[str, Any], *, explain: bool, verbose: bool = False
) -> None:
    """Print the terms, the largest with the longest bar, and the sum of all there are."""
    least = 1 if verbose else _SMALL
    terms = [term for term in memory["terms"] if term["bytes"] >= least]
    if explain:
        _print_formulas(page, terms, memory["peak_bytes"])
    else:
        _print_bars(page, terms, memory["peak_bytes"])
    print_timeline(page, memory)


def _print_formulas(page: Page, terms: Sequence[Mapping[str, Any]], peak: int) -> None:
    rows = [(term["name"], _gib(term["bytes"]), term["formula"], term["source"]) for term in terms]
    rows.append(("peak", _gib(peak), "sum of all terms", ""))
    page.table([("term", "left"), ("GiB", "right"), ("formula", "left"), ("source", "left")], rows)


def _print_bars(page: Page, terms: Sequence[Mapping[str, Any]], peak: int) -> None:
    room = max(8, min(40, page.width - _TEXT_WIDTH))
    longest = max((term["bytes"] for term in terms), default=1)
    rows = [
        (
            term["name"],
            _gib(term["bytes"]),
            _gb(term["bytes"]),
            f"{term['bytes'] / peak:.1%}",
            "█" * round(room * term["bytes"] / longest) or "▏",
        )
        for term in terms
    ]
    rows.append(("peak", _gib(peak), _gb(peak), "100%", ""))
    columns = [("term", "left"), ("GiB", "right"), ("GB", "right"), ("share", "right")]
    page.table([*columns, ("", "left")], rows)


def print_timeline(page: Page, memory: Mapping[str, Any]) -> None:
    """Print where in the step the peak is, and the shape of the whole step."""
    moments = memory["timeline"]
    has_error = bool(memory["error"]["percent"])
    page.line(f"Highest in {memory['peak_phase']}.")
    for words, name in (
        ("Live tensors", "allocated"),
        ("Reserved by the allocator", "reserved"),
        ("In use as the driver shows it", "in_use"),
    ):
        error = memory["errors"][name]
        band = f" ±{error['percent']:g}% ({error['basis']})" if has_error else ""
        page.line(f"{words}: {format_bytes(memory[f'{name}_peak_bytes'])}{band}.")
    if memory.get("host_bytes"):
        page.line(f"Host memory: {format_bytes(memory['host_bytes'])} for each device.")
    if len(moments) > 1:
        page.line(f"Step: {sparkline([moment['bytes'] for moment in moments], page.width - 26)}")


def print_peak(page: Page, peak: Mapping[str, Any] | None, *, explain: bool) -> None:
    """Print which instant binds, and on request all that would move it."""
    if peak is None:
        return
    page.line(peak["text"])
    if explain and peak["movers"]:
        rows = [(mover["text"], format_bytes(mover["saved_bytes"])) for mover in peak["movers"]]
        page.table([("what would move the peak", "left"), ("saves", "right")], rows)


def sparkline(values: Sequence[int], width: int) -> str:
    """Return the heights of ``values`` in at most ``width`` blocks, each its highest value.

    >>> sparkline([0, 7, 3], 10)
    '▁█▄'
    """
    width = max(1, min(width, len(values)))
    columns = [
        max(values[len(values) * i // width : max(len(values) * (i + 1) // width, 1)])
        for i in range(width)
    ]
    top = max(columns) or 1
    return "".join(_STEPS[round((len(_STEPS) - 1) * value / top)] for value in columns)


def print_fit(page: Page, document: Mapping[str, Any], headroom: int) -> None:
    """Print whether it fits, and by how much."""
    device, bound = document["device"], document["memory"]["bound_bytes"]
    usable = f"{format_bytes(device['usable_bytes'])} usable on {device['name']}"
    if document["fits"]:
        page.line(f"Fits: {format_bytes(headroom)} free of {usable}.", style="green")
    elif headroom >= 0:
        over = format_bytes(bound - device["usable_bytes"])
        page.line(
            f"Too tight: {format_bytes(headroom)} free of {usable}, but the upper end of the "
            f"error band is {over} over.",
            style="red",
        )
    else:
        page.line(f"Does not fit: {format_bytes(-headroom)} over the {usable}.", style="red")


def _gib(num_bytes: int) -> str:
    return f"{num_bytes / GIB:,.2f}"


def _gb(num_bytes: int) -> str:
    return f"{num_bytes / GB:,.2f}"
