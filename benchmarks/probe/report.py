"""The comparison, counted and in words; ``docs/probe-trials.md``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from statistics import median

from benchmarks.accuracy.report import percent, table
from benchmarks.probe.curves import CAP, ESTIMATE_ERROR, LARGEST, NUM_CURVES, SEED, Curve, curves
from benchmarks.probe.finders import FINDERS, Attempt, Finder

DOCUMENT = Path(__file__).parents[2] / "docs" / "probe-trials.md"
COMMAND = "python -m benchmarks.probe"
SIZES = ((1, 7), (8, 63), (64, LARGEST))
"""Classes of the micro-batch to be found."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Search:
    """One finder on one curve."""

    largest: int
    found: int
    num_trials: int


@cache
def family() -> tuple[tuple[Curve, int], ...]:
    """Return every curve with its answer."""
    return tuple((curve, curve.largest()) for curve in curves())


@cache
def searches(finder: Finder) -> tuple[Search, ...]:
    """Return the finder's search of every curve."""
    return tuple(_search(finder, curve, largest) for curve, largest in family())


def _search(finder: Finder, curve: Curve, largest: int) -> Search:
    attempt = Attempt(curve)
    found = finder.find(attempt)
    return Search(largest=largest, found=found, num_trials=len(attempt.tried))


def missing() -> tuple[str, ...]:
    """Return the packages that are not installed, so that their finders cannot run."""
    return tuple(dict.fromkeys(f.package for f in FINDERS if f.version is None))


def trials_table() -> str:
    """Return the trials each finder needs, by the size of the answer."""
    head = ("finder", *(f"{low} to {high}" for low, high in SIZES), "all", "95 % within", "most")
    return table(head, map(trials_row, _installed()))


def trials_row(finder: Finder) -> Sequence[str]:
    """Return one line of the table of trials."""
    counts = sorted(search.num_trials for search in searches(finder))
    by_size = (
        [search.num_trials for search in searches(finder) if low <= search.largest <= high]
        for low, high in SIZES
    )
    return (
        finder.name,
        *(f"{median(part):g}" for part in by_size),
        f"{median(counts):g}",
        str(counts[int(0.95 * len(counts))]),
        str(counts[-1]),
    )


def answers_table() -> str:
    """Return how good the answers are."""
    head = ("finder", "finds the largest", "median of found over largest", "finds too large a one")
    return table(head, map(answers_row, _installed()))


def answers_row(finder: Finder) -> Sequence[str]:
    """Return one line of the table of answers."""
    found = searches(finder)
    return (
        finder.name,
        percent(sum(one.found == one.largest for one in found) / len(found)),
        percent(median(one.found / max(one.largest, 1) for one in found)),
        percent(sum(one.found > one.largest for one in found) / len(found)),
    )


def _installed() -> tuple[Finder, ...]:
    return tuple(finder for finder in FINDERS if finder.version is not None)


def document() -> str:
    """Return the page."""
    versions = {f.package: f"{f.package} {f.version}" for f in _installed() if f.package}
    return f"""\
<!-- Written by `{COMMAND} --write`; do not edit. -->
# Trials until the largest micro-batch is known

Each trial of a probe is a run of its own: a process, a model, two optimizer steps. So what counts
is how many there are, and whether the answer is the largest that fits. Here every finder gets the
same {NUM_CURVES} simulated runs (seed {SEED}): the largest micro-batch that fits is drawn from 1 to
{LARGEST}, every power of two alike; states take 10 to 90 % of the device; the allocator's segments
make steps; a run at the limit first gives cached memory back, then does so in every step, which
does not count as fitting; the slope bends by up to 3 %; and the estimate is up to
{percent(ESTIMATE_ERROR)} off in its fixed part and, independently, in its slope.

The libraries' own functions are called ({", ".join(versions.values())}); only the
training inside them is simulated. All may go up to {CAP:,}.

Trials, medians by the size of the answer:

{trials_table()}

Answers:

{answers_table()}

- batchplan and plain doubling prove what they answer: b ran, b + 1 did not.
- Lightning's finder starts at 2. `power` doubles until it runs out and halves once; `binsearch`
  then bisects and takes 5 % off. Where even 2 does not fit, `power` goes on downwards.
- `find_executable_batch_size` starts at 128 and takes a tenth off until it runs. It looks no
  further up, so an answer above 128 is not found.
- Neither sees a run that thrashes: it ends well, only slowly. That is "too large a one".

`{COMMAND}` computes this page anew; it needs the packages named above.
"""
