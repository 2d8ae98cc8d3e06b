"""The page of ``batchplan verify``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from batchplan.render.page import Page
from batchplan.units import format_bytes, format_seconds

_OK = {True: "ok", False: "FAILED", None: "not run"}


def print_verify(document: Mapping[str, Any], *, file: IO[str], width: int | None = None) -> None:
    """Print every check, what keeps accumulation from being exact, and what to use instead."""
    page = Page(file, width)
    model, inputs = document["model"], document["inputs"]
    page.line(
        f"{model['id']} ({model['architecture']}), {inputs['method']}, K = "
        f"{inputs['accum_steps']}, micro-batch {inputs['micro_batch']}, on {document['device']}",
        style="bold",
    )
    page.table(
        [
            ("check", "whole"),
            ("loop", "whole"),
            ("", "whole"),
            ("deviation", "right"),
            ("limit", "right"),
            ("", "left"),
        ],
        [
            [
                check["code"],
                check["subject"],
                _OK[check["ok"]],
                _figure(check["deviation"]),
                _figure(check["limit"]),
                check["text"].removeprefix("not run: "),
            ]
            for check in document["checks"]
        ],
    )
    _print_verdict(page, document)
    _print_causes(page, document["causes"])
    _print_memory(page, document["memory"])
    page.caveats(document["caveats"])


def _print_verdict(page: Page, document: Mapping[str, Any]) -> None:
    checks = document["checks"]
    failed = sum(check["ok"] is False for check in checks)
    passed = sum(check["ok"] is True for check in checks)
    seconds = format_seconds(document["seconds"])
    page.line()
    if failed:
        text = f"{failed} of {failed + passed} checks failed, in {seconds}."
    else:
        text = f"Accumulation equals the large batch: {passed} checks passed, in {seconds}."
    left = len(checks) - failed - passed
    if left:
        text += f" {left} were not run: they are no passes."
    page.line(text, style="bold")


def _print_causes(page: Page, causes: Any) -> None:
    if not causes:
        return
    page.title("What does not accumulate")
    for cause in causes:
        left = "" if cause["left"] is None else f", {cause['left']:.2g} without it"
        page.bullet(f"{cause['text']} (gradient {cause['deviation']:.2g} away{left}).")
        page.line(f"Instead: {cause['fix']}.", indent=2)


def _print_memory(page: Page, memory: Any) -> None:
    if memory is None:
        return
    page.title(f"Memory of one batch, split (sequences of {memory['seq_len']:,} tokens)")
    page.table(
        [("micro-batch × K", "whole"), ("measured", "right"), ("estimate", "right")],
        [
            [
                f"{each['micro_batch']} × {each['accum_steps']}",
                format_bytes(each["measured_bytes"]),
                format_bytes(each["estimated_bytes"]),
            ]
            for each in memory["layouts"]
        ],
    )
    page.line(f"Measured: {memory['source']}.")


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.2g}"
