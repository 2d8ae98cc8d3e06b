"""The profile against three oracles: the whole model, a closed form, and real tensors."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from strategies import A100

from batchplan.memory import prepare
from batchplan.memory.activations import fold
from batchplan.profile import SCHEMA_VERSION, ActivationProfile
from batchplan.sources import list_models, resolve_model
from batchplan.spec import Cluster, Recipe
from batchplan.trace import activation_profile
from batchplan.trace.request import trace_request

NUM_LAYERS = 8
LAYER_KEYS = ("num_hidden_layers", "n_layer", "num_layers", "encoder_layers", "decoder_layers")
SEVERAL = [
    ("Qwen/Qwen2.5-0.5B", 2048),
    ("meta-llama/Llama-3.2-1B", 1024),
    ("google/gemma-2-2b", 1024),
    ("google/gemma-3-1b-pt", 1024),
    ("mistralai/Mixtral-8x7B-v0.1", 512),
    ("openai/gpt-oss-20b", 512),
    ("allenai/OLMo-2-0425-1B", 512),
    ("EleutherAI/pythia-410m", 512),
    ("tiiuae/falcon-7b", 512),
    ("openai-community/gpt2", 512),
    ("facebook/opt-125m", 512),
    ("google-t5/t5-small", 256),
    ("facebook/bart-base", 256),
]
MASKED = [("google-bert/bert-base-uncased", 512), ("FacebookAI/roberta-base", 512)]
RECIPES = {
    "full": Recipe(numerics="bf16"),
    "full, checkpointed": Recipe(numerics="bf16", checkpointing="full"),
    "lora": Recipe(numerics="bf16", method="lora"),
    "lora, checkpointed": Recipe(numerics="bf16", method="lora", checkpointing="full"),
    "autocast": Recipe(numerics="bf16-autocast"),
    "autocast, checkpointed": Recipe(numerics="bf16-autocast", checkpointing="full"),
    "eager": Recipe(numerics="bf16", attention="eager"),
}
CASES = [
    (model, seq_len, name)
    for name in ("full", "full, checkpointed", "lora")
    for model, seq_len in SEVERAL
]
CASES += [(model, seq_len, "full") for model, seq_len in MASKED]
CASES += [(*SEVERAL[0], name) for name in RECIPES if "full" not in name and name != "lora"]
MICRO_BATCH = 4


def config_of(model: str, num_layers: int = NUM_LAYERS) -> dict[str, Any]:
    """The catalog's config, cut to a few layers so that tracing all of them stays quick."""
    config = dict(resolve_model(model).config)
    for key in LAYER_KEYS:
        if key in config:
            config[key] = min(config[key], num_layers)
    if "layer_types" in config:
        config["layer_types"] = config["layer_types"][:num_layers]
    return config


def request_of(config: dict[str, Any], recipe: Recipe, seq_len: int) -> dict[str, Any]:
    return trace_request(config=config, model_ref="", recipe=recipe, seq_len=seq_len)


def run_script(name: str, asked: list[Any]) -> list[Any]:
    """Run one of the scripts beside this file on a list of cases."""
    done = subprocess.run(
        [sys.executable, str(Path(__file__).parent / name)],
        input=json.dumps(asked),
        capture_output=True,
        text=True,
        check=True,
        timeout=1200,
    )
    replies: list[Any] = json.loads(done.stdout)
    return replies


@pytest.fixture(scope="module")
def folded_and_whole() -> dict[Any, tuple[ActivationProfile, list[int]]]:
    requests = [request_of(config_of(model), RECIPES[name], s) for model, s, name in CASES]
    whole = [
        {"request": request, "micro_batch": MICRO_BATCH, "seq_len": request["seq_len"]}
        for request in requests
    ]
    replies = run_script("many_traces.py", requests)
    profiles = [profile_of(reply) for reply in replies]
    return dict(
        zip(CASES, zip(profiles, run_script("whole_model.py", whole), strict=True), strict=True)
    )


def profile_of(reply: dict[str, Any]) -> ActivationProfile:
    return ActivationProfile.from_dict({"schema_version": SCHEMA_VERSION, **reply["profile"]})


@pytest.mark.slow
@pytest.mark.xdist_group("whole")
@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case[0]}-{case[2]}")
def test_the_fold_of_stages_equals_the_trace_of_the_whole_model(case, folded_and_whole):
    _, seq_len, name = case
    profile, peaks = folded_and_whole[case]
    setting = prepare(profile=profile, recipe=RECIPES[name], cluster=Cluster(), gpu=A100)
    for life, whole in zip(setting.lives(2), peaks, strict=True):
        instants = fold(profile=profile, micro_batch=MICRO_BATCH, seq_len=seq_len, life=life)
        assert max(i.num_bytes for i in instants) == pytest.approx(whole, rel=0.01)


def families() -> list[str]:
    """One model of every family and class in the catalog."""
    found: dict[Any, str] = {}
    for model in list_models():
        config = resolve_model(model.id).config
        found.setdefault((config["model_type"], *config["architectures"]), model.id)
    return list(found.values())


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
    assert "error" not in reply, reply
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


TINY = {
    "llama": {"num_key_value_heads": 2, "intermediate_size": 96},
    "gpt2": {"n_embd": 64, "n_layer": 3, "n_head": 4},
    "gemma2": {"num_key_value_heads": 2, "intermediate_size": 96, "head_dim": 16},
}
TINY_COMMON = {
    "vocab_size": 128,
    "hidden_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
}


def logs_of(*, tied: bool) -> dict[tuple[str, str], tuple[list[int], list[int]]]:
    """Live bytes after every allocation of real training, on real and on fake tensors."""
    cases = [(kind, checkpointing) for kind in TINY for checkpointing in ("none", "full")]
    asked = [
        request_of(
            {"model_type": kind, "tie_word_embeddings": tied, **TINY_COMMON, **TINY[kind]},
            Recipe(numerics="fp32", attention="eager", checkpointing=checkpointing),
            64,
        )
        for kind, checkpointing in cases
    ]
    return dict(zip(cases, run_script("real_tensors.py", asked), strict=True))


@pytest.mark.slow
def test_live_bytes_of_real_cpu_tensors_equal_those_of_fake_ones():
    """Real training of tiny models: every allocation and every free, in the same order."""
    for case, (real, fake) in logs_of(tied=False).items():
        assert len(real) > 100, case
        assert real == fake, case


@pytest.mark.slow
def test_tied_embeddings_are_off_by_one_gradient_table_at_most():
    """autograd adds the two gradients in place, but not when a tensor is a subclass (fake)."""
    table = 4 * TINY_COMMON["vocab_size"] * TINY_COMMON["hidden_size"]
    for case, (real, fake) in logs_of(tied=True).items():
        assert abs(max(fake) - max(real)) <= table, case
