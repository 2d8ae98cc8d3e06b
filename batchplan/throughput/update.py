"""Time of the optimizer's update on the device, and of what offloading adds."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.profile import ActivationProfile
from batchplan.spec import Cluster, Gpu, Offload, Optimizer, OptimizerImpl, Recipe
from batchplan.states.numerics import resolve_dtypes
from batchplan.states.sharding import (
    RULES,
    Engine,
    keeps_masters_as_weights,
    stored_gradient_dtype,
)
from batchplan.throughput import rates
from batchplan.throughput.communication import element_bytes, ring_seconds, traffic

# Bytes of optimizer states read and written per trainable parameter, at fp32 values.
# Source: the update formulas; AdamW mixed precision then touches about 30 bytes in all.
STATE_BYTES_TOUCHED: dict[Optimizer, float] = {
    Optimizer.ADAMW: 16,
    Optimizer.ADAMW_8BIT: 4,
    Optimizer.PAGED_ADAMW_8BIT: 4,
    Optimizer.ADAFACTOR: 0.1,
    Optimizer.SGD: 0,
    Optimizer.SGD_MOMENTUM: 8,
    Optimizer.LION: 8,
    Optimizer.MUON: 8,
}
_EIGHT_BIT = frozenset({Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT})

UNFUSED_ADAMW_TRAFFIC = 80 / 28
"""AdamW as separate operations moves this multiple of one fused kernel's bytes.

Counted in fp32 from torch ``optim/adamw.py``: decay 8, first moment 12, second 8 + 12, root 8,
correction 8, eps 8, update 16; fused: read gradient, weight and moments, write the last three."""
UNFUSED_ADAMW_KERNELS = 8
"""Launches a tensor where the update goes tensor by tensor; ``foreach`` batches them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Update:
    """What happens once a step after the last backward, and what offloading adds before."""

    device_seconds: float
    """On the device; 0 when the host updates."""
    formula: str
    fetch_seconds: float
    """Weights from the host, per micro-batch, before any of it hides."""
    host_micro_seconds: float
    """Gradients to the host, per micro-batch, before any of it hides."""
    host_step_seconds: float
    """Gradients and updated weights over PCIe and the update on the host, once a step."""


def update(
    *, profile: ActivationProfile, recipe: Recipe, cluster: Cluster, gpu: Gpu, bandwidth: float
) -> Update:
    """Return the update's time; ``bandwidth`` in units of 10**9 bytes/s."""
    rule = RULES[recipe.sharding]
    shards = rule.num_shards(cluster) if rule.optimizer else 1
    updated = -(-profile.trainable_params // shards)
    host_rate = (gpu.pcie_gb_per_s or rates.PCIE_UNKNOWN_GB_PER_S) * rates.HOST_LINK_SHARE
    on_host = recipe.offload is not Offload.NONE
    copied = ring_seconds(2.0 * updated, host_rate)
    per_micro = traffic(recipe).gradients_per_micro_batch > 0
    sockets = min(cluster.ranks_per_node, rates.HOST_SOCKETS_PER_NODE)
    host_update = updated * cluster.ranks_per_node / (sockets * rates.HOST_ADAM_PARAMS_PER_SECOND)
    fetched = 0.0
    if recipe.offload is Offload.PARAMS:
        gathers = max(1, traffic(recipe).weights_per_micro_batch)
        held = profile.trainable_params + profile.frozen_params
        fetched = gathers * ring_seconds(2.0 * held / shards, host_rate)
    touched = bytes_touched(recipe)
    rate = bandwidth * rates.MEMORY_SHARE
    on_device = ring_seconds(touched * updated, rate) + _launch_seconds(profile, recipe)
    return Update(
        device_seconds=0.0 if on_host else on_device,
        formula=f"{touched:g} bytes × {updated:,} parameters at {rate:.0f} GB/s",
        fetch_seconds=fetched,
        host_micro_seconds=copied if on_host and per_micro else 0.0,
        host_step_seconds=(
            (copied + host_update + (0.0 if per_micro else copied)) if on_host else 0.0
        ),
    )


def bytes_touched(recipe: Recipe) -> float:
    """Return bytes the update reads and writes per trainable parameter.

    AdamW with fp32 masters: gradient 2, moments 16, master 8, weight 2, an fp32 copy of the
    gradient 2-4: about 30. Under FSDP the masters are the weights, and their gradients are fp32:
    28. Pure 16-bit: gradient 2, moments 8, weight 4. ``foreach`` and ``for-loop`` AdamW move
    ``UNFUSED_ADAMW_TRAFFIC`` times what the update itself touches.
    """
    dtypes = resolve_dtypes(recipe)
    states = STATE_BYTES_TOUCHED[recipe.optimizer]
    if recipe.optimizer not in _EIGHT_BIT:
        states *= element_bytes(dtypes.optimizer, recipe) / 4
    rule = RULES[recipe.sharding]
    gradient = element_bytes(stored_gradient_dtype(recipe, rule, dtypes), recipe)
    weight = element_bytes(dtypes.weights, recipe)
    again = UNFUSED_ADAMW_TRAFFIC if _is_unfused(recipe) else 1.0
    if not dtypes.has_master:
        return again * (states + gradient + 2 * weight)
    if keeps_masters_as_weights(rule, dtypes):
        return again * (states + gradient + 8)
    converted = 2 if gradient < 4 else 0
    return again * (states + gradient + 8) + weight + converted


def _is_unfused(recipe: Recipe) -> bool:
    """Whether AdamW runs as separate operations; DeepSpeed brings its own fused one."""
    return (
        recipe.optimizer is Optimizer.ADAMW
        and recipe.optimizer_impl is not OptimizerImpl.FUSED
        and RULES[recipe.sharding].engine is not Engine.DEEPSPEED
    )


def _launch_seconds(profile: ActivationProfile, recipe: Recipe) -> float:
    if not _is_unfused(recipe) or recipe.optimizer_impl is not OptimizerImpl.FOR_LOOP:
        return 0.0
    tensors = sum(
        group.count
        for index in profile.order
        for group in profile.stages[index].parameter_groups
        if group.is_trained
    )
    return tensors * UNFUSED_ADAMW_KERNELS * rates.LAUNCH_SECONDS
