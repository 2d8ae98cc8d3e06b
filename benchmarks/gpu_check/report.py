"""The table that is printed and the JSON that is kept."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from batchplan.prober.trial import Outcome
from batchplan.units import format_bytes, format_seconds
from benchmarks.accuracy.report import percent, table
from benchmarks.accuracy.statistics import relative_error, summarise
from benchmarks.gpu_check.measure import REFUSED, TOO_LARGE, Measured

SCHEMA_VERSION = 1


def document(found: Sequence[Measured], *, seconds: float, left_out: int) -> dict[str, Any]:
    """Return every case as plain data; ``left_out`` cases were beyond the budget."""
    ran = [one for one in found if one.micro_batch]
    return {
        "schema_version": SCHEMA_VERSION,
        "device": ran[0].device if ran else "",
        "versions": dict(ran[0].versions) if ran else {},
        "seconds": seconds,
        "num_left_out": left_out,
        "cases": [_case(one) for one in found],
    }


def _case(one: Measured) -> dict[str, Any]:
    return {
        **one.case.inputs,
        "model": one.case.model,
        "micro_batch": one.micro_batch,
        "outcome": one.outcome,
        "text": one.text,
        "predicted": {each.name: each.predicted_bytes for each in one.compared},
        "measured": {each.name: each.measured_bytes for each in one.compared},
        "predicted_step_seconds": one.predicted_step_seconds,
        "measured_step_seconds": one.measured_step_seconds,
        "seconds": one.seconds,
    }


def to_json(found: dict[str, Any]) -> str:
    """Return the document as text."""
    return json.dumps(found, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def page(found: Sequence[Measured], *, seconds: float, left_out: int) -> str:
    """Return what is printed: every case, then the errors of each figure."""
    ran = [one for one in found if one.micro_batch]
    parts = [table(_HEAD, (_row(one) for one in ran)) if ran else "Nothing was predicted to fit."]
    errors = list(_errors(ran))
    if errors:
        head = ("figure", "n", "mean", "median", "p95", "worst over", "worst under")
        parts.append("Errors, (predicted - measured) / measured:\n\n" + table(head, errors))
    for words, names in (
        ("Predicted not to fit, so not run", _with(found, TOO_LARGE)),
        ("Predicted to fit, and did not", _with(found, Outcome.OUT_OF_MEMORY, Outcome.THRASHES)),
    ):
        if names:
            parts.append(f"{words}: {', '.join(names)}.")
    parts += [f"{one.case.name}: {one.text}" for one in found if one.outcome == REFUSED]
    cut = f"; {left_out} more were left out for want of time" if left_out else ""
    parts.append(f"{len(found)} cases in {format_seconds(seconds)}{cut}.")
    return "\n\n".join(parts)


def _with(found: Iterable[Measured], *outcomes: str) -> list[str]:
    return [one.case.name for one in found if one.outcome in outcomes]


_HEAD = ("case", "b", "outcome", "allocated", "", "in use", "", "step", "predicted")


def _row(one: Measured) -> tuple[str, ...]:
    return (
        one.case.name,
        str(one.micro_batch),
        one.outcome if one.outcome == Outcome.FITS else f"{one.outcome}: {one.text}"[:80],
        *_pair(one, "allocated"),
        *_pair(one, "in use"),
        _time(one.measured_step_seconds),
        _time(one.predicted_step_seconds),
    )


def _pair(one: Measured, name: str) -> tuple[str, str]:
    for each in one.compared:
        if each.name == name:
            return format_bytes(each.measured_bytes), percent(_error(each), signed=True)
    return "–", ""


def _time(seconds: float | None) -> str:
    return "–" if seconds is None else format_seconds(seconds)


def _errors(ran: Iterable[Measured]) -> Iterator[tuple[str, ...]]:
    by_name: dict[str, list[float]] = {}
    for one in ran:
        for each in one.compared:
            if each.measured_bytes:
                by_name.setdefault(each.name, []).append(_error(each))
    for name, errors in by_name.items():
        found = summarise(errors)
        assert found is not None
        yield (
            name,
            str(found.count),
            *(percent(value) for value in (found.mean, found.median, found.p95)),
            percent(found.worst_over, signed=True),
            percent(found.worst_under, signed=True),
        )


def _error(each: Any) -> float:
    predicted, measured = each.predicted_bytes, each.measured_bytes
    return relative_error((predicted, predicted), (measured, measured))
