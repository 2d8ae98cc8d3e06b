"""The page of ``lr``, and the part of a plan about its learning rate."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import IO, Any

from batchplan.render.catalog import print_run_table
from batchplan.render.page import Page
from batchplan.units import format_beta, format_count

_FITTED = {True: "yes", False: "no", None: "?"}


def print_learning_rate(
    document: Mapping[str, Any],
    *,
    file: IO[str],
    explain: bool = False,
    width: int | None = None,
) -> None:
    """Print the answer of ``lr``."""
    page = Page(file, width)
    if document["learning_rate"] is not None:
        print_advice(page, document["learning_rate"], unit=document["unit"])
        if explain:
            _print_rules(page, document["rules"])
    references = document["batch_references"]
    if references is not None:
        if document["learning_rate"] is not None:
            page.line()
        print_references(page, references, explain=explain)
    print_comparable_runs(page, document["reference_runs"])


def print_advice(
    page: Page,
    advice: Mapping[str, Any],
    *,
    unit: str = "sequences",
    told: Collection[str] = (),
) -> None:
    """Print one learning rate, its rule, and how far the rule may be trusted.

    ``told`` holds codes of caveats that the page has already.
    """
    low, high = advice["valid_range"]
    base = advice["base"]
    source = base["source"]
    named = f": {source}" if "(" in source else f" ({source})"
    page.line(
        f"{advice['value']:.3g} by the {advice['rule']} rule, from {base['value']:.3g} at "
        f"{_plain(base['global_batch_size'])} {unit}{named}"
    )
    page.line(f"Trusted from {_plain(low)} to {_plain(high)} {unit} a step.")
    also = list(_goes_with(advice))
    if also:
        page.line(f"With it: {', '.join(also)}.")
    if advice["weight_decay"] is not None:
        page.line(_weight_decay(advice["weight_decay"]))
    if advice["noise"] is not None:
        page.line(_noise(advice["noise"]))
    for caveat in advice["caveats"]:
        if caveat["code"] not in told:
            page.bullet(caveat["text"])


def print_references(page: Page, references: Mapping[str, Any], *, explain: bool = False) -> None:
    """Print what papers found to be a good and a critical batch, and how far they are apart."""
    rows, is_hint = references["rows"], references["is_fine_tuning"]
    hint = ", which this is not: only a hint" if is_hint else ""
    page.line(f"Published batches, fitted on pre-training from scratch{hint}.")
    columns = [("law", "left"), ("batch", "left"), ("tokens a step", "right")]
    columns += [("fitted here", "left"), *([] if is_hint else [("peak LR", "right")])]
    page.table(columns, (_reference(row, with_rate=not is_hint) for row in rows))
    for spread in references["spreads"]:
        if spread["low_tokens"] < spread["high_tokens"]:
            page.line(f"The {spread['quantity']} ones are {spread['ratio']:.2g} times apart.")
    for words, names in _unsure(rows).items():
        page.line(f"{words[0].upper()}{words[1:]}: {', '.join(names)}", style="dim")
    if explain:
        for row in rows:
            page.bullet(
                f"{row['name']} ({row['quantity']}): {row['formula']}; fitted on {row['fitted']}. "
                f"{row['source']}; {row['certainty']}."
            )


def print_comparable_runs(page: Page, runs: Sequence[Mapping[str, Any]]) -> None:
    """Print the published runs near the batch, where there are any."""
    if runs:
        page.line("Published pre-training runs, for comparison:")
        print_run_table(page, list(runs))


def _print_rules(page: Page, rules: Sequence[Mapping[str, Any]]) -> None:
    page.title("Every rule, for this change")
    columns = [("rule", "left"), ("LR", "right"), ("beta1", "right"), ("beta2", "right")]
    columns += [("eps", "right"), ("here", "left")]
    page.table(
        columns,
        (
            (
                rule["name"],
                *(
                    "" if rule["settings"][name] is None else f"{rule['settings'][name]:.4g}"
                    for name in ("learning_rate", "beta1", "beta2", "eps")
                ),
                f"recommended; {rule['verdict']}" if rule["is_recommended"] else rule["verdict"],
            )
            for rule in rules
        ),
    )
    for rule in rules:
        page.bullet(
            f"{rule['name']}: {rule['formula']}. {rule['family']}. Holds when "
            f"{rule['valid_when']}; fails when {rule['fails_when']}. {rule['source']}; "
            f"{rule['certainty']}."
        )


def _goes_with(advice: Mapping[str, Any]) -> Iterable[str]:
    half_life, steps = advice["half_life_tokens"], advice["steps_per_epoch"]
    if advice["beta2"] is not None:
        lasts = "" if half_life is None else f" (half-life {format_count(round(half_life))} tokens)"
        yield f"beta2 {format_beta(advice['beta2'])}{lasts}"
    of_all = "" if steps is None else f" of {steps:,} in one epoch"
    if advice["warmup_steps"] is not None:
        yield f"warm up over {advice['warmup_steps']:,} steps{of_all}"
    elif steps is not None:
        yield f"{steps:,} steps in one epoch"


def _weight_decay(decay: Mapping[str, Any]) -> str:
    factor, value, span = (decay[name] for name in ("keeping_factor", "value", "time_scale_tokens"))
    named = f"{factor:.3g} times the weight decay" if value is None else f"Weight decay {value:.3g}"
    times = "" if value is None else f" (× {factor:.3g})"
    lasts = "" if span is None else f" of {format_count(round(span))} tokens"
    share = "" if decay["data_share"] is None else f", {decay['data_share']:.2g} of the data"
    return f"{named}{times} keeps AdamW's time scale{lasts}{share}."


def _noise(noise: Mapping[str, Any]) -> str:
    return (
        f"At {noise['ratio']:.3g} times the noise scale it takes {noise['steps_multiplier']:.3g} "
        f"times the fewest steps and {noise['examples_multiplier']:.3g} times the fewest tokens."
    )


def _reference(row: Mapping[str, Any], *, with_rate: bool) -> list[str]:
    """Return the cells of one law; its rate would mislead who fine-tunes."""
    rate = "" if row["learning_rate"] is None else f"{row['learning_rate']:.3g}"
    cells = [row["name"], row["quantity"], format_count(round(row["batch_tokens"]))]
    return [*cells, _FITTED[row["in_range"]], *([rate] if with_rate else [])]


def _unsure(rows: Iterable[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return names of laws by how they were come by, those read at their source left out."""
    found: dict[str, list[str]] = {}
    for row in rows:
        if row["certainty"] != "read at the source":
            names = found.setdefault(row["certainty"], [])
            if row["name"] not in names:
                names.append(row["name"])
    return found


def _plain(number: float) -> str:
    return f"{number:,.4g}" if number < 1000 else f"{number:,.0f}"
