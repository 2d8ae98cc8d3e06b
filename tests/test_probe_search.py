"""The probe's search: right on every monotone run, few trials on realistic ones."""

from __future__ import annotations

import math
from dataclasses import replace
from statistics import median

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchplan.errors import SpecError
from batchplan.prober.search import CAP_REACHED, INCONCLUSIVE, PROVEN, Found, find_largest
from batchplan.prober.trial import Outcome, RankPeaks, Trial
from batchplan.units import GIB
from benchmarks.accuracy.report import table
from benchmarks.probe import report
from benchmarks.probe.curves import CAP, Curve, curves
from benchmarks.probe.finders import FINDERS

ROOM = 24 * GIB


def ran(micro_batch: int, in_use_bytes: int, *, num_retries: int = 0) -> Trial:
    peaks = RankPeaks(
        rank=0,
        allocated_peak_bytes=in_use_bytes,
        reserved_peak_bytes=in_use_bytes,
        in_use_peak_bytes=in_use_bytes,
        context_bytes=0,
        num_retries=num_retries,
    )
    return Trial(micro_batch=micro_batch, outcome=Outcome.FITS, ranks=(peaks,))


def ended(micro_batch: int, outcome: Outcome, text: str = "") -> Trial:
    return Trial(micro_batch=micro_batch, outcome=outcome, text=text)


class Runs:
    """Runs whose sizes are given; beyond the room they run out of memory."""

    def __init__(self, sizes, *, instead=None, room=ROOM):
        self._sizes, self._instead, self._room = sizes, instead or {}, room
        self.tried: list[int] = []

    def __call__(self, micro_batch: int) -> Trial:
        self.tried.append(micro_batch)
        endings = self._instead.get(micro_batch)
        if endings:
            return ended(micro_batch, endings.pop(0), "as said")
        size = self._sizes(micro_batch)
        if size > self._room:
            return ended(micro_batch, Outcome.OUT_OF_MEMORY)
        return ran(micro_batch, size)


def line(fixed: float, slope: float):
    return lambda micro_batch: round((fixed + slope * micro_batch) * GIB)


def find(runs: Runs, predicted, *, cap: int = 4096, start: int | None = None) -> Found:
    return find_largest(runs, predicted=predicted, usable_bytes=ROOM, cap=cap, start=start)


def test_where_the_estimate_is_right_two_trials_prove_it():
    runs = Runs(line(4, 1.5))
    found = find(runs, line(4, 1.5))
    assert (found.max_micro_batch, found.proof) == (13, PROVEN)
    assert sorted(runs.tried) == [13, 14]
    assert found.best is not None
    assert found.best.micro_batch == 13


@pytest.mark.parametrize("error", [0.87, 0.95, 1.05, 1.15])
def test_a_scaled_estimate_costs_two_more_trials_at_most(error):
    runs = Runs(line(8, 0.25))
    found = find(runs, lambda micro_batch: round(error * line(8, 0.25)(micro_batch)))
    assert found.max_micro_batch == 64
    assert len(found.trials) <= 4


def test_the_first_trial_is_where_the_caller_says():
    runs = Runs(line(4, 1.5))
    assert find(runs, line(4, 1.5), start=3).max_micro_batch == 13
    assert runs.tried[0] == 3


def test_at_the_cap_one_trial_is_enough():
    runs = Runs(line(1, 0.01))
    found = find(runs, line(1, 0.01), cap=16)
    assert (found.max_micro_batch, found.proof, runs.tried) == (16, CAP_REACHED, [16])


def test_one_that_does_not_fit_is_an_answer():
    found = find(Runs(line(30, 1)), line(4, 1))
    assert (found.max_micro_batch, found.proof, found.best) == (0, PROVEN, None)
    assert found.is_proven
    assert found.trials[-1].micro_batch == 1


def test_a_run_that_thrashes_does_not_fit():
    thrashing = {5: [Outcome.THRASHES], 4: [Outcome.THRASHES]}
    found = find(Runs(line(1, 2), instead=thrashing), line(1, 2))
    assert (found.max_micro_batch, found.proof) == (11, PROVEN)
    thrashing = {11: [Outcome.THRASHES], 10: [Outcome.THRASHES]}
    found = find(Runs(line(1, 2), instead=thrashing), line(1, 2))
    assert (found.max_micro_batch, found.proof) == (9, PROVEN)


def test_a_first_crash_ends_the_search_at_once():
    runs = Runs(line(4, 1), instead={19: [Outcome.CRASHED] * 9})
    found = find(runs, line(4, 1))
    assert runs.tried == [19]
    assert found.max_micro_batch == 0
    assert found.proof.startswith(INCONCLUSIVE)
    assert "crashed (as said)" in found.proof
    assert not found.is_proven


def test_a_crash_after_a_run_is_tried_once_more_and_no_more():
    once = Runs(line(4, 1), instead={20: [Outcome.CRASHED]})
    found = find(once, line(4, 1), start=10)
    assert (found.max_micro_batch, found.proof) == (20, PROVEN)
    assert once.tried.count(20) == 2
    assert len(found.trials) == len(once.tried)
    always = Runs(line(4, 1), instead={20: [Outcome.CRASHED] * 9})
    found = find(always, line(4, 1), start=10)
    assert always.tried == [10, 20, 20]
    assert "micro-batch 20 crashed" in found.proof
    assert found.proof.endswith("10 fits")
    assert found.max_micro_batch == 10


def test_a_timeout_is_never_repeated():
    runs = Runs(line(4, 1), instead={20: [Outcome.TIMED_OUT] * 9})
    found = find(runs, line(4, 1), start=10)
    assert runs.tried == [10, 20]
    assert "did not end in time" in found.proof


def test_memory_that_shrinks_with_the_batch_is_reported():
    def sizes(micro_batch: int) -> int:
        return round((20 if micro_batch == 4 else 8 + micro_batch) * GIB)

    found = find(Runs(sizes), line(8, 1), start=4)
    assert found.max_micro_batch == 16
    assert [caveat.code for caveat in found.caveats] == ["probe-not-monotone"]
    assert "less than a smaller one (20.00 GiB)" in found.caveats[0].text


def test_a_run_at_the_limit_holds_what_it_may_and_says_nothing_of_growth():
    """The allocator caches a quarter beyond live tensors, and give it back from 16 on."""

    def attempt(micro_batch: int) -> Trial:
        live = round((4 + micro_batch) * GIB)
        if live > ROOM:
            return ended(micro_batch, Outcome.OUT_OF_MEMORY)
        held, is_pressed = (live, 1) if 1.25 * live > ROOM else (round(1.25 * live), 0)
        peaks = replace(
            ran(micro_batch, held).ranks[0], allocated_peak_bytes=live, num_retries=is_pressed
        )
        tried.append(micro_batch)
        return Trial(micro_batch=micro_batch, outcome=Outcome.FITS, ranks=(peaks,))

    tried: list[int] = []
    found = find_largest(attempt, predicted=line(5, 1.25), usable_bytes=ROOM, cap=4096, start=15)
    assert found.max_micro_batch == 20
    assert found.caveats == ()
    assert tried[:3] == [15, 17, 18]  # each between what it likes and what live tensors need


def test_memory_that_hardly_grows_does_not_lead_to_the_cap():
    runs = Runs(lambda micro_batch: 30 * GIB if micro_batch > 40 else 8 * GIB + micro_batch)
    found = find(runs, line(7, 1), cap=1 << 20)
    assert found.max_micro_batch == 40
    assert max(runs.tried) <= 400
    assert len(runs.tried) <= 14


def test_running_out_where_the_line_leaves_much_is_reported():
    taken = {size: [Outcome.OUT_OF_MEMORY] for size in range(12, 40)}
    found = find(Runs(line(4, 1), instead=taken), line(4, 1), start=4)
    assert found.max_micro_batch == 11
    assert "probe-unexpected-oom" in [caveat.code for caveat in found.caveats]
    assert find(Runs(line(4, 1)), line(4, 1)).caveats == ()


def test_without_figures_outcomes_alone_decide():
    def attempt(micro_batch: int) -> Trial:
        return ended(micro_batch, Outcome.FITS if micro_batch <= 37 else Outcome.OUT_OF_MEMORY)

    found = find_largest(attempt, predicted=line(4, 1), usable_bytes=ROOM, cap=4096)
    assert (found.max_micro_batch, found.proof) == (37, PROVEN)


@pytest.mark.parametrize("wrong", [{"cap": 0}, {"cap": 4, "start": 0}])
def test_a_wrong_request_is_refused(wrong):
    with pytest.raises(SpecError, match="1 or more"):
        find_largest(ran, predicted=line(1, 1), usable_bytes=ROOM, **wrong)


@st.composite
def steps(draw) -> list[int]:
    """Sizes of micro-batch 1, 2, ..., never falling."""
    growth = draw(st.lists(st.integers(0, 4), min_size=1, max_size=300))
    sizes = [draw(st.integers(1, 20))]
    for step in growth:
        sizes.append(sizes[-1] + step)
    return sizes


@given(
    sizes=steps(),
    room=st.integers(0, 400),
    thrash=st.integers(0, 8),
    told=st.lists(st.integers(0, 1000), min_size=1, max_size=40),
    figures=st.booleans(),
)
def test_it_equals_brute_force_whatever_the_estimate_says(sizes, room, thrash, told, figures):
    """The estimate is arbitrary, not even monotone; runs may tell no figures at all."""

    def outcome(micro_batch: int) -> Outcome:
        size = sizes[micro_batch - 1]
        if size > room:
            return Outcome.OUT_OF_MEMORY
        return Outcome.THRASHES if size > room - thrash else Outcome.FITS

    def attempt(micro_batch: int) -> Trial:
        assert micro_batch not in tried
        tried.append(micro_batch)
        if outcome(micro_batch) is Outcome.FITS and figures:
            return ran(micro_batch, sizes[micro_batch - 1])
        return ended(micro_batch, outcome(micro_batch))

    tried: list[int] = []
    cap = len(sizes)
    found = find_largest(
        attempt,
        predicted=lambda micro_batch: told[micro_batch % len(told)] + micro_batch,
        usable_bytes=room,
        cap=cap,
    )
    fitting = [b for b in range(1, cap + 1) if outcome(b) is Outcome.FITS]
    assert found.max_micro_batch == max(fitting, default=0)
    assert found.proof == (CAP_REACHED if len(fitting) == cap else PROVEN)
    assert len(found.trials) <= 3 * math.log2(cap) + 8


@given(
    boundary=st.integers(0, 1 << 20),
    fixed=st.floats(0, 30),
    slope=st.floats(1e-6, 10),
    start=st.none() | st.integers(1, 1 << 20),
)
def test_a_huge_cap_and_a_foolish_estimate_cost_few_trials(boundary, fixed, slope, start):
    def attempt(micro_batch: int) -> Trial:
        return ended(
            micro_batch, Outcome.FITS if micro_batch <= boundary else Outcome.OUT_OF_MEMORY
        )

    found = find_largest(
        attempt, predicted=line(fixed, slope), usable_bytes=ROOM, cap=1 << 20, start=start
    )
    assert found.max_micro_batch == boundary
    assert len(found.trials) <= 3 * 20 + 8


def probed(curve: Curve) -> Found:
    return find_largest(
        curve.attempt,
        predicted=curve.predicted_bytes,
        usable_bytes=curve.usable_bytes,
        cap=CAP,
    )


def test_on_realistic_runs_four_trials_are_the_median():
    """Estimates 15 % off, segments, a bend, and a zone where runs thrash; see the curves."""
    counts = []
    for curve in curves(300):
        found = probed(curve)
        assert found.max_micro_batch == curve.largest()
        assert found.proof == PROVEN
        counts.append(len(found.trials))
    assert median(counts) <= 4
    assert sorted(counts)[round(0.95 * len(counts))] <= 9


def test_where_doubling_and_bisecting_needs_eight_the_median_stays_at_four():
    counts = []
    for curve in curves(300):
        largest = curve.largest()
        if 8 <= largest < 64:  # 1, 2, ..., twice it, then bisected: 2 log2 + 2 trials, 8 to 13
            counts.append(len(probed(curve).trials))
    assert len(counts) > 60
    assert median(counts) <= 4


@pytest.mark.parametrize("finder", FINDERS[:2], ids=lambda finder: finder.name)
def test_the_page_of_trials_is_as_computed_now(finder):
    page = report.DOCUMENT.read_text(encoding="utf-8").splitlines()
    assert table(report.trials_row(finder), ()).splitlines()[0] in page
    assert table(report.answers_row(finder), ()).splitlines()[0] in page
