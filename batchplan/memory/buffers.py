"""Communication and gather buffers of one rank during forward and backward."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.memory.states import States
from batchplan.profile import ActivationProfile
from batchplan.spec import Dtype, Method, Recipe
from batchplan.states.numerics import BYTES_PER_ELEMENT, Dtypes
from batchplan.states.sharding import Engine, ShardingRule

# Defaults of deepspeed/runtime/zero/config.py, in elements.
ZERO3_MAX_LIVE_PARAMS = 1_000_000_000

INPUT_BYTES_PER_TOKEN = 24
"""input_ids, attention_mask and labels in int64 (3 x 8); the Trainer fetches all K micro-batches
before the first forward (transformers ``trainer.py``, ``get_batch_samples``)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """Bytes that live through forward and backward, and why."""

    gathered_bytes: int
    gathered_formula: str
    communication_bytes: int
    communication_formula: str
    source: str


_NONE = Buffers(
    gathered_bytes=0,
    gathered_formula="nothing is sharded",
    communication_bytes=0,
    communication_formula="one rank sends nothing",
    source="",
)


def compute_buffers(
    *,
    profile: ActivationProfile,
    recipe: Recipe,
    dtypes: Dtypes,
    rule: ShardingRule,
    num_ranks: int,
    states: States,
) -> Buffers:
    """Return the buffers that ``recipe`` needs on ``num_ranks`` ranks.

    One subject per engine; each formula names its source. Gradients in flight are not here but
    in the fold, because they come and go with the stages.
    """
    if rule.engine is Engine.TORCH_DDP:
        if num_ranks == 1 or recipe.bucket_view:
            return _NONE
        return Buffers(
            gathered_bytes=0,
            gathered_formula="weights are whole on every rank",
            communication_bytes=states.gradients_whole,
            communication_formula="buckets hold a copy of every gradient",
            source="torch DistributedDataParallel, gradient_as_bucket_view=False",
        )
    if rule.engine is Engine.DEEPSPEED:
        return _deepspeed(profile, dtypes, rule, num_ranks)
    return _fsdp(profile, recipe, dtypes, rule)


def _deepspeed(
    profile: ActivationProfile, dtypes: Dtypes, rule: ShardingRule, num_ranks: int
) -> Buffers:
    width = BYTES_PER_ELEMENT[dtypes.gradients]
    # The "auto" of transformers' integration: reduce bucket h*h elements, prefetch 0.9*h*h.
    square = profile.hidden_size * profile.hidden_size
    bucket = square * width
    if not rule.weights:
        return Buffers(
            gathered_bytes=0,
            gathered_formula="weights are whole on every rank",
            communication_bytes=bucket,
            communication_formula="reduce bucket of h*h elements (auto)",
            source="transformers integrations/deepspeed.py; deepspeed stage_1_and_2.py",
        )
    gathered = 0
    if num_ranks > 1:
        live = min(profile.num_params, ZERO3_MAX_LIVE_PARAMS + square * 9 // 10)
        gathered = BYTES_PER_ELEMENT[dtypes.compute] * live
    return Buffers(
        gathered_bytes=gathered,
        gathered_formula="min(P, stage3_max_live_parameters 1e9 + prefetch 0.9*h*h) in 16 bits",
        communication_bytes=bucket,
        communication_formula="reduce bucket of h*h elements (auto)",
        source="deepspeed zero/config.py, stage3.py; transformers integrations/deepspeed.py",
    )


def _fsdp(
    profile: ActivationProfile, recipe: Recipe, dtypes: Dtypes, rule: ShardingRule
) -> Buffers:
    unit_bytes = [_unit_bytes(profile, index, recipe, dtypes) for index in profile.order]
    is_layer = [profile.stages[index].is_layer for index in profile.order]
    layers = [size for size, keep in zip(unit_bytes, is_layer, strict=True) if keep]
    root = sum(unit_bytes) - sum(layers)
    if rule.reshards_after_forward:
        window = max((sum(layers[i : i + 2]) for i in range(len(layers))), default=0)
        formula = "root unit + two neighbouring layers (current and prefetched)"
    else:
        window = sum(layers)
        formula = "root unit + every layer, kept from forward to backward"
    largest = max(layers, default=0)
    reduce_width = BYTES_PER_ELEMENT[dtypes.compute if dtypes.has_master else dtypes.gradients]
    trainable = max(profile.stages[index].trainable_params for index in profile.order)
    return Buffers(
        gathered_bytes=root + window,
        gathered_formula=formula,
        communication_bytes=largest + reduce_width * trainable,
        communication_formula="all-gather output of one layer + reduce-scatter input of one unit",
        source="torch _fsdp_param_group.py, _fsdp_collectives.py: prefetch 1, one reduce-scatter",
    )


def _unit_bytes(profile: ActivationProfile, index: int, recipe: Recipe, dtypes: Dtypes) -> int:
    """Gathered bytes of one stage: weights in the dtype the forward computes with."""
    stage = profile.stages[index]
    gathered_as = dtypes.compute if dtypes.has_master else dtypes.weights
    # A 4-bit base is left out of sharding unless stored in 16 bits; then it is gathered packed.
    quantised = stage.quantisable_params if recipe.method is Method.QLORA else 0
    plain = stage.frozen_params - quantised
    frozen_width = BYTES_PER_ELEMENT[Dtype.BF16 if dtypes.autocast else dtypes.frozen]
    return (
        BYTES_PER_ELEMENT[gathered_as] * stage.trainable_params
        + frozen_width * plain
        + quantised // 2
    )
