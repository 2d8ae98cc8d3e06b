"""Step time: published FLOP counts, published traffic, published speeds, and laws."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import (
    A100,
    EMPTY_PASS,
    H100,
    RTX_4090,
    clusters,
    gpus,
    recipes,
    toy_profile,
)

from batchplan.profile import ActivationProfile, StageProfile
from batchplan.spec import (
    Attention,
    Batch,
    Checkpointing,
    Cluster,
    Gpu,
    Method,
    Offload,
    Recipe,
    Sharding,
)
from batchplan.states.numerics import nf4_bytes
from batchplan.throughput import (
    TimePart,
    bus_bandwidth_gb_per_s,
    efficiency,
    micro_batch_flops,
    moved_bytes,
    ring_seconds,
    step_time,
    step_timer,
    token_flops,
)

LLAMA_8B, LLAMA_8B_EMBEDDING = 8_030_000_000, 525_000_000


# llm-foundry benchmarking: MPT-7B, 8 H100, s 2,048, 10,643 tokens/s and GPU, 46.44 %.
def test_mpt_7b_on_h100_reaches_the_mfu_llm_foundry_prints():
    flops = token_flops(matmul_params=6_658_859_008, attention_width=32 * 4096, keys=2048)
    assert 10_643 * flops / 989.5e12 == pytest.approx(0.4644, abs=0.0002)


# torchtitan, Llama-3-8B at 8,192: 5,762 and 6,667 tokens/s and GPU are "33 % to 39 %" MFU.
@pytest.mark.parametrize(("tokens_per_second", "mfu"), [(5762, 0.337), (6667, 0.390)])
def test_llama_3_8b_reaches_the_mfu_torchtitan_prints(tokens_per_second, mfu):
    flops = token_flops(
        matmul_params=LLAMA_8B - LLAMA_8B_EMBEDDING, attention_width=32 * 4096, keys=8192
    )
    assert flops == pytest.approx(5.791e10, rel=1e-3)
    assert tokens_per_second * flops / 989e12 == pytest.approx(mfu, abs=0.001)


# Megatron-Bridge performance tables, 70B: TFLOP/s over tokens/s per GPU.
@pytest.mark.parametrize(
    ("tflops", "tokens_per_second", "seq_len", "is_lora"),
    [(735, 2643, 0, True), (710, 1638, 4096, False), (734, 1633, 8192, False)],
)
def test_70b_flops_a_token_match_megatron_bridge(tflops, tokens_per_second, seq_len, is_lora):
    flops = token_flops(
        matmul_params=69_500_000_000,
        attention_width=80 * 8192,
        keys=seq_len / 2,
        trained_params=0 if is_lora else None,
    )
    assert flops == pytest.approx(tflops * 1e12 / tokens_per_second, rel=2e-3)


def count_pairs(seq_len: int, window: int | None) -> int:
    """Query-key pairs the causal mask lets through, one by one."""
    return sum(
        1
        for query in range(seq_len)
        for key in range(query + 1)
        if window is None or query - key < window
    )


@pytest.mark.parametrize("window", [None, 1, 3, 7, 50])
def test_a_decoder_counts_each_unmasked_pair_once(window):
    seq_len, h, layers = 17, 256, 4
    profile = toy_profile(attention_window=window)
    flops = micro_batch_flops(profile=profile, recipe=Recipe(), micro_batch=3, seq_len=seq_len)
    weights = layers * 12 * h * h + 1000 * h
    # Two products (scores, values) of 2 h FLOPs a pair, three times (forward, two gradients).
    expected = 3 * (6 * weights * seq_len + layers * 12 * h * count_pairs(seq_len, window))
    assert flops.model == flops.executed == pytest.approx(expected)


def test_eager_attention_and_encoders_count_every_key():
    decoder = toy_profile()
    causal = micro_batch_flops(profile=decoder, recipe=Recipe(), micro_batch=1, seq_len=512)
    eager = micro_batch_flops(
        profile=decoder, recipe=Recipe(attention=Attention.EAGER), micro_batch=1, seq_len=512
    )
    encoder = micro_batch_flops(
        profile=toy_profile(attends_causally=False),
        recipe=Recipe(),
        micro_batch=1,
        seq_len=512,
    )
    assert eager.executed_scores == encoder.executed_scores
    assert eager.executed_scores / causal.executed_scores == pytest.approx(2, rel=0.01)
    assert "causal-exact" in causal.convention
    assert "every key" in eager.convention


@pytest.mark.parametrize("architecture", ["T5ForConditionalGeneration", "BertForMaskedLM", "New"])
def test_the_stages_and_not_the_architectures_name_say_what_is_causal(architecture):
    for attends_causally, words in ((True, "causal-exact"), (False, "every key")):
        profile = toy_profile(architecture=architecture, attends_causally=attends_causally)
        flops = micro_batch_flops(profile=profile, recipe=Recipe(), micro_batch=1, seq_len=64)
        assert words in flops.convention
        pairs = count_pairs(64, None) if attends_causally else 64 * 64
        assert flops.executed_scores == pytest.approx(4 * 12 * 256 * pairs)


@pytest.mark.parametrize("window", [None, 5])
def test_cross_attention_is_a_second_one_that_sees_every_key(window):
    seq_len, h, layers = 17, 256, 4
    decoder = toy_profile(num_attentions=2, attention_window=window)
    flops = micro_batch_flops(profile=decoder, recipe=Recipe(), micro_batch=1, seq_len=seq_len)
    pairs = count_pairs(seq_len, window) + seq_len * seq_len
    assert flops.executed_scores == pytest.approx(layers * 12 * h * pairs)
    assert "every key; 6Lqs where causal" in flops.convention


def test_checkpointing_runs_the_layers_forward_again_and_leaves_model_flops_alone():
    plain, repeated = (
        micro_batch_flops(
            profile=toy_profile(),
            recipe=Recipe(checkpointing=checkpointing),
            micro_batch=1,
            seq_len=256,
        )
        for checkpointing in (Checkpointing.NONE, Checkpointing.FULL)
    )
    head = 6 * 1000 * 256 * 256
    assert repeated.model == plain.model
    assert repeated.executed - head == pytest.approx((plain.executed - head) * 4 / 3)


def test_lora_costs_four_flops_a_frozen_weight_and_six_a_trained_one():
    profile = toy_profile(method=Method.LORA, lora_rank=8)
    recipe = Recipe(method=Method.LORA, lora_rank=8)
    flops = micro_batch_flops(profile=profile, recipe=recipe, micro_batch=1, seq_len=1)
    frozen, adapters = 4 * 12 * 256**2 + 1000 * 256, 4 * 14 * 256 * 8
    assert flops.model == pytest.approx(4 * frozen + 6 * adapters + 4 * 12 * 256)


# Psi = 8.03e9 in bf16 over 8 ranks; seconds at 360 GB/s and at 20 GB/s.
@pytest.mark.parametrize(
    ("sharding", "sync", "accum_steps", "gigabytes", "on_nvlink", "on_pcie"),
    [
        (Sharding.DDP, True, 1, 28.1, 0.078, 1.41),
        (Sharding.ZERO3, True, 1, 42.2, 0.117, 2.11),
        (Sharding.DDP, True, 8, 28.1, 0.078, 1.41),
        (Sharding.ZERO1, True, 8, 28.1, 0.078, 1.41),
        (Sharding.ZERO2, True, 8, 126.5, 0.351, 6.32),
        (Sharding.FSDP_GRAD_OP, True, 8, 224.8, 0.625, 11.2),
        (Sharding.FSDP_FULL, False, 8, 238.9, 0.664, 11.9),
        (Sharding.ZERO3, True, 8, 337.3, 0.937, 16.9),
        (Sharding.FSDP_FULL, True, 8, 337.3, 0.937, 16.9),
    ],
)
def test_an_8b_model_moves_the_published_bytes(
    sharding, sync, accum_steps, gigabytes, on_nvlink, on_pcie
):
    recipe = Recipe(sharding=sharding, sync_each_batch=sync)
    moved = moved_bytes(
        recipe=recipe, trainable_params=8_030_000_000, cluster=Cluster(num_ranks=8)
    ).total(accum_steps)
    assert moved / 1e9 == pytest.approx(gigabytes, abs=0.06)
    assert ring_seconds(moved, 360) == pytest.approx(on_nvlink, abs=0.001)
    assert ring_seconds(moved, 20) == pytest.approx(on_pcie, abs=0.05)


def test_lora_moves_adapters_alone_unless_the_base_is_sharded():
    base, adapters, cluster = 8_000_000_000, 20_000_000, Cluster(num_ranks=8)
    ddp, zero3 = (
        moved_bytes(
            recipe=Recipe(method=Method.LORA, numerics="bf16", sharding=sharding),
            trainable_params=adapters,
            frozen_params=base,
            cluster=cluster,
        ).total(8)
        for sharding in (Sharding.DDP, Sharding.ZERO3)
    )
    # Adapters and their gradients are fp32, the base is bf16.
    assert ddp == pytest.approx(7 / 8 * 4 * 2 * adapters)
    assert zero3 == pytest.approx(7 / 8 * (2 * 16 * base + 4 * 24 * adapters))


@given(st.integers(1, 10**9), st.integers(1, 64))
def test_accumulation_amortises_communication_for_ddp_and_zero1_alone(params, accum_steps):
    def per_micro_batch(sharding: Sharding) -> float:
        recipe, cluster = Recipe(sharding=sharding), Cluster(num_ranks=2)
        moved = moved_bytes(recipe=recipe, trainable_params=params, cluster=cluster)
        # Two bytes an element, and half of them leave one of two ranks.
        return moved.total(accum_steps) / accum_steps / params

    assert per_micro_batch(Sharding.DDP) * accum_steps == pytest.approx(2)
    assert per_micro_batch(Sharding.ZERO1) * accum_steps == pytest.approx(2)
    assert per_micro_batch(Sharding.ZERO2) >= 1
    assert per_micro_batch(Sharding.ZERO3) == pytest.approx(3)


@pytest.mark.parametrize("double_quant", [True, False])
def test_a_4_bit_base_moves_the_bytes_that_memory_holds(double_quant):
    params = 10**9
    recipe = Recipe(
        method=Method.QLORA, numerics="bf16", sharding="zero3", double_quant=double_quant
    )
    moved = moved_bytes(
        recipe=recipe,
        trainable_params=1,
        frozen_params=params,
        quantisable_params=params,
        cluster=Cluster(num_ranks=2),
    )
    assert moved.per_micro_batch == pytest.approx(params * nf4_bytes(recipe), rel=1e-6)


@pytest.mark.parametrize(
    ("numerics", "sharding", "bytes_an_element"),
    [
        ("bf16-autocast", "fsdp-full", 2),
        ("bf16-autocast", "ddp", 4),
        ("bf16-master", "fsdp-full", 2),
        ("fp32", "fsdp-full", 4),
    ],
)
def test_the_wire_carries_the_dtypes_of_the_numerics(numerics, sharding, bytes_an_element):
    recipe = Recipe(numerics=numerics, sharding=sharding)
    moved = moved_bytes(recipe=recipe, trainable_params=10**6, cluster=Cluster(num_ranks=2))
    elements = 1e6 if sharding == "ddp" else 1.5e6
    assert moved.total(1) == pytest.approx(bytes_an_element * elements)


# Bytes a parameter: gradient, moments, master or weight, 16-bit weight, conversion.
@pytest.mark.parametrize(
    ("fields", "touched"),
    [
        ({"numerics": "bf16-master"}, 2 + 16 + 8 + 2 + 2),
        # FSDP's shards are the masters, and their gradients are fp32: see memory.states.
        ({"numerics": "bf16-master", "sharding": "fsdp-full"}, 4 + 16 + 8),
        ({"numerics": "bf16-autocast"}, 4 + 16 + 8),
        ({"numerics": "bf16"}, 2 + 8 + 4),
        ({"numerics": "bf16", "method": "lora"}, 4 + 16 + 8),
        ({"numerics": "bf16-master", "grad_dtype": "fp32"}, 4 + 16 + 8 + 2),
    ],
)
def test_the_update_touches_the_states_that_memory_holds(fields, touched):
    recipe = Recipe(**fields)
    profile = toy_profile(method=recipe.method)
    time = step_time(
        profile=profile, recipe=recipe, batch=Batch(), cluster=Cluster(num_ranks=1), gpu=A100
    )
    (part,) = [part for part in time.parts if part.name == "optimizer step"]
    assert part.formula.startswith(f"{touched} bytes × {profile.trainable_params:,} ")


V100 = Gpu(
    name="V100 SXM2 32GB",
    usable_bytes=31 * 2**30,
    bf16_tflops=125,
    bandwidth_gb_per_s=900,
    has_bf16=False,
    compute_capability="7.0",
    arch="Volta",
)
T4 = V100.model_copy(
    update={"name": "T4", "bf16_tflops": 65.0, "compute_capability": "7.5", "arch": "Turing"}
)


@pytest.mark.parametrize(("gpu", "share"), [(V100, 15.7 / 125), (T4, 8.1 / 65)])
def test_bf16_without_bf16_tensor_cores_runs_at_the_fp32_rate(gpu, share):
    def compute(numerics: str, gpu: Gpu = gpu) -> TimePart:
        time = step_time(
            profile=toy_profile(num_layers=8, hidden_size=4096),
            recipe=Recipe(numerics=numerics),
            batch=Batch(micro_batch=8, seq_len=2048),
            cluster=Cluster(),
            gpu=gpu,
        )
        return time.parts[0]

    for numerics in ("bf16", "bf16-master", "bf16-autocast"):
        slow = compute(numerics)
        assert slow.seconds == pytest.approx(compute("fp32").seconds)
        assert f"no native bf16, so the fp32 rate: {share:.3g} of the 16-bit rate" in slow.formula
    fast = compute("fp16")
    assert "native" not in fast.formula
    assert 5 < slow.seconds / fast.seconds < 8
    unknown = compute("bf16", gpu.model_copy(update={"compute_capability": ""}))
    assert "0.125 of the 16-bit rate" in unknown.formula


def test_a_model_without_a_head_moves_no_logits():
    profile = toy_profile(num_layers=40)
    head = replace(profile.stages[2], flops_params=0)
    headless = replace(profile, stages=(*profile.stages[:2], head))
    times = [
        step_timer(
            profile=each, recipe=Recipe(), cluster=Cluster(), gpu=A100, seq_len=4096
        ).compute_seconds
        for each in (profile, headless)
    ]
    assert times[1] < times[0]
    no_width = replace(headless, hidden_size=0)
    assert step_timer(profile=no_width, recipe=Recipe(), cluster=Cluster(), gpu=A100, seq_len=4096)


# 3.81 s of compute for K = 8, s 4,096 on H100 hides NVLink traffic; PCIe traffic dominates.
def test_zero3_is_hidden_on_nvlink_and_dominates_on_pcie():
    profile = toy_profile(num_layers=32, hidden_size=4096, vocabulary=128_000)
    recipe = Recipe(sharding=Sharding.ZERO3)
    batch = Batch(micro_batch=1, accum_steps=8, num_ranks=8, seq_len=4096)
    shares = []
    for gpu in (H100, H100.model_copy(update={"link_gb_per_s": None, "pcie_gb_per_s": 31.5})):
        time = step_time(
            profile=profile, recipe=recipe, batch=batch, cluster=Cluster(num_ranks=8), gpu=gpu
        )
        parts = {part.name: part.seconds for part in time.parts}
        shares.append(parts["exposed communication"] / parts["compute"])
    assert shares[0] < 0.25
    assert shares[1] > 1


def mpt(num_params: int, hidden_size: int, num_layers: int) -> ActivationProfile:
    """An MPT: tied head of 50,368 rows, full attention width."""
    head = 50_368 * hidden_size
    layer = (num_params - head) // num_layers
    shape = {"forward": EMPTY_PASS, "backward": EMPTY_PASS, "frozen_params": 0}
    stages = (
        StageProfile(name="embedding", trainable_params=head, **shape),
        StageProfile(
            name="layer",
            trainable_params=layer,
            flops_params=layer,
            attention_width=hidden_size,
            **shape,
        ),
        StageProfile(name="head and loss", trainable_params=0, flops_params=head, **shape),
    )
    return ActivationProfile(
        architecture="MPTForCausalLM",
        num_params=num_params,
        stages=stages,
        order=(0, *([1] * num_layers), 2),
        hidden_size=hidden_size,
        buffer_bytes=0,
        max_error=0,
        seq_len_range=(1, 1 << 20),
        attention="sdpa",
        versions=(),
    )


# llm-foundry scripts/train/benchmarking, bf16 FULL_SHARD: tokens/s and GPU.
@pytest.mark.parametrize(
    ("gpu", "shape", "num_ranks", "micro_batch", "accum_steps", "checkpointing", "published"),
    [
        (A100, (125_311_488, 768, 12), 8, 32, 2, "none", 141_737),
        (A100, (1_315_950_592, 2048, 24), 8, 14, 4, "none", 20_513),
        (A100, (6_658_859_008, 4096, 32), 8, 6, 2, "none", 4641),
        (A100, (29_975_214_080, 7168, 48), 8, 3, 21, "full", 916),
        (H100, (64_862_437_376, 8192, 80), 64, 8, 4, "full", 1039),
        (H100, (64_862_437_376, 8192, 80), 32, 2, 16, "full", 882),
    ],
)
def test_published_speeds_lie_within_the_band(
    gpu, shape, num_ranks, micro_batch, accum_steps, checkpointing, published
):
    batch = Batch(
        micro_batch=micro_batch, accum_steps=accum_steps, num_ranks=num_ranks, seq_len=2048
    )
    time = step_time(
        profile=mpt(*shape),
        recipe=Recipe(sharding=Sharding.FSDP_FULL, checkpointing=checkpointing),
        batch=batch,
        cluster=Cluster(num_ranks=num_ranks, num_nodes=num_ranks // 8),
        gpu=gpu,
    )
    seconds = micro_batch * accum_steps * 2048 / published
    assert time.low <= seconds <= time.high


# AdamW mixed precision touches about 30 bytes a parameter: 8B on H100 0.072 s ideal, x 1.2 real.
def test_an_8b_adamw_step_on_h100_takes_86_ms_whatever_k_is():
    profile = toy_profile(num_layers=37, hidden_size=4096, vocabulary=69_000)
    assert profile.trainable_params == pytest.approx(8e9, rel=0.01)
    steps = []
    for accum_steps in (1, 16):
        time = step_time(
            profile=profile,
            recipe=Recipe(),
            batch=Batch(accum_steps=accum_steps),
            cluster=Cluster(),
            gpu=H100,
        )
        steps += [part.seconds for part in time.parts if part.name == "optimizer step"]
    assert steps[0] == steps[1] == pytest.approx(0.072 * 1.2, rel=0.03)


# 8B over one 25 GB/s link: 0.64 s each way, and Adam on the host at 1e9 parameters/s.
def test_offloading_an_8b_optimizer_costs_two_copies_and_a_host_update():
    profile = toy_profile(num_layers=37, hidden_size=4096, vocabulary=69_000)
    gpu = A100.model_copy(update={"pcie_gb_per_s": 31.25})
    time = step_time(
        profile=profile,
        recipe=Recipe(sharding=Sharding.ZERO1, offload=Offload.OPTIMIZER),
        batch=Batch(),
        cluster=Cluster(),
        gpu=gpu,
    )
    parts = {part.name: part.seconds for part in time.parts}
    assert parts["offload"] == pytest.approx(2 * 0.64 + 8, rel=0.02)
    assert "optimizer step" not in parts


def test_tiny_micro_batches_are_bound_by_the_launch_floor():
    profile = toy_profile(num_layers=24, hidden_size=256)
    timer = step_timer(profile=profile, recipe=Recipe(), cluster=Cluster(), gpu=A100, seq_len=64)
    # Phi-1.5, 24 layers: b = 1, 2, 4 take 1.62, 1.65, 1.70 min a 1,000 micro-steps.
    one, four = timer.seconds(1, 1), timer.seconds(4, 1)
    assert four / one < 1.05
    assert 0.090 < one < 0.120
    assert "launch floor" in timer.step_time(1, 1).parts[0].formula


def test_qlora_pays_for_dequantisation_once_a_micro_batch():
    profile = toy_profile(method=Method.QLORA, num_layers=32, hidden_size=4096)
    gpu = A100.model_copy(update={"bandwidth_gb_per_s": 1555.0})
    time = step_time(
        profile=profile,
        recipe=Recipe(method=Method.QLORA),
        batch=Batch(accum_steps=4),
        cluster=Cluster(),
        gpu=gpu,
    )
    parts = {part.name: part.seconds for part in time.parts}
    billions = 32 * 12 * 4096**2 / 1e9
    assert 0.011 < parts["dequantisation"] / 4 / billions < 0.015


@pytest.mark.parametrize(
    ("name", "arch", "products"),
    [
        ("NVIDIA L40S", "Ada", 0.50),
        ("NVIDIA L4", "Ada", 0.43),
        ("l40s-48gb", "Ada", 0.50),
        ("NVIDIA RTX A4000", "Ampere", 0.65),
        ("NVIDIA A100-SXM4-80GB", "Ampere", 0.75),
        ("Mystery", "Unheard-of", 0.50),
    ],
)
def test_efficiency_is_found_by_whole_words(name, arch, products):
    assert efficiency(Gpu(name=name, usable_bytes=1, arch=arch)).products == products


def test_only_a100_and_h100_claim_to_be_measured():
    names = {"A100": True, "H100": True, "RTX 4090": False, "H200": False}
    for name, is_measured in names.items():
        found = efficiency(Gpu(name=name, usable_bytes=1))
        assert found.is_measured is is_measured
        assert ("guess" in found.source) is not is_measured


def test_a_gpu_without_a_rate_has_no_step_time():
    gpu = Gpu(name="24GiB", usable_bytes=24 * 2**30)
    assert (
        step_time(profile=toy_profile(), recipe=Recipe(), batch=Batch(), cluster=Cluster(), gpu=gpu)
        is None
    )


@given(recipes, clusters, gpus, st.integers(1, 32), st.integers(1, 32), st.integers(1, 8192))
def test_the_parts_of_a_step_sum_to_its_middle(recipe, cluster, gpu, micro_batch, steps, seq_len):
    batch = Batch(
        micro_batch=micro_batch, accum_steps=steps, num_ranks=cluster.num_ranks, seq_len=seq_len
    )
    profile = toy_profile(method=recipe.method)
    time = step_time(profile=profile, recipe=recipe, batch=batch, cluster=cluster, gpu=gpu)
    assert time.mid == pytest.approx(sum(part.seconds for part in time.parts))
    assert 0 < time.low < time.mid < time.high
    assert all(part.seconds >= 0 and part.formula and part.source for part in time.parts)
    timer = step_timer(profile=profile, recipe=recipe, cluster=cluster, gpu=gpu, seq_len=seq_len)
    assert timer.seconds(micro_batch, steps) == pytest.approx(time.mid)


@given(recipes, clusters, gpus, st.integers(1, 32), st.integers(1, 32))
def test_a_step_never_gets_faster_with_more_to_do(recipe, cluster, gpu, micro_batch, steps):
    timer = step_timer(
        profile=toy_profile(method=recipe.method),
        recipe=recipe,
        cluster=cluster,
        gpu=gpu,
        seq_len=1024,
    )
    here = timer.seconds(micro_batch, steps)
    assert timer.seconds(micro_batch + 1, steps) >= here
    assert timer.seconds(micro_batch, steps + 1) > here
    # The same work in one piece is never slower than in several.
    assert timer.seconds(micro_batch * steps, 1) <= here * (1 + 1e-9)


def test_more_nodes_cannot_be_faster_than_the_link_inside_one():
    inside = bus_bandwidth_gb_per_s(gpu=H100, cluster=Cluster(num_ranks=8))
    across = bus_bandwidth_gb_per_s(gpu=H100, cluster=Cluster(num_ranks=16, num_nodes=2))
    alone = bus_bandwidth_gb_per_s(gpu=RTX_4090, cluster=Cluster(num_ranks=2, num_nodes=2))
    assert across <= inside
    assert alone == pytest.approx(17.5)
    # GeForce without peer access: 8-12 of 31 GB/s.
    assert 8 <= bus_bandwidth_gb_per_s(gpu=RTX_4090, cluster=Cluster(num_ranks=2)) <= 13


def test_hybrid_sharding_sends_only_its_shard_between_nodes():
    recipe = Recipe(sharding=Sharding.FSDP_HYBRID)
    moved = moved_bytes(
        recipe=recipe,
        trainable_params=8_000_000_000,
        cluster=Cluster(num_ranks=16, num_nodes=2),
    )
    # 16 GB of gradients over 8 ranks, all-reduced between two nodes: 2 x 2 GB x 1/2.
    assert moved.between_nodes_per_micro_batch == pytest.approx(2e9)
    assert moved.per_micro_batch == pytest.approx(3 * 16e9 * 7 / 8)
