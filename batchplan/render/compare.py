"""The page of ``batchplan recommend --gpu any``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from batchplan.render.estimate import split
from batchplan.render.page import Page
from batchplan.units import GIB, format_count, format_seconds


def print_comparison(
    document: Mapping[str, Any], *, file: IO[str], width: int | None = None
) -> None:
    """Print one row a device, best first."""
    page = Page(file, width)
    model, inputs = document["model"], document["inputs"]
    page.line(
        f"{model['id']}, {format_count(model['num_params'])} parameters; "
        f"{inputs['method']}, {document['numerics']}, {inputs['optimizer']}, "
        f"{inputs['seq_len']:,} tokens a sequence"
    )
    offers = document["comparison"]
    page.title(
        f"Devices, best first by {document['optimize']} "
        f"({document['num_fitting']} of {document['num_compared']} fit)"
    )
    if not offers:
        page.line("It fits on none of them.")
    else:
        runs = [offer["training"] for offer in offers if offer["training"] is not None]
        is_run, is_priced = bool(runs), any(run["cost"] is not None for run in runs)
        columns = [
            ("#", "right"),
            ("device", "left"),
            ("b×K×N", "left"),
            ("sharding", "left"),
            ("ckpt", "left"),
            ("GiB", "right"),
            ("tok/s", "right"),
            *([("time", "right"), ("dev. h", "right")] if is_run else []),
            *([("cost", "right")] if is_priced else []),
        ]
        rows = [_row(offer, is_run=is_run, is_priced=is_priced) for offer in offers]
        page.table(columns, rows)
        page.line("b×K×N: micro-batch × accumulation steps × devices.", style="dim")
    page.caveats(document["caveats"])


def _row(offer: Mapping[str, Any], *, is_run: bool, is_priced: bool) -> list[str]:
    plan, run = offer["plan"], offer["training"]
    rate = plan["tokens_per_second"]
    row = [
        str(offer["rank"]),
        offer["device"]["name"],
        split(plan).replace(" ", ""),
        plan["sharding"],
        plan["checkpointing"],
        f"{plan['memory']['peak_bytes'] / GIB:,.1f}",
        "?" if rate is None else format_count(round(rate)),
    ]
    if not is_run:
        return row
    if run is None:
        return [*row, "?", "?", *(["?"] if is_priced else [])]
    cost = "?" if run["cost"] is None else f"{run['cost']:,.2f}"
    hours = f"{run['device_hours']:,.1f}"
    return [*row, format_seconds(run["seconds"]), hours, *([cost] if is_priced else [])]
