"""The bill: named terms whose sum is the peak, and the timeline it was read from."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.spec import Caveat


@dataclass(frozen=True, slots=True, kw_only=True)
class Term:
    """One line of the memory bill, for one device."""

    name: str
    num_bytes: int
    formula: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ErrorBand:
    """Half-width of the 95 % interval around a figure, and what it rests on."""

    percent: float
    basis: str

    def above(self, num_bytes: int) -> int:
        """Return the upper end of the interval around ``num_bytes``."""
        return round(num_bytes * (1 + self.percent / 100))

    def within(self, num_bytes: int) -> int:
        """Return the largest figure whose upper end is within ``num_bytes``."""
        return int(num_bytes / (1 + self.percent / 100))


@dataclass(frozen=True, slots=True, kw_only=True)
class Moment:
    """Allocated bytes at the highest point of one stage of one phase."""

    phase: str
    """``forward``, ``backward`` or ``optimizer step``."""
    stage: str
    num_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """Peak memory of the fullest rank over one whole optimizer step."""

    terms: tuple[Term, ...]
    """Their sum is ``peak_bytes``, exactly."""
    timeline: tuple[Moment, ...]
    peak_phase: str
    """Phase and stage of the binding instant, such as ``backward: head and loss``."""
    allocated_peak_bytes: int
    """Live tensors."""
    reserved_peak_bytes: int
    """Segments held by the caching allocator."""
    in_use_peak_bytes: int
    """What the driver reports: reserved, context and communication."""
    host_bytes: int
    """Host memory that offloaded states take, per rank."""
    allocated_error: ErrorBand
    reserved_error: ErrorBand
    in_use_error: ErrorBand
    bound_bytes: int
    """Upper end of the 95 % interval of what the device must have: what decides whether it fits."""
    caveats: tuple[Caveat, ...] = ()

    @property
    def peak_bytes(self) -> int:
        """What a plan is judged by."""
        return self.in_use_peak_bytes

    def term(self, name: str) -> int:
        """Return the bytes of one term, 0 when the bill has none of that name."""
        return sum(term.num_bytes for term in self.terms if term.name == name)
