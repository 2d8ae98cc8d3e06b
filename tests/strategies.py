"""Hypothesis strategies for specs, and a synthetic profile that is made by hand."""

from __future__ import annotations

from hypothesis import strategies as st

from batchplan.profile import ZERO, ActivationProfile, Pass, Peak, Polynomial, StageProfile
from batchplan.spec import (
    Batch,
    Checkpointing,
    Cluster,
    Dtype,
    Gpu,
    Method,
    ModelInfo,
    Numerics,
    Offload,
    Optimizer,
    Recipe,
    Sharding,
)


def per_token(num_bytes: float) -> Polynomial:
    """Bytes that grow with micro-batch times sequence length."""
    return Polynomial((0, 0, 0, 0, num_bytes, 0))


def toy_profile(
    *,
    num_layers: int = 4,
    hidden_size: int = 256,
    vocabulary: int = 1000,
    method: Method = Method.FULL,
    lora_rank: int = 8,
    checkpointing: Checkpointing = Checkpointing.NONE,
    architecture: str = "ToyForCausalLM",
    attends_causally: bool = True,
    num_attentions: int = 1,
    attention_window: int | None = None,
) -> ActivationProfile:
    """A decoder with untied embedding and head, 12 h^2 a layer, 34 h bytes kept a token."""
    h = hidden_size
    layer, table = 12 * h * h, vocabulary * h
    adapter = 0 if method is Method.FULL else 14 * h * lora_rank
    trains = method is Method.FULL
    kept = 2 * h if checkpointing is Checkpointing.FULL else 34 * h
    inside = 34 * h
    logits = 14 * vocabulary

    def stage(
        name: str, params: int, flops: int, saved: float, inner: float, extra: int = 0, q: int = 0
    ) -> StageProfile:
        grads = params if trains else extra
        return StageProfile(
            name=name,
            forward=Pass(delta=per_token(saved), peaks=(Peak(activations=per_token(inner)),)),
            backward=Pass(
                delta=per_token(-saved),
                peaks=(
                    Peak(
                        activations=per_token(inner),
                        new_grad_params=grads,
                        in_flight_grad_params=grads // 4,
                    ),
                ),
            ),
            trainable_params=grads,
            frozen_params=0 if trains else params,
            quantisable_params=0 if trains or not name.startswith("layer") else params,
            adapter_params=extra,
            flops_params=flops + extra,
            attention_width=q,
            attention_window=attention_window if q else None,
            attends_causally=attends_causally,
            num_attentions=num_attentions if q else 0,
        )

    return ActivationProfile(
        architecture=architecture,
        num_params=num_layers * layer + 2 * table,
        stages=(
            stage("embedding", table, 0, 2 * h, 2 * h),
            stage("layer", layer, layer, kept, inside, adapter, q=h),
            stage("head and loss", table, table, logits, logits),
        ),
        order=(0, *([1] * num_layers), 2),
        hidden_size=h,
        buffer_bytes=4096,
        max_error=0.0,
        seq_len_range=(1, 1 << 26),
        attention="sdpa",
        versions=(("torch", "0"),),
    )


def toy_profiles(recipe: Recipe, seq_len: int) -> ActivationProfile:
    """A profile source over ``toy_profile``."""
    return toy_profile(
        method=recipe.method, lora_rank=recipe.lora_rank, checkpointing=recipe.checkpointing
    )


EMPTY_PASS = Pass(delta=ZERO, peaks=(Peak(activations=ZERO),))

A100 = Gpu(
    name="A100 SXM 80GB",
    usable_bytes=79 * 2**30,
    bf16_tflops=312,
    bandwidth_gb_per_s=2039,
    link_gb_per_s=300,
    pcie_gb_per_s=31.5,
    compute_capability="8.0",
    arch="Ampere",
)
H100 = Gpu(
    name="H100 SXM 80GB",
    usable_bytes=79 * 2**30,
    bf16_tflops=989.5,
    bandwidth_gb_per_s=3350,
    link_gb_per_s=450,
    pcie_gb_per_s=63,
    compute_capability="9.0",
    arch="Hopper",
)
RTX_4090 = Gpu(
    name="RTX 4090",
    usable_bytes=23 * 2**30,
    bf16_tflops=165.2,
    bandwidth_gb_per_s=1008,
    pcie_gb_per_s=31.5,
    compute_capability="8.9",
    arch="Ada",
)
TOY_MODEL = ModelInfo(id="toy", architecture="ToyForCausalLM", source="test", hidden_size=256)

gpus = st.sampled_from([A100, H100, RTX_4090])
recipes = st.builds(
    Recipe,
    method=st.sampled_from(Method),
    numerics=st.sampled_from(Numerics),
    optimizer=st.sampled_from(Optimizer),
    grad_dtype=st.sampled_from([None, Dtype.FP32, Dtype.BF16]),
    sharding=st.sampled_from(Sharding),
    offload=st.just(Offload.NONE),
    checkpointing=st.sampled_from(Checkpointing),
    sync_each_batch=st.booleans(),
)
clusters = st.builds(
    lambda nodes, each: Cluster(num_ranks=nodes * each, num_nodes=nodes),
    st.sampled_from([1, 2, 4]),
    st.integers(1, 8),
)


def batches(num_ranks: int) -> st.SearchStrategy[Batch]:
    """Batches on a fixed number of ranks."""
    return st.builds(
        Batch,
        micro_batch=st.integers(1, 64),
        accum_steps=st.integers(1, 64),
        num_ranks=st.just(num_ranks),
        seq_len=st.integers(1, 8192),
    )
