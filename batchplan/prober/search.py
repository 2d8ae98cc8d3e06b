"""The largest micro-batch that fits, in few trials: aim by the estimate, correct it, then prove.

Memory is affine in the micro-batch for a fixed recipe, but for rounding and the odd kink, and the
estimate knows both. So the search is a secant in the estimate's own coordinate: what was measured,
as a line over what was predicted. It ends when the bracket is closed (b ran, b + 1 did not), not
when the line says so; the line only chooses where to look. Where line and outcomes disagree, steps
double away from the end that they left, and a bracket that does not shrink is bisected.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from batchplan.errors import SpecError
from batchplan.prober.curve import Curve, held_bytes, is_pressed
from batchplan.prober.trial import Outcome, Trial
from batchplan.spec import Caveat
from batchplan.units import format_bytes

PROVEN = "b fits, b+1 does not"
CAP_REACHED = "cap reached"
INCONCLUSIVE = "inconclusive: "

FIRST_SHARE = 0.97
"""Of the room, for the first trial: one that runs tells more than one that does not."""
BACK_OFF = 0.9
"""Of what was predicted for a first trial that did not run, for the next."""
MOST_UNSHRUNK = 3
"""Trials within which the bracket has to lose half of itself, or it is bisected."""
UNEXPECTED_SHARE = 0.1
"""Of the room, left by the line at a micro-batch that ran out: so much needs a word."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer, everything that was tried for it, and what it rests on."""

    max_micro_batch: int
    """The largest that ran; 0 when 1 did not."""
    trials: tuple[Trial, ...]
    """In the order they ran."""
    proof: str
    """``PROVEN``, ``CAP_REACHED``, or ``INCONCLUSIVE`` with what stopped the search."""
    caveats: tuple[Caveat, ...] = ()

    @property
    def is_proven(self) -> bool:
        """Whether nothing larger (below the cap) can fit."""
        return not self.proof.startswith(INCONCLUSIVE)

    @property
    def best(self) -> Trial | None:
        """The run of the largest micro-batch that fits."""
        return next(
            (
                trial
                for trial in reversed(self.trials)
                if trial.micro_batch == self.max_micro_batch and trial.outcome is Outcome.FITS
            ),
            None,
        )


def find_largest(
    attempt: Callable[[int], Trial],
    *,
    predicted: Callable[[int], int],
    usable_bytes: int,
    cap: int,
    start: int | None = None,
) -> Found:
    """Return the largest micro-batch of 1 to ``cap`` that fits, assuming that all below it do.

    Args:
        attempt: runs one micro-batch. A run that thrashes counts as one that does not fit. A crash
            tells nothing about memory: it is tried once more where the job ran before, a timeout
            never is, and then the search stops with what it knows.
        predicted: bytes in use that the estimate expects of a micro-batch. However wrong it is,
            the answer stays right; it costs trials, 3 x log2(cap) + 8 at most.
        usable_bytes: what the job may use.
        cap: the largest micro-batch of interest.
        start: the first to try; None takes the estimate's largest.

    Raises:
        SpecError: when ``cap`` or ``start`` is not a whole number of 1 or more.
    """
    for name, value in (("cap", cap), ("start", 1 if start is None else start)):
        if value < 1:
            raise SpecError(f"The probe's {name} is {value}; it has to be 1 or more.")
    search = _Search(predicted=predicted, usable_bytes=usable_bytes, cap=cap)
    aim = search.next_micro_batch() if start is None else min(start, cap)
    while not search.is_closed:
        trial = attempt(aim)
        if trial.outcome is Outcome.CRASHED and search.has_run:
            search.trials.append(trial)
            trial = attempt(aim)
        search.trials.append(trial)
        if not trial.outcome.is_about_memory:
            return search.found(INCONCLUSIVE + _what_stopped(trial, search.fits))
        search.learn(trial)
        if not search.is_closed:
            aim = search.next_micro_batch()
    return search.found(CAP_REACHED if search.fits == cap else PROVEN)


def _what_stopped(trial: Trial, fits: int) -> str:
    how = "did not end in time" if trial.outcome is Outcome.TIMED_OUT else "crashed"
    said = f" ({trial.text})" if trial.text else ""
    known = f"{fits} fits" if fits else "none has run before"
    return f"micro-batch {trial.micro_batch} {how}{said}, which tells nothing about memory; {known}"


class _Search:
    """The bracket, and the next place to look in it."""

    def __init__(self, *, predicted: Callable[[int], int], usable_bytes: int, cap: int) -> None:
        self.trials: list[Trial] = []
        self.fits = 0
        self._fails = cap + 1
        self._failed: Trial | None = None
        self._usable_bytes = usable_bytes
        self._curve = Curve(predicted=predicted, usable_bytes=usable_bytes, cap=cap)
        self._streak = 0
        """Trials in a row that ended the same way; negative where they failed."""
        self._is_pushed = False
        """Whether the line wanted to look elsewhere than the next trial does."""
        self._pushes = 0
        """Trials in a row that moved an end of the bracket further than the line wanted."""
        self._width = self._fails
        self._unshrunk = 0
        self._bisections = 0
        """Times the lines were not followed; each makes the next one come a trial sooner."""
        self._caveats: list[Caveat] = []

    @property
    def is_closed(self) -> bool:
        """Whether the largest that fits is known."""
        return self._fails - self.fits == 1

    @property
    def has_run(self) -> bool:
        """Whether a trial has told anything about memory."""
        return any(trial.outcome.is_about_memory for trial in self.trials)

    def found(self, proof: str) -> Found:
        """Return the answer."""
        return Found(
            max_micro_batch=self.fits,
            trials=tuple(self.trials),
            proof=proof,
            caveats=(*self._caveats, *self._unexpected()),
        )

    def learn(self, trial: Trial) -> None:
        """Shrink the bracket, and put a run on the curve."""
        way = 1 if trial.outcome is Outcome.FITS else -1
        is_same = self._streak * way > 0
        self._streak = self._streak + way if is_same else way
        self._pushes = (self._pushes * is_same + 1) * self._is_pushed
        if trial.outcome is Outcome.FITS:
            self.fits = trial.micro_batch
            self._check_growth(trial)
            self._curve.measure(trial)
        else:
            self._fails = trial.micro_batch
            self._failed = trial
        width = self._fails - self.fits
        self._unshrunk += 1
        if 2 * width <= self._width or self._failed is None:
            self._width, self._unshrunk = width, 0

    def next_micro_batch(self) -> int:
        """Return where to look next, strictly inside the bracket."""
        up = max(self._pushes, self._streak - MOST_UNSHRUNK, 0) if self._streak > 0 else 0
        down = self._pushes if self._streak < 0 else 0
        least, most = self.fits + (1 << up), self._fails - (1 << down)
        if self._unshrunk >= max(MOST_UNSHRUNK - self._bisections, 1) or least > most:
            self._bisections += 1
            self._is_pushed = False
            return self._middle()
        wanted = round(self._wanted())
        aim = min(max(wanted, least), most)
        self._is_pushed = aim != wanted
        return aim

    def _wanted(self) -> float:
        if self._curve.is_measured:
            return self._curve.boundary(self.fits, self._fails)
        if self.fits:  # It ran without a figure: outcomes alone are left.
            return 2.0 * self.fits if self._failed is None else self._middle()
        if self._failed is None:
            return self._curve.inverse(FIRST_SHARE * self._usable_bytes)
        failed = min(self._curve.predicted(self._fails), self._usable_bytes)
        return self._curve.inverse(BACK_OFF**-self._streak * failed)

    def _middle(self) -> int:
        """Return the middle of the bracket, in proportion while its ends are far apart."""
        low, high = max(self.fits, 1), self._fails
        middle = math.isqrt(low * high) if high > 4 * low else (self.fits + high) // 2
        return min(max(middle, self.fits + 1), high - 1)

    def _check_growth(self, trial: Trial) -> None:
        held, before = held_bytes(trial), self._curve.last_held_bytes
        if is_pressed(trial):
            return
        if held is not None and before is not None and held < before:
            text = (
                f"Micro-batch {trial.micro_batch} took {format_bytes(held)}, less than a smaller "
                f"one ({format_bytes(before)}): memory does not grow with the batch here, so sizes "
                "that were not tried may behave otherwise."
            )
            self._caveats.append(Caveat(code="probe-not-monotone", text=text))

    def _unexpected(self) -> Iterator[Caveat]:
        """Yield a word on a limit that what ran does not explain."""
        failed = self._failed
        if failed is None or failed.outcome is not Outcome.OUT_OF_MEMORY:
            return
        left = self._curve.left_bytes(failed.micro_batch)
        if left is not None and left > UNEXPECTED_SHARE * self._usable_bytes:
            text = (
                f"Micro-batch {failed.micro_batch} ran out of memory where the smaller ones let "
                f"expect {format_bytes(left)} to be left: something else may have taken it."
            )
            yield Caveat(code="probe-unexpected-oom", text=text)
