"""The page of ``batchplan probe``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from batchplan.render.estimate import print_setting, print_subject
from batchplan.render.page import Page
from batchplan.units import format_bytes, format_seconds

_UNKNOWN = "–"


def print_probe(document: Mapping[str, Any], *, file: IO[str], width: int | None = None) -> None:
    """Print what fits, every trial, and how far the estimate was off."""
    page = Page(file, width)
    print_subject(page, document)
    print_setting(page, document)
    _print_device(page, document["device"])
    measurement = document["measurement"]
    if measurement is None:
        _print_intent(page, document)
    else:
        _print_verdict(page, measurement)
        _print_trials(page, measurement["trials"])
        if measurement["comparison"]:
            _print_comparison(page, measurement)
        _print_speed(page, measurement)
        if measurement["saved_to"]:
            page.line(f"Saved to {measurement['saved_to']}.")
    page.caveats(document["caveats"])


def _print_device(page: Page, device: Mapping[str, Any]) -> None:
    words = [f"{format_bytes(device['usable_bytes'])} may be taken"]
    if device["total_bytes"] is not None:
        total = format_bytes(device["total_bytes"])
        words.append(f"{format_bytes(device['free_bytes'])} of {total} are free")
    if device["processes"]:
        words.append(f"used by process {', '.join(str(one['pid']) for one in device['processes'])}")
    if device["drives_display"]:
        words.append("drives a display")
    page.line(f"{device['name']}: {'; '.join(words)}.")


def _print_intent(page: Page, document: Mapping[str, Any]) -> None:
    intent = document["intent"]
    page.title("What a probe would do")
    if not intent["predicted_micro_batch"]:
        page.line("The estimate says that not even micro-batch 1 fits.", style="red")
    else:
        page.line(f"The estimate says that micro-batch {intent['predicted_micro_batch']:,} fits.")
    page.line(
        f"First trial: micro-batch {intent['start_micro_batch']:,}, predicted to take "
        f"{format_bytes(intent['start_bytes'])}. No trial gets more than "
        f"{format_bytes(intent['usable_bytes'])}."
    )
    fewest, most = intent["fewest_trials"], intent["most_trials"]
    trials = f"{fewest} trials" if fewest == most else f"{fewest} to {most} trials"
    page.line(
        f"About {trials.replace('1 trials', '1 trial')} of "
        f"{format_seconds(intent['trial_seconds'])} each, {format_seconds(intent['seconds'])} "
        "at most. Nothing was run."
    )


def _print_verdict(page: Page, measurement: Mapping[str, Any]) -> None:
    largest, proof = measurement["max_micro_batch"], measurement["proof"]
    page.title("What fits")
    if largest:
        page.line(f"Largest micro-batch: {largest:,} ({_proof(proof, largest)}).", style="green")
    elif measurement["trials"] and _is_about_memory(measurement["trials"][-1]):
        page.line("Nothing fits: micro-batch 1 does not.", style="red")
    else:
        page.line(f"The probe failed: {proof}.", style="red")
    predicted = measurement["predicted"]["max_micro_batch"]
    number = measurement["num_trials"]
    page.line(
        f"Predicted: {predicted:,}. {number} {'trial' if number == 1 else 'trials'}, "
        f"{format_seconds(measurement['seconds'])} in all"
        f"{_on(measurement['device'])}{_with(measurement['versions'])}."
    )


def _proof(proof: str, largest: int) -> str:
    """Return the proof with its numbers.

    >>> _proof("b fits, b+1 does not", 7)
    '7 fits, 8 does not'
    """
    return proof.replace("b+1", f"{largest + 1:,}").replace("b fits", f"{largest:,} fits")


def _is_about_memory(trial: Mapping[str, Any]) -> bool:
    return trial["outcome"] in ("fits", "thrashes", "out-of-memory")


def _on(device: str) -> str:
    return f", on {device}" if device else ""


def _with(versions: Mapping[str, str]) -> str:
    words = ", ".join(f"{name} {version}" for name, version in versions.items())
    return f", with {words}" if words else ""


def _print_trials(page: Page, trials: list[Mapping[str, Any]]) -> None:
    page.title("Every trial, in order")
    columns = [("micro-batch", "right"), ("outcome", "whole"), ("allocated", "right")]
    columns += [("reserved", "right"), ("in use", "right"), ("step", "right"), ("took", "right")]
    page.table(
        columns,
        [
            (
                f"{trial['micro_batch']:,}",
                trial["outcome"],
                _gib(trial["allocated_peak_bytes"]),
                _gib(trial["reserved_peak_bytes"]),
                _gib(trial["in_use_peak_bytes"]),
                format_seconds(trial["step_seconds"][-1]) if trial["step_seconds"] else _UNKNOWN,
                format_seconds(trial["seconds"]),
            )
            for trial in trials
        ],
    )
    for trial in trials:
        # What allocators say when they run out is long, and only repeats the outcome.
        if trial["text"] and trial["outcome"] != "out-of-memory":
            page.bullet(f"{trial['micro_batch']:,}: {trial['text']}")
    _print_ranks(page, trials)


def _print_ranks(page: Page, trials: list[Mapping[str, Any]]) -> None:
    """Print what every rank held in the largest trial that ran, where there are several."""
    ran = [one for one in trials if one["outcome"] == "fits" and len(one["ranks"]) > 1]
    if not ran:
        return
    largest = max(ran, key=lambda trial: trial["micro_batch"])
    page.title(f"Ranks at micro-batch {largest['micro_batch']:,}")
    page.table(
        [("rank", "right"), ("allocated", "right"), ("reserved", "right"), ("in use", "right")],
        [
            (
                str(rank["rank"]),
                _gib(rank["allocated_peak_bytes"]),
                _gib(rank["reserved_peak_bytes"]),
                _gib(rank["in_use_peak_bytes"]),
            )
            for rank in largest["ranks"]
        ],
    )


def _print_comparison(page: Page, measurement: Mapping[str, Any]) -> None:
    page.title(f"Against the estimate, at micro-batch {measurement['max_micro_batch']:,}")
    page.table(
        [("", "left"), ("predicted", "right"), ("measured", "right"), ("", "right")],
        [
            (
                each["name"],
                _gib(each["predicted_bytes"]),
                _gib(each["measured_bytes"]),
                _percent(each["deviation"]),
            )
            for each in measurement["comparison"]
        ],
    )


def _print_speed(page: Page, measurement: Mapping[str, Any]) -> None:
    rate = measurement["tokens_per_second"]
    if rate["measured"] is None:
        return
    predicted = (
        "the device's rates are not known, so none was predicted"
        if rate["predicted"] is None
        else f"predicted {rate['predicted']:,.0f}"
    )
    page.line(f"Tokens a second: measured {rate['measured']:,.0f}; {predicted}.")


def _gib(num_bytes: int | None) -> str:
    """Return bytes with their unit, a dash where nobody told.

    >>> _gib(3 * 2**30), _gib(None)
    ('3.00 GiB', '–')
    """
    return _UNKNOWN if num_bytes is None else format_bytes(num_bytes)


def _percent(deviation: float | None) -> str:
    """Return a relative deviation with its sign.

    >>> _percent(-0.0079), _percent(None)
    ('-0.8 %', '')
    """
    return "" if deviation is None else f"{100 * deviation:+.1f} %"
