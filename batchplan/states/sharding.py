"""What each sharding strategy splits over the ranks, as a table."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

from batchplan.spec import Cluster, Dtype, Recipe, Sharding
from batchplan.states.numerics import Dtypes


class Engine(StrEnum):
    """The library whose buffers and life times apply."""

    TORCH_DDP = "torch-ddp"
    DEEPSPEED = "deepspeed"
    FSDP = "fsdp"


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardingRule:
    """Which states a rank holds only its share of, outside forward and backward."""

    engine: Engine
    optimizer: bool
    """Optimizer states and master weights are split."""
    gradients: bool
    weights: bool
    reshards_after_forward: bool = False
    """Gathered weights are dropped after each stage's forward and gathered again in backward."""
    within_node: bool = False
    """Split over the ranks of one node only, replicated between nodes."""

    def num_shards(self, cluster: Cluster) -> int:
        """Return over how many ranks the split states are split."""
        return cluster.ranks_per_node if self.within_node else cluster.num_ranks


# Source: ZeRO, https://arxiv.org/abs/1910.02054, section 5 (stages 1-3); PyTorch FSDP,
# https://arxiv.org/abs/2304.11277, section 3 (sharding strategies).
RULES: dict[Sharding, ShardingRule] = {
    Sharding.DDP: ShardingRule(
        engine=Engine.TORCH_DDP, optimizer=False, gradients=False, weights=False
    ),
    Sharding.ZERO1: ShardingRule(
        engine=Engine.DEEPSPEED, optimizer=True, gradients=False, weights=False
    ),
    Sharding.ZERO2: ShardingRule(
        engine=Engine.DEEPSPEED, optimizer=True, gradients=True, weights=False
    ),
    Sharding.ZERO3: ShardingRule(
        engine=Engine.DEEPSPEED,
        optimizer=True,
        gradients=True,
        weights=True,
        reshards_after_forward=True,
    ),
    Sharding.FSDP_GRAD_OP: ShardingRule(
        engine=Engine.FSDP, optimizer=True, gradients=True, weights=True
    ),
    Sharding.FSDP_FULL: ShardingRule(
        engine=Engine.FSDP,
        optimizer=True,
        gradients=True,
        weights=True,
        reshards_after_forward=True,
    ),
    Sharding.FSDP_HYBRID: ShardingRule(
        engine=Engine.FSDP,
        optimizer=True,
        gradients=True,
        weights=True,
        reshards_after_forward=True,
        within_node=True,
    ),
}


def keeps_masters_as_weights(rule: ShardingRule, dtypes: Dtypes) -> bool:
    """Return whether the sharded weights are themselves the fp32 master copies.

    FSDP stores parameters once, in fp32 under mixed precision, and gathers 16-bit copies.
    Source: torch ``_fsdp_param.py`` (``MixedPrecisionPolicy``), accelerate
    ``utils/fsdp_utils.py`` (fp32 up-cast of trainable parameters).
    """
    return rule.engine is Engine.FSDP and dtypes.has_master


def stored_gradient_dtype(recipe: Recipe, rule: ShardingRule, dtypes: Dtypes) -> Dtype:
    """Return the dtype gradients are kept in: under FSDP it is that of the stored weights."""
    if keeps_masters_as_weights(rule, dtypes) and recipe.grad_dtype is None:
        return Dtype.FP32
    return dtypes.gradients
