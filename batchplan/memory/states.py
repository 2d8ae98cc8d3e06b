"""Persistent states of one rank: weights, master weights, gradients, optimizer states."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.memory.frozen import frozen_bytes
from batchplan.memory.optimizers import Updated, kept_bytes, step_bytes
from batchplan.memory.parameters import Kind, Parameters
from batchplan.memory.shards import (
    FlatGroup,
    flat_groups,
    held_elements,
    reduced_elements,
    split,
    split_rows,
    sub_groups,
)
from batchplan.spec import Offload, Optimizer, Recipe
from batchplan.states.numerics import BYTES_PER_ELEMENT, Dtypes
from batchplan.states.sharding import (
    Engine,
    ShardingRule,
    keeps_masters_as_weights,
    stored_gradient_dtype,
)
from batchplan.states.zero import persistence_threshold, reduce_bucket_elements

_MASTER_BYTES = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class States:
    """Bytes of one rank; what is on the host is in ``host_bytes`` alone."""

    weights: int
    frozen_weights: int
    master_weights: int
    optimizer_states: int
    gradients: int
    """Persistent gradients once a whole backward has passed; ZeRO-1's before they are reduced."""
    gradients_whole: int
    """The same, unsharded."""
    step_temporary: int
    """What is on top in the optimizer step: its own needs, ZeRO-1's reduction before it, and the
    bucket that ZeRO-3 never lets go of."""
    host_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Trained:
    """Bytes of what trains, on the fullest rank."""

    weights: int
    master_weights: int
    optimizer_states: int
    gradients: int
    step_temporary: int


def compute_states(
    *,
    parameters: Parameters,
    recipe: Recipe,
    dtypes: Dtypes,
    rule: ShardingRule,
    num_shards: int,
) -> States:
    """Return the persistent bytes of the fullest rank, padding included.

    Where FSDP's sharded weights are the fp32 masters, the bill has them as master weights and the
    16-bit copies exist only while gathered.

    Sources: ZeRO, https://arxiv.org/abs/1910.02054, section 3.1; the engines' own code, named in
    ``memory.shards``.
    Leaves out: ``step`` counters (4 bytes a tensor under fused kernels, 512 in the allocator);
    DeepSpeed's whole-matrix momentum for Muon (errs low by border matrices).
    Parameters of unknown shapes are shared out evenly, without padding.
    """
    price = _deepspeed if rule.engine is Engine.DEEPSPEED else _torch
    trained = price(parameters, recipe, dtypes, rule, num_shards)
    weights, master = trained.weights, trained.master_weights
    optimizer = trained.optimizer_states
    frozen = frozen_bytes(
        parameters=parameters, recipe=recipe, dtypes=dtypes, rule=rule, num_shards=num_shards
    )
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
        gradients=trained.gradients,
        gradients_whole=_gradients_whole(parameters, recipe, rule, dtypes),
        step_temporary=trained.step_temporary if recipe.offload is Offload.NONE else 0,
        host_bytes=host,
    )


def _torch(
    parameters: Parameters, recipe: Recipe, dtypes: Dtypes, rule: ShardingRule, num_shards: int
) -> _Trained:
    """DDP keeps everything whole; FSDP2 cuts every parameter along its first dimension."""
    shards = num_shards if rule.weights else 1
    are_masters = keeps_masters_as_weights(rule, dtypes)
    stored = BYTES_PER_ELEMENT[dtypes.weights]
    weights = elements = gradients = 0
    tensors, matrices = [], []
    for kind, count in parameters.kinds():
        if not kind.is_trained:
            continue
        tensor = _updated(kind, count, shards)
        num_elements = count * tensor.num_elements
        elements += num_elements
        weights += num_elements * (_norm_width(kind, recipe) or stored)
        gradients += num_elements * _gradient_width(kind, recipe, rule, dtypes)
        tensors.append((tensor, _moment_width(kind, recipe, dtypes)))
        if kind.is_matrix:
            matrices.append(tensor)
    return _Trained(
        weights=0 if are_masters else weights,
        master_weights=_MASTER_BYTES * elements if dtypes.has_master else 0,
        optimizer_states=kept_bytes(recipe.optimizer, tensors),
        gradients=gradients,
        step_temporary=step_bytes(
            recipe.optimizer,
            recipe.optimizer_impl,
            group=matrices,
            turns=[
                (_updated(before, 1, shards) if before else None, _updated(after, 1, shards))
                for before, after in parameters.trained_matrices_in_turn()
            ],
            width=BYTES_PER_ELEMENT[dtypes.optimizer],
            is_16bit=stored == 2 and not dtypes.has_master,
        ),
    )


def _deepspeed(
    parameters: Parameters, recipe: Recipe, dtypes: Dtypes, rule: ShardingRule, num_shards: int
) -> _Trained:
    """ZeRO keeps flat buffers: 16-bit ones whole or in partitions, fp32 ones in partitions.

    The optimizer gets a clone of the partition even where it has the same dtype
    (``stage_1_and_2.py``, ``single_partition_of_fp32_groups``; in ``stage3.py``,
    ``_create_fp32_partitions`` would share it but compares a ``torch.device`` with a string).
    """
    use_muon = recipe.optimizer is Optimizer.MUON
    cut = sub_groups if rule.weights else flat_groups
    groups = cut(parameters, num_shards, use_muon=use_muon)
    partition = sum(group.partition for group in groups)
    stored = BYTES_PER_ELEMENT[dtypes.weights]
    gradient = BYTES_PER_ELEMENT[stored_gradient_dtype(recipe, rule, dtypes)]
    has_master = dtypes.has_master or recipe.master_weights is None
    master = _MASTER_BYTES if dtypes.has_master else stored
    moment = BYTES_PER_ELEMENT[dtypes.optimizer]
    whole = sum(count * kind.num_elements for kind, count in parameters.kinds() if kind.is_trained)
    in_step = max(
        (_flat_step_bytes(group, recipe, gradient, master, moment) for group in groups), default=0
    )
    if rule.weights:
        weights, gradients = _zero3_elements(parameters, recipe, rule, num_shards), partition
    else:
        weights, gradients = sum(group.num_elements for group in groups), reduced_elements(groups)
    bucket = gradient * reduce_bucket_elements(recipe, parameters.hidden_size)
    # ZeRO-3's bucket is permanent; the others let go of theirs when the backward is over.
    temporary = in_step + (bucket if rule.weights else 0)
    if not rule.gradients:
        # Gradients stay whole until the backward is over, then move bucket by bucket into the
        # partition, which is there at once; the step has the partition alone.
        reduced = gradient * gradients
        temporary = max(reduced + bucket, reduced + in_step - gradient * whole)
        gradients = whole
    return _Trained(
        weights=stored * weights,
        master_weights=master * partition if has_master else 0,
        optimizer_states=kept_bytes(
            recipe.optimizer, [(_flat_tensor(group, recipe), moment) for group in groups]
        ),
        gradients=gradient * gradients,
        step_temporary=temporary,
    )


def _zero3_elements(
    parameters: Parameters, recipe: Recipe, rule: ShardingRule, num_shards: int
) -> int:
    threshold = persistence_threshold(recipe, parameters.hidden_size)
    return sum(
        count
        * (
            held_elements(kind.shape, rule=rule, num_shards=num_shards, threshold=threshold)
            if kind.has_shape
            else split(kind.num_elements, num_shards)
        )
        for kind, count in parameters.kinds()
        if kind.is_trained
    )


def _flat_step_bytes(
    group: FlatGroup, recipe: Recipe, gradient: int, master: int, moment: int
) -> int:
    """Return what the step of one flat group needs besides the reduced gradients.

    First the norm, tensor by tensor in fp64; then the gradients as one flat tensor, which is
    converted to the master's dtype; then the optimizer's own.
    Source: deepspeed ``stage_1_and_2.py`` and ``stage3.py``, ``get_grad_norm_direct`` and ``step``.
    """
    norm = 8 * group.largest_piece
    flat = gradient * group.partition
    converted = master * group.partition if master != gradient else 0
    tensor = _flat_tensor(group, recipe)
    own = step_bytes(
        recipe.optimizer,
        recipe.optimizer_impl,
        group=[tensor],
        turns=[(None, tensor)],
        width=moment,
        is_16bit=master == 2,
    )
    return max(norm, flat + converted, (converted or flat) + own)


def _flat_tensor(group: FlatGroup, recipe: Recipe) -> Updated:
    kind = group.kind
    return Updated(
        shape=(group.partition,),
        uses_muon=recipe.optimizer is Optimizer.MUON and kind.is_matrix and kind.is_layer,
    )


def _updated(kind: Kind, count: int, num_shards: int) -> Updated:
    return Updated(
        shape=split_rows(kind.shape, num_shards),
        count=count,
        uses_muon=kind.is_matrix and kind.is_layer,
        is_embedding=kind.is_embedding,
        has_shape=kind.has_shape,
    )


def _gradients_whole(
    parameters: Parameters, recipe: Recipe, rule: ShardingRule, dtypes: Dtypes
) -> int:
    return sum(
        count * kind.num_elements * _gradient_width(kind, recipe, rule, dtypes)
        for kind, count in parameters.kinds()
        if kind.is_trained
    )


def _norm_width(kind: Kind, recipe: Recipe) -> int | None:
    """Return the width of a normalisation's weight where the recipe gives it one of its own."""
    if not kind.is_norm or recipe.norm_dtype is None:
        return None
    return BYTES_PER_ELEMENT[recipe.norm_dtype]


def _gradient_width(kind: Kind, recipe: Recipe, rule: ShardingRule, dtypes: Dtypes) -> int:
    """Return the width of a gradient, which torch makes in the dtype of its weight."""
    own = _norm_width(kind, recipe)
    if own and recipe.grad_dtype is None and rule.engine is not Engine.DEEPSPEED:
        return _MASTER_BYTES if keeps_masters_as_weights(rule, dtypes) else own
    return BYTES_PER_ELEMENT[stored_gradient_dtype(recipe, rule, dtypes)]


def _moment_width(kind: Kind, recipe: Recipe, dtypes: Dtypes) -> int:
    """Return the width of a moment, which torch makes in the dtype of what it updates."""
    own = _norm_width(kind, recipe)
    if own and recipe.optimizer_dtype is None and not dtypes.has_master:
        return own
    return BYTES_PER_ELEMENT[dtypes.optimizer]
