"""The page of ``batchplan noise``."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import IO, Any

from batchplan.render.page import Page
from batchplan.units import format_count, format_seconds

_STOPPED = {
    "precise": "the interval was tight enough",
    "max-seconds": "the time was spent",
    "max-tokens": "the tokens were spent",
    "data": "the data was spent",
}
_TEXT_WIDTH = 44
"""Columns that the numbers of the plot take."""
_MOST_COLUMNS = 48


def print_noise(document: Mapping[str, Any], *, file: IO[str], width: int | None = None) -> None:
    """Print the noise scale, how it was found, and what it says of a target."""
    page = Page(file, width)
    found = document["noise_scale"]
    _print_subject(page, document)
    _print_verdict(page, found)
    _print_running(page, found["running"])
    _print_parts(page, found)
    _print_target(page, found)
    _print_next(page, found)
    if document["saved_to"]:
        page.line(f"Saved to {document['saved_to']}.")
    page.caveats(document["caveats"])


def _print_subject(page: Page, document: Mapping[str, Any]) -> None:
    model, data, device, inputs = (document[name] for name in ("model", "data", "device", "inputs"))
    trained = format_count(model["num_trained_params"])
    weights = "published weights" if inputs["weights"] else "random weights"
    page.line(
        f"{model['id']} ({model['architecture']}), {trained} parameters that train, {weights}",
        style="bold",
    )
    ranks = "" if device["num_ranks"] == 1 else f"{device['num_ranks']} × "
    page.line(f"{inputs['method']}, {document['numerics']}, on {ranks}{device['name']}")
    page.line(
        f"{data['source']}: {data['num_rows']:,} rows, {data['row_tokens']:,.0f} tokens each on "
        f"average, cut at {inputs['seq_len']:,}; tokens that count: {data['targets']}"
    )


def _print_verdict(page: Page, found: Mapping[str, Any]) -> None:
    interval, level = found["interval"], f"{found['interval']['level']:.0%}"
    page.title("Gradient noise scale")
    if found["bounded"]:
        for unit in ("sequences", "tokens"):
            low, high = (_size(interval[unit][end]) for end in ("low", "high"))
            page.line(f"{_size(found[unit])} {unit} ({level} interval: {low} to {high})")
    elif found["informed"]:
        low, rows = interval["tokens"]["low"], interval["sequences"]["low"]
        page.line(f"At least {_size(rows)} sequences = {_size(low)} tokens ({level}).")
        page.line("There is no upper bound: windows this small do not show the gradient's length.")
    elif found["noise"] <= 0:
        page.line("There is none to see: all micro-batches have the same gradient.", style="red")
    else:
        page.line("Nothing is known: the windows are too few or too small.", style="red")
    each = found["num_micro_batches"] // found["num_windows"]
    page.line(
        f"{found['num_windows']:,} windows of {each:,} "
        f"micro-batches, {found['num_sequences']:,} sequences, in "
        f"{format_seconds(found['seconds'])}; it ended because {_STOPPED[found['stopped']]}."
    )


def _print_running(page: Page, running: Sequence[Mapping[str, Any]]) -> None:
    """Plot the estimate and its interval as windows came in, on a logarithmic axis."""
    ends = [
        value for each in running for value in (each["low"], each["tokens"], each["high"]) if value
    ]
    if not ends or len(running) < 2:
        return
    axis = _Axis(min(ends), max(ends), max(12, min(_MOST_COLUMNS, page.width - _TEXT_WIDTH)))
    rows = [
        (
            f"{each['num_windows']:,}",
            "–" if each["tokens"] is None else _size(each["tokens"]),
            f"{_size(each['low'])} to {'∞' if each['high'] is None else _size(each['high'])}",
            axis.bar(each["low"], each["tokens"], each["high"]),
        )
        for each in running
    ]
    page.title("As windows came in (tokens, logarithmic)")
    columns = [("windows", "right"), ("estimate", "right"), ("interval", "right")]
    page.table([*columns, ("", "whole")], rows)


class _Axis:
    """A logarithmic axis of characters.

    >>> _Axis(1, 100, 9).bar(1, 10, 100)
    '|---o---|'
    >>> _Axis(1, 100, 9).bar(10, None, None)
    '    |--->'
    """

    def __init__(self, low: float, high: float, columns: int) -> None:
        self._low, self._columns = low, columns
        self._span = math.log(high / low) or 1.0

    def bar(self, low: float, value: float | None, high: float | None) -> str:
        """Return one interval; without an upper bound it runs off the page."""
        last = self._columns - 1
        start = self._at(low) if low else 0
        end = last if high is None else self._at(high)
        cells = [" "] * self._columns
        cells[start : end + 1] = "-" * (end + 1 - start)
        cells[start] = "|" if low else "<"
        cells[end] = ">" if high is None else "|"
        if value is not None:
            cells[self._at(value)] = "o"
        return "".join(cells).rstrip()

    def _at(self, value: float) -> int:
        return round((self._columns - 1) * math.log(value / self._low) / self._span)


def _print_parts(page: Page, found: Mapping[str, Any]) -> None:
    page.title("What it is made of")
    page.table(
        [("", "left"), *((name, "right") for name in _SPREAD)],
        [
            (name, f"{found[key]:.4g}", *_spread([window[key] for window in found["windows"]]))
            for name, key in (("S = tr Sigma of a token", "noise"), ("|G|^2", "signal"))
        ],
    )
    dimensions = found["dimensions"]
    spread = "unknown" if dimensions is None else f"about {dimensions:,.0f}"
    page.line(f"Directions that carry the noise (d_eff): {spread}. Loss: {found['loss']:.4f}.")


_SPREAD = ("mean", "windows: p10", "p50", "p90", "below 0")


def _spread(values: Sequence[float]) -> tuple[str, ...]:
    ordered = sorted(values)
    marks = (ordered[round(share * (len(ordered) - 1))] for share in (0.1, 0.5, 0.9))
    negative = sum(value < 0 for value in values) / len(values)
    return (*(f"{mark:.4g}" for mark in marks), f"{negative:.0%}")


def _print_target(page: Page, found: Mapping[str, Any]) -> None:
    target = found["target"]
    if target is None:
        return
    page.title(f"A step of {target['batch']:,.0f} tokens")
    rows = [
        (text, *_span(target[key]))
        for text, key in (
            ("times the noise scale (B / B_noise)", "ratio"),
            ("data, over the least that reaches a loss (1 + B / B_noise)", "examples_multiplier"),
            ("steps, over the fewest that do (1 + B_noise / B)", "steps_multiplier"),
        )
    ]
    page.table([("", "left"), ("", "right"), ("from", "right"), ("to", "right")], rows)
    page.line(_cost(target))
    if target["is_beyond"]:
        page.line(
            "It is beyond the interval: a smaller batch would reach the same loss with less data.",
            style="yellow",
        )


def _print_next(page: Page, found: Mapping[str, Any]) -> None:
    upcoming = found["next"]
    if upcoming is None:
        return
    page.title("For an upper bound")
    page.line(
        f"Needs about {upcoming['num_windows']:,} windows of {upcoming['window_tokens']:,} tokens: "
        f"--window {upcoming['window']:,}. A larger window is worth more than many: the error "
        "falls as 1 / tokens of a window, but as 1 / sqrt(windows)."
    )


def _size(value: float) -> str:
    """Return a batch with three digits, or as a whole number.

    >>> _size(0.123456), _size(4321.9), _size(1234567)
    ('0.123', '4,322', '1.23M')
    """
    if value < 1000:
        return f"{value:.3g}"
    return f"{value:,.0f}" if value < 1e6 else format_count(round(value))


def _span(span: Mapping[str, float | None]) -> tuple[str, ...]:
    """Return an estimate, a dash where there is none, and the ends of its interval."""
    value = "–" if span["value"] is None else _number(span["value"])
    return value, *(_number(span[end]) for end in ("low", "high"))


def _number(value: float | None) -> str:
    return "∞" if value is None else f"{value:,.3g}" if value < 1000 else f"{value:,.0f}"


def print_plan_noise(page: Page, noise: Mapping[str, Any] | None) -> None:
    """Print what the best plan's batch costs against a noise scale that was measured before."""
    if noise is None or noise["best"] is None:
        return
    tokens, best = noise["tokens"], noise["best"]
    high = "no upper bound" if tokens["high"] is None else _size(tokens["high"])
    measured = "" if tokens["value"] is None else f"{_size(tokens['value'])} tokens, "
    page.line(
        f"Measured noise scale: {measured}{noise['level']:.0%} interval {_size(tokens['low'])} to "
        f"{high} ({noise['data']}, {noise['created'][:10]})."
    )
    ratio = best["ratio"]
    if ratio["value"] is not None:
        page.line(
            f"{best['batch']:,.0f} tokens a step are {_number(ratio['value'])} "
            f"({_number(ratio['low'])} to {_number(ratio['high'])}) times that."
        )
    page.line(_cost(best))
    if best["is_beyond"]:
        page.line(
            "The batch is beyond the interval: a smaller one reaches the same loss with less data.",
            style="yellow",
        )


def _cost(cost: Mapping[str, Any]) -> str:
    """Return what a batch costs in data and in steps, as sure as it is known."""
    data, steps = cost["examples_multiplier"], cost["steps_multiplier"]
    high = "100%" if data["high"] is None else _wasted(data["high"])
    if data["value"] is None and high == "100%":
        return "How much of the data it wastes is not known."
    if data["value"] is None:
        return (
            f"At most {high} of the data is wasted on the size of the batch; it "
            f"takes at least {_number(steps['low'])} times the fewest steps."
        )
    return (
        f"{_wasted(data['value'])} of the data ({_wasted(data['low'])} to {high}) is wasted on the "
        f"size of the batch; it takes {_number(steps['value'])} ({_number(steps['low'])} to "
        f"{_number(steps['high'])}) times the fewest steps."
    )


_NEARLY_ALL = 0.995
"""A share that would be rounded to all."""


def _wasted(multiplier: float) -> str:
    """Return the share of the data beyond the least.

    Some of it is always needed.

    >>> _wasted(2.0), _wasted(373.0), _wasted(1e6)
    ('50%', '99.7%', '99.9%')
    """
    share = 1 - 1 / multiplier
    return f"{share:.0%}" if share < _NEARLY_ALL else f"{min(share, 0.999):.1%}"
