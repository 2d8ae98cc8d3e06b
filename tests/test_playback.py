"""What a micro-batch asks of the allocator: hand-written scripts, and the calls they mean."""

from __future__ import annotations

from typing import Any, cast

from batchplan.allocator import CachingAllocator
from batchplan.memory.playback import Gradients, MicroBatch
from batchplan.profile import ZERO as NOTHING
from batchplan.profile import (
    Action,
    ActivationProfile,
    Pass,
    Peak,
    Polynomial,
    StageProfile,
    Use,
)

HIDDEN, GRADIENT, CAST, EMPTY = range(4)
"""Sizes of the scripts below."""
BYTES = (1000, 200, 30, 0)
ONE_BEFORE, TWO_AFTER, ANYWHERE = 1, 4, 10
IN_BACKWARD = 5


def make(size: int, use: Use = Use.PLAIN) -> tuple[int, int, int]:
    return (Action.MAKE, size, use)


def free_own(place: int) -> tuple[int, int, int]:
    return (Action.FREE_OWN, place, 0)


def free_other(size: int, how: int) -> tuple[int, int, int]:
    return (Action.FREE_OTHER, size, how)


def accumulate(place: int) -> tuple[int, int, int]:
    return (Action.ACCUMULATE, place, 0)


Script = list[tuple[int, int, int]]


def stage(forward: Script, backward: Script) -> StageProfile:
    passes = [
        Pass(
            delta=NOTHING,
            peaks=(Peak(activations=NOTHING),),
            script=tuple(number for entry in script for number in entry),
        )
        for script in (forward, backward)
    ]
    return StageProfile(
        name="layer",
        forward=passes[0],
        backward=passes[1],
        trainable_params=1,
        frozen_params=0,
    )


class Spy:
    """Takes the place of the allocator: a block is the number of the call that made it."""

    def __init__(self) -> None:
        self.calls: list[str] = []
        self.made = 0

    def malloc(self, num_bytes: int) -> int:
        self.calls.append(f"{self.made}: {num_bytes}")
        self.made += 1
        return self.made - 1

    def free(self, block: int) -> None:
        self.calls.append(f"free {block}")


class Marks:
    """An engine that does nothing but say when it is asked."""

    def __init__(self, spy: Spy) -> None:
        self._calls = spy.calls

    def __getattr__(self, name: str) -> Any:
        return lambda at: self._calls.append(f"{name} {at}")


def played(
    *stages: StageProfile, kept_share: float = 1, passes: int = 1, marks: bool = False
) -> tuple[list[str], list[Gradients]]:
    profile = ActivationProfile(
        architecture="ByHand",
        num_params=1,
        stages=stages,
        order=tuple(range(len(stages))),
        hidden_size=1,
        buffer_bytes=0,
        max_error=0.0,
        seq_len_range=(1, 1),
        attention="sdpa",
        versions=(),
        sizes=tuple(Polynomial((size, 0, 0, 0, 0, 0)) for size in BYTES),
    )
    spy = Spy()
    around = Marks(spy if marks else Spy())
    allocator = cast(CachingAllocator, spy)
    micro_batch = MicroBatch(allocator, profile, micro_batch=2, seq_len=1, surroundings=around)
    gradients = [Gradients(is_first=at == 0, kept_share=kept_share) for at in range(passes)]
    for one in gradients:
        micro_batch.play(one)
    return spy.calls, gradients


def test_a_free_means_the_allocation_of_the_stage_it_names():
    keeps = stage([make(HIDDEN)], [])
    frees = stage([make(HIDDEN), free_other(HIDDEN, ONE_BEFORE)], [])
    calls, _ = played(keeps, frees, frees)
    assert calls == ["0: 1000", "1: 1000", "free 0", "2: 1000", "free 1", "free 2"]


def test_without_one_there_it_means_the_youngest_of_its_size_and_never_its_own():
    keeps = stage([make(HIDDEN), make(HIDDEN), make(CAST)], [])
    frees = stage([make(HIDDEN), free_other(HIDDEN, ANYWHERE), free_other(CAST, ANYWHERE)], [])
    calls, _ = played(keeps, frees)
    assert calls[3:] == ["3: 1000", "free 1", "free 2", "free 0", "free 3"]


def test_a_stage_that_is_not_there_frees_nothing():
    calls, _ = played(stage([make(HIDDEN), free_other(HIDDEN, ONE_BEFORE)], []))
    assert calls == ["0: 1000", "free 0"]


def test_backward_goes_from_the_last_stage_and_frees_what_a_backward_made():
    first = stage([], [free_other(HIDDEN, TWO_AFTER - 1 + IN_BACKWARD)])
    last = stage([make(HIDDEN)], [make(HIDDEN)])
    calls, _ = played(first, last, marks=True)
    assert calls == [
        *("before_forward 0", "after_forward 0"),
        *("before_forward 1", "0: 1000", "after_forward 1"),
        *("before_backward 1", "1: 1000", "after_backward 1"),
        *("before_backward 0", "free 1", "after_backward 0"),
        "free 0",
    ]


def test_cast_weights_go_between_forward_and_backward():
    calls, _ = played(stage([make(CAST, Use.RELEASED), make(CAST)], [make(HIDDEN)]))
    assert calls == ["0: 30", "1: 30", "free 0", "2: 1000", "free 1", "free 2"]


def test_empty_tensors_are_neither_made_nor_freed():
    script = [make(EMPTY), make(HIDDEN), free_own(0), free_own(1)]
    calls, _ = played(stage(script, [free_other(EMPTY, ANYWHERE)]))
    assert calls == ["0: 1000", "free 0"]


def test_nothing_is_freed_twice():
    script = [make(HIDDEN), free_own(0), free_own(0)]
    calls, _ = played(stage(script, [free_other(HIDDEN, ANYWHERE)]))
    assert calls == ["0: 1000", "free 0"]


def test_the_first_gradient_stays_and_later_ones_are_added_to_it():
    backward = [make(GRADIENT, Use.GRADIENT), make(HIDDEN), accumulate(0), free_own(1)]
    calls, gradients = played(stage([], backward), passes=2)
    assert calls == [
        *("0: 200", "1: 1000", "free 1"),
        *("2: 200", "3: 1000", "free 2", "free 3"),
    ]
    assert [one.blocks for one in gradients] == [[0], []]


def test_of_a_split_gradient_a_shard_stays():
    backward = [make(GRADIENT, Use.GRADIENT), accumulate(0), free_own(0)]
    calls, gradients = played(stage([], backward), kept_share=0.25, passes=2)
    assert calls == ["0: 200", "free 0", "1: 50", "2: 200", "free 2"]
    assert [one.blocks for one in gradients] == [[1], []]
