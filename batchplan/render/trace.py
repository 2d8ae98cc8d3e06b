"""The page of ``batchplan trace``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from batchplan.render.estimate import print_setting
from batchplan.render.page import Page
from batchplan.units import GB, GIB, MIB, format_bytes

_SMALL = GIB // 200
"""Bytes below which a row of the bill is 0.00 GiB, and left out; the sum counts them."""
_MADE_BY_A_STEP = ("activations", "gradients")
"""Kinds whose module is known: the others are made before or after the model runs."""


def print_trace(document: Mapping[str, Any], *, file: IO[str], width: int | None = None) -> None:
    """Print who holds memory at the peak, whether it runs, and the shape of a step."""
    page = Page(file, width)
    model, device = document["model"], document["device"]
    page.line(f"{model['id']} ({model['architecture']}) on {device['name']}", style="bold")
    versions = ", ".join(f"{name} {text}" for name, text in document["versions"].items())
    page.line(f"Run on fake tensors with {versions}; config from {model['source']}.", style="dim")
    print_setting(page, document)
    page.title("Memory of one device at the peak")
    _print_bill(page, document)
    _print_peak(page, document)
    _print_verdict(page, document)
    page.title("One step, once the run is steady: highest point of each phase")
    _print_timeline(page, document["timeline"])
    _print_largest(page, document["peak"])
    page.caveats(document["caveats"])


def _print_bill(page: Page, document: Mapping[str, Any]) -> None:
    memory = document["memory"]
    rows = [
        *document["peak"]["by_kind"].items(),
        ("allocator reserve", memory["reserved_peak_bytes"] - memory["allocated_peak_bytes"]),
        ("CUDA context", document["device"]["context_bytes"]),
        ("libraries", memory["libraries_bytes"]),
    ]
    peak = sum(num_bytes for _, num_bytes in rows)
    longest = max(num_bytes for _, num_bytes in rows)
    room = _room(page, 56)
    columns = [("what", "left"), ("GiB", "right"), ("GB", "right"), ("share", "right")]
    page.table(
        [*columns, ("", "left")],
        [
            *(
                (
                    name,
                    f"{num_bytes / GIB:,.2f}",
                    f"{num_bytes / GB:,.2f}",
                    f"{num_bytes / peak:.1%}",
                    _bar(num_bytes, longest, room),
                )
                for name, num_bytes in rows
                if num_bytes >= _SMALL
            ),
            ("peak", f"{peak / GIB:,.2f}", f"{peak / GB:,.2f}", "100%", ""),
        ],
    )


def _print_peak(page: Page, document: Mapping[str, Any]) -> None:
    memory, peak = document["memory"], document["peak"]
    page.line(
        f"Allocated {format_bytes(memory['allocated_peak_bytes'])}, reserved "
        f"{format_bytes(memory['reserved_peak_bytes'])}. The smallest card that still runs it "
        f"has {format_bytes(memory['smallest_card_bytes'])}."
    )
    where = f"Peak in {peak['phase']}"
    if peak["step"] == 1 and _steady_peak(document) < memory["allocated_peak_bytes"]:
        where = f"{where} of the first step"
    if peak["op"]:
        where = f"{where}, at {_operation(peak['op'])}"
    if peak["binds"] != "optimizer-step":
        where = f"{where} of {peak['module'] or 'the model itself'}"
    page.line(f"{where}.")
    page.line(str(peak["text"]))


def _steady_peak(document: Mapping[str, Any]) -> int:
    return max(int(phase["allocated_bytes"]) for phase in _last_step(document["timeline"]))


def _last_step(timeline: list[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    last = max(phase["step"] for phase in timeline)
    return [phase for phase in timeline if phase["step"] == last]


def _print_verdict(page: Page, document: Mapping[str, Any]) -> None:
    device, retries = document["device"], document["retries"]
    usable = f"{format_bytes(device['usable_bytes'])} usable on {device['name']}"
    headroom = document["headroom_bytes"]
    if document["runs_out_in"] is not None:
        page.line(
            f"Does not fit: it runs out in {document['runs_out_in']}, "
            f"{format_bytes(-headroom)} over the {usable}.",
            style="red",
        )
        return
    if retries["last_step"]:
        page.line(
            f"Runs only by thrashing: {format_bytes(-headroom)} over the {usable}, "
            f"so the allocator gives memory back {_often(retries['last_step'])} in every step.",
            style="red",
        )
        return
    if retries["total"]:
        page.line(
            f"It reserves less here: the allocator gives memory back {_often(retries['total'])} in "
            "the first steps, and never later."
        )
    if not document["fits"]:
        page.line(
            f"Too tight: it runs with {format_bytes(headroom)} free of {usable}.", style="red"
        )
        return
    page.line(f"Fits: {format_bytes(headroom)} free of {usable}.", style="green")


def _print_timeline(page: Page, timeline: list[Mapping[str, Any]]) -> None:
    steady = _last_step(timeline)
    longest = max(phase["reserved_bytes"] for phase in steady)
    room = _room(page, 60)
    page.table(
        [("phase", "left"), ("allocated", "right"), ("reserved", "right"), ("", "left")],
        [
            (
                phase["phase"],
                format_bytes(phase["allocated_bytes"]),
                format_bytes(phase["reserved_bytes"]),
                _bar(phase["allocated_bytes"], longest, room),
            )
            for phase in steady
        ],
    )


def _print_largest(page: Page, peak: Mapping[str, Any]) -> None:
    made = [one for one in peak["by_module"] if one["kind"] in _MADE_BY_A_STEP]
    if made:
        page.title("Modules that hold most at the peak, of what a step makes")
        columns = [("GiB", "right"), ("", "right"), ("kind", "left"), ("module", "left")]
        rows = [
            (f"{one['bytes'] / GIB:,.2f}", _times(one), one["kind"], _module(one)) for one in made
        ]
        page.table(columns, rows)
    page.title("Largest allocations at the peak")
    columns = [("MiB each", "right"), ("", "right"), ("kind", "left"), ("made by", "left")]
    rows = [
        (f"{one['bytes'] / MIB:,.1f}", _times(one), one["kind"], _maker(one))
        for one in peak["top_allocations"]
    ]
    page.table(columns, rows)


def _often(count: int) -> str:
    return "once" if count == 1 else f"{count:,} times"


def _operation(name: str) -> str:
    """Return the name of an operation without what goes without saying.

    >>> _operation("mm.default"), _operation("add.Tensor")
    ('mm', 'add.Tensor')
    """
    return name.removesuffix(".default")


def _times(one: Mapping[str, Any]) -> str:
    return f"× {one['count']:,}" if one["count"] > 1 else ""


def _module(one: Mapping[str, Any]) -> str:
    unnamed = "the model itself" if one["kind"] in _MADE_BY_A_STEP else ""
    return str(one["module"] or unnamed)


def _maker(one: Mapping[str, Any]) -> str:
    operation, module = _operation(one["op"]), _module(one)
    return f"{operation} in {module}" if operation and module else operation or module


def _room(page: Page, text_width: int) -> int:
    return max(8, min(40, page.width - text_width))


def _bar(value: int, longest: int, room: int) -> str:
    return "█" * round(room * value / longest) or "▏"
