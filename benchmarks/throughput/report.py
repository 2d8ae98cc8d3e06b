"""Words and tables, and the generated part of ``docs/throughput.md``."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import fields
from pathlib import Path

from batchplan.spec import Checkpointing
from batchplan.throughput import efficiency, rates
from batchplan.throughput.update import UNFUSED_ADAMW_TRAFFIC
from benchmarks.accuracy.report import percent, table
from benchmarks.accuracy.statistics import summarise
from benchmarks.throughput.causes import cause_of
from benchmarks.throughput.fit import Constants, errors_on_unseen_models, source_cases
from benchmarks.throughput.replay import SOURCES, all_cases
from benchmarks.throughput.scores import (
    AS_GOOD,
    Ranking,
    Score,
    all_scores,
    lines,
    ranking,
    same_devices,
    same_model,
)

DOCUMENT = Path(__file__).parents[2] / "docs" / "throughput.md"
BEGIN = "<!-- Written by `python -m benchmarks.throughput --write`; do not edit. -->"
END = "<!-- End of what is written. -->"

LISTED_FROM = 0.10


def constants_of_the_table() -> Constants:
    """Return the constants as ``rates`` holds them."""
    by_kind = {kind: next(c.gpu for c in all_cases() if kind in c.gpu.name) for kind in _KINDS}
    a100, h100 = (efficiency(by_kind[kind]) for kind in _KINDS)
    return Constants(
        a100_products=a100.products,
        a100_scores=a100.scores,
        h100_products=h100.products,
        h100_scores=h100.scores,
        elementwise_bytes=a100.elementwise_bytes,
        loss_bytes=a100.loss_bytes,
        overlap=a100.overlap,
    )


_KINDS = ("A100", "H100")


def error_table(scores: Sequence[Score]) -> str:
    """Return the errors by source, device and half."""
    head = ("rows", "half", "n", "median", "mean", "p95", "worst over", "worst under", "in band")
    return table(
        head,
        (
            (
                line.name,
                line.rows,
                str(line.summary.count),
                percent(line.summary.median),
                percent(line.summary.mean),
                percent(line.summary.p95),
                percent(line.summary.worst_over, signed=True),
                percent(line.summary.worst_under, signed=True),
                f"{line.within} of {line.summary.count}",
            )
            for line in lines(scores)
        ),
    )


def ranking_text(scores: Sequence[Score]) -> str:
    """Return how often the plan predicted fastest is as good as the best."""
    found = {
        "same model, device, length, method and number of devices": ranking(scores, same_devices),
        "the same on any number of devices, per device": ranking(scores, same_model),
    }
    rows = [
        (name, str(one.groups), str(one.right), str(one.pairs), str(one.pairs_right))
        for name, one in found.items()
    ]
    missed = "\n".join(text for one in found.values() for text in _misses(one))
    head = ("alternatives", "groups", "best chosen", "pairs apart", "in order")
    return f"{table(head, rows)}\n\n{missed or 'No group is missed.'}"


def _misses(found: Ranking) -> list[str]:
    return [
        f"Missed: {picked.case.row.id} was chosen, {best.case.row.id} is {percent(lost)} faster: "
        f"{cause_of(picked.case.row)}."
        for picked, best, lost in found.misses
    ]


def constants_table(fitted: Constants) -> str:
    """Return the constants of the table, beside what the fit gives now."""
    held = constants_of_the_table()
    rows = (
        (
            field.name.replace("_", " "),
            f"{getattr(held, field.name):.4g}",
            f"{getattr(fitted, field.name):.3g}",
        )
        for field in fields(Constants)
    )
    return table(("constant", "table", "fit"), rows)


def other_constants_table() -> str:
    """Return the constants that no fit touches, with where they are from."""
    floor = rates.LAUNCH_FLOOR_SECONDS
    rows = (
        (
            "launch floor of a layer",
            f"{floor[Checkpointing.NONE] * 1e3:g} ms, {floor[Checkpointing.FULL] * 1e3:g} ms "
            "under full checkpointing",
            "LitGPT LoRA 4.05-4.79 ms; Qwen LoRA 4.7-5.2 ms",
        ),
        (
            "dequantising 10⁹ NF4 weights",
            f"{rates.NF4_SECONDS_PER_BILLION * 1e3:g} ms at {rates.NF4_REFERENCE_GB_PER_S:g} GB/s",
            "LitGPT bnb-nf4 11-15 ms, forward and backward",
        ),
        (
            "forward share of scores",
            f"{rates.SCORES_FORWARD_SHARE:.3f}",
            "FlashAttention-2: backward has 2.5 times the FLOPs, at 63 % of peak beside 73 %",
        ),
        (
            "GPU link, of its one-direction rate",
            percent(rates.LINK_SHARE),
            "nccl-tests H100 370 of 450 GB/s; Calculon A100 .65; vTrain 163 of 300",
        ),
        (
            "network, of the adapter's rate",
            percent(rates.INTER_NODE_SHARE),
            "vTrain 66 %; nccl-tests, four B200 nodes, 74 %",
        ),
        ("PCIe between GPUs", percent(rates.PCIE_SHARE), "GeForce 8-12 of 31 GB/s; a guess"),
        (
            "latency of a ring's step",
            f"{rates.LINK_HOP_SECONDS * 1e6:g} µs by link, {rates.PCIE_HOP_SECONDS * 1e6:g} µs by "
            f"PCIe, {rates.NETWORK_HOP_SECONDS * 1e6:g} µs between nodes; "
            f"{rates.TREE_HOP_SECONDS * 1e6:g} µs a level of a tree of nodes",
            "nccl-tests B200, 1 MiB: 36 GB/s in a node, 5.4 GB/s over four; PCIe a guess",
        ),
        (
            "memory in the update",
            percent(rates.MEMORY_SHARE),
            "8B AdamW on H100 takes 1.2 times the ideal",
        ),
        (
            "unfused AdamW",
            f"{UNFUSED_ADAMW_TRAFFIC:.2f} times the bytes",
            "passes counted in torch optim/adamw.py",
        ),
        (
            "host update",
            f"{rates.HOST_ADAM_PARAMS_PER_SECOND:.0e} parameters/s a socket",
            "ZeRO-Offload, from memory; machines differ widely",
        ),
        (
            "mixture of experts",
            f"{rates.MOE_FACTOR:g} of the dense rate",
            "Megatron-Bridge tables, GPT-OSS-120B at 16-21 % of peak",
        ),
    )
    return table(("constant", "value", "source"), rows)


def row_table(scores: Sequence[Score], above: float = LISTED_FROM) -> str:
    """Return the rows that are off by more than ``above``, the worst first."""
    chosen = sorted(
        (score for score in scores if abs(score.error) > above),
        key=lambda score: -abs(score.error),
    )
    head = ("row", "half", "predicted s", "measured s", "error", "cause")
    return table(
        head,
        (
            (
                score.case.row.id,
                "seen" if score.is_fitted else "held out",
                f"{score.mid:.3g}",
                f"{score.case.measured:.3g}",
                percent(score.error, signed=True),
                cause_of(score.case.row),
            )
            for score in chosen
        ),
    )


def section(fitted: Constants) -> str:
    """Return the generated part of the page."""
    scores = all_scores()
    summary = summarise(math.expm1(error) for error in errors_on_unseen_models(source_cases()))
    assert summary is not None
    unseen = (
        f"median {percent(summary.median)}, mean {percent(summary.mean)}, p95 "
        f"{percent(summary.p95)} over {summary.count} rows"
    )
    sources = "\n".join(f"- {name}: {source.notes}." for name, source in SOURCES.items())
    return f"""{BEGIN}

`python -m benchmarks.throughput` puts every row of `profiles/measured/throughput.csv` to
`step_timer`. An error is (predicted - measured) / measured; median, mean and p95 are of absolute
errors; *in band* counts measurements between low and high. *held out*: the half, chosen by hash,
that the fit never saw. LitGPT's rows count as seen, because the launch floor and the cost of
dequantisation are read off them.

{error_table(scores)}

What the sources leave open:

{sources}

**Ranking.** Of alternatives, the one predicted fastest should be measured fastest, or be within
{percent(AS_GOOD)} of it. Pairs are *apart* when their measurements differ by more than that. The
groups of the first line differ in micro-batch alone: every llm-foundry row is FSDP FULL_SHARD, and
none has the same run with and without checkpointing. The data cannot say whether shardings or
checkpointing are put in the right order.

{ranking_text(scores)}

**Fitted constants**, as `batchplan/throughput/rates.py` holds them and as `--fit` finds them again
from the seen half:

{constants_table(fitted)}

Rows of one model are alike, so a half that is chosen row by row flatters. Fitted to all models but
one, and asked about that one, each model in turn: {unseen}.

**Other constants**, which no fit touches:

{other_constants_table()}

The guesses for other devices are in `rates.py`, each with its reason.

Rows off by more than {percent(LISTED_FROM)}:

{row_table(scores)}

{END}"""


def document(fitted: Constants) -> str:
    """Return the page with its generated part renewed."""
    text = DOCUMENT.read_text(encoding="utf-8")
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    return f"{before}{section(fitted)}{after}"
