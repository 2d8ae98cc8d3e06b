"""What a training loop does, in order: a small tree of events and loops, free of syntax."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum


class Kind(StrEnum):
    """What happens."""

    BACKWARD = "backward"
    STEP = "step"
    ZERO_GRAD = "zero-grad"
    SCHEDULE = "schedule"
    CLIP = "clip"
    UNSCALE = "unscale"
    SCALE_GRADS = "scale-grads"
    """The gradients themselves are multiplied or divided."""
    ACCUMULATE = "accumulate"
    """``with accelerator.accumulate(model)`` is entered."""
    AUTOCAST_FP16 = "autocast-fp16"
    KEEP = "keep"
    """A tensor that may have a graph is added to something that outlives the iteration."""
    HIDDEN = "hidden"
    """Code that is not read here may touch the gradients."""
    CLOSURE = "closure"
    """``optimizer.step(closure)``: the backward is elsewhere."""


class Role(StrEnum):
    """What an object of the program is."""

    OPTIMIZER = "optimizer"
    SCHEDULER = "scheduler"
    SCALER = "scaler"
    ACCELERATOR = "accelerator"
    FABRIC = "fabric"
    ENGINE = "engine"
    LOADER = "loader"
    WRAPPED = "wrapped"
    """A module in DistributedDataParallel or FSDP."""
    OTHER = "other"


class Reduction(StrEnum):
    """How a loss sums up its elements."""

    MEAN = "mean"
    SUM = "sum"
    NONE = "none"
    UNKNOWN = "unknown"


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """A number as the file writes it; ``value`` where that is known without running it."""

    text: str
    value: float | None = None
    line: int = 0
    origin: str = ""
    """The name or expression that ``text`` was assigned from, where there is one."""

    def same(self, other: Amount) -> bool:
        """Whether both surely are the same number."""
        if self.value is not None and other.value is not None:
            return self.value == other.value
        return not {self.text, self.origin or self.text}.isdisjoint(
            {other.text, other.origin or other.text}
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Boundary:
    """A condition that is true once in ``accum_steps`` micro-batches."""

    accum_steps: Amount
    counters: frozenset[str] = frozenset()
    """Names that count the micro-batches."""
    is_counter: bool = False
    """Compared with the counter itself, which somebody must set back to 0."""
    is_managed: bool = False
    """A library says when; it knows of the last micro-batch."""
    handles_last: bool = False
    """Another condition beside it makes it true too, such as the end of the data."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Guard:
    """A condition under which something happens."""

    text: str
    holds: bool
    boundary: Boundary | None = None
    """What the condition, as it ``holds``, means; None where that is not known."""
    reads: frozenset[str] = frozenset()
    """Dotted names in it."""
    calls: bool = False
    """Whether it calls anything that may answer differently each time."""

    def excludes(self, other: Guard) -> bool:
        """Whether both cannot be true at once."""
        return self.text == other.text and self.holds != other.holds


Guards = tuple[Guard, ...]


def compatible(one: Guards, other: Guards) -> bool:
    """Whether two sets of conditions can be true in the same iteration."""
    return not any(a.excludes(b) for a in one for b in other)


@dataclass(frozen=True, slots=True, kw_only=True)
class Factor:
    """A number that a loss was divided by or multiplied with, and where."""

    amount: Amount
    divides: bool
    line: int
    guards: Guards = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """What is known of a value that may be propagated back."""

    factors: tuple[Factor, ...] = ()
    reduction: Reduction = Reduction.UNKNOWN
    is_opaque: bool = False
    """Made in a way that may scale it."""
    is_detached: bool = False
    """A plain number, or cut off from its graph."""
    names: frozenset[str] = frozenset()
    """Variables through which it came."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One thing that a loop does."""

    kind: Kind
    line: int
    target: str = ""
    """The object it is done to, as written."""
    role: Role = Role.OTHER
    """What the object is that does it."""
    guards: Guards = ()
    loss: Loss | None = None
    written: str = ""
    """The call or statement, for messages."""
    passed: str = ""
    """Of a backward: the loss as written."""
    retains_graph: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Iteration:
    """What a loop goes over."""

    index: str = ""
    """The name that counts from 0, where there is one."""
    loader: str = ""
    """The plain name of what is iterated, with ``enumerate`` and a progress bar taken off."""
    count: Amount | None = None
    """K of ``range(K)``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Loop:
    """A loop, or the body of a function (``is_loop`` false), and what happens in it in order."""

    line: int
    is_loop: bool = True
    children: tuple[Event | Loop, ...] = ()
    iteration: Iteration = field(default_factory=Iteration)
    assigned: frozenset[str] = frozenset()
    """Dotted names that the body assigns."""
    zeroed: frozenset[str] = frozenset()
    """Those it sets to 0."""
    fresh: frozenset[str] = frozenset()
    """Those it gives a value that does not depend on the last one."""
    fetches: bool = False
    """Whether the body itself asks for a batch, by ``next(...)`` or ``get_batch(...)``."""
