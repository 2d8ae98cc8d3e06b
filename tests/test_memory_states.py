"""States by hand: each optimizer, each engine's padding, NF4, up-casts, step temporaries."""

from __future__ import annotations

import importlib.util
from dataclasses import replace
from math import prod
from time import process_time

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import A100, toy_profile

from batchplan.memory.activations import Place
from batchplan.memory.frozen import nf4
from batchplan.memory.optimizers import OPTIMIZERS, Updated, kept_bytes, step_bytes
from batchplan.memory.parameters import Parameters
from batchplan.memory.setting import prepare
from batchplan.memory.shards import flat_groups, reduced_elements, split, split_rows, sub_groups
from batchplan.memory.states import States, compute_states
from batchplan.profile import ActivationProfile, ParameterGroup
from batchplan.spec import Cluster, Optimizer, OptimizerImpl, Recipe, Sharding
from batchplan.states.numerics import resolve_dtypes
from batchplan.states.sharding import RULES

HIDDEN = 60
NORM = ParameterGroup(shape=(HIDDEN,), is_norm=True)
MATRIX = ParameterGroup(shape=(161, HIDDEN))
TABLE = ParameterGroup(shape=(97, HIDDEN))
ELEMENTS = 2 * 97 * HIDDEN + 2 * (161 * HIDDEN + HIDDEN) + HIDDEN
"""Embedding, two layers of a matrix and a norm, a last norm and a head: 31,080."""


def profile_of(
    *,
    embedding: tuple[ParameterGroup, ...] = (TABLE,),
    layer: tuple[ParameterGroup, ...] = (MATRIX, NORM),
    head: tuple[ParameterGroup, ...] = (NORM, TABLE),
    num_layers: int = 2,
    hidden_size: int = HIDDEN,
) -> ActivationProfile:
    toy = toy_profile(num_layers=num_layers, hidden_size=hidden_size)
    stages = zip(toy.stages, (embedding, layer, head), strict=True)
    return replace(toy, stages=tuple(replace(stage, parameters=groups) for stage, groups in stages))


def frozen(*groups: ParameterGroup) -> tuple[ParameterGroup, ...]:
    return tuple(replace(group, is_trained=False) for group in groups)


def states(profile: ActivationProfile | None = None, *, num_ranks: int = 1, **fields) -> States:
    recipe = Recipe.model_validate(fields)
    rule = RULES[recipe.sharding]
    return compute_states(
        parameters=Parameters.of(profile or profile_of(), recipe),
        recipe=recipe,
        dtypes=resolve_dtypes(recipe),
        rule=rule,
        num_shards=rule.num_shards(Cluster(num_ranks=num_ranks)),
    )


# --- optimizers, whole tensors -----------------------------------------------------------------


@pytest.mark.parametrize(
    ("optimizer", "by_hand"),
    [
        # torch.optim.AdamW: exp_avg and exp_avg_sq.
        ("adamw", 2 * 4 * ELEMENTS),
        # bitsandbytes 0.50 optimizer.py, init_state: 9,660 and 5,820 elements are above 4,096 and
        # have 38 and 23 blocks of 256; norms are fp32; the embedding too (Trainer), the head not.
        (
            "adamw-8bit",
            2 * (2 * (9660 + 4 * 38) + (5820 + 4 * 23) + 4 * (5820 + 3 * 60)) + 2 * 256 * 4,
        ),
        # transformers Adafactor: rows + columns of matrices, every element of vectors, fp32.
        ("adafactor", 4 * (2 * (97 + 60) + 2 * (161 + 60) + 3 * 60)),
        ("sgd", 0),
        ("sgd-momentum", 4 * ELEMENTS),
        ("lion", 4 * ELEMENTS),
        # One momentum for the layers' matrices, Adam's two for embedding, head and norms.
        ("muon", 4 * (2 * 9660 + 2 * (2 * 5820 + 3 * 60))),
    ],
)
def test_an_optimizer_keeps_what_its_source_allocates(optimizer, by_hand):
    assert states(optimizer=optimizer, numerics="fp32").optimizer_states == by_hand


def test_every_optimizer_is_priced():
    assert set(OPTIMIZERS) == set(Optimizer)


@pytest.mark.parametrize(
    ("optimizer", "width"), [("adamw", 2), ("lion", 4), ("adafactor", 4), ("sgd-momentum", 2)]
)
def test_moments_follow_the_weights_where_the_source_makes_them_like_the_weights(optimizer, width):
    """torch makes moments with zeros_like; bitsandbytes' Lion and Adafactor are always fp32."""
    pure, single = (
        states(optimizer=optimizer, numerics=numerics).optimizer_states
        for numerics in ("bf16", "fp32")
    )
    assert pure * 4 == single * width


@pytest.mark.parametrize(
    ("optimizer", "impl", "numerics", "by_hand"),
    [
        ("adamw", "fused", "fp32", 0),
        # adam.py, _multi_tensor_adam: exp_avg_sq_sqrt of the group with weight decay.
        ("adamw", "foreach", "fp32", 4 * (ELEMENTS - 3 * 60)),
        ("adamw", "foreach", "bf16", 2 * (ELEMENTS - 3 * 60)),
        # _single_tensor_adam: a root, its quotient, and the last tensor's denom of the same size.
        ("adamw", "for-loop", "fp32", 4 * 3 * 9660),
        # optimization.py: grad**2 and + eps (with fp32 gradient and weight in 16-bit training),
        # and the last tensor's update.
        ("adafactor", "fused", "fp32", 4 * 3 * 9660),
        ("adafactor", "fused", "bf16", 4 * 5 * 9660),
        ("adamw-8bit", "foreach", "bf16", 0),
        ("lion", "foreach", "bf16", 0),
        ("sgd-momentum", "foreach", "fp32", 0),
        ("sgd", "for-loop", "fp32", 0),
        # _muon.py: fp32 update, two bf16 iterates, two bf16 Gram matrices of the short side.
        ("muon", "fused", "fp32", 8 * 9660 + 4 * 60 * 60),
        ("muon", "foreach", "fp32", max(8 * 9660 + 4 * 60 * 60, 4 * 2 * 5820)),
    ],
)
def test_a_step_needs_what_its_source_allocates(optimizer, impl, numerics, by_hand):
    found = states(optimizer=optimizer, optimizer_impl=impl, numerics=numerics)
    assert found.step_temporary == by_hand


@pytest.mark.slow
@pytest.mark.parametrize(
    ("optimizer", "impl"),
    [
        ("adamw", "foreach"),
        ("adamw", "for-loop"),
        ("sgd-momentum", "foreach"),
        ("sgd-momentum", "for-loop"),
        ("adafactor", "for-loop"),
        ("muon", "for-loop"),
    ],
)
@pytest.mark.parametrize("is_16bit", [False, True])
def test_a_real_step_peaks_there(optimizer, impl, is_16bit):
    """torch's and transformers' own steps on CPU tensors, every allocation counted."""
    from engines.step import peak_of_step

    shapes = [(161, HIDDEN), (HIDDEN, 161), (161, HIDDEN)]
    tensors = [Updated(shape=shape, uses_muon=optimizer == "muon") for shape in shapes]
    ours = step_bytes(
        Optimizer(optimizer),
        OptimizerImpl(impl),
        group=tensors,
        turns=[(None, tensors[0]), (tensors[0], tensors[1])],
        width=2 if is_16bit else 4,
        is_16bit=is_16bit,
    )
    found = peak_of_step(optimizer, shapes, foreach=impl == "foreach", is_16bit=is_16bit)
    # Row and column means, norms and scalars come on top: nothing of a matrix's size.
    assert ours <= found < ours + 4 * 4 * (161 + HIDDEN) + 256


@pytest.mark.skipif(
    importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed"
)
@pytest.mark.filterwarnings("ignore")
def test_bitsandbytes_itself_keeps_these_bytes():
    import bitsandbytes
    import torch

    shapes = [(97, 60), (60, 60), (60,)]
    parameters = [torch.nn.Parameter(torch.randn(shape)) for shape in shapes]
    optimizer = bitsandbytes.optim.AdamW8bit(parameters)
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    storages = {
        value.untyped_storage().data_ptr(): value.untyped_storage().nbytes()
        for state in optimizer.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    }
    ours = kept_bytes(Optimizer.ADAMW_8BIT, [(Updated(shape=shape), 4) for shape in shapes])
    assert sum(storages.values()) == ours
    for double_quant in (False, True):
        packed, state = bitsandbytes.functional.quantize_4bit(
            torch.randn(97, 61), compress_statistics=double_quant, quant_type="nf4"
        )
        tensors = [state.absmax, state.code]
        if double_quant:
            tensors += [state.offset, state.state2.absmax, state.state2.code]
        matrix = nf4(97 * 61, double_quant=double_quant)
        assert packed.numel() == matrix.packed_bytes
        assert sum(t.numel() * t.element_size() for t in tensors) == matrix.constant_bytes


# --- shards and padding ------------------------------------------------------------------------


def test_fsdp_pads_the_first_dimension_of_every_parameter():
    """torch _fsdp_param.py: chunk 0 of 97 rows over 4 ranks is 25 rows, of 161 is 41, of 60 15."""
    found = states(num_ranks=4, sharding="fsdp-full", numerics="bf16-master", optimizer="adamw")
    padded = 2 * 25 * 60 + 2 * (41 * 60 + 15) + 15
    assert (found.weights, found.master_weights) == (0, 4 * padded)
    assert found.gradients == 4 * padded
    assert found.optimizer_states == 8 * padded


def test_fsdp_hybrid_shards_over_a_node_only():
    recipe = Recipe(sharding="fsdp-hybrid")
    rule = RULES[recipe.sharding]
    assert rule.num_shards(Cluster(num_ranks=16, num_nodes=2)) == 8


def test_zero_2_pads_each_flat_group_and_keeps_border_gradients_whole():
    """stage_1_and_2.py over 4 ranks: 30,960 matrix elements are a multiple of 8 and 7,740 a rank;
    180 norm elements become 184 and 46."""
    found = states(num_ranks=4, sharding="zero2", numerics="bf16-master")
    assert found.weights == 2 * (30_960 + 184)
    assert found.master_weights == 4 * (7740 + 46)
    assert found.optimizer_states == 8 * (7740 + 46)
    # Matrices end at 5820, 15480, 25140 and 30960. The last rank (23220..) has parts of the second
    # layer's and the head, so both whole; of the norms the last (120..180) and 4 zeros of padding.
    assert found.gradients == 2 * (9660 + 5820 + 60 + 4)


def test_zero_3_pads_each_parameter_and_keeps_small_ones_whole_besides():
    """5,820 and 9,660 divide by 4, norms too; up to 10*h = 600 elements stay whole ("auto")."""
    auto = states(num_ranks=4, sharding="zero3", numerics="bf16-master")
    assert auto.weights == 2 * (ELEMENTS // 4 + 3 * 60)
    assert auto.master_weights == 4 * ELEMENTS // 4
    assert auto.gradients == 2 * ELEMENTS // 4
    # DeepSpeed's own threshold, 1e5 elements, has every parameter of this model.
    default = states(num_ranks=4, sharding="zero3", numerics="bf16-master", zero_buckets="default")
    assert default.weights == 2 * (ELEMENTS // 4 + ELEMENTS)
    uneven = states(num_ranks=7, sharding="zero3", numerics="bf16-master")
    assert uneven.gradients == 2 * (2 * 832 + 2 * 1380 + 3 * 9)


def test_a_flat_partition_has_no_rows_to_factor():
    """DeepSpeed gives Adafactor vectors: its whole second moment is kept, in fp32."""
    found = states(num_ranks=2, sharding="zero2", optimizer="adafactor")
    assert found.optimizer_states == 4 * (30_960 + 180) // 2


def test_deepspeed_clones_even_fp32_weights_unless_told_that_there_are_no_masters():
    assert states(num_ranks=2, sharding="zero1", numerics="fp32").master_weights == 4 * 15_570
    told = states(num_ranks=2, sharding="zero1", numerics="fp32", master_weights=False)
    assert told.master_weights == 0


def test_deepspeed_casts_adapters_to_16_bits_and_keeps_masters_of_them():
    profile = profile_of(embedding=frozen(TABLE), head=frozen(NORM, TABLE))
    apart, together = (
        states(profile, method="lora", sharding=sharding) for sharding in ("ddp", "zero2")
    )
    trained = 2 * (9660 + 60)
    assert (apart.weights, apart.master_weights) == (4 * trained, 0)
    assert (together.weights, together.master_weights) == (2 * trained, 4 * trained)


def test_zero_3_takes_the_step_in_sub_groups_of_a_billion_elements():
    big = ParameterGroup(shape=(30_000, 20_000))
    parameters = Parameters.of(profile_of(layer=(big, NORM), num_layers=3), Recipe())
    sizes = [group.partition for group in sub_groups(parameters, 1, use_muon=False)]
    # Cut as soon as 1e9 is reached: embedding and two matrices; one matrix and head; norms.
    assert sizes == [5820 + 2 * 600_000_000, 600_000_000 + 5820, 4 * 60]


def test_zero_2_converts_gradients_to_fp32_in_the_step():
    """The flat 16-bit copy and its fp32 conversion, beside the reduced gradients."""
    foreach = {"sharding": "zero2", "optimizer_impl": "foreach", "num_ranks": 2}
    assert states(sharding="zero2", num_ranks=2).step_temporary == max(6 * 15_480, 8 * 9660)
    assert states(**foreach).step_temporary == 8 * 15_480


def test_a_reduction_copies_a_large_parameter_only_where_it_is_cut_or_padded():
    """Over 4 ranks the borders are 7740, 15480 and 23220; the outer two cut a matrix each."""

    def copied(sharding: str, num_ranks: int) -> int:
        cluster = Cluster(num_ranks=num_ranks)
        recipe = Recipe(sharding=sharding)
        made = prepare(profile=profile_of(), recipe=recipe, cluster=cluster, gpu=A100)
        return made.buffers.communication[Place.LAYER_BACKWARD] // 2 - HIDDEN * HIDDEN

    assert copied("zero2", 4) == 9660
    assert copied("zero2", 2) == 3600  # 15480 is where the first layer ends
    assert copied("zero2", 1) == 0
    assert copied("zero3", 4) == 3600  # all divide by 4: a bucket is copied, no parameter is
    assert copied("zero3", 11) == 9660
    assert copied("zero1", 4) == 0


@given(
    st.lists(st.integers(1, 5000), min_size=1, max_size=12),
    st.integers(1, 9),
)
def test_reduced_gradients_are_counted_like_walking_every_element(sizes, num_ranks):
    layer = tuple(ParameterGroup(shape=(size, 1)) for size in sizes)
    profile = profile_of(embedding=(NORM,), layer=layer, head=(NORM,), num_layers=1)
    groups = flat_groups(Parameters.of(profile, Recipe()), num_ranks, use_muon=False)
    (group,) = (group for group in groups if group.kind.is_matrix)
    owner = [at for at, size in enumerate(sizes) for _ in range(size)]
    slow = 0
    for rank in range(num_ranks):
        mine = owner[rank * group.partition : (rank + 1) * group.partition]
        slow = max(slow, sum(sizes[at] for at in set(mine)) + group.partition - len(mine))
    assert reduced_elements([group]) == slow


# --- frozen weights ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("double_quant", "constants"),
    # 9,660 elements have 151 blocks of 64; quantised they have one block of 256, an offset, and
    # tables of 16 and 256 values.
    [(False, 4 * 151 + 64), (True, 151 + 4 + 4 + 64 + 1024)],
)
def test_nf4_has_packed_bytes_and_constants_for_every_matrix(double_quant, constants):
    found = nf4(161 * 60, double_quant=double_quant)
    assert (found.packed_bytes, found.constant_bytes) == (4830, constants)


QLORA = {
    "embedding": frozen(TABLE),
    "layer": (
        *frozen(replace(MATRIX, is_quantisable=True), NORM),
        ParameterGroup(shape=(8, HIDDEN)),
    ),
    "head": frozen(NORM, TABLE),
}


@pytest.mark.parametrize(
    ("fields", "table_bytes", "norm_bytes"),
    [
        ({}, 2, 2),
        ({"frozen_upcast": True}, 4, 4),
        ({"norm_dtype": "fp32"}, 2, 4),
        ({"frozen_upcast": True, "norm_dtype": "bf16"}, 4, 2),
    ],
)
def test_what_is_not_quantised_keeps_its_dtype_or_is_cast_up(fields, table_bytes, norm_bytes):
    found = states(profile_of(**QLORA), method="qlora", double_quant=False, **fields)
    packed = 2 * (4830 + 4 * 151 + 64)
    assert found.frozen_weights == packed + table_bytes * 2 * 5820 + norm_bytes * 3 * 60


@pytest.mark.parametrize("sharding", ["fsdp-full", "zero3"])
def test_sharding_leaves_the_constants_of_nf4_whole(sharding):
    profile = profile_of(embedding=(NORM,), layer=QLORA["layer"], head=(NORM,))
    fields = {"method": "qlora", "double_quant": False, "sharding": sharding}
    found = states(profile, num_ranks=4, **fields)
    persistent = 60 if sharding == "zero3" else 0
    each = split(4830, 4) + 4 * 151 + 64 + 2 * (15 + persistent)
    assert found.frozen_weights == 2 * each


def test_trained_norms_have_their_own_dtype_in_weights_gradients_and_moments():
    plain, wide = (states(numerics="bf16", norm_dtype=dtype) for dtype in (None, "fp32"))
    assert wide.weights - plain.weights == 2 * 180
    assert wide.gradients - plain.gradients == 2 * 180
    assert wide.optimizer_states - plain.optimizer_states == 2 * 2 * 180


# --- laws --------------------------------------------------------------------------------------

shapes = st.lists(
    st.one_of(
        st.tuples(st.integers(1, 300)),
        st.tuples(st.integers(1, 300), st.integers(1, 300)),
    ),
    min_size=1,
    max_size=6,
)
SHARDED = [sharding for sharding in Sharding if sharding is not Sharding.DDP]


@given(shapes, st.integers(1, 16), st.sampled_from(SHARDED))
def test_all_ranks_together_hold_at_least_the_whole(shapes, num_ranks, sharding):
    profile = profile_of(layer=tuple(ParameterGroup(shape=shape) for shape in shapes))
    whole = states(profile, numerics="bf16-master")
    ranks = RULES[sharding].num_shards(Cluster(num_ranks=num_ranks))
    found = states(profile, num_ranks=num_ranks, sharding=sharding, numerics="bf16-master")
    for term in ("master_weights", "optimizer_states", "gradients"):
        assert getattr(found, term) * ranks >= getattr(whole, term)


@given(shapes, st.integers(1, 8), st.sampled_from(SHARDED))
def test_twice_the_ranks_never_hold_more_but_for_padding(shapes, num_ranks, sharding):
    profile = profile_of(layer=tuple(ParameterGroup(shape=shape) for shape in shapes))
    tensors = 2 * (len(shapes) + 2)
    few, many = (
        states(profile, num_ranks=ranks, sharding=sharding, numerics="bf16-master")
        for ranks in (num_ranks, 2 * num_ranks)
    )
    # At most an aligned element more for every parameter and term.
    row = max(prod(shape[1:]) for shape in [*shapes, (1, HIDDEN)])
    for term in ("master_weights", "optimizer_states"):
        assert getattr(many, term) <= getattr(few, term) + 8 * tensors * max(2, row)


@given(st.integers(1, 10**6), st.integers(1, 64))
def test_a_split_wastes_less_than_one_element_a_rank(num_elements, num_shards):
    assert 0 <= split(num_elements, num_shards) * num_shards - num_elements < num_shards
    assert split_rows((num_elements, 3), num_shards) == (split(num_elements, num_shards), 3)


def test_a_setting_of_a_7b_model_is_prepared_in_a_millisecond():
    matrices = ((4096, 4096), (1024, 4096), (14_336, 4096), (4096, 14_336))
    layer = tuple(ParameterGroup(shape=shape, count=2) for shape in matrices)
    table = (ParameterGroup(shape=(128_256, 4096)),)
    norm = ParameterGroup(shape=(4096,), count=2, is_norm=True)
    profile = profile_of(
        embedding=table, layer=(*layer, norm), head=table, num_layers=32, hidden_size=4096
    )
    cluster = Cluster(num_ranks=8)

    def seconds(sharding: Sharding) -> float:
        started = process_time()
        prepare(profile=profile, recipe=Recipe(sharding=sharding), cluster=cluster, gpu=A100)
        return process_time() - started

    for sharding in Sharding:
        assert min(seconds(sharding) for _ in range(20)) < 1e-3
