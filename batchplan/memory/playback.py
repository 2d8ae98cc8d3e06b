"""Play the scripts of a model's stages through the caching allocator, one micro-batch at a time."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Protocol

from batchplan.allocator import Block, CachingAllocator
from batchplan.profile import Action, ActivationProfile, StageProfile, Use

_ENTRY = 3
_MAKE, _FREE_OWN, _FREE_OTHER = map(int, (Action.MAKE, Action.FREE_OWN, Action.FREE_OTHER))
"""Plain numbers: a run compares them a hundred thousand times."""
_REACH, _PLACES, _ANYWHERE = 2, 5, 10
"""How ``Action.FREE_OTHER`` counts stages."""


@dataclass(slots=True)
class _Made:
    """One allocation of a script; no block once it is freed."""

    size: int
    use: int
    run: int
    """Number of the pass that made it."""
    block: Block | None


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
        stages = profile.stages_at(micro_batch)
        self._stages: list[StageProfile] = [stages[index] for index in profile.order]
        sizes = profile.sizes_at(micro_batch)
        self._sizes = [size(micro_batch, seq_len) for size in sizes]
        self._entries = {
            script: tuple(zip(*[iter(script)] * _ENTRY, strict=True))
            for stage in stages
            for script in (stage.forward.script, stage.backward.script)
        }
        self._allocator = allocator
        self._surroundings = surroundings
        self._made: dict[tuple[int, bool], list[_Made]] = {}
        self._live: dict[int, list[_Made]] = defaultdict(list)
        self._runs = 0

    def play(self, gradients: Gradients) -> None:
        """Run forward and backward; what scripts leave behind is freed at the end."""
        self._made.clear()
        self._live.clear()
        for at, stage in enumerate(self._stages):
            self._surroundings.before_forward(at)
            self._run(at, stage.forward.script, gradients, in_backward=False)
            self._surroundings.after_forward(at)
        for made in self._all():
            if made.use == Use.RELEASED:
                self._free(made)
        for at in range(len(self._stages) - 1, -1, -1):
            self._surroundings.before_backward(at)
            self._run(at, self._stages[at].backward.script, gradients, in_backward=True)
            self._surroundings.after_backward(at)
        for made in self._all():
            self._free(made)

    def _run(
        self, at: int, script: tuple[int, ...], gradients: Gradients, *, in_backward: bool
    ) -> None:
        own: list[_Made] = []
        self._made[at, in_backward] = own
        self._runs += 1
        run = self._runs
        sizes, live, malloc, free = self._sizes, self._live, self._malloc, self._allocator.free
        for action, what, how in self._entries[script]:
            if action == _MAKE:
                made = _Made(what, how, run, malloc(sizes[what]))
                own.append(made)
                live[what].append(made)
            elif action == _FREE_OWN:
                made = own[what]
                if made.block is not None:
                    free(made.block)
                    made.block = None
            elif action == _FREE_OTHER:
                self._free(self._find(at, what, how))
            else:
                self._accumulate(own[what], gradients)

    def _accumulate(self, made: _Made, gradients: Gradients) -> None:
        block, made.block = made.block, None
        if block is None:
            return
        if gradients.is_first and gradients.kept_share == 1:
            gradients.blocks.append(block)
            return
        self._allocator.free(block)
        if gradients.is_first:
            shard = self._malloc(round(self._sizes[made.size] * gradients.kept_share))
            if shard is not None:
                gradients.blocks.append(shard)

    def _find(self, at: int, size: int, how: int) -> _Made | None:
        """Return the youngest live allocation of a size, of the stage meant where it has one.

        Never one of this very pass, whose script frees its own.
        """
        if how != _ANYWHERE:
            stage = at + how % _PLACES - _REACH
            if not 0 <= stage < len(self._stages):
                return None
            found = self._youngest(self._made.get((stage, how >= _PLACES), []), size)
            if found is not None:
                return found
        return self._youngest(self._live[size], size)

    def _youngest(self, among: list[_Made], size: int) -> _Made | None:
        for made in reversed(among):
            if made.size == size and made.block is not None and made.run != self._runs:
                return made
        return None

    def _malloc(self, num_bytes: int) -> Block | None:
        return self._allocator.malloc(num_bytes) if num_bytes > 0 else None

    def _free(self, made: _Made | None) -> None:
        if made is not None and made.block is not None:
            self._allocator.free(made.block)
            made.block = None

    def _all(self) -> Iterator[_Made]:
        for own in self._made.values():
            yield from own
