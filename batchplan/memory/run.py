"""A training run of a few optimizer steps on one rank, played through the caching allocator."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.allocator import Block, CachingAllocator, OutOfMemoryError
from batchplan.memory.activations import Place
from batchplan.memory.buffers import (
    INPUT_BYTES_PER_TOKEN,
    fsdp_reduced_bytes,
    fsdp_unit_bytes,
)
from batchplan.memory.device import CUBLAS_HANDLES, cublas_workspace_bytes
from batchplan.memory.playback import Gradients, MicroBatch
from batchplan.memory.setting import Setting
from batchplan.spec import Batch, OptimizerImpl
from batchplan.states.sharding import Engine

STEPS = 2
"""Optimizer steps that are played. The first makes the moments, the second meets them with the
cached memory of the first; a third asks for nothing new."""
STEPS_AT_LIMIT = 3
"""With a limit the second step may still have to give back what the first left behind."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Played:
    """The allocator after a few optimizer steps."""

    allocated_peak_bytes: int
    reserved_peak_bytes: int
    retries_a_step: int
    """How often the last step gave cached segments back to find room: each stalls the device."""
    ran_out: bool

    @property
    def runs_smoothly(self) -> bool:
        """Whether it goes on without giving memory back in every step."""
        return not self.ran_out and self.retries_a_step == 0


def play(setting: Setting, batch: Batch, *, capacity_bytes: int | None = None) -> Played | None:
    """Play optimizer steps on one rank; None when the profile has no scripts.

    Persistent states are there first, tensor by tensor, but DeepSpeed's flat partitions in one
    piece each. Leaves out: DeepSpeed's prefetch order and record_stream (errs low).

    Args:
        setting: the recipe on its cluster.
        batch: micro-batch, length and K; passes beyond the second are like the second.
        capacity_bytes: what segments may take; None for no limit.
    """
    if not any(stage.backward.script for stage in setting.profile.stages_at(batch.micro_batch)):
        return None
    run = _Run(setting, batch, capacity_bytes)
    try:
        run.start()
        for step in range(STEPS if capacity_bytes is None else STEPS_AT_LIMIT):
            before = run.allocator.num_retries
            run.step(is_first=step == 0)
        retries = run.allocator.num_retries - before
        return run.result(retries, ran_out=False)
    except OutOfMemoryError:
        return run.result(0, ran_out=True)


class _Run:
    """One rank of a training run."""

    def __init__(self, setting: Setting, batch: Batch, capacity_bytes: int | None) -> None:
        self._setting = setting
        self._batch = batch
        self._lives = list(setting.lives(batch.accum_steps))
        self.allocator = CachingAllocator(
            capacity_bytes=capacity_bytes,
            expandable_segments=setting.recipe.expandable_segments,
        )
        self._engine = _Sharded(setting, batch, self.allocator)
        self._passes = MicroBatch(
            self.allocator,
            setting.profile,
            micro_batch=batch.micro_batch,
            seq_len=batch.seq_len,
            surroundings=self._engine,
        )

    def start(self) -> None:
        """Make weights, master copies, buffers and workspaces."""
        states = self._setting.states
        self._spread(states.frozen_weights, is_trained=False)
        self._spread(states.weights, is_trained=True)
        self._spread(states.master_weights, is_trained=True)
        self._one(self._setting.profile.buffer_bytes)
        workspaces = cublas_workspace_bytes(self._setting.gpu)
        for _ in range(CUBLAS_HANDLES):
            self._one(workspaces // CUBLAS_HANDLES)
        if self._setting.rule.engine is Engine.TORCH_DDP:
            buckets = self._setting.buffers.at(Place.OPTIMIZER_STEP)
            self._spread(buckets, is_trained=True)

    def step(self, *, is_first: bool) -> None:
        """Run the micro-batches and the update of one optimizer step."""
        batch = self._batch
        tokens = batch.micro_batch * batch.seq_len * batch.accum_steps
        inputs = [self.allocator.malloc(max(INPUT_BYTES_PER_TOKEN // 3 * tokens, 1)) for _ in "123"]
        kept: list[Block] = []
        for number, life in enumerate(self._lives):
            share = life.kept_bytes / life.made_bytes if life.made_bytes else 0.0
            gradients = Gradients(is_first=number == 0, kept_share=share)
            self._engine.enter()
            self._passes.play(gradients)
            self._engine.leave()
            kept += gradients.blocks
            if number == 0 and len(self._lives) > 1:
                for num_bytes in self._setting.frozen_gradient_bytes:
                    kept += self._one(num_bytes)
        self._update(is_first=is_first)
        for block in (*kept, *inputs):
            self.allocator.free(block)

    def _update(self, *, is_first: bool) -> None:
        setting = self._setting
        if is_first:
            for _ in range(2):
                self._spread(setting.states.optimizer_states // 2, is_trained=True)
        temporary = setting.states.step_temporary
        in_pieces = setting.recipe.optimizer_impl is OptimizerImpl.FOREACH
        blocks = self._spread(temporary, is_trained=True) if in_pieces else self._one(temporary)
        for block in blocks:
            self.allocator.free(block)

    def _one(self, num_bytes: int) -> list[Block]:
        return [self.allocator.malloc(num_bytes)] if num_bytes > 0 else []

    def _spread(self, num_bytes: int, *, is_trained: bool) -> list[Block]:
        """Make a block for every parameter, so that all are ``num_bytes``; DeepSpeed's are flat."""
        if self._setting.rule.engine is Engine.DEEPSPEED and is_trained:
            return self._one(num_bytes)
        profile = self._setting.profile
        sizes = [
            group.num_elements
            for index in profile.order
            for group in profile.stages[index].parameter_groups
            if group.is_trained is is_trained
            for _ in range(group.count)
        ]
        whole = sum(sizes)
        blocks: list[Block] = []
        for size in sizes if num_bytes else ():
            blocks += self._one(num_bytes * size // whole)
        return blocks

    def result(self, retries: int, *, ran_out: bool) -> Played:
        """Return the counters."""
        return Played(
            allocated_peak_bytes=self.allocator.allocated_peak_bytes,
            reserved_peak_bytes=self.allocator.reserved_peak_bytes,
            retries_a_step=retries,
            ran_out=ran_out,
        )


_GATHER_STREAM, _REDUCE_STREAM = 1, 2


class _Sharded:
    """Gathered weights and communication buffers around the stages.

    FSDP2 gathers a layer into a flat buffer on a stream of its own, copies it out into whole
    weights, and reduces a layer's gradients from another flat buffer; the root's weights stay.
    DeepSpeed's buffers are there for the whole pass.

    Source: torch ``_fsdp_collectives.py`` (foreach_all_gather, foreach_reduce).
    """

    def __init__(self, setting: Setting, batch: Batch, allocator: CachingAllocator) -> None:
        self._allocator = allocator
        self._is_fsdp = setting.rule.engine is Engine.FSDP and setting.num_shards > 1
        self._is_deepspeed = setting.rule.engine is Engine.DEEPSPEED
        self._reshards = setting.rule.reshards_after_forward
        self._setting = setting
        kinds = setting.profile.stages_at(batch.micro_batch)
        stages = [kinds[index] for index in setting.profile.order]
        self._is_layer = [stage.is_layer for stage in stages]
        self._unit_bytes = fsdp_unit_bytes(setting.profile, setting.recipe, setting.dtypes)
        self._reduced_bytes = fsdp_reduced_bytes(setting.profile, setting.dtypes)
        self._kept_inputs = [
            (stage.forward.delta(batch.micro_batch, batch.seq_len),) * 2
            if setting.keeps_inputs
            else ()
            for stage in stages
        ]
        self._gathered: dict[int, Block] = {}
        self._flat: Block | None = None
        self._reduced: Block | None = None
        self._passing: list[Block] = []

    def enter(self) -> None:
        """Start a micro-batch."""
        buffers = self._setting.buffers
        if self._is_deepspeed:
            self._hold(buffers.communication.get(Place.LAYER_BACKWARD, 0))
            self._hold(buffers.gathered.get(Place.LAYER_BACKWARD, 0))
        if self._is_fsdp:
            units = zip(self._unit_bytes, self._is_layer, strict=True)
            self._hold(sum(num_bytes for num_bytes, is_layer in units if not is_layer))

    def leave(self) -> None:
        """End it: nothing gathered stays."""
        for block in (*self._passing, *self._gathered.values(), self._flat, self._reduced):
            if block is not None:
                self._allocator.free(block)
        self._passing, self._gathered = [], {}
        self._flat = self._reduced = None

    def before_forward(self, at: int) -> None:
        """Gather the layer."""
        if self._is_sharded_layer(at):
            self._gather(at)

    def after_forward(self, at: int) -> None:
        """Drop it again, where the strategy does."""
        if self._is_sharded_layer(at) and self._reshards:
            self._drop(at)

    def before_backward(self, at: int) -> None:
        """Gather the layer, and the one that comes next."""
        for layer in (at, at - 1):
            if layer >= 0 and self._is_sharded_layer(layer):
                self._gather(layer)

    def after_backward(self, at: int) -> None:
        """Drop the layer and reduce its gradients; the buffer before it has been sent by now."""
        if not self._is_sharded_layer(at):
            return
        self._drop(at)
        for num_bytes in self._kept_inputs[at]:
            self._hold(num_bytes)
        if self._reduced_bytes[at]:
            if self._reduced is not None:
                self._allocator.free(self._reduced)
            self._reduced = self._allocator.malloc(self._reduced_bytes[at], _REDUCE_STREAM)

    def _is_sharded_layer(self, at: int) -> bool:
        return self._is_fsdp and self._is_layer[at]

    def _drop(self, at: int) -> None:
        block = self._gathered.pop(at, None)
        if block is not None:
            self._allocator.free(block)

    def _gather(self, at: int) -> None:
        if at in self._gathered:
            return
        if self._setting.recipe.fsdp_version > 1:
            if self._flat is not None:
                self._allocator.free(self._flat)
            self._flat = self._allocator.malloc(self._unit_bytes[at], _GATHER_STREAM)
        self._gathered[at] = self._allocator.malloc(self._unit_bytes[at])

    def _hold(self, num_bytes: int) -> None:
        if num_bytes:
            self._passing.append(self._allocator.malloc(num_bytes))
