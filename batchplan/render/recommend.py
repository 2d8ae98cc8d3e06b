"""The page of ``batchplan recommend``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import IO, Any

from batchplan.render.bill import print_bill, print_peak
from batchplan.render.estimate import print_subject, sequences, split
from batchplan.render.learning import print_advice, print_comparable_runs, print_references
from batchplan.render.lengths import print_data
from batchplan.render.noise import print_plan_noise
from batchplan.render.page import Page
from batchplan.units import GIB, format_bytes, format_count, format_seconds

_WIDE, _NARROW = 110, 80


def print_recommendation(
    document: Mapping[str, Any],
    *,
    file: IO[str],
    explain: bool = False,
    verbose: bool = False,
    width: int | None = None,
) -> None:
    """Print the plans, the best one's bill, its learning rate and its config; or the rescue."""
    page = Page(file, width)
    print_subject(page, document)
    plans = document["plans"]
    if plans:
        _print_target(page, document)
        priced = f"{document['searched']:,} candidates priced; the best of each layout"
        page.title(f"Plans that fit, best first ({priced})")
        print_plans(page, plans)
        if document["pareto"]:
            page.title("What no other plan beats in time, memory and devices at once")
            print_plans(page, document["pareto"])
        _print_best(page, document, explain=explain, verbose=verbose)
        _print_changes(page, "What would make the best plan faster", document["speedups"])
        _print_changes(page, "What would make the best plan smaller", document["savings"])
    else:
        _print_miss(page, document, explain=explain, verbose=verbose)
    print_data(page, document)
    about_all = document["caveats"]
    known = {caveat["code"] for caveat in about_all}
    about_best = [] if not plans else [c for c in plans[0]["caveats"] if c["code"] not in known]
    page.caveats([*about_all, *about_best])
    _print_config(page, document)


def print_plans(page: Page, plans: Iterable[Mapping[str, Any]]) -> None:
    """Print one row a plan: a wide page has longer words, a narrow one fewer columns."""
    rows = list(plans)
    wide, narrow = page.width >= _WIDE, page.width < _NARROW
    differs = len({plan["recipe"]["attention"] for plan in rows}) > 1
    heading = "b×K×N" if narrow else "b × K × N"
    columns = [
        ("#", "right"),
        (heading, "left"),
        ("sharding", "left"),
        ("ckpt", "left"),
        *([("attention" if wide else "attn", "left")] if differs else []),
        ("peak GiB" if wide else "GiB", "right"),
        *([] if narrow else _MIDDLE[wide]),
        ("tokens/s" if wide else "tok/s", "right"),
        ("step time" if wide else "step", "right"),
    ]
    page.table(columns, [_row(plan, wide=wide, narrow=narrow, differs=differs) for plan in rows])
    page.line(f"{heading}: micro-batch × accumulation steps × devices.", style="dim")


_MIDDLE = {
    True: [("headroom GiB", "right"), ("tokens a step", "right"), ("deviation", "right")],
    False: [("free", "right"), ("tokens", "right"), ("off", "right")],
}
"""Columns that a narrow page leaves out, by whether it is a wide one."""


def _row(plan: Mapping[str, Any], *, wide: bool, narrow: bool, differs: bool) -> list[str]:
    """Return the cells of one plan; ``differs`` shows its attention."""
    sharding = plan["sharding"]
    if plan["offload"] != "none":
        sharding += f" + offload {plan['offload']}" if wide else f"+{plan['offload'][:3]}"
    time, rate, tokens = (
        plan[name] for name in ("step_seconds", "tokens_per_second", "global_batch_tokens")
    )
    middle = [
        f"{plan['headroom_bytes'] / GIB:,.2f}",
        f"{tokens:,}" if wide else format_count(tokens),
        f"{plan['target_deviation']:+.1%}" if plan["target_deviation"] else "0%",
    ]
    return [
        str(plan.get("rank", "")),
        split(plan).replace(" ", "") if narrow else split(plan),
        sharding,
        plan["checkpointing"],
        *([plan["recipe"]["attention"]] if differs else []),
        f"{plan['memory']['peak_bytes'] / GIB:,.2f}",
        *([] if narrow else middle),
        "?" if rate is None else format_count(round(rate)),
        "?" if time is None else format_seconds(time["mid"]),
    ]


def _layout(plan: Mapping[str, Any]) -> str:
    """Return how a plan is laid out, in words; what is off goes without saying."""
    also = [f"{name} {plan[name]}" for name in ("checkpointing", "offload") if plan[name] != "none"]
    return ", ".join([split(plan), plan["sharding"], *also])


def _print_target(page: Page, document: Mapping[str, Any]) -> None:
    inputs = document["inputs"]
    if inputs.get("target_tokens"):
        target = f"{inputs['target_tokens']:,} tokens a step"
    elif inputs.get("target_sequences"):
        target = f"{inputs['target_sequences']:,} sequences a step"
    else:
        target = "none given; the fastest that fits"
    page.line(
        f"Target: {target}, {inputs['seq_len']:,} tokens a sequence; "
        f"{inputs['method']}, {document['numerics']}, {inputs['optimizer']}"
    )


def _print_best(page: Page, document: Mapping[str, Any], *, explain: bool, verbose: bool) -> None:
    best = document["plans"][0]
    page.title(f"Best plan: {_layout(best)}")
    page.line(
        f"{sequences(best['global_batch_size'])} = {best['global_batch_tokens']:,} tokens a step"
    )
    _print_time(page, document, best, explain=explain)
    page.title("Memory of one device")
    print_bill(page, best["memory"], explain=explain, verbose=verbose)
    print_peak(page, best["peak"], explain=explain)
    page.line(
        f"{format_bytes(best['headroom_bytes'])} free of "
        f"{format_bytes(document['device']['usable_bytes'])}."
    )
    _print_unaccumulated(page, document, best)
    page.title("Learning rate")
    epoch = document["epoch"]
    told = [] if epoch is None else [caveat["code"] for caveat in epoch["caveats"]]
    print_advice(page, best["learning_rate"], told=told)
    print_plan_noise(page, document["noise_scale"])
    if epoch is not None:
        print_references(page, epoch["batch_references"], explain=explain)
    print_comparable_runs(page, document["reference_runs"])


def _print_time(
    page: Page, document: Mapping[str, Any], best: Mapping[str, Any], *, explain: bool
) -> None:
    time = best["step_seconds"]
    if time is None:
        page.line("Step time: unknown, because the device's rates are.")
    else:
        page.line(
            f"Step time: {format_seconds(time['mid'])} ({format_seconds(time['low'])} to "
            f"{format_seconds(time['high'])}), {best['tokens_per_second']:,.0f} tokens/s, "
            f"MFU {best['mfu']['value']:.0%}"
        )
        if explain:
            page.line(f"MFU counts {best['mfu']['convention']}. {time['basis']}")
    epoch = document["epoch"]
    run = best["training"]
    if run is not None and (run["cost"] is not None or run["tokens"] != epoch["tokens"]):
        _print_run(page, run)
    if epoch is not None:
        lasts = "" if epoch["seconds"] is None else f", {format_seconds(epoch['seconds'])}"
        page.line(
            f"One epoch of {format_count(epoch['tokens'])} tokens: {epoch['steps']:,} steps{lasts}"
        )
        for caveat in epoch["caveats"]:
            page.bullet(caveat["text"])
    if explain and best["step_time_parts"]:
        parts = [
            (part["name"], format_seconds(part["seconds"]), part["formula"], part["source"])
            for part in best["step_time_parts"]
        ]
        columns = [("part", "left"), ("time", "right"), ("formula", "left"), ("source", "left")]
        page.table(columns, parts)


def _print_run(page: Page, run: Mapping[str, Any]) -> None:
    cost = "" if run["cost"] is None else f", {run['cost']:,.2f} at the given price"
    page.line(
        f"The whole run of {format_count(run['tokens'])} tokens: {run['steps']:,} steps, "
        f"{format_seconds(run['seconds'])}, {run['device_hours']:,.1f} device hours{cost}"
    )


def _print_unaccumulated(page: Page, document: Mapping[str, Any], best: Mapping[str, Any]) -> None:
    whole = best["peak_bytes_without_accumulation"]
    if whole is None:
        return
    verdict = "fit too" if whole <= document["device"]["usable_bytes"] else "not fit"
    saved = whole - best["memory"]["peak_bytes"]
    if saved >= 0:
        effect = f"accumulating saves {format_bytes(saved)}, for the same optimizer step"
    else:
        effect = (
            f"accumulating costs {format_bytes(-saved)}, because gradients stay resident between "
            "micro-batches"
        )
    page.line(
        f"In one pass (micro-batch {best['micro_batch'] * best['accum_steps']:,}, K = 1) the same "
        f"batch would need {format_bytes(whole)} and {verdict}; {effect}."
    )


def _print_miss(page: Page, document: Mapping[str, Any], *, explain: bool, verbose: bool) -> None:
    closest = document["closest"]
    page.title(f"Nothing fits ({document['searched']:,} priced)")
    if closest is not None:
        page.line(
            f"Closest: {_layout(closest)} needs {format_bytes(closest['memory']['peak_bytes'])}, "
            f"{format_bytes(-closest['headroom_bytes'])} more than "
            f"{format_bytes(document['device']['usable_bytes'])}."
        )
    _print_changes(page, "One change on top of another", document["ladder"])
    _print_changes(page, "Smallest changes that fit", document["rescues"])
    if closest is not None:
        page.title("Memory of one device, closest miss")
        print_bill(page, closest["memory"], explain=False, verbose=verbose)
        print_peak(page, closest["peak"], explain=explain)


def _print_changes(page: Page, title: str, changes: Sequence[Mapping[str, Any]]) -> None:
    if not changes:
        return
    page.title(title)
    rows = []
    for change in changes:
        plan, ratio = change["plan"], change["time_ratio"]
        rows.append(
            (
                f"{change['text']} ({', '.join(change['semantics'])})",
                f"{plan['memory']['peak_bytes'] / GIB:,.2f}",
                f"{change['saved_bytes'] / GIB:,.2f}",
                "?" if ratio is None else f"× {ratio:.2f}",
                _verdict(change["fits"], plan["headroom_bytes"]),
            )
        )
    columns = [("change (the training)", "left"), ("GiB", "right"), ("saves", "right")]
    page.table([*columns, ("time", "right"), ("", "left")], rows)
    page.line("saves, time: peak and seconds per token against the plan above.", style="dim")


def _verdict(fits: bool, headroom: int) -> str:  # noqa: FBT001 - a field of the document
    if fits:
        return "fits"
    return "too tight" if headroom >= 0 else f"{format_bytes(-headroom)} over"


def _print_config(page: Page, document: Mapping[str, Any]) -> None:
    config = document["config"]
    if config is None:
        return
    if config["obstacles"]:
        page.title(f"No {config['trainer']} config")
        for problem in config["obstacles"]:
            page.bullet(f"{config['trainer']}: {problem}.")
        return
    names = [file["name"] for file in config["files"]]
    page.title(f"Config for {config['trainer']}: {', '.join(names)}")
    page.line("-o FOLDER/ writes them.")
    for file in config["files"]:
        page.title(file["name"])
        page.verbatim(file["text"])
