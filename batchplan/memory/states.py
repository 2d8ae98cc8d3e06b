"""Persistent states of one rank: weights, master weights, gradients, optimizer states."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.spec import Dtype, Offload, Optimizer, OptimizerImpl, Recipe
from batchplan.states.numerics import BYTES_PER_ELEMENT, Dtypes, nf4_bytes
from batchplan.states.sharding import (
    Engine,
    ShardingRule,
    keeps_masters_as_weights,
    stored_gradient_dtype,
)


@dataclass(frozen=True, slots=True, kw_only=True)
class ParamCounts:
    """Elements of the whole model, by how they are held."""

    trainable: int
    frozen: int = 0
    quantisable: int = 0
    """Those of ``frozen`` that QLoRA holds in NF4."""
    trainable_outside_layers: int = 0
    """Those of ``trainable`` in embeddings, head and norms outside the layers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerStates:
    """What an optimizer keeps per trainable parameter."""

    per_param: float
    """Values kept per parameter of a layer."""
    per_param_outside_layers: float | None = None
    """Values kept per embedding or head parameter, where that differs."""
    bytes_per_value: float | None = None
    """Fixed width of a value; None takes the recipe's optimizer dtype."""
    source: str


_EIGHT_BIT = OptimizerStates(
    # One byte a value and one fp32 absmax a block of 256 values.
    per_param=2,
    bytes_per_value=1 + 4 / 256,
    source="bitsandbytes optim/optimizer.py: blockwise 8-bit states, block of 256",
)
OPTIMIZERS: dict[Optimizer, OptimizerStates] = {
    Optimizer.ADAMW: OptimizerStates(per_param=2, source="torch.optim.AdamW: exp_avg, exp_avg_sq"),
    Optimizer.ADAMW_8BIT: _EIGHT_BIT,
    Optimizer.PAGED_ADAMW_8BIT: _EIGHT_BIT,
    # Rows + columns of every matrix: at most 2/512 values a parameter where no side is below 512.
    Optimizer.ADAFACTOR: OptimizerStates(
        per_param=2 / 512, source="Adafactor, arXiv 1804.04235, section 3: factored second moment"
    ),
    Optimizer.SGD: OptimizerStates(per_param=0, source="torch.optim.SGD without momentum"),
    Optimizer.SGD_MOMENTUM: OptimizerStates(per_param=1, source="torch.optim.SGD: momentum_buffer"),
    Optimizer.LION: OptimizerStates(per_param=1, source="Lion, arXiv 2302.06675, algorithm 2"),
    Optimizer.MUON: OptimizerStates(
        per_param=1,
        per_param_outside_layers=2,
        source="torch.optim.Muon for matrices; embeddings and heads stay on AdamW",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes of one rank; what is on the host is in ``host_bytes`` alone."""

    weights: int
    frozen_weights: int
    master_weights: int
    optimizer_states: int
    gradients: int
    """Persistent gradients once a whole backward has passed."""
    gradients_whole: int
    """The same, unsharded."""
    step_temporary: int
    """What the optimizer step needs on top."""
    host_bytes: int


def compute_states(
    *, counts: ParamCounts, recipe: Recipe, dtypes: Dtypes, rule: ShardingRule, num_shards: int
) -> States:
    """Return the persistent bytes of the fullest rank.

    Shards are rounded up: the fullest rank is the one that runs out of memory.

    Where FSDP's sharded weights are the fp32 masters, the bill has them as master weights and the
    16-bit copies exist only while gathered.

    Source: ZeRO, https://arxiv.org/abs/1910.02054, section 3.1.
    Leaves out: padding of uneven shards (a few KiB a parameter tensor; errs low).
    """

    def share(num_bytes: float, *, split: bool) -> int:
        return -(-round(num_bytes) // (num_shards if split else 1))

    are_masters = keeps_masters_as_weights(rule, dtypes)
    weight_bytes = 0 if are_masters else BYTES_PER_ELEMENT[dtypes.weights]
    gradient_bytes = BYTES_PER_ELEMENT[stored_gradient_dtype(recipe, rule, dtypes)]
    master = share(4 * counts.trainable if dtypes.has_master else 0, split=rule.optimizer)
    optimizer = share(_optimizer_bytes(counts, recipe, dtypes), split=rule.optimizer)
    weights = share(weight_bytes * counts.trainable, split=rule.weights)
    frozen = share(_frozen_bytes(counts, recipe, dtypes), split=rule.weights)
    host = 0
    if recipe.offload is not Offload.NONE:
        host += optimizer + master
        optimizer = master = 0
    if recipe.offload is Offload.PARAMS:
        host += weights + frozen
        weights = frozen = 0
    return States(
        weights=weights,
        frozen_weights=frozen,
        master_weights=master,
        optimizer_states=optimizer,
        gradients=share(gradient_bytes * counts.trainable, split=rule.gradients),
        gradients_whole=gradient_bytes * counts.trainable,
        step_temporary=_step_temporary(counts, recipe, dtypes, rule, num_shards),
        host_bytes=host,
    )


def _optimizer_bytes(counts: ParamCounts, recipe: Recipe, dtypes: Dtypes) -> float:
    kept = OPTIMIZERS[recipe.optimizer]
    outside = kept.per_param_outside_layers
    if outside is None:
        outside = kept.per_param
    width = kept.bytes_per_value or BYTES_PER_ELEMENT[dtypes.optimizer]
    in_layers = counts.trainable - counts.trainable_outside_layers
    return width * (kept.per_param * in_layers + outside * counts.trainable_outside_layers)


def _frozen_bytes(counts: ParamCounts, recipe: Recipe, dtypes: Dtypes) -> float:
    plain = counts.frozen - counts.quantisable
    return nf4_bytes(recipe) * counts.quantisable + BYTES_PER_ELEMENT[dtypes.frozen] * plain


def _step_temporary(
    counts: ParamCounts, recipe: Recipe, dtypes: Dtypes, rule: ShardingRule, num_shards: int
) -> int:
    """Bytes the optimizer step needs on top of the states.

    DeepSpeed converts the local gradient partition to fp32 (``stage_1_and_2.py``, ``stage3.py``);
    torch's foreach update makes one list the size of the weights (``optim/adam.py``,
    ``_foreach_sqrt``); fused updates need nothing.
    """
    if recipe.offload is not Offload.NONE:
        return 0
    shards = num_shards if rule.optimizer else 1
    converted = rule.engine is Engine.DEEPSPEED and dtypes.gradients is not Dtype.FP32
    num_bytes = 4 * counts.trainable if converted and dtypes.has_master else 0
    if recipe.optimizer_impl is OptimizerImpl.FOREACH:
        width = 4 if dtypes.has_master else BYTES_PER_ELEMENT[dtypes.weights]
        num_bytes += width * counts.trainable
    return -(-num_bytes // shards)
