"""Communication and gather buffers of one rank during forward and backward."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from batchplan.memory.activations import Place
from batchplan.memory.parameters import Parameters
from batchplan.memory.shards import flat_groups
from batchplan.memory.states import States
from batchplan.profile import ActivationProfile
from batchplan.spec import Dtype, Method, Optimizer, Recipe
from batchplan.states.numerics import BYTES_PER_ELEMENT, Dtypes
from batchplan.states.sharding import Engine, ShardingRule
from batchplan.states.zero import MAX_LIVE_PARAMS, prefetch_elements, reduce_bucket_elements

INPUT_BYTES_PER_TOKEN = 24
"""input_ids, attention_mask and labels in int64 (3 x 8); the Trainer fetches all K micro-batches
before the first forward (transformers ``trainer.py``, ``get_batch_samples``)."""


PASSES = tuple(place for place in Place if place is not Place.OPTIMIZER_STEP)
_LAYERS_BACKWARD = (Place.LAYER_BACKWARD, Place.FIRST_LAYER_BACKWARD)


@dataclass(frozen=True, slots=True, kw_only=True)
class Buffers:
    """Bytes of buffers by where in the step they are looked at, and why; 0 where not named."""

    gathered: Mapping[Place, int]
    gathered_formula: str
    communication: Mapping[Place, int]
    communication_formula: str
    source: str

    def at(self, place: Place) -> int:
        """Return all of them at a place."""
        return self.gathered.get(place, 0) + self.communication.get(place, 0)


_NONE = Buffers(
    gathered={},
    gathered_formula="nothing is sharded",
    communication={},
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
            gathered={},
            gathered_formula="weights are whole on every rank",
            communication=dict.fromkeys(Place, states.gradients_whole),
            communication_formula="buckets hold a copy of every gradient",
            source="torch DistributedDataParallel, gradient_as_bucket_view=False",
        )
    if rule.engine is Engine.DEEPSPEED:
        return _deepspeed(profile, recipe, dtypes, rule, num_ranks)
    return _fsdp(profile, recipe, dtypes, rule)


def _deepspeed(
    profile: ActivationProfile,
    recipe: Recipe,
    dtypes: Dtypes,
    rule: ShardingRule,
    num_ranks: int,
) -> Buffers:
    """Return ZeRO's reduction bucket, its copy on the way, and what ZeRO-3 has gathered.

    Sources: deepspeed ``stage_1_and_2.py`` (``setup_buckets``; ``allreduce_bucket`` flattens the
    slices of a bucket), ``stage3.py`` (one permanent bucket, ``overlap_comm`` or not). What ZeRO-3
    has gathered reaches ``stage3_max_live_parameters`` by the end of the forward where
    ``stage3_max_reuse_distance`` is the same, as by default; the prefetch goes on top.
    Leaves out: a second bucket where ``overlap_comm`` is switched on in ZeRO-1 and ZeRO-2, whose
    default is off (``zero/config.py``, ``overlap_comm_valid``).
    """
    width = BYTES_PER_ELEMENT[dtypes.gradients]
    bucket = reduce_bucket_elements(recipe, profile.hidden_size)
    # ZeRO-1 reduces after the backward: see ``States.step_temporary``.
    copied = _copied_elements(profile, recipe, rule, num_ranks, bucket) if rule.gradients else 0
    gathered = 0
    formula = "weights are whole on every rank"
    if rule.weights and num_ranks > 1:
        prefetched = prefetch_elements(recipe, profile.hidden_size)
        live = min(profile.num_params, MAX_LIVE_PARAMS + prefetched)
        gathered = BYTES_PER_ELEMENT[dtypes.compute] * live
        formula = f"min(P, stage3_max_live_parameters 1e9 + prefetch {prefetched:,}) in 16 bits"
    return Buffers(
        gathered=dict.fromkeys(PASSES, gathered),
        gathered_formula=formula,
        communication=dict.fromkeys(PASSES, width * (bucket + copied)),
        communication_formula=f"reduce bucket of {bucket:,} elements ({recipe.zero_buckets}) and "
        "a copy of what is being reduced",
        source="deepspeed zero/config.py, stage_1_and_2.py, stage3.py; transformers "
        "integrations/deepspeed.py",
    )


def _copied_elements(
    profile: ActivationProfile, recipe: Recipe, rule: ShardingRule, num_ranks: int, bucket: int
) -> int:
    """Return the elements of the copy a reduction makes: of a bucket, or of one large parameter.

    A parameter larger than the bucket is reduced by itself, and copied only where ZeRO-3 has to
    pad it or a border of ZeRO-2's partitions cuts it.
    Sources: deepspeed ``coalesced_collectives.py``, ``reduce_scatter_coalesced``;
    ``stage_1_and_2.py``, ``average_tensor``; torch ``tensor_flatten.h`` (one tensor is a view).
    """
    parameters = Parameters.of(profile, recipe)
    filled = min(bucket, profile.trainable_params)
    if not rule.weights:
        groups = flat_groups(parameters, num_ranks, use_muon=recipe.optimizer is Optimizer.MUON)
        cut = max((group.largest_cut for group in groups), default=0)
        return max(filled, cut) if num_ranks > 1 else 0
    padded = (
        kind.num_elements
        for kind, _ in parameters.kinds()
        if kind.is_trained and kind.has_shape and kind.num_elements % num_ranks
    )
    return max(filled, max(padded, default=0))


def _fsdp(
    profile: ActivationProfile, recipe: Recipe, dtypes: Dtypes, rule: ShardingRule
) -> Buffers:
    """Return FSDP's gathered weights and flat buffers.

    The root's weights (embedding, norm, head) stay through both passes. A layer is gathered into a
    flat buffer and copied out (version 2) or gathered in place (version 1). Backward gathers the
    next layer ahead and holds the gradients of the one before until they are sent.

    Source: torch ``_fsdp_param_group.py``, ``_fsdp_collectives.py``; ``_flat_param.py``,
    ``_runtime_utils.py``; seen alike in recordings of the real ``fully_shard``.
    """
    unit_bytes = fsdp_unit_bytes(profile, recipe, dtypes)
    is_layer = [profile.stages[index].is_layer for index in profile.order]
    layers = [size for size, keep in zip(unit_bytes, is_layer, strict=True) if keep]
    root = sum(unit_bytes) - sum(layers)
    largest = max(layers, default=0)
    if rule.reshards_after_forward:
        forward = root + largest
        # Version 1 gathers the last layer before the head's backward, version 2 its flat buffer.
        head_forward, head_backward = root, forward if recipe.fsdp_version == 1 else root
        backward = root + max((sum(layers[i : i + 2]) for i in range(len(layers))), default=0)
        formula = "root unit + layer at hand; in backward also the one gathered ahead"
    else:
        forward = backward = head_forward = head_backward = root + sum(layers)
        formula = "root unit + every layer, kept from forward to backward"
    reduced = max(fsdp_reduced_bytes(profile, dtypes))
    flat = largest if recipe.fsdp_version > 1 else 0
    return Buffers(
        gathered={
            Place.LAYER_FORWARD: forward,
            Place.LAYER_BACKWARD: backward,
            Place.FIRST_LAYER_BACKWARD: forward,
            Place.OUTSIDE_FORWARD: head_forward,
            Place.OUTSIDE_BACKWARD: head_backward,
        },
        gathered_formula=formula,
        communication={
            place: flat + reduced if place in _LAYERS_BACKWARD else flat for place in PASSES
        },
        communication_formula="flat all-gather output of one layer (version 2); in backward also "
        "the reduce-scatter input of one unit",
        source="torch _fsdp_param_group.py, _fsdp_collectives.py, _flat_param.py",
    )


def fsdp_unit_bytes(profile: ActivationProfile, recipe: Recipe, dtypes: Dtypes) -> list[int]:
    """Return the gathered bytes of every stage in order."""
    return [_unit_bytes(profile, index, recipe, dtypes) for index in profile.order]


def fsdp_reduced_bytes(profile: ActivationProfile, dtypes: Dtypes) -> list[int]:
    """Return the bytes of every stage's whole gradients as they are reduced."""
    width = BYTES_PER_ELEMENT[dtypes.compute if dtypes.has_master else dtypes.gradients]
    return [width * profile.stages[index].trainable_params for index in profile.order]


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
