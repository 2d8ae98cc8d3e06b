"""The timeline: a fold over the stages of one micro-batch, forward then backward.

Forward adds what each stage keeps; backward walks the same stages in reverse, takes it away and
makes gradients. Stages of one kind in a row change the live bytes by the same amount each, so
within such a run only its two ends can be the highest: the fold looks at those and skips the rest.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import groupby

from batchplan.profile import ActivationProfile, Pass, StageProfile

HEAD = "head and loss"


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
class Instant:
    """Live bytes at the highest point of one stage, by what they are."""

    phase: str
    stage: str
    place: Place
    saved: int
    transient: int
    head: int
    gradients: int

    @property
    def num_bytes(self) -> int:
        """All of it."""
        return self.saved + self.transient + self.head + self.gradients


def fold(
    *,
    profile: ActivationProfile,
    micro_batch: int,
    seq_len: int,
    life: GradientLife,
    keeps_inputs: bool = False,
) -> Iterator[Instant]:
    """Yield the highest instant of each end of each run of stages, in time order.

    ``keeps_inputs``: a layer's input and the gradient of it stay until backward ends.
    """
    stages = profile.stages_at(micro_batch)
    runs = [(index, len(list(group))) for index, group in groupby(profile.order)]
    saved = head = 0
    gradients = life.resident_bytes

    for index, count in runs:
        stage = stages[index]
        delta = stage.forward.delta(micro_batch, seq_len)
        high = _highest(stage.forward, micro_batch, seq_len, 0)[0]
        is_head = stage.name == HEAD
        for step in _ends(count):
            yield Instant(
                phase="forward",
                stage=stage.name,
                place=Place.LAYER_FORWARD if stage.is_layer else Place.OUTSIDE_FORWARD,
                saved=saved + step * delta,
                transient=0 if is_head else high,
                head=high if is_head else 0,
                gradients=gradients,
            )
        if is_head:
            head += count * delta
        else:
            saved += count * delta
    saved -= sum(
        count * stages[index].released_before_backward(micro_batch, seq_len)
        for index, count in runs
    )

    first_layer = next((at for at, (index, _) in enumerate(runs) if stages[index].is_layer), None)
    for at in range(len(runs) - 1, -1, -1):
        index, count = runs[at]
        stage = stages[index]
        delta = stage.backward.delta(micro_batch, seq_len)
        if keeps_inputs and stage.is_layer:
            delta += 2 * stage.forward.delta(micro_batch, seq_len)
        high, made = _highest(
            stage.backward, micro_batch, seq_len, life.made_bytes, growing=life.holds_stage
        )
        width = life.made_bytes if life.holds_root and not stage.is_layer else life.kept_bytes
        kept = round(width * stage.trainable_params)
        for step in _ends(count):
            yield Instant(
                phase="backward",
                stage=stage.name,
                place=_backward_place(stage, is_first=at == first_layer and step == count - 1),
                saved=saved + (0 if stage.name == HEAD else step * delta),
                transient=0 if stage.name == HEAD else high,
                head=head + (high if stage.name == HEAD else 0),
                gradients=gradients + step * kept + made,
            )
        gradients += count * kept
        if stage.name == HEAD:
            # What the head's backward leaves is the gradient handed to the last layer.
            saved, head = saved + head + count * delta, 0
        else:
            saved += count * delta


def _backward_place(stage: StageProfile, *, is_first: bool) -> Place:
    if not stage.is_layer:
        return Place.OUTSIDE_BACKWARD
    return Place.FIRST_LAYER_BACKWARD if is_first else Place.LAYER_BACKWARD


def _ends(count: int) -> tuple[int, ...]:
    """First and last position of a run of ``count`` equal stages."""
    return (0,) if count == 1 else (0, count - 1)


def _highest(
    one: Pass, micro_batch: int, seq_len: int, grad_bytes: int, *, growing: bool = False
) -> tuple[int, int]:
    """Return (activation bytes, gradient bytes) at the highest instant of a pass."""
    return max(
        (
            (
                peak.activations(micro_batch, seq_len),
                grad_bytes * (peak.new_grad_params if growing else peak.in_flight_grad_params),
            )
            for peak in one.peaks
        ),
        key=sum,
    )
