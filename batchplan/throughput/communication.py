"""What data-parallel ranks send each other in one optimizer step.

Elements are counted per rank; a ring moves ``(W-1)/W`` of them. ``K`` micro-batches matter only to
the strategies whose row has per-micro-batch entries: accumulation amortises communication for DDP
and ZeRO-1, not for the rest.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchplan.profile import ActivationProfile
from batchplan.spec import Cluster, Dtype, Gpu, Method, Recipe, Sharding
from batchplan.states.numerics import BYTES_PER_ELEMENT, nf4_bytes, resolve_dtypes
from batchplan.states.sharding import RULES, Engine
from batchplan.states.zero import prefetch_elements, reduce_bucket_elements
from batchplan.throughput.rates import (
    DDP_BUCKET_BYTES,
    INTER_NODE_SHARE,
    LINK_HOP_SECONDS,
    LINK_SHARE,
    NETWORK_HOP_SECONDS,
    PCIE_HOP_SECONDS,
    PCIE_SHARE,
    PCIE_UNKNOWN_GB_PER_S,
    TREE_HOP_SECONDS,
    ZERO_GATHER_BUCKET_ELEMENTS,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """How often each rank moves all weights, or all trainable ones."""

    weights_per_micro_batch: int = 0
    """Gathers of every weight, frozen ones too."""
    gradients_per_micro_batch: int = 0
    """Reduce-scatters of the gradients (an all-reduce is two)."""
    gradients_per_step: int = 0
    updated_per_step: int = 0
    """Gathers of the updated trainable weights."""
    source: str


_FSDP = "PyTorch FSDP, https://arxiv.org/abs/2304.11277, section 3"
TRAFFIC: dict[Sharding, Traffic] = {
    Sharding.DDP: Traffic(
        gradients_per_step=2,
        source="one all-reduce a step under no_sync; HF accelerate, gradient synchronization",
    ),
    Sharding.ZERO1: Traffic(
        gradients_per_step=1,
        updated_per_step=1,
        source="ZeRO, https://arxiv.org/abs/1910.02054, section 7; reduced at the boundary",
    ),
    Sharding.ZERO2: Traffic(
        gradients_per_micro_batch=1,
        updated_per_step=1,
        source="DeepSpeed stage_1_and_2.py: partition_gradients reduces every micro-batch",
    ),
    Sharding.ZERO3: Traffic(
        weights_per_micro_batch=2,
        gradients_per_micro_batch=1,
        source="DeepSpeed stage3.py: gather in forward and backward, reduce every micro-batch",
    ),
    Sharding.FSDP_GRAD_OP: Traffic(
        weights_per_micro_batch=1, gradients_per_micro_batch=1, source=_FSDP
    ),
    Sharding.FSDP_FULL: Traffic(
        weights_per_micro_batch=2, gradients_per_micro_batch=1, source=_FSDP
    ),
    # Within the node; between nodes see BETWEEN_NODES_ALL_REDUCE.
    Sharding.FSDP_HYBRID: Traffic(
        weights_per_micro_batch=2, gradients_per_micro_batch=1, source=_FSDP
    ),
}
_NO_SYNC_SOURCE = f"{_FSDP}; no_sync: whole gradients kept, reduced once a step"
TRAFFIC_NO_SYNC: dict[Sharding, Traffic] = {
    Sharding.FSDP_GRAD_OP: Traffic(
        weights_per_micro_batch=1, gradients_per_step=1, source=_NO_SYNC_SOURCE
    ),
    Sharding.FSDP_FULL: Traffic(
        weights_per_micro_batch=2, gradients_per_step=1, source=_NO_SYNC_SOURCE
    ),
    Sharding.FSDP_HYBRID: Traffic(
        weights_per_micro_batch=2, gradients_per_step=1, source=_NO_SYNC_SOURCE
    ),
}
"""FSDP with ``sync_each_batch`` off; every other strategy ignores that setting."""

BETWEEN_NODES_ALL_REDUCE = 2
"""Hybrid sharding: each reduce-scatter is followed by an all-reduce of the shard between nodes."""

AMORTISED = frozenset({Sharding.DDP, Sharding.ZERO1})
"""Strategies whose whole communication happens once a step: K divides its cost."""


def traffic(recipe: Recipe) -> Traffic:
    """Return the row of ``recipe``'s strategy."""
    if not recipe.sync_each_batch:
        return TRAFFIC_NO_SYNC.get(recipe.sharding, TRAFFIC[recipe.sharding])
    return TRAFFIC[recipe.sharding]


@dataclass(frozen=True, slots=True, kw_only=True)
class MovedBytes:
    """Bytes one rank moves, after the ring factor."""

    per_micro_batch: float
    per_step: float
    between_nodes_per_micro_batch: float = 0.0
    """Hybrid sharding alone: what crosses nodes beside the traffic within one."""
    between_nodes_per_step: float = 0.0

    def total(self, accum_steps: int) -> float:
        """Return the bytes of a step of ``accum_steps`` micro-batches."""
        return (
            accum_steps * (self.per_micro_batch + self.between_nodes_per_micro_batch)
            + self.per_step
            + self.between_nodes_per_step
        )


def moved_bytes(
    *,
    recipe: Recipe,
    trainable_params: int,
    frozen_params: int = 0,
    quantisable_params: int = 0,
    cluster: Cluster,
) -> MovedBytes:
    """Return what one rank sends; one rank alone sends nothing.

    Leaves out: padding of shards, buffers that DDP broadcasts. Latency is ``exchange``'s.
    """
    rule = RULES[recipe.sharding]
    ranks = rule.num_shards(cluster)
    ring = (ranks - 1) / ranks
    row = traffic(recipe)
    trainable_width, frozen_width, gradient_width = _widths(recipe)
    quantised = quantisable_params if recipe.method is Method.QLORA else 0
    weights = trainable_width * trainable_params
    frozen = frozen_width * (frozen_params - quantised) + nf4_bytes(recipe) * quantised
    gradients = gradient_width * trainable_params
    between = 0.0
    if rule.within_node and cluster.num_nodes > 1:
        nodes = cluster.num_nodes
        between = BETWEEN_NODES_ALL_REDUCE * gradients / ranks * (nodes - 1) / nodes
    return MovedBytes(
        per_micro_batch=ring
        * (
            row.weights_per_micro_batch * (weights + frozen)
            + row.gradients_per_micro_batch * gradients
        ),
        per_step=ring * (row.gradients_per_step * gradients + row.updated_per_step * weights),
        between_nodes_per_micro_batch=between * row.gradients_per_micro_batch,
        between_nodes_per_step=between * row.gradients_per_step,
    )


def ring_seconds(num_bytes: float, gb_per_s: float) -> float:
    """Return how long ``num_bytes`` take at a rate in units of 10**9 bytes/s."""
    return num_bytes / (gb_per_s * 1e9)


def bus_bandwidth_gb_per_s(*, gpu: Gpu, cluster: Cluster) -> float:
    """Return what one rank of a ring over all ranks gets, in units of 10**9 bytes/s.

    Inside a node it is the GPU link where there is one, PCIe otherwise. A ring over several nodes
    is bound by the adapters of a node together, or by the link if that is slower.

    Source: see ``throughput.rates``.
    """
    inside = node_bandwidth_gb_per_s(gpu)
    if cluster.num_nodes == 1:
        return inside
    adapters = cluster.ranks_per_node * cluster.inter_node_gb_per_s * INTER_NODE_SHARE
    return min(inside, adapters) if cluster.ranks_per_node > 1 else adapters


def node_bandwidth_gb_per_s(gpu: Gpu) -> float:
    """Return what one rank gets inside a node, in units of 10**9 bytes/s."""
    if gpu.link_gb_per_s:
        return gpu.link_gb_per_s * LINK_SHARE
    return (gpu.pcie_gb_per_s or PCIE_UNKNOWN_GB_PER_S) * PCIE_SHARE


def element_bytes(dtype: Dtype, recipe: Recipe) -> float:
    """Return the width of one value, the scales of NF4 included."""
    return nf4_bytes(recipe) if dtype is Dtype.NF4 else BYTES_PER_ELEMENT[dtype]


@dataclass(frozen=True, slots=True, kw_only=True)
class Exchange:
    """Seconds of communication, before any of it hides."""

    micro_batch_seconds: float
    step_seconds: float
    formula: str


ALONE = Exchange(micro_batch_seconds=0.0, step_seconds=0.0, formula="one rank")


def exchange(
    *,
    profile: ActivationProfile,
    recipe: Recipe,
    quantised_params: int,
    cluster: Cluster,
    gpu: Gpu,
) -> Exchange:
    """Return what communication costs: bytes over the rate, and hops times their latency.

    Leaves out: stragglers, other traffic on the network, trees that only some NCCL versions have
    for gathers (errs high beyond some hundred ranks).
    """
    if cluster.num_ranks == 1:
        return ALONE
    moved = moved_bytes(
        recipe=recipe,
        trainable_params=profile.trainable_params,
        frozen_params=profile.frozen_params,
        quantisable_params=quantised_params,
        cluster=cluster,
    )
    within_node = RULES[recipe.sharding].within_node
    stays_in_node = cluster.num_nodes == 1 or within_node
    rate = (
        node_bandwidth_gb_per_s(gpu)
        if stays_in_node
        else bus_bandwidth_gb_per_s(gpu=gpu, cluster=cluster)
    )
    between_rate = cluster.inter_node_gb_per_s * INTER_NODE_SHARE
    micro_latency, step_latency = _latency(profile, recipe, cluster, gpu)
    return Exchange(
        micro_batch_seconds=micro_latency
        + ring_seconds(moved.per_micro_batch, rate)
        + ring_seconds(moved.between_nodes_per_micro_batch, between_rate),
        step_seconds=step_latency
        + ring_seconds(moved.per_step, rate)
        + ring_seconds(moved.between_nodes_per_step, between_rate),
        formula=f"{moved.per_micro_batch / 1e9:.3g} GB a micro-batch and "
        f"{moved.per_step / 1e9:.3g} GB a step at {rate:.3g} GB/s, latency "
        f"{micro_latency * 1e3:.3g} and {step_latency * 1e3:.3g} ms",
    )


def ring_hop_seconds(*, cluster: Cluster, gpu: Gpu) -> float:
    """Return the latency of once around a ring over all ranks: a gather or a reduce-scatter."""
    inside = LINK_HOP_SECONDS if gpu.link_gb_per_s else PCIE_HOP_SECONDS
    steps = cluster.num_ranks - 1
    crossings = min(steps, cluster.num_nodes) if cluster.num_nodes > 1 else 0
    return crossings * NETWORK_HOP_SECONDS + (steps - crossings) * inside


def all_reduce_hop_seconds(*, cluster: Cluster, gpu: Gpu) -> float:
    """Return the latency of an all-reduce: twice around the ring, or up and down a tree of nodes.

    NCCL takes the faster of both.
    Source: https://developer.nvidia.com/blog/massively-scale-deep-learning-training-nccl-2-4/
    """
    inside = LINK_HOP_SECONDS if gpu.link_gb_per_s else PCIE_HOP_SECONDS
    levels = (cluster.num_nodes - 1).bit_length()
    tree = levels * TREE_HOP_SECONDS + (cluster.ranks_per_node - 1) * inside
    return 2 * min(ring_hop_seconds(cluster=cluster, gpu=gpu), tree)


def _latency(
    profile: ActivationProfile, recipe: Recipe, cluster: Cluster, gpu: Gpu
) -> tuple[float, float]:
    """Return latencies of all collectives of a micro-batch, and of those of a step."""
    rule, row = RULES[recipe.sharding], traffic(recipe)
    count = _collectives(profile, recipe)
    between = 0.0
    if rule.within_node and cluster.num_nodes > 1:
        one_a_node = Cluster(num_ranks=cluster.num_nodes, num_nodes=cluster.num_nodes)
        between = all_reduce_hop_seconds(cluster=one_a_node, gpu=gpu)
        cluster = Cluster(num_ranks=cluster.ranks_per_node, num_nodes=1)
    gather = ring_hop_seconds(cluster=cluster, gpu=gpu)
    # Weights that stay whole have their gradients all-reduced: DeepSpeed's stages 1 and 2 keep
    # their own share of the result (stage_1_and_2.py, ``use_multi_rank_bucket_allreduce``).
    reduction = (
        gather + between if rule.weights else all_reduce_hop_seconds(cluster=cluster, gpu=gpu)
    )
    reductions = count.reductions * reduction
    micro = row.weights_per_micro_batch * count.gathers * gather
    micro += reductions if row.gradients_per_micro_batch else 0.0
    step = row.updated_per_step * count.update_gathers * gather
    step += reductions if row.gradients_per_step else 0.0
    return micro, step


@dataclass(frozen=True, slots=True, kw_only=True)
class _Collectives:
    """How many collectives move everything once."""

    gathers: int = 0
    reductions: int = 0
    update_gathers: int = 0


def _collectives(profile: ActivationProfile, recipe: Recipe) -> _Collectives:
    """Return the counts: FSDP has one for each layer and one for the rest, others fill buckets."""
    engine = RULES[recipe.sharding].engine
    trainable = profile.trainable_params
    units = profile.num_layers + 1
    if engine is Engine.FSDP:
        return _Collectives(gathers=units, reductions=units)
    if engine is Engine.TORCH_DDP:
        bucket_bytes = trainable * _widths(recipe)[2]
        return _Collectives(reductions=math.ceil(bucket_bytes / DDP_BUCKET_BYTES))
    ahead = max(1, prefetch_elements(recipe, profile.hidden_size))
    bucket = max(1, reduce_bucket_elements(recipe, profile.hidden_size))
    return _Collectives(
        gathers=max(units, math.ceil((trainable + profile.frozen_params) / ahead)),
        reductions=math.ceil(trainable / bucket),
        update_gathers=math.ceil(trainable / ZERO_GATHER_BUCKET_ELEMENTS),
    )


def _widths(recipe: Recipe) -> tuple[float, float, float]:
    """Return bytes per element on the wire: trainable weights, frozen weights, gradients.

    FSDP gathers and reduces in its 16-bit compute dtype even where the shards are fp32. DDP and
    DeepSpeed move what is stored: fp32 under autocast.
    """
    dtypes = resolve_dtypes(recipe)
    trainable, frozen, gradients = dtypes.weights, dtypes.frozen, dtypes.gradients
    if dtypes.autocast and RULES[recipe.sharding].engine is Engine.FSDP:
        frozen = dtypes.compute
        if recipe.method is Method.FULL:
            trainable, gradients = dtypes.compute, recipe.grad_dtype or dtypes.compute
    return (
        element_bytes(trainable, recipe),
        element_bytes(frozen, recipe),
        element_bytes(gradients, recipe),
    )
