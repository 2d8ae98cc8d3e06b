"""From events to windows: the micro-batches of one optimizer step, and how K is kept."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property

from batchplan.checker.loop.events import (
    Amount,
    Boundary,
    Event,
    Guard,
    Kind,
    Loop,
    Role,
    compatible,
)
from batchplan.checker.loop.program import Program, is_accum_name


class Style(StrEnum):
    """How a loop accumulates."""

    PLAIN = "plain"
    """A step per backward."""
    GUARDED = "guarded"
    """The step is under a condition that holds once in K iterations."""
    INNER = "inner"
    """The step follows a loop over K micro-batches."""
    ACCELERATE = "accelerate"
    """``with accelerator.accumulate(model)``: steps are skipped inside it."""
    ENGINE = "engine"
    """DeepSpeed: ``engine.step()`` counts for itself."""
    UNKNOWN = "unknown"
    """A condition that only running the program would tell."""


@dataclass(frozen=True, kw_only=True)
class Window:
    """A loop that trains, as one step sees it."""

    program: Program
    loop: Loop
    """The loop around the backward."""
    events: tuple[Event, ...]
    """What one iteration does, in order; for ``INNER``, of the loop around it."""
    inner: frozenset[int] = frozenset()
    """For ``INNER``, positions in ``events`` of what runs at every micro-batch."""
    style: Style
    boundary: Boundary | None = None
    accum_steps: Amount | None = None
    """K; None for a plain loop, or where no name for it is known."""
    steps_after: bool = False
    """Whether the optimizer steps once more after the loop."""

    def of(self, *kinds: Kind) -> list[Event]:
        """Return the events of these kinds, in order."""
        return [event for event in self.events if event.kind in kinds]

    @cached_property
    def backwards(self) -> list[Event]:
        """The backward passes."""
        return self.of(Kind.BACKWARD)

    @cached_property
    def steps(self) -> list[Event]:
        """The optimizer's steps."""
        return self.of(Kind.STEP)

    @property
    def accumulates(self) -> bool:
        """Whether more than one micro-batch surely goes into a step, by the loop's own doing."""
        return self.style in (Style.GUARDED, Style.INNER)

    @property
    def has_one_backward(self) -> bool:
        """Whether an iteration runs one backward, be it in one of two branches."""
        return not any(
            compatible(one.guards, other.guards)
            for at, one in enumerate(self.backwards)
            for other in self.backwards[:at]
        )

    def position(self, event: Event) -> int:
        """Return the place of an event in the order of the loop."""
        return next(at for at, other in enumerate(self.events) if other is event)

    def each(self, event: Event) -> bool:
        """Whether an event happens at every micro-batch."""
        if self.style is Style.INNER:
            return self.position(event) in self.inner and not self.varying(event)
        return not self.varying(event)

    def varying(self, event: Event) -> list[Guard]:
        """Return the conditions of an event that change with the iteration.

        A condition under which a backward runs as well says nothing about accumulation.
        """
        return _varying(self.program, self.loop, event, self.backwards)

    def together(self, one: Event, other: Event) -> bool:
        """Whether both can happen in one iteration."""
        return compatible(one.guards, other.guards)


def windows(program: Program, body: Loop) -> Iterator[Window]:
    """Yield the training loops in a function body; those that cannot be told are left out."""
    yield from _search(program, body, None)


def _search(program: Program, loop: Loop, around: Loop | None) -> Iterator[Window]:
    events = _flat(loop)
    if loop.is_loop and _has(events, Kind.BACKWARD) and not _has(events, Kind.CLOSURE):
        window = _window(program, loop, around, events)
        if window is not None:
            yield window
    for child in loop.children:
        if isinstance(child, Loop):
            yield from _search(program, child, loop)


def _has(events: tuple[Event, ...], kind: Kind) -> bool:
    return any(event.kind is kind for event in events)


def _trains(loop: Loop) -> bool:
    return any(
        _trains(child) if isinstance(child, Loop) else child.kind is Kind.BACKWARD
        for child in loop.children
    )


def _flat(loop: Loop) -> tuple[Event, ...]:
    """Return the events of a loop and of the loops in it that do not train themselves."""
    found: list[Event] = []
    for child in loop.children:
        if isinstance(child, Event):
            found.append(child)
        elif not _trains(child):
            found += _flat(child)
    return tuple(found)


def _window(
    program: Program, loop: Loop, around: Loop | None, events: tuple[Event, ...]
) -> Window | None:
    steps = [event for event in events if event.kind is Kind.STEP]
    after = _after(around, loop) if around is not None else ()
    if not steps:
        return _inner(program, loop, around, events)
    if len({event.target for event in steps}) > 1:
        return None  # several optimizers: whose gradients are whose is not told
    style, boundary = _style(program, loop, events, steps)
    return Window(
        program=program,
        loop=loop,
        events=events,
        style=style,
        boundary=boundary,
        accum_steps=_accum_steps(program, style, boundary),
        steps_after=_has(after, Kind.STEP),
    )


def _after(around: Loop, loop: Loop) -> tuple[Event, ...]:
    at = next(i for i, child in enumerate(around.children) if child is loop)
    return _flat(Loop(line=0, children=around.children[at + 1 :]))


def _inner(
    program: Program, loop: Loop, around: Loop | None, events: tuple[Event, ...]
) -> Window | None:
    """Return the window of ``for _ in range(K): ...backward()`` with the step behind it."""
    if around is None or _has(_flat(around), Kind.BACKWARD):
        return None
    at = next(i for i, child in enumerate(around.children) if child is loop)
    before = _flat(Loop(line=0, children=around.children[:at]))
    after = _after(around, loop)
    steps = [event for event in after if event.kind is Kind.STEP]
    siblings = [c for c in around.children if isinstance(c, Loop) and _trains(c)]
    if not steps or len({event.target for event in steps}) > 1 or len(siblings) > 1:
        return None
    count = loop.iteration.count
    is_window = count is not None and (is_accum_name(count.text) or loop.fetches)
    return Window(
        program=program,
        loop=loop,
        events=before + events + after,
        inner=frozenset(range(len(before), len(before) + len(events))),
        style=Style.INNER if is_window and count and count.value != 1 else Style.UNKNOWN,
        accum_steps=count if is_window else None,
    )


def _style(
    program: Program, loop: Loop, events: tuple[Event, ...], steps: list[Event]
) -> tuple[Style, Boundary | None]:
    backwards = [event for event in events if event.kind is Kind.BACKWARD]
    varying = [_varying(program, loop, step, backwards) for step in steps]
    boundaries = [g.boundary for guards in varying for g in guards if _counts(g.boundary, loop)]
    boundary = boundaries[0] if boundaries else None
    if _has(events, Kind.ACCUMULATE):
        is_known = boundary is None or boundary.is_managed
        return (Style.ACCELERATE if is_known else Style.UNKNOWN), boundary
    if not any(varying):
        is_engine = any(step.role is Role.ENGINE for step in steps)
        return (Style.ENGINE if is_engine else Style.PLAIN), None
    if boundary is None or boundary.is_managed or not all(varying):
        return Style.UNKNOWN, boundary
    if any(step.role is Role.ENGINE for step in steps):
        return Style.UNKNOWN, boundary
    if boundary.accum_steps.value == 1:
        return Style.PLAIN, None
    return Style.GUARDED, boundary


def _counts(boundary: Boundary | None, loop: Loop) -> bool:
    """Whether a condition counts micro-batches: a bare counter must be set back to 0."""
    if boundary is None:
        return False
    return not boundary.is_counter or bool(boundary.counters & loop.zeroed)


def _varying(program: Program, loop: Loop, event: Event, backwards: list[Event]) -> list[Guard]:
    shared = [guard for backward in backwards for guard in backward.guards]
    return [
        guard
        for guard in event.guards
        if guard not in shared and not _is_steady(program, loop, guard)
    ]


def _is_steady(program: Program, loop: Loop, guard: Guard) -> bool:
    """Whether a condition is the same in every iteration."""
    changing = loop.assigned | program.changing
    is_managed = guard.boundary is not None and guard.boundary.is_managed
    return not (guard.calls or is_managed or guard.reads & changing or guard.boundary)


def _accum_steps(program: Program, style: Style, boundary: Boundary | None) -> Amount | None:
    if style is Style.ACCELERATE:
        return accelerator_steps(program)
    if style is Style.ENGINE:
        return engine_steps(program)
    return boundary.accum_steps if boundary is not None else None


def accelerator_steps(program: Program) -> Amount | None:
    """Return K as ``Accelerator(gradient_accumulation_steps=K)`` says it, or None."""
    given = _accelerator(program)
    value = given.get("gradient_accumulation_steps") if given is not None else None
    return None if value is None else program.amount(value)


def accelerator_is_silent(program: Program) -> bool:
    """Whether the file makes an accelerator and names no K.

    Then it is 1, unless ``accelerate launch`` says otherwise in the environment
    (accelerate 1.x, ``Accelerator.__init__``: ACCELERATE_GRADIENT_ACCUMULATION_STEPS).
    """
    given = _accelerator(program)
    hiding = {None, "gradient_accumulation_steps", "gradient_accumulation_plugin"}
    return given is not None and not given.keys() & (hiding | {"deepspeed_plugin"})


def _accelerator(program: Program) -> dict[str | None, ast.expr] | None:
    """Return what the one accelerator of a file is given."""
    calls = list(program.made_by("Accelerator"))
    return {k.arg: k.value for k in calls[0].keywords} if len(calls) == 1 else None


def engine_steps(program: Program) -> Amount | None:
    """Return ``gradient_accumulation_steps`` of a DeepSpeed config that the file holds."""
    found = [
        value
        for node in ast.walk(program.tree)
        if isinstance(node, ast.Dict)
        for key, value in zip(node.keys, node.values, strict=True)
        if isinstance(key, ast.Constant) and key.value == "gradient_accumulation_steps"
    ]
    return program.amount(found[0]) if len(found) == 1 else None
