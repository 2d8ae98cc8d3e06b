"""A recorded optimizer step: what was allocated, and when it was made and freed."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

from batchplan.errors import TraceError

SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One storage that the step made."""

    num_bytes: int
    """As requested, before any rounding."""
    stream: int = 0
    """Memory is never reused across streams; 0 is the one that computes."""
    kind: str
    """What it holds, such as ``weights`` or ``activations``."""
    module: str
    """Dotted path of the module that made it."""
    op: str
    """The operation that made it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Recording:
    """Allocations and frees in time order.

    Raises:
        TraceError: when an allocation is made or freed twice, is freed before it is made or is
            unknown, when a size is below zero, or when the marks are out of order.
    """

    allocations: tuple[Allocation, ...]
    """By number; one that no event makes takes no memory."""
    events: Sequence[int]
    """``i`` makes allocation number i, ``~i`` (below zero) frees it. Kept as a tuple."""
    marks: tuple[tuple[int, str], ...] = ()
    """(position in events, name of the phase that starts there), in order."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "events", tuple(self.events))
        _check_sizes(self.allocations)
        _check_events(self.events, len(self.allocations))
        _check_marks(self.marks, len(self.events))

    def phase_at(self, position: int) -> str:
        """Return the name of the phase that an event is in; empty before the first mark."""
        started = bisect_right(self.marks, position, key=lambda mark: mark[0])
        return self.marks[started - 1][1] if started else ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain data: columns, with every distinct text once, because events are many."""
        names: dict[str, int] = {}
        columns: dict[str, list[int]] = {
            "num_bytes": [one.num_bytes for one in self.allocations],
            "stream": [one.stream for one in self.allocations],
        }
        for field in ("kind", "module", "op"):
            columns[field] = [
                names.setdefault(getattr(one, field), len(names)) for one in self.allocations
            ]
        return {
            "schema_version": SCHEMA_VERSION,
            "names": list(names),
            "allocations": columns,
            "events": list(self.events),
            "marks": [list(mark) for mark in self.marks],
        }

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> Recording:
        """Return the recording that ``to_dict`` wrote.

        Raises:
            TraceError: when the data is of another version, lacks a field, or breaks a rule of
                recordings.
        """
        try:
            if data["schema_version"] != SCHEMA_VERSION:
                raise TraceError(
                    f"The recording has schema version {data['schema_version']!r}; "
                    f"this batchplan reads {SCHEMA_VERSION}."
                )
            names, columns = data["names"], data["allocations"]
            allocations = tuple(
                Allocation(
                    num_bytes=num_bytes,
                    stream=stream,
                    kind=names[kind],
                    module=names[module],
                    op=names[op],
                )
                for num_bytes, stream, kind, module, op in zip(
                    *(columns[field] for field in ("num_bytes", "stream", "kind", "module", "op")),
                    strict=True,
                )
            )
            marks = tuple((position, name) for position, name in data["marks"])
            return cls(allocations=allocations, events=data["events"], marks=marks)
        except (KeyError, IndexError, TypeError, ValueError) as error:
            raise TraceError(f"The recording is damaged: {error!r}.") from error


def _check_sizes(allocations: Sequence[Allocation]) -> None:
    for number, one in enumerate(allocations):
        if one.num_bytes < 0:
            raise TraceError(f"Allocation {number} ({one.op}) has {one.num_bytes} bytes.")


def _check_events(events: Sequence[int], num_allocations: int) -> None:
    made, freed = bytearray(num_allocations), bytearray(num_allocations)
    for position, event in enumerate(events):
        number = event if event >= 0 else ~event
        if number >= num_allocations:
            problem = f"is unknown: there are {num_allocations}"
        elif event >= 0 and made[number]:
            problem = "is made a second time"
        elif event < 0 and not made[number]:
            problem = "is freed before it is made"
        elif event < 0 and freed[number]:
            problem = "is freed a second time"
        else:
            (made if event >= 0 else freed)[number] = True
            continue
        raise TraceError(f"Event {position}: allocation {number} {problem}.")


def _check_marks(marks: Sequence[tuple[int, str]], num_events: int) -> None:
    positions = [0, *(position for position, _ in marks), num_events]
    for earlier, later in pairwise(positions):
        if earlier > later:
            raise TraceError(
                f"The marks of phases are out of order: {later} comes after {earlier}, "
                f"with {num_events} events."
            )
