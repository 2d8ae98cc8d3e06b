"""How many elements of each tensor the fullest rank holds, padding included."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import lru_cache
from itertools import accumulate
from math import prod

from batchplan.memory.parameters import Kind, Parameters
from batchplan.states.sharding import Engine, ShardingRule
from batchplan.states.zero import ALIGNMENT_FACTOR, SUB_GROUP_ELEMENTS


def split(num_elements: int, num_shards: int) -> int:
    """Return the fullest rank's share of one flat tensor.

    Source: deepspeed ``partition_parameters.py``, ``_aligned_size``: every rank's partition is
    padded to the same size.

    >>> split(7, 4)
    2
    """
    return -(-num_elements // num_shards)


def split_rows(shape: tuple[int, ...], num_shards: int) -> tuple[int, ...]:
    """Return the padded shard of FSDP2, whose first dimension is cut in chunks.

    Source: torch ``_fsdp_param.py``: ``padded_sharded_param_size`` is that of the first chunk; the
    first rank fills it.

    >>> split_rows((97, 60), 4)
    (25, 60)
    """
    return (split(shape[0], num_shards), *shape[1:]) if shape else (1,)


def held_elements(
    shape: tuple[int, ...], *, rule: ShardingRule, num_shards: int, threshold: int
) -> int:
    """Return the elements of one parameter on the fullest rank, outside forward and backward.

    ZeRO-3 keeps a parameter of up to ``threshold`` elements whole beside its partition, in a
    buffer of all padded partitions.
    Source: deepspeed ``partition_parameters.py``, ``_allgather_params_coalesced``; one rank gathers
    nothing (``NoGatherCoalescedHandle``).
    """
    num_elements = prod(shape)
    if not rule.weights or num_shards == 1:
        return num_elements
    if rule.engine is Engine.FSDP:
        return prod(split_rows(shape, num_shards))
    share = split(num_elements, num_shards)
    return share + (num_shards * share if num_elements <= threshold else 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class FlatGroup:
    """One of DeepSpeed's flat parameter groups: matrices (weight decay), or all else."""

    sizes: tuple[int, ...]
    """Elements of each parameter, in order."""
    kind: Kind
    """One of its parameters, for what the optimizer makes of the group."""
    partition: int
    """Elements of one rank's partition."""
    num_shards: int
    is_split_by_tensor: bool = False
    """ZeRO-3: a partition has a piece of every parameter, not a stretch of the whole."""

    @property
    def num_elements(self) -> int:
        """Elements of the flat buffer, padding included."""
        return self.partition * self.num_shards if self.kind.has_shape else sum(self.sizes)

    @property
    def largest_piece(self) -> int:
        """Elements of the largest piece of one parameter in a partition; 0 when unknown."""
        if not self.kind.has_shape:
            return 0
        largest = max(self.sizes)
        return (
            split(largest, self.num_shards)
            if self.is_split_by_tensor
            else min(largest, self.partition)
        )

    @property
    def largest_cut(self) -> int:
        """Elements of the largest parameter that lies in two partitions; 0 when unknown."""
        if not self.kind.has_shape:
            return 0
        ends = list(accumulate(self.sizes))
        borders = range(self.partition, min(self.num_elements, ends[-1]), self.partition)
        owners = ((border, bisect_right(ends, border)) for border in borders)
        return max(
            (
                self.sizes[at]
                for border, at in owners
                if ends[at] - self.sizes[at] < border < ends[at]
            ),
            default=0,
        )


def flat_groups(parameters: Parameters, num_shards: int, *, use_muon: bool) -> list[FlatGroup]:
    """Return the flat groups of ZeRO-1 and ZeRO-2.

    Sources: deepspeed ``stage_1_and_2.py`` (one flat buffer a parameter group, aligned);
    transformers ``trainer.py``, ``create_optimizer`` (weight decay splits matrices from the rest);
    deepspeed ``engine.py`` (Muon has groups of its own).
    """
    found: dict[tuple[bool, bool], list[int]] = {}
    kinds: dict[tuple[bool, bool], Kind] = {}
    known = True
    for index in parameters.order:
        for kind in parameters.stages[index]:
            if not kind.is_trained:
                continue
            key = (kind.is_matrix, use_muon and kind.is_matrix and kind.is_layer)
            kinds.setdefault(key, kind)
            known = known and kind.has_shape
            found.setdefault(key, []).extend([kind.num_elements] * kind.count)
    alignment = ALIGNMENT_FACTOR if known else 1
    return [
        FlatGroup(
            sizes=tuple(sizes),
            kind=kinds[key],
            partition=split(sum(sizes), alignment * num_shards) * alignment,
            num_shards=num_shards,
        )
        for key, sizes in found.items()
    ]


def reduced_elements(groups: list[FlatGroup]) -> int:
    """Return the elements of reduced gradients on the fullest rank of ZeRO-1 and ZeRO-2.

    A parameter that reaches into a partition is kept whole there, so neighbours hold it twice.
    Source: deepspeed ``stage_1_and_2.py``, ``copy_grads_in_partition`` (``grads_in_partition`` has
    room for every parameter of the partition) and ``get_flat_partition`` (zeros for the padding).

    Exact where parameters of one shape in a stage follow each other; otherwise a neighbour of the
    same layer may be taken for the one at the border.
    """
    if not all(group.kind.has_shape for group in groups):
        return sum(group.partition for group in groups)
    held = [_held_by_rank(group.sizes, group.partition, group.num_shards) for group in groups]
    return max((sum(rank) for rank in zip(*held, strict=True)), default=0)


@lru_cache(maxsize=256)
def _held_by_rank(sizes: tuple[int, ...], partition: int, num_shards: int) -> tuple[int, ...]:
    ends = list(accumulate(sizes))
    total = ends[-1]
    held = []
    for start in range(0, partition * num_shards, partition):
        stop = min(start + partition, total)
        padding = start + partition - max(stop, start)
        whole = 0
        if start < total:
            first = bisect_right(ends, start)
            last = bisect_left(ends, stop)
            whole = ends[last] - (ends[first] - sizes[first])
        held.append(whole + padding)
    return tuple(held)


def sub_groups(parameters: Parameters, num_shards: int, *, use_muon: bool) -> list[FlatGroup]:
    """Return the flat groups of ZeRO-3, which its optimizer step takes one after the other.

    Source: deepspeed ``stage3.py``, ``_create_fp16_sub_groups``: a group is cut once a rank's
    partitions in it reach ``sub_group_size``.
    """
    cut = []
    for group in flat_groups(parameters, 1, use_muon=use_muon):
        start = held = 0
        shares = [split(size, num_shards) for size in group.sizes]
        for position, share in enumerate(shares, start=1):
            held += share
            if held >= SUB_GROUP_ELEMENTS or position == len(shares):
                cut.append(
                    FlatGroup(
                        sizes=group.sizes[start:position],
                        kind=group.kind,
                        partition=held,
                        num_shards=num_shards,
                        is_split_by_tensor=True,
                    )
                )
                start, held = position, 0
    return cut
