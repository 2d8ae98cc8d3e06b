"""The timeline: a fold over the stages of one micro-batch, forward then backward.

Forward adds what each stage keeps; backward walks the same stages in reverse, takes it away and
makes gradients. Stages of one kind in a row change the live bytes by the same amount each, so
within such a run only its two ends can be the highest: the fold looks at those and skips the rest.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby
from typing import Generic, TypeVar

from batchplan.profile import ZERO, ActivationProfile, Pass, Polynomial, StageProfile

HEAD = "head and loss"
Size = TypeVar("Size", int, complex)
"""Bytes at one micro-batch, or ``Polynomial.line``: bytes of any micro-batch."""


@dataclass(frozen=True, slots=True, kw_only=True)
class GradientLife:
    """When gradients exist in the micro-batch that is folded."""

    resident_bytes: int
    """Gradients that are there before the forward (K >= 2)."""
    made_bytes: int
    """Bytes per parameter of a gradient as backward makes it."""
    kept_bytes: float
    """Bytes per parameter that stay once a stage's backward is done; 0 when already resident."""
    holds_stage: bool
    """Whether a stage's new gradients stay whole until its backward ends."""
    holds_root: bool = False
    """FSDP: gradients outside the layers stay whole until the whole backward ends."""


class Place(StrEnum):
    """Where in the step an instant lies, as far as buffers care."""

    LAYER_FORWARD = "in a layer's forward"
    LAYER_BACKWARD = "in a layer's backward"
    FIRST_LAYER_BACKWARD = "in the first layer's backward, the last to run"
    OUTSIDE_FORWARD = "in the forward of embedding, bridge or head"
    OUTSIDE_BACKWARD = "in the backward of embedding, bridge or head"
    OPTIMIZER_STEP = "in the optimizer step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Instant(Generic[Size]):
    """Live bytes at the highest point of one stage, by what they are."""

    phase: str
    stage: str
    place: Place
    saved: Size
    transient: Size
    head: Size
    gradients: int

    @property
    def num_bytes(self) -> Size:
        """All of it."""
        return self.saved + self.transient + self.head + self.gradients


def fold(
    *,
    profile: ActivationProfile,
    micro_batch: int,
    seq_len: int,
    life: GradientLife,
    keeps_inputs: bool = False,
) -> Iterator[Instant[int]]:
    """Yield the highest instant of each end of each run of stages, in time order.

    ``keeps_inputs``: a layer's input and the gradient of it stay until backward ends.
    """
    return walk(
        stages=profile.stages_at(micro_batch),
        order=profile.order,
        life=life,
        size=lambda polynomial: polynomial(micro_batch, seq_len),
        binding=lambda peaks: (max(peaks, key=sum),),
        keeps_inputs=keeps_inputs,
    )


def walk(
    *,
    stages: Sequence[StageProfile],
    order: Sequence[int],
    life: GradientLife,
    size: Callable[[Polynomial], Size],
    binding: Callable[[list[tuple[Size, int]]], Iterable[tuple[Size, int]]],
    keeps_inputs: bool,
) -> Iterator[Instant[Size]]:
    """Yield every instant of each end of each run of stages that ``binding`` picks.

    Args:
        stages: the distinct kinds.
        order: indices into ``stages``, in forward order.
        life: how gradients live.
        size: a polynomial's bytes, at one micro-batch or at any.
        binding: which of a stage's possible peaks, (activations, gradients) each, are looked at.
        keeps_inputs: see ``fold``.
    """
    runs = [(index, len(list(group))) for index, group in groupby(order)]
    nothing = size(ZERO)
    saved = head = nothing
    gradients = life.resident_bytes

    for index, count in runs:
        stage = stages[index]
        delta = size(stage.forward.delta)
        is_head = stage.name == HEAD
        place = Place.LAYER_FORWARD if stage.is_layer else Place.OUTSIDE_FORWARD
        for high, _ in binding(_peaks(stage.forward, size)):
            for step in _ends(count):
                yield Instant(
                    phase="forward",
                    stage=stage.name,
                    place=place,
                    saved=saved + step * delta,
                    transient=nothing if is_head else high,
                    head=high if is_head else nothing,
                    gradients=gradients,
                )
        if is_head:
            head += count * delta
        else:
            saved += count * delta
    for index, count in runs:
        saved -= count * size(stages[index].released_before_backward)

    left = nothing
    first_layer = next((run for run in runs if stages[run[0]].is_layer), None)
    for run in reversed(runs):
        index, count = run
        stage = stages[index]
        is_head = stage.name == HEAD
        place = Place.LAYER_BACKWARD if stage.is_layer else Place.OUTSIDE_BACKWARD
        delta = size(stage.backward.delta)
        if keeps_inputs and stage.is_layer:
            delta += 2 * size(stage.forward.delta)
        peaks = _peaks(stage.backward, size, life.made_bytes, growing=life.holds_stage)
        width = life.made_bytes if life.holds_root and not stage.is_layer else life.kept_bytes
        kept = round(width * stage.trainable_params)
        for high, made in binding(peaks):
            for step in _ends(count):
                before = nothing if is_head else step * delta + (left if step else nothing)
                yield Instant(
                    phase="backward",
                    stage=stage.name,
                    place=Place.FIRST_LAYER_BACKWARD
                    if run is first_layer and step == count - 1
                    else place,
                    saved=saved + before,
                    transient=nothing if is_head else high,
                    head=head + (high if is_head else nothing),
                    gradients=gradients + step * kept + made,
                )
        gradients += count * kept
        if is_head:
            # What the head's backward leaves is the gradient handed to the last layer.
            saved, head = saved + head + count * delta, nothing
        else:
            saved += count * delta + left
        left = size(stage.left_by_last_layer)


def _ends(count: int) -> tuple[int, ...]:
    """First and last position of a run of ``count`` equal stages."""
    return (0,) if count == 1 else (0, count - 1)


def _peaks(
    one: Pass, size: Callable[[Polynomial], Size], grad_bytes: int = 0, *, growing: bool = False
) -> list[tuple[Size, int]]:
    """Return (activation bytes, gradient bytes) of every instant that can be a pass's highest."""
    return [
        (
            size(peak.activations),
            grad_bytes * (peak.new_grad_params if growing else peak.in_flight_grad_params),
        )
        for peak in one.peaks
    ]
