"""Asks ``batchplan.estimate`` each row's question and compares the answers with the row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from batchplan.errors import BatchplanError
from batchplan.spec import Recipe
from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.environments import InstallError, interpreter
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.sources import case_of
from benchmarks.accuracy.stated import gap_of
from benchmarks.accuracy.statistics import Interval, relative_error

CURRENT = "current"
MATCHED = "matched"

RIGHT = "right"
DIED = "ran out of memory, called fitting"
RAN = "ran, called impossible"
TIGHT = "ran, called too tight"

QUANTITIES = ("allocated", "reserved", "in use", "unspecified")

_QUANTITY = {
    "max_allocated": "allocated",
    "max_allocated(presumed)": "allocated",
    "max_active": "allocated",
    "max_reserved": "reserved",
    "max_reserved(presumed)": "reserved",
    "nvidia_smi": "in use",
    "unspecified": "unspecified",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """One measured figure beside the predicted one."""

    quantity: str
    predicted: Interval
    measured: Interval

    @property
    def error(self) -> float:
        """Signed, as a share of what was measured."""
        return relative_error(self.predicted, self.measured)


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """What came of one row with one set of versions."""

    row_id: str
    source: str
    is_counted: bool
    """Whether the row enters the averages."""
    is_held_out: bool
    versions: str
    """``current`` or ``matched``."""
    comparisons: tuple[Comparison, ...] = ()
    is_stated: bool = True
    """Whether the recipe is fully stated."""
    predicted_fits: bool | None = None
    """Whether the 95 % bound fits; None where the device is not known."""
    is_tight: bool = False
    """The point fits and the bound does not: called too tight, not impossible."""
    measured_fits: bool | None = None
    peak_phase: str = ""
    libraries: Mapping[str, str] | None = None
    failure: str = ""
    """Why there is no answer; empty when there is one."""

    @property
    def verdict(self) -> str:
        """Which way an answer went wrong, or a right one; empty where none was asked for."""
        if self.predicted_fits is None or self.measured_fits is None:
            return ""
        if not self.measured_fits:
            return DIED if self.predicted_fits else RIGHT
        if self.predicted_fits:
            return RIGHT
        return TIGHT if self.is_tight else RAN


def replay(row: Row, case: Case, versions: str) -> Score:
    """Return the comparison of a row with what ``estimate`` says; an error becomes its failure."""
    blank = Score(
        row_id=row.id,
        source=row.source_group,
        is_counted=row.is_counted,
        is_held_out=row.is_held_out,
        versions=versions,
        is_stated=not gap_of(row),
    )
    try:
        answer = ask(case, versions)
    except (BatchplanError, InstallError) as error:
        return replace(blank, failure=f"{type(error).__name__}: {error}")
    except Exception as error:
        return replace(blank, failure=f"bug: {error!r}")
    return replace(
        blank,
        comparisons=tuple(_comparisons(row, case, answer)),
        predicted_fits=answer.fits if case.gpu_is_known else None,
        is_tight=case.gpu_is_known and answer.headroom_bytes >= 0 and not answer.fits,
        measured_fits={"fits": True, "oom": False}.get(row.outcome or ""),
        peak_phase=answer.memory.peak_phase,
        libraries=answer.versions,
    )


def ask(case: Case, versions: str) -> Any:
    """Return ``estimate``'s answer to a case, traced with the current or the matched versions.

    Every field of the recipe is given: no trainer's defaults fill what a mapping leaves out.
    """
    from batchplan import estimate

    recipe = {name: value for name, value in Recipe().model_dump().items() if value is not None}
    fields = recipe | dict(case.fields)
    if versions == MATCHED and case.environment is not None:
        fields["python"] = interpreter(case.environment)
    return estimate(case.model, offline=True, **fields)


def versions_for(case: Case, wanted: tuple[str, ...]) -> tuple[str, ...]:
    """Return with which versions a case is traced, where some are wanted.

    A case without an environment has the current ones alone, one that needs its own only those.
    """
    if case.needs_environment:
        return (MATCHED,)
    if case.environment is None:
        return (CURRENT,)
    return wanted


def sort_rows(rows: tuple[Row, ...]) -> tuple[list[tuple[Row, Case]], list[tuple[Row, str]]]:
    """Return the rows that can be scored with their cases, and the others with the reason."""
    scorable, others = [], []
    for row in rows:
        try:
            scorable.append((row, case_of(row)))
        except NotScoredError as reason:
            others.append((row, str(reason)))
    return scorable, others


def _comparisons(row: Row, case: Case, answer: Any) -> Iterator[Comparison]:
    memory = answer.memory
    allocated = memory.allocated_peak_bytes
    if not case.has_step:
        allocated = max(
            moment.num_bytes for moment in memory.timeline if moment.phase != "optimizer step"
        )
    predicted = {
        "allocated": (allocated, allocated),
        "reserved": (memory.reserved_peak_bytes, memory.reserved_peak_bytes),
        "in use": (memory.in_use_peak_bytes, memory.in_use_peak_bytes),
        "unspecified": (allocated, memory.reserved_peak_bytes),
    }
    quantity = _QUANTITY.get(row.metric)
    measured = row.measured
    if quantity == "in use" and case.context_bytes is not None and measured is not None:
        quantity = "reserved"
        measured = (measured[0] - case.context_bytes, measured[1] - case.context_bytes)
    if quantity is not None and measured is not None:
        yield Comparison(quantity=quantity, predicted=predicted[quantity], measured=measured)
    if case.also_in_use is not None:
        driver = (case.also_in_use, case.also_in_use)
        yield Comparison(quantity="in use", predicted=predicted["in use"], measured=driver)
