"""The profile against two oracles: the whole model, and closed forms."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
from small_models import config_of, families, profile_of, run_script
from strategies import A100

from batchplan.memory import prepare
from batchplan.memory.activations import fold
from batchplan.profile import ActivationProfile
from batchplan.sources import list_models, resolve_model
from batchplan.spec import Cluster, Recipe
from batchplan.tracer import activation_profile
from batchplan.tracer.request import trace_request

SEQ_LEN = 1000
"""No point of the fit, and no multiple of what a kernel rounds to."""
MICRO_BATCH = 8
VOCABULARY = 4096
BF16 = {"numerics": "bf16"}
METHODS = {
    "full": {"full": BF16, "full, checkpointed": BF16 | {"checkpointing": "full"}},
    "lora": {
        "lora": BF16 | {"method": "lora"},
        "lora, checkpointed": BF16 | {"method": "lora", "checkpointing": "full"},
    },
}
RECIPES = {name: fields for recipes in METHODS.values() for name, fields in recipes.items()}
ALIKE = (
    *("CohereLabs/aya-23-8B", "FacebookAI/roberta-base", "ibm-granite/granite-3.1-2b-instruct"),
    *("deepseek-ai/DeepSeek-V2", "Qwen/Qwen3-235B-A22B"),
)
"""Families left out of the fold: their layers are another one's to the last tensor, or nearly."""
FOLDED = [model for model in families() if model not in ALIKE]
EVERY = {"full": 2, "full, checkpointed": 4, "lora": 6, "lora, checkpointed": 3}
"""A recipe is tried on every so many families, for time: all 27 were, once, with all four."""


def request_of(config: dict[str, Any], recipe: Recipe, seq_len: int) -> dict[str, Any]:
    return trace_request(config=config, model_ref="", recipe=recipe, seq_len=seq_len)


def length_of(config: dict[str, Any], seq_len: int = SEQ_LEN) -> int:
    """``seq_len``, or a little less than the positions the model has."""
    return min(seq_len, config.get("max_position_embeddings", seq_len + 12) - 12)


def peaks_of(
    requests: list[dict[str, Any]], micro_batches: list[int], *arguments: str
) -> list[tuple[ActivationProfile, dict[int, list[int]]]]:
    """For every request its profile, and by micro-batch the whole model's two peaks."""
    profiles = [profile_of(reply) for reply in run_script("many_traces.py", requests, *arguments)]
    asked = [
        {"request": request, "micro_batch": micro_batch, "seq_len": request["seq_len"]}
        for request in requests
        for micro_batch in micro_batches
    ]
    peaks = iter(run_script("whole_model.py", asked, *arguments))
    return [(profile, {b: next(peaks) for b in micro_batches}) for profile in profiles]


def folded(profile: ActivationProfile, recipe: Recipe, micro_batch: int, seq_len: int) -> list[int]:
    """The profile's peaks of the first and of the second micro-batch."""
    setting = prepare(profile=profile, recipe=recipe, cluster=Cluster(), gpu=A100)
    return [
        max(
            instant.num_bytes
            for instant in fold(
                profile=profile, micro_batch=micro_batch, seq_len=seq_len, life=life
            )
        )
        for life in setting.lives(2)
    ]


def folded_with(name: str) -> list[str]:
    """The families that a recipe is tried on."""
    return [m for at, m in enumerate(FOLDED) if at % EVERY[name] == 0 or (m, name) in ALWAYS]


@cache
def family_peaks(name: str) -> dict[str, tuple[ActivationProfile, int, dict[int, list[int]]]]:
    """Profile, length and whole peaks of every family, for one of ``RECIPES``."""
    models = folded_with(name)
    configs = [config_of(model, vocabulary=VOCABULARY) for model in models]
    recipe = Recipe(**RECIPES[name])
    requests = [request_of(config, recipe, length_of(config)) for config in configs]
    micro_batches = [MICRO_BATCH, 1] if name == "full" else [MICRO_BATCH]
    found = peaks_of(requests, micro_batches)
    return {
        model: (profile, request["seq_len"], peaks)
        for model, request, (profile, peaks) in zip(models, requests, found, strict=True)
    }


OFF = {("google-t5/t5-3b", "full, checkpointed"), ("google-t5/t5-3b", "lora, checkpointed")}
"""T5's position bias goes when the second layer's checkpoint does, before the first layer's
backward; the fold lets it go after: up to 2 % off here, 8 % high for a single sequence."""
ALWAYS = {
    *((model, name) for model in ("facebook/bart-base", "google-t5/t5-3b") for name in RECIPES),
}
"""Two stacks, where all layers read what one of them made, are tried with every recipe."""


def fold_cases() -> list[Any]:
    cases = []
    for method, recipes in METHODS.items():
        group = pytest.mark.xdist_group(f"fold {method}")
        for name in recipes:
            for model in folded_with(name):
                off = pytest.mark.xfail(strict=False, reason="a bias that many layers share")
                marks = [group, off] if (model, name) in OFF else [group]
                cases.append(pytest.param(name, model, marks=marks, id=f"{model}-{name}"))
    return cases


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), fold_cases())
def test_the_fold_of_stages_equals_the_trace_of_the_whole_model(name: str, model: str):
    profile, seq_len, whole = family_peaks(name)[model]
    assert profile.seq_len_range[0] < seq_len < profile.seq_len_range[1]
    for micro_batch, peaks in whole.items():
        found = folded(profile, Recipe(**RECIPES[name]), micro_batch, seq_len)
        assert found == pytest.approx(peaks, rel=0.01)


def test_the_fold_is_tried_on_many_architectures():
    assert len(FOLDED) >= 25


QLORA = {"method": "qlora", "numerics": "bf16-autocast", "norm_dtype": "fp32"}
QWEN, GEMMA, OPT = "Qwen/Qwen3-0.6B", "google/gemma-3-1b-pt", "facebook/opt-1.3b"
VARIANTS = [
    (QWEN, BF16 | {"checkpointing": "selective"}),
    (GEMMA, BF16 | {"checkpointing": "selective", "method": "lora"}),
    (QWEN, BF16 | {"checkpointing": "full", "reentrant": True}),
    (OPT, BF16 | {"checkpointing": "full", "reentrant": True, "method": "lora"}),
    (QWEN, BF16 | {"loss": "chunked"}),
    (QWEN, {"numerics": "bf16-autocast", "loss": "chunked", "method": "lora"}),
    (QWEN, QLORA),
    (QWEN, BF16 | {"method": "qlora", "frozen_upcast": True, "checkpointing": "full"}),
    (QWEN, {"numerics": "bf16-autocast", "fp32_outputs": True}),
    (GEMMA, {"numerics": "bf16-autocast", "fp32_outputs": True, "checkpointing": "full"}),
    (OPT, BF16 | {"attention": "eager"}),
]
FUSED = [
    (QWEN, BF16 | {"loss": "fused", "checkpointing": "full"}),
    (QWEN, {"numerics": "bf16-autocast", "loss": "fused", "checkpointing": "full"}),
]


@pytest.fixture(scope="module")
def variant_peaks() -> list[tuple[ActivationProfile, dict[int, list[int]]]]:
    """With the vocabulary as published, because some of them are about the loss."""
    requests = [
        request_of(config_of(model), Recipe(**fields), SEQ_LEN)
        for model, fields in VARIANTS + FUSED
    ]
    return peaks_of(requests, [MICRO_BATCH], "alone")


@pytest.mark.slow
@pytest.mark.xdist_group("variants")
@pytest.mark.parametrize(
    "number",
    [pytest.param(n, id=f"{model}-{fields}") for n, (model, fields) in enumerate(VARIANTS)],
)
def test_the_fold_equals_the_whole_model_for_other_ways_of_training(number, variant_peaks):
    profile, whole = variant_peaks[number]
    found = folded(profile, Recipe(**VARIANTS[number][1]), MICRO_BATCH, SEQ_LEN)
    assert found == pytest.approx(whole[MICRO_BATCH], rel=0.01)


@pytest.mark.slow
@pytest.mark.xdist_group("variants")
@pytest.mark.parametrize("number", range(len(FUSED)))
def test_the_fold_of_the_fused_loss_errs_high_by_less_than_its_chunk_is_rounded(
    number, variant_peaks
):
    """The kernel's chunk is a power of two; the profile takes its upper bound (losses.py)."""
    profile, whole = variant_peaks[len(VARIANTS) + number]
    found = folded(profile, Recipe(**FUSED[number][1]), MICRO_BATCH, SEQ_LEN)
    most = 2 * profile.hidden_size * MICRO_BATCH * SEQ_LEN
    for ours, peak in zip(found, whole[MICRO_BATCH], strict=True):
        assert 0.99 * peak <= ours <= 1.01 * peak + most


@pytest.fixture(scope="module")
def family_replies() -> dict[str, dict[str, Any]]:
    requests = []
    for model in families():
        resolved = resolve_model(model)
        seq_len = min(resolved.info.max_seq_len or 1024, 1024)
        requests.append(
            request_of(resolved.config, Recipe(numerics="bf16", checkpointing="full"), seq_len)
        )
    return dict(zip(families(), run_script("many_traces.py", requests), strict=True))


@pytest.mark.slow
@pytest.mark.xdist_group("families")
@pytest.mark.parametrize("model", families())
def test_every_family_of_the_catalog_is_traced(model: str, family_replies: Any):
    """The whole config: parameters as published, every layer counted, gradients for all."""
    reply = family_replies[model]
    profile = profile_of(reply)
    row = next(row for row in list_models() if row.id == model)
    assert profile.num_params == pytest.approx(
        row.num_params, rel=0 if row.num_params_exact else 0.05
    )
    resolved = resolve_model(model)
    assert profile.num_layers == resolved.info.num_layers
    assert profile.trainable_params == pytest.approx(profile.num_params, rel=0.002)
    assert profile.max_error < 0.005
    if "ForConditionalGeneration" in profile.architecture:
        found = {(s.attends_causally, s.num_attentions) for s in profile.stages if s.is_layer}
        assert found == {(False, 1), (True, 2)}
    if profile.architecture.startswith("T5"):
        assert profile.frozen_params == 0  # the learned position bias trains as well


# Korthikanti et al. 2022, arXiv 2205.05198, equation 1: a layer of a GPT block keeps
# s*b*h*(34 + 5*a*s/h) bytes in 16 bits with dropout. They keep the softmax's fp32-free version
# and a fused GeLU, which is what eager attention and "gelu" are here.
@pytest.mark.slow
def test_a_gpt_layer_keeps_what_korthikanti_counts():
    config = config_of("openai-community/gpt2") | {"activation_function": "gelu"}
    hidden, heads = config["n_embd"], config["n_head"]
    recipe = Recipe(numerics="bf16", attention="eager")
    profile = activation_profile(config=config, recipe=recipe, seq_len=1024)
    layer = next(stage for stage in profile.stages if stage.is_layer)
    for b, s in ((2, 1024), (8, 600)):
        paper = s * b * hidden * (34 + 5 * heads * s / hidden)
        assert layer.forward.delta(b, s) == pytest.approx(paper, rel=0.01)


# stas00/ml-engineering counts hidden-size copies that one layer keeps without checkpointing
# (16-bit, no dropout, SDPA): Llama-3.1-8B 28, Mistral-7B 28, Qwen3-4B 38, SmolLM2-360M 24.
# Counted with older library versions, which keep a copy or two more or less.
@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "copies"),
    [("meta-llama/Llama-3.1-8B", 28), ("Qwen/Qwen3-4B", 38), ("HuggingFaceTB/SmolLM2-360M", 24)],
)
def test_a_layer_keeps_about_the_hidden_copies_that_were_measured(model: str, copies: int):
    profile = activation_profile(
        config=config_of(model), recipe=Recipe(numerics="bf16"), seq_len=2048
    )
    layer = next(stage for stage in profile.stages if stage.is_layer)
    found = layer.forward.delta(1, 2048) / (2 * 2048 * profile.hidden_size)
    assert found == pytest.approx(copies, rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-7B", "google/gemma-3-1b-pt"])
def test_a_profile_holds_at_points_it_was_not_fitted_at(model: str):
    """The same range traced for another length is the same profile, and it interpolates."""
    config = config_of(model)
    recipe = Recipe(numerics="bf16")
    wide = activation_profile(config=config, recipe=recipe, seq_len=4096)
    assert wide == activation_profile(config=config, recipe=recipe, seq_len=2500)
    assert wide.seq_len_range == (2049, 4096)
    assert wide.max_error < 0.001
