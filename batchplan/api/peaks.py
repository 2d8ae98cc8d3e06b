"""The story of a recording: its phases, how high each goes, and who holds memory at the peak."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace

from batchplan.allocator import Allocation, CachingAllocator, Recording, Replay
from batchplan.allocator.blocks import Block
from batchplan.allocator.sizes import round_size
from batchplan.units import format_bytes

START, UPDATE, END = "start", "optimizer step", "end of step"
REMAINDERS = "block remainders"
"""Up to 1 MiB of a large block that the allocator does not cut off: allocated, not asked for."""
TEMPORARIES = "update temporaries"
"""What the optimizer step makes and drops again, such as the lists of a foreach update."""
_ACTIVATIONS = "activations"
_MINOR_SHARE = 0.1
"""Activations below this share of the peak are not what binds."""
_LAYER = re.compile(r"^(?P<owner>.*?)\.?[^.]+\.\d+(?:\.|$)")
"""The path of a module in a stack of layers, and what owns the stack."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PhaseHeight:
    """The highest point of one phase of the recording."""

    step: int
    """1 makes the optimizer states; the last one is what every later step repeats. 0 is start."""
    phase: str
    allocated_bytes: int
    reserved_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ModuleBytes:
    """What one module, or all at the same place of their layers, holds of one kind."""

    module: str
    """Dotted path, ``*`` for any layer; empty for the model itself and what none made."""
    kind: str
    count: int
    num_bytes: int
    """Of all of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TopAllocation:
    """Allocations of one size that one line of one module, or of its like in layers, made."""

    num_bytes: int
    """Of each."""
    count: int
    kind: str
    module: str
    op: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """The instant at which the most bytes are allocated."""

    step: int
    phase: str
    module: str
    """Whose allocation reaches the peak."""
    op: str
    binds: str
    """``optimizer-step``, ``states``, ``layers``, ``logits-and-loss`` or ``other-modules``."""
    text: str
    """The same in words."""
    by_kind: dict[str, int]
    """Bytes of each kind, the most first. They add up to the allocated peak."""
    by_module: tuple[ModuleBytes, ...]
    top_allocations: tuple[TopAllocation, ...]


@dataclass(frozen=True, slots=True)
class Phase:
    """Where a phase starts in the events, its step, and its name without the step."""

    position: int
    step: int
    words: str


def phases_of(recording: Recording, accum_steps: int) -> list[Phase]:
    """Return the phases in order, the one before the first mark included."""
    found = [Phase(0, 0, START)]
    for position, text in recording.marks:
        name, step, *micro_batch = text.split(", ")
        number = int(step.removeprefix("step "))
        if name == END and _name(found[-1]) != UPDATE:
            # A fused update allocates nothing, and so has no events to mark; it runs all the same.
            found.append(Phase(position, number, UPDATE))
        words = ", ".join((name, *(_which(one, accum_steps) for one in micro_batch)))
        found.append(Phase(position, number, words.removesuffix(", ")))
    return found


def _name(phase: Phase) -> str:
    return phase.words.partition(",")[0]


def _which(micro_batch: str, accum_steps: int) -> str:
    """Return the words for one of the recorded micro-batches, which stand for all K.

    >>> _which("micro-batch 1 of 2", 8), _which("micro-batch 2 of 2", 8)
    ('micro-batch 1 of 8', 'micro-batches 2 to 8')
    >>> _which("micro-batch 1 of 1", 1)
    ''
    """
    number, count = (int(word) for word in micro_batch.split() if word.isdigit())
    if accum_steps == 1:
        return ""
    if number == count < accum_steps:
        return f"micro-batches {number:,} to {accum_steps:,}"
    return f"micro-batch {number:,} of {accum_steps:,}"


def phase_at(phases: Sequence[Phase], position: int) -> Phase:
    """Return the phase that an event is in."""
    return next(phase for phase in reversed(phases) if phase.position <= position)


def timeline(
    recording: Recording, phases: Sequence[Phase], *, expandable: bool
) -> Iterator[PhaseHeight]:
    """Yield the highest point of each phase, what it starts with included."""
    allocator = CachingAllocator(expandable_segments=expandable)
    blocks: dict[int, Block] = {}
    ends = [phase.position for phase in phases[1:]] + [len(recording.events)]
    for phase, end in zip(phases, ends, strict=True):
        allocated, reserved = allocator.allocated_bytes, allocator.reserved_bytes
        for event in recording.events[phase.position : end]:
            number = event if event >= 0 else ~event
            one = recording.allocations[number]
            if one.num_bytes == 0:
                continue
            if event < 0:
                allocator.free(blocks.pop(number))
                continue
            blocks[number] = allocator.malloc(one.num_bytes, one.stream)
            allocated = max(allocated, allocator.allocated_bytes)
            reserved = max(reserved, allocator.reserved_bytes)
        yield PhaseHeight(
            step=phase.step,
            phase=phase.words,
            allocated_bytes=allocated,
            reserved_bytes=reserved,
        )


def peak_of(recording: Recording, free: Replay, phases: Sequence[Phase], top: int) -> Peak:
    """Return what is alive where the most bytes are allocated."""
    position = free.allocated_peak_at
    phase = phase_at(phases, position)
    alive = _alive(recording, position, phase)
    by_kind: Counter[str] = Counter()
    by_module: dict[tuple[str, str], list[Allocation]] = {}
    alike: dict[tuple[int, str, str, str], list[Allocation]] = {}
    for one in alive:
        folded = _folded(one.module)
        by_kind[one.kind] += round_size(one.num_bytes)
        by_module.setdefault((folded, one.kind), []).append(one)
        alike.setdefault((one.num_bytes, one.kind, folded, one.op), []).append(one)
    by_kind[REMAINDERS] = free.allocated_peak_bytes - by_kind.total()
    modules = [
        ModuleBytes(
            module=_shared_name(ones),
            kind=kind,
            count=len(ones),
            num_bytes=sum(round_size(one.num_bytes) for one in ones),
        )
        for (_, kind), ones in by_module.items()
    ]
    largest = [
        TopAllocation(
            num_bytes=round_size(num_bytes),
            count=len(ones),
            kind=kind,
            module=_shared_name(ones),
            op=op,
        )
        for (num_bytes, kind, _, op), ones in alike.items()
    ]
    reached = recording.allocations[recording.events[position]]
    binds, text = _binds(recording, alive, phase, free.allocated_peak_bytes)
    return Peak(
        step=phase.step,
        phase=phase.words,
        module=reached.module,
        op=reached.op,
        binds=binds,
        text=text,
        by_kind={kind: count for kind, count in by_kind.most_common() if count},
        by_module=tuple(sorted(modules, key=lambda one: -one.num_bytes)[:top]),
        top_allocations=tuple(sorted(largest, key=lambda one: -one.num_bytes)[:top]),
    )


def _alive(recording: Recording, position: int, phase: Phase) -> list[Allocation]:
    """Return what is alive after an event of a phase, in the order in which it was made."""
    alive: dict[int, Allocation] = {}
    for at, event in enumerate(recording.events[: position + 1]):
        if event < 0:
            del alive[~event]
            continue
        one = alive[event] = recording.allocations[event]
        if _name(phase) == UPDATE and at >= phase.position and one.kind == _ACTIVATIONS:
            alive[event] = replace(one, kind=TEMPORARIES)
    return list(alive.values())


def _folded(module: str) -> str:
    """Return a path with a star for every number of a layer.

    >>> _folded("model.layers.11.mlp")
    'model.layers.*.mlp'
    """
    return ".".join("*" if part.isdigit() else part for part in module.split("."))


def _shared_name(ones: Sequence[Allocation]) -> str:
    """Return the one module of some allocations, or the folded path that all of them share."""
    names = {one.module for one in ones}
    return names.pop() if len(names) == 1 else _folded(names.pop())


_PARTS = {
    "layers": "The layers bind",
    "logits-and-loss": "Logits and loss bind",
    "other-modules": "Embedding and other single modules bind",
}
_BESIDE = {
    "layers": "the layers",
    "logits-and-loss": "logits and loss",
    "other-modules": "embedding and others",
}


def _binds(
    recording: Recording, alive: Iterable[Allocation], phase: Phase, peak_bytes: int
) -> tuple[str, str]:
    """Return what decides the peak, as a code and in words."""
    if _name(phase) == UPDATE:
        return "optimizer-step", "The optimizer step binds: the batch does not change this peak."
    owners = {match["owner"] for match in _layers(recording.allocations) if match["owner"]}
    parts: Counter[str] = Counter()
    for one in alive:
        if one.kind == _ACTIVATIONS:
            parts[_part(one.module, owners)] += round_size(one.num_bytes)
    total = parts.total()
    if total < _MINOR_SHARE * peak_bytes:
        few, all_bytes = format_bytes(total), format_bytes(peak_bytes)
        return "states", f"Weights and states bind: activations are only {few} of {all_bytes}."
    (first, most), *others = parts.most_common()
    text = f"{_PARTS[first]}: {format_bytes(most)} of {format_bytes(total)} of activations."
    if others:
        second, less = others[0]
        text = f"{text[:-1]}; {_BESIDE[second]} hold {format_bytes(less)}."
    return first, text


def _layers(allocations: Iterable[Allocation]) -> Iterator[re.Match[str]]:
    """Yield the match of every module that is in a stack of layers."""
    for module in {one.module for one in allocations}:
        match = _LAYER.match(module)
        if match is not None:
            yield match


def _part(module: str, owners: Iterable[str]) -> str:
    """Return whether a module is in the layers, beside them in what owns them, or after it.

    The loss is computed by the model itself, and the head is its own child: neither lies within
    what owns the layers, as embedding and last norm do.
    """
    if _LAYER.match(module):
        return "layers"
    if any(module == owner or module.startswith(f"{owner}.") for owner in owners):
        return "other-modules"
    return "logits-and-loss"
