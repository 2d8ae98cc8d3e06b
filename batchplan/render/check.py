"""The page of ``batchplan check``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import IO, Any

from batchplan.render.bill import print_fit
from batchplan.render.estimate import sequences, split
from batchplan.render.page import Page
from batchplan.units import format_bytes

_STYLES = {"error": "red", "warning": "yellow", "note": ""}


def print_check(document: Mapping[str, Any], *, file: IO[str], width: int | None = None) -> None:
    """Print what the files make of a run, and what is wrong with them."""
    page = Page(file, width)
    _print_trainer(page, document)
    _print_batch(page, document)
    _print_recipe(page, document)
    _print_memory(page, document)
    _print_findings(page, document["findings"])
    if "fixed" in document:
        _print_fixed(page, document["fixed"])
    page.caveats(document["caveats"])


def _print_trainer(page: Page, document: Mapping[str, Any]) -> None:
    trainer = document["trainer"]
    names = ", ".join(one["name"] for one in document["files"])
    package = f"{trainer['package']}{trainer['supports']}"
    page.line(f"{names}: {trainer['name']} ({package})", style="bold")
    if trainer["assumed_release"] is not None:
        page.line(
            f"It is not installed here: {trainer['assumed_release']} is assumed.", style="dim"
        )


def _print_batch(page: Page, document: Mapping[str, Any]) -> None:
    batch = document["batch"]
    text = (
        f"Batch: {split(batch)} (micro-batch × K × devices) = "
        f"{sequences(batch['global_batch_size'])}"
    )
    if batch["seq_len"] is None:
        text += " a step; how long they are, the files do not say (--seq-len)."
    else:
        text += (
            f" = {batch['global_batch_tokens']:,} tokens a step, {batch['seq_len']:,} tokens each"
        )
    page.line(text)
    if document["max_steps"]:
        page.line(f"Optimizer steps: {document['max_steps']:,}")


def _print_recipe(page: Page, document: Mapping[str, Any]) -> None:
    recipe = document["recipe"]
    if recipe is None:
        return
    rate = document["learning_rate"]
    page.line(
        f"Recipe: {recipe['method']}, {document['numerics']}, {recipe['optimizer']}, "
        f"{recipe['sharding']}, checkpointing {recipe['checkpointing']}, offload "
        f"{recipe['offload']}, attention {recipe['attention']}, loss {recipe['loss']}"
        + ("" if rate is None else f", learning rate {rate:g}")
    )
    if not document["defaults"]:
        return
    words = [f"{row['option'].replace('_', '-')} {row['value']}" for row in document["defaults"]]
    page.line(f"Not said, so as {document['trainer']['name']} does: {', '.join(words)}.")
    for note in dict.fromkeys(row["note"] for row in document["defaults"] if row["note"]):
        page.bullet(f"{note}.")


def _print_memory(page: Page, document: Mapping[str, Any]) -> None:
    memory = document["memory"]
    if memory is None:
        if document["device"] is None:
            page.line("Memory: name a device with --gpu.")
        return
    page.line(
        f"Memory: peak {format_bytes(memory['peak_bytes'])} in {memory['peak_phase']} "
        f"±{memory['error']['percent']:g}%"
    )
    print_fit(page, document, document["headroom_bytes"])


def _print_findings(page: Page, findings: Iterable[Mapping[str, Any]]) -> None:
    findings = list(findings)
    if not findings:
        page.title("Findings")
        page.line("None.", style="green")
        return
    page.title(f"Findings: {_counted(findings)}")
    for one in findings:
        _print_finding(page, one)


def _print_finding(page: Page, one: Mapping[str, Any]) -> None:
    place = _placed(one)
    page.line(
        f"{place + ': ' if place else ''}{one['severity']} {one['code']}",
        style=_STYLES[one["severity"]],
    )
    page.line(one["text"], indent=2)
    if one["fix"]:
        page.line(f"Fix: {one['fix']}", indent=2)


def _counted(findings: Iterable[Mapping[str, Any]]) -> str:
    """Return how many there are of each severity.

    >>> _counted([{"severity": "error"}, {"severity": "note"}, {"severity": "note"}])
    '1 error, 2 notes'
    """
    severities = [one["severity"] for one in findings]
    counts = {name: severities.count(name) for name in _STYLES}
    return ", ".join(
        f"{count} {name}{'' if count == 1 else 's'}" for name, count in counts.items() if count
    )


def _print_fixed(page: Page, fixed: Mapping[str, Any]) -> None:
    page.title(f"Wrote {', '.join(fixed['files'])}")
    mended, left = fixed["mended"], fixed["left"]
    if not mended:
        page.line("Nothing could be mended.")
    for one in mended:
        page.bullet(f"{_placed(one)}: {one['code']}: {one['fix']}")
    if left:
        page.line(f"Left for you: {_counted(left)}.")
    for one in left:
        page.bullet(f"{_placed(one)}: {one['code']}")


def _placed(one: Mapping[str, Any]) -> str:
    return one["file"] if one["line"] is None else f"{one['file']}:{one['line']}"
