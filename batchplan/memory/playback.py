"""Play the scripts of a model's stages through the caching allocator, one micro-batch at a time.

Scripts name what they free by its size and by where it was made. Which allocation that is depends
on no size and on no allocator, so it is found once; every micro-batch then makes the same calls.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Protocol

from batchplan.allocator import Block, CachingAllocator
from batchplan.profile import Action, ActivationProfile, StageProfile, Use

_ENTRY = 3
_MAKE, _FREE_OTHER, _ACCUMULATE = map(int, (Action.MAKE, Action.FREE_OTHER, Action.ACCUMULATE))
"""Plain numbers: scripts are long."""
_REACH, _PLACES, _ANYWHERE = 2, 5, 10
"""How ``Action.FREE_OTHER`` counts stages."""


@dataclass(slots=True, kw_only=True)
class Gradients:
    """What becomes of a gradient that backward has made, for one micro-batch."""

    is_first: bool
    """Whether ``.grad`` is empty, so that the gradient itself stays."""
    kept_share: float
    """Bytes kept of a byte made; less than 1 where a rank keeps its shard."""
    blocks: list[Block] = field(default_factory=list)
    """Those kept."""


class Surroundings(Protocol):
    """What an engine does around a stage, by its position: gathers weights, sends gradients."""

    def before_forward(self, at: int) -> None:
        """Make ready for a stage's forward."""

    def after_forward(self, at: int) -> None:
        """Drop what only the forward needed."""

    def before_backward(self, at: int) -> None:
        """Make ready for a stage's backward."""

    def after_backward(self, at: int) -> None:
        """Drop what only the backward needed, and send its gradients."""


class MicroBatch:
    """The stages' scripts over one forward and backward."""

    def __init__(
        self,
        allocator: CachingAllocator,
        profile: ActivationProfile,
        *,
        micro_batch: int,
        seq_len: int,
        surroundings: Surroundings,
    ) -> None:
        sizes = [size(micro_batch, seq_len) for size in profile.sizes_at(micro_batch)]
        calls = _calls_of(profile.stages_at(micro_batch), profile.order)
        self._num_bytes = [sizes[size] for size in calls.sizes]
        self._forward = [self._without_empty(stage) for stage in calls.forward]
        self._released = self._without_empty(calls.released)
        self._backward = [self._without_empty(stage) for stage in calls.backward]
        self._accumulated = calls.accumulated
        self._allocator = allocator
        self._surroundings = surroundings
        self._blocks: dict[int, Block] = {}

    def _without_empty(self, calls: Iterable[int]) -> list[int]:
        """Return the calls that are made: empty tensors take no memory."""
        return [call for call in calls if self._num_bytes[max(call, ~call)]]

    def play(self, gradients: Gradients) -> None:
        """Run forward and backward; what scripts leave behind is freed at the end."""
        around = self._surroundings
        for at, calls in enumerate(self._forward):
            around.before_forward(at)
            self._make(calls, gradients)
            around.after_forward(at)
        self._make(self._released, gradients)
        for at in range(len(self._backward) - 1, -1, -1):
            around.before_backward(at)
            self._make(self._backward[at], gradients)
            around.after_backward(at)
        for block in self._blocks.values():
            self._allocator.free(block)
        self._blocks.clear()

    def _make(self, calls: list[int], gradients: Gradients) -> None:
        blocks, malloc, free = self._blocks, self._allocator.malloc, self._allocator.free
        num_bytes, accumulated = self._num_bytes, self._accumulated
        for call in calls:
            if call >= 0:
                blocks[call] = malloc(num_bytes[call])
            elif call in accumulated:
                self._accumulate(blocks.pop(~call), num_bytes[~call], gradients)
            else:
                free(blocks.pop(~call))

    def _accumulate(self, block: Block, num_bytes: int, gradients: Gradients) -> None:
        if gradients.is_first and gradients.kept_share == 1:
            gradients.blocks.append(block)
            return
        self._allocator.free(block)
        shard_bytes = round(num_bytes * gradients.kept_share)
        if gradients.is_first and shard_bytes > 0:
            gradients.blocks.append(self._allocator.malloc(shard_bytes))


@dataclass(slots=True)
class _Made:
    """One allocation of a script."""

    number: int
    size: int
    use: int
    run: int
    """Number of the pass that made it."""
    is_live: bool = True


class _Calls:
    """What one micro-batch asks of the allocator.

    As in a ``Recording``, ``i`` makes allocation number i and ``~i`` (below zero) frees it.
    """

    def __init__(self, stages: tuple[StageProfile, ...], order: tuple[int, ...]) -> None:
        self.sizes: list[int] = []
        """The profile's number of an allocation's size."""
        self.accumulated: set[int] = set()
        """Frees that add a gradient to ``.grad``."""
        self._made: dict[tuple[int, bool], list[_Made]] = {}
        self._by_size: dict[int, list[_Made]] = defaultdict(list)
        passes = [stages[index] for index in order]
        self._num_stages = len(passes)
        self.forward = [
            self._follow(at, stage.forward.script, in_backward=False)
            for at, stage in enumerate(passes)
        ]
        """By the position of the stage."""
        self.released: list[int] = []
        """What leaving autocast frees."""
        for own in self._made.values():
            for made in own:
                if made.use == Use.RELEASED:
                    self._end(made, self.released)
        self.backward = [
            self._follow(at, passes[at].backward.script, in_backward=True)
            for at in reversed(range(len(passes)))
        ][::-1]

    def _follow(self, at: int, script: tuple[int, ...], *, in_backward: bool) -> list[int]:
        calls: list[int] = []
        own = self._made[at, in_backward] = []
        run = len(self._made)
        for action, what, how in zip(*[iter(script)] * _ENTRY, strict=True):
            if action == _MAKE:
                made = _Made(len(self.sizes), what, how, run)
                self.sizes.append(what)
                own.append(made)
                self._by_size[what].append(made)
                calls.append(made.number)
            elif action == _FREE_OTHER:
                self._end(self._find(at, what, how, run), calls)
            else:
                if action == _ACCUMULATE and own[what].is_live:
                    self.accumulated.add(~own[what].number)
                self._end(own[what], calls)
        return calls

    def _end(self, made: _Made | None, calls: list[int]) -> None:
        if made is not None and made.is_live:
            calls.append(~made.number)
            made.is_live = False

    def _find(self, at: int, size: int, how: int, run: int) -> _Made | None:
        """Return the youngest live allocation of a size, of the stage meant where it has one.

        Never one of this very pass, whose script frees its own.
        """
        if how != _ANYWHERE:
            stage = at + how % _PLACES - _REACH
            if not 0 <= stage < self._num_stages:
                return None
            found = _youngest(self._made.get((stage, how >= _PLACES), []), size, run)
            if found is not None:
                return found
        return _youngest(self._by_size[size], size, run)


def _youngest(among: list[_Made], size: int, run: int) -> _Made | None:
    for made in reversed(among):
        if made.size == size and made.is_live and made.run != run:
            return made
    return None


@lru_cache(maxsize=8)
def _calls_of(stages: tuple[StageProfile, ...], order: tuple[int, ...]) -> _Calls:
    return _Calls(stages, order)
