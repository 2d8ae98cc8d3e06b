"""The functions that ``import batchplan`` offers, and the documents they return."""

from __future__ import annotations

import io
import json
import math
import subprocess
import sys

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from strategies import toy_profiles

import batchplan
from batchplan.api.devices import device_counts
from batchplan.api.recipes import checkpoint_numerics
from batchplan.errors import BatchplanError, NoPlanError, SpecError, UnknownNameError
from batchplan.render.recommend import print_recommendation
from batchplan.spec import Numerics, Recipe, Sharding

ESTIMATE_KEYS = {
    *("schema_version", "command", "inputs", "model", "batch", "memory", "device"),
    *("fits", "headroom_bytes", "caveats"),
}
RECOMMEND_KEYS = {
    *("schema_version", "command", "inputs", "model", "device", "plans", "rescues", "searched"),
}
MEMORY_KEYS = {
    *("peak_bytes", "peak_phase", "allocated_peak_bytes", "reserved_peak_bytes"),
    *("in_use_peak_bytes", "terms", "timeline", "error"),
}
PLAN_KEYS = {
    *("rank", "micro_batch", "accum_steps", "num_ranks", "sharding", "checkpointing", "offload"),
    *("global_batch_size", "global_batch_tokens", "target_deviation", "memory", "fits"),
    *("headroom_bytes", "step_seconds", "tokens_per_second", "learning_rate", "caveats"),
}


def test_the_estimate_document_has_the_fields_the_surface_fixes(toy_model):
    document = batchplan.estimate("qwen2.5-0.5b", gpu="a100-80gb", seq_len=1024).to_dict()
    assert document.keys() >= ESTIMATE_KEYS
    assert document["memory"].keys() >= MEMORY_KEYS
    assert document["memory"]["peak_bytes"] == sum(t["bytes"] for t in document["memory"]["terms"])
    assert document["device"].keys() >= {"name", "usable_bytes", "budget_bytes"}
    usable = document["device"]["usable_bytes"]
    assert document["headroom_bytes"] == usable - document["memory"]["peak_bytes"]
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_recommend_document_has_the_fields_the_surface_fixes(toy_model):
    document = batchplan.recommend(
        "qwen2.5-0.5b", gpu="a100-80gb", seq_len=1024, devices=8, target_tokens="1M"
    ).to_dict()
    assert document.keys() >= RECOMMEND_KEYS
    for plan in document["plans"]:
        assert plan.keys() >= PLAN_KEYS
        product = plan["micro_batch"] * plan["accum_steps"] * plan["num_ranks"]
        assert plan["global_batch_size"] == product
        assert plan["global_batch_tokens"] == product * 1024
        seconds = plan["step_seconds"]
        assert seconds["low"] <= seconds["mid"] <= seconds["high"]
    assert [plan["rank"] for plan in document["plans"]] == [1, 2, 3, 4, 5]
    assert json.loads(json.dumps(document, allow_nan=False)) == document


def test_the_inputs_give_the_same_answer_again(toy_model):
    first = batchplan.estimate("qwen2.5-0.5b", gpu="a100-80gb", method="lora", lora_rank=8)
    again = batchplan.estimate(**first.to_dict()["inputs"])
    assert again.memory == first.memory
    assert again.inputs == first.inputs
    planned = batchplan.recommend("qwen2.5-0.5b", gpu="a100-80gb", devices="1..4", limit=3)
    again = batchplan.recommend(**planned.to_dict()["inputs"])
    assert again.plans == planned.plans
    assert again.inputs == planned.inputs


def test_params_give_their_answer_again_too():
    first = batchplan.estimate(params="7e9", gpu="80GB", activations="2GB", zero=2, devices=4)
    assert batchplan.estimate(**first.inputs).memory == first.memory


def test_a_bf16_checkpoint_is_estimated_as_the_trainer_would_load_it(toy_model):
    answer = batchplan.estimate("qwen2.5-0.5b", gpu="a100-80gb")
    assert answer.recipe.numerics is Numerics.BF16
    assert answer.recipe.sync_each_batch is False
    assert answer.batch.micro_batch == 8
    (caveat,) = [c for c in answer.caveats if c.code == "trainer-defaults"]
    assert "micro-batch 8, accum-steps 1, numerics bf16" in caveat.text
    answer = batchplan.estimate("qwen2.5-0.5b", gpu="a100-80gb", sharding="zero2", devices=4)
    assert answer.recipe.numerics is Numerics.BF16_MASTER


@pytest.mark.parametrize(
    ("config", "numerics"),
    [
        ({"dtype": "bfloat16"}, Numerics.BF16),
        ({"torch_dtype": "torch.float16"}, Numerics.FP16),
        ({"torch_dtype": "float32"}, Numerics.FP32),
        ({"text_config": {"torch_dtype": "bfloat16"}}, Numerics.BF16),
        ({}, Numerics.FP32),
    ],
)
def test_numerics_follow_the_dtype_of_the_checkpoint(config, numerics):
    assert checkpoint_numerics(config) is numerics


@pytest.mark.parametrize(
    ("options", "numerics", "shardings"),
    [
        ({}, "bf16-master", {"zero1", "zero2", "zero3", "fsdp-grad-op", "fsdp-full"}),
        ({"method": "lora"}, "bf16", {"ddp", "fsdp-grad-op", "fsdp-full"}),
        ({"gpu": "v100-32gb"}, "fp16-master", {"zero1", "zero2", "zero3"}),
        ({"sharding": "ddp"}, "bf16-autocast", {"ddp"}),
        ({"nodes": 2}, "bf16-master", {"fsdp-hybrid"}),
    ],
)
def test_recommend_searches_what_the_trainer_can_run(toy_model, options, numerics, shardings):
    answer = batchplan.recommend(
        "qwen2.5-0.5b",
        **{"gpu": "a100-80gb", "devices": 8, "seq_len": 512, "limit": 100, **options},
    )
    assert {plan.recipe.numerics.value for plan in answer.plans} == {numerics}
    assert shardings <= {plan.recipe.sharding.value for plan in answer.plans}
    config = answer.to_dict()["config"]
    assert config["obstacles"] == []
    assert config["files"]


def test_the_config_says_what_the_plan_says(toy_model):
    answer = batchplan.recommend(
        "qwen2.5-0.5b", gpu="a100-80gb", devices=4, seq_len=1024, target_tokens="500k"
    )
    best, (main, *_) = answer.plans[0], answer.config(stem="run")
    settings_ = yaml.safe_load(main.text)
    assert main.name == "run.yaml"
    assert settings_["per_device_train_batch_size"] == best.batch.micro_batch
    assert settings_["gradient_accumulation_steps"] == best.batch.accum_steps
    assert settings_["learning_rate"] == pytest.approx(best.learning_rate.value, rel=1e-3)


def test_pins_that_the_trainer_cannot_run_are_planned_but_not_emitted(toy_model):
    answer = batchplan.recommend(
        "qwen2.5-0.5b", gpu="a100-80gb", devices=4, sharding="zero2", numerics="bf16"
    )
    assert answer.fits
    assert answer.to_dict()["config"]["obstacles"]
    with pytest.raises(SpecError, match="cannot run this plan"):
        answer.config()


def test_no_config_comes_of_nothing():
    missed = batchplan.recommend(params="70e9", gpu="24GB")
    with pytest.raises(NoPlanError, match="Nothing fits"):
        missed.config()


def test_given_options_pin_and_the_rest_is_searched(toy_model):
    answer = batchplan.recommend(
        "qwen2.5-0.5b",
        gpu="a100-80gb",
        devices=8,
        micro_batch=2,
        accum_steps=3,
        checkpointing="full",
        offload="optimizer",
    )
    for plan in answer.plans:
        assert (plan.batch.micro_batch, plan.batch.accum_steps) == (2, 3)
        assert plan.recipe.checkpointing.value == "full"
        assert plan.recipe.offload.value == "optimizer"
    inputs = answer.inputs
    assert inputs["checkpointing"] == "full"
    assert inputs["sharding"] is None


def test_auto_takes_the_fewest_devices_that_fit():
    # 16 bytes a parameter under ZeRO-3: 70e9 x 16 / 32 = 35 GB, over 16 it is 70 GB.
    answer = batchplan.recommend(params="70e9", gpu="40GB", devices="auto", sharding="zero3")
    assert {plan.batch.num_ranks for plan in answer.plans} == {32}


@pytest.mark.parametrize(
    ("devices", "nodes", "counts"),
    [
        ("8", 1, (8,)),
        (8, 2, (8,)),
        ("1..4", 1, (1, 2, 3, 4)),
        ("1..8", 4, (4, 8)),
        ("auto", 1, tuple(1 << k for k in range(11))),
        ("auto", 3, tuple(3 << k for k in range(9))),
    ],
)
def test_devices_are_a_number_a_range_or_auto(devices, nodes, counts):
    assert device_counts(devices, nodes) == counts


@given(text=st.text(max_size=20), nodes=st.integers(1, 64))
def test_any_text_for_devices_is_counts_or_a_clear_refusal(text, nodes):
    try:
        counts = device_counts(text, nodes)
    except SpecError:
        return
    assert counts == tuple(sorted(counts))
    assert all(count % nodes == 0 and count > 0 for count in counts)


_ODD = st.one_of(
    st.none(),
    st.integers(-(10**40), 10**40),
    st.floats(),
    st.text(max_size=12),
    st.booleans(),
)


@settings(deadline=None)
@given(
    name=st.sampled_from(
        ["devices", "micro_batch", "accum_steps", "seq_len", "nodes", "lora_rank", "zero", "params"]
    ),
    value=_ODD,
)
def test_odd_values_are_answered_or_refused_never_a_bug(name, value):
    options = {"params": "7e9", "gpu": "80GB", name: value}
    try:
        answer = batchplan.estimate(**options)
    except SpecError:
        return
    assert answer.memory.peak_bytes == sum(term.num_bytes for term in answer.memory.terms)


def test_a_misspelt_input_is_refused_with_the_nearest():
    with pytest.raises(UnknownNameError, match="sharding"):
        batchplan.estimate(params="7e9", gpu="80GB", shardin="ddp")


def test_zero_is_a_synonym_of_sharding():
    for stage, sharding in enumerate(("ddp", "zero1", "zero2", "zero3")):
        answer = batchplan.estimate(params="7e9", gpu="80GB", devices=4, zero=stage)
        assert answer.recipe.sharding is Sharding(sharding)


def test_an_explicit_zero_replaces_the_sharding_of_a_recipe_file(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sharding: ddp\n")
    answer = batchplan.estimate(params="7e9", gpu="80GB", devices=4, zero=3, recipe=recipe)
    assert answer.recipe.sharding is Sharding.ZERO3


def test_a_recipe_file_may_hold_every_field(tmp_path, toy_model):
    recipe = Recipe(method="lora", numerics="bf16", sharding="fsdp-full", checkpointing="full")
    path = tmp_path / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe.model_dump(mode="json")))
    answer = batchplan.estimate("qwen2.5-0.5b", gpu="a100-80gb", devices=4, recipe=path)
    assert answer.recipe == recipe


def test_the_sequence_length_defaults_to_4096_or_what_the_model_reaches(toy_model):
    assert batchplan.estimate("qwen2.5-0.5b", gpu="a100-80gb").batch.seq_len == 4096
    answer = batchplan.estimate("pythia-70m", gpu="a100-80gb")
    assert answer.batch.seq_len == 2048
    assert "seq-len-assumed" in {caveat.code for caveat in answer.caveats}
    beyond = batchplan.estimate("pythia-70m", gpu="a100-80gb", seq_len=4096)
    assert "seq-len-beyond-model" in {caveat.code for caveat in beyond.caveats}


def test_the_training_environment_and_remote_code_reach_the_trace(toy_model, tmp_path):
    batchplan.estimate("qwen2.5-0.5b", gpu="a100-80gb", python=sys.executable)
    assert str(toy_model.asked[-1]["python"]) == sys.executable
    assert toy_model.asked[-1]["trust_remote_code"] is False
    config = tmp_path / "config.json"
    local = {"model_type": "mine", "auto_map": {"AutoConfig": "mine.Mine"}, "hidden_size": 64}
    config.write_text(json.dumps(local | {"architectures": ["Mine"], "num_hidden_layers": 2}))
    with pytest.raises(BatchplanError, match="trust-remote-code"):
        batchplan.estimate(str(config), gpu="a100-80gb")


@pytest.mark.parametrize(("first", "second"), [("0.5M", "4M"), (32, 256)])
def test_learning_rates_need_the_ratio_of_batches_alone(first, second):
    answer = batchplan.learning_rate(lr=1e-4, from_batch=first, to_batch=second)
    assert answer.learning_rate.value == pytest.approx(1e-4 * math.sqrt(8))


def test_learning_rates_convert_between_tokens_and_sequences():
    answer = batchplan.learning_rate(lr=1e-4, from_batch="65536k", to_batch=32, seq_len=2048)
    assert answer.learning_rate.value == pytest.approx(1e-4 * math.sqrt(32 / 32_000))
    assert answer.to_dict()["unit"] == "sequences"


def page_of(answer, width: int = 200, **changes) -> str:
    """Return the page of an answer, with fields of its best plan changed."""
    document = answer.to_dict()
    document["plans"][0] |= changes
    file = io.StringIO()
    print_recommendation(document, file=file, width=width)
    return file.getvalue()


def planned(**options):
    known = {"gpu": "a100-80gb", "seq_len": 1024, "target_sequences": 64}
    return batchplan.recommend("qwen2.5-0.5b", **(known | options))


def test_only_sizes_that_the_trainer_chose_are_said_to_be_its_own(toy_model):
    answer = batchplan.estimate("qwen2.5-0.5b", gpu="a100-80gb", micro_batch=2)
    (caveat,) = [c for c in answer.caveats if c.code == "trainer-defaults"]
    assert "micro-batch" not in caveat.text
    assert "accum-steps 1" in caveat.text
    answer = batchplan.estimate(params="7e9", gpu="80GB")
    (caveat,) = [c for c in answer.caveats if c.code == "trainer-defaults"]
    assert "accum-steps" not in caveat.text


@pytest.mark.parametrize(
    ("steps", "warmup"), [(1, 1), (9, 1), (50, 5), (99, 9), (500, 50), (1000, 100), (10**6, 100)]
)
def test_warmup_is_at_most_a_tenth_of_the_epoch_everywhere(toy_model, steps, warmup):
    answer = planned(target_sequences=128, epoch_tokens=steps * 128 * 1024)
    document = answer.to_dict()
    assert answer.plans[0].batch.global_batch_size == 128
    assert document["epoch"]["steps"] == steps
    settings_ = yaml.safe_load(answer.config()[0].text)
    assert settings_["warmup_steps"] == warmup
    assert settings_["num_train_epochs"] == 1
    assert document["plans"][0]["learning_rate"]["warmup_steps"] == warmup
    page = page_of(answer)
    assert f"warm up over {warmup:,} steps" in page
    assert f"warmup_steps: {warmup} " in page
    assert ("Fewer than 100 optimizer steps" in page) is (steps < 100)
    assert [c["code"] for c in document["epoch"]["caveats"]] == ["few-steps"] * (steps < 100)


def test_without_an_epoch_its_length_is_left_to_the_trainer(toy_model):
    answer = planned()
    assert answer.to_dict()["epoch"] is None
    assert "num_train_epochs" not in yaml.safe_load(answer.config()[0].text)


def test_accumulating_is_said_to_save_or_to_cost_by_its_sign(toy_model):
    answer = planned(micro_batch=2, target_sequences=64)
    peak = answer.plans[0].memory.peak_bytes
    page = page_of(answer, peak_bytes_without_accumulation=peak + 2 * 2**30)
    assert "accumulating saves 2.00 GiB, for the same optimizer step." in page
    page = page_of(answer, peak_bytes_without_accumulation=peak - 2 * 2**30)
    assert "accumulating costs 2.00 GiB, because gradients stay resident" in page
    assert "saves" not in page


def test_the_base_of_a_learning_rate_is_named_once(toy_model):
    page = page_of(planned(method="lora"))
    assert "at 16 sequences: 10 × " in page
    assert page.count("LoRA Without Regret") == page.count("ms-swift") == 1
    assert "))" not in page.partition("Learning rate")[2].partition("Keep in mind")[0]
    assert page.lower().count("sweep 0.5, 1 and 2 times the value.") == 1
    assert page_of(planned()).count("ms-swift") == 1


@pytest.mark.parametrize(
    ("options", "is_shown"),
    [
        ({"target_tokens": "2M"}, True),
        ({"target_tokens": "2M", "method": "lora"}, False),
        ({"target_tokens": "2M", "method": "qlora"}, False),
        ({"target_tokens": "8k"}, False),
    ],
)
def test_pretraining_runs_are_shown_where_they_compare(toy_model, options, is_shown):
    answer = planned(**{"target_sequences": None, **options})
    assert bool(answer.reference_runs) is is_shown
    assert ("Published pre-training runs, for comparison:" in page_of(answer)) is is_shown


def test_a_cache_that_cannot_be_used_is_told_once(toy_model, monkeypatch):
    def profile(*, recipe, seq_len, on_warning, **_):
        on_warning(f"The profile cache cannot be used: {recipe.checkpointing}")
        on_warning(f"The profile could not be cached: {recipe.checkpointing}")
        return toy_profiles(recipe, seq_len)

    monkeypatch.setattr("batchplan.api.profiles.activation_profile", profile)
    caveats = [c for c in planned().to_dict()["caveats"] if c["code"] == "profile-cache"]
    assert len(caveats) == 1


def test_the_training_environment_is_asked_for_its_versions_once(toy_model, monkeypatch, tmp_path):
    from batchplan.tracer import environment

    asked = []
    real = subprocess.run

    def count(command, **options):
        asked.append(command)
        return real([sys.executable, *command[1:]], **options)

    monkeypatch.setattr(environment.subprocess, "run", count)
    python = tmp_path / "python"
    python.touch()
    batchplan.estimate("qwen2.5-0.5b", gpu="a100-80gb", python=python)
    assert environment.library_versions(python)["transformers"]
    assert len(asked) == 1


def test_qlora_words_its_base_and_its_adapters():
    from batchplan.api.recipes import numerics_words

    recipe = Recipe(method="qlora", numerics="bf16", adapter_dtype="bf16")
    assert numerics_words(recipe).startswith("base nf4, adapters bf16, gradients bf16")
    assert numerics_words(Recipe(numerics="bf16")) == "bf16"
    assert "moments" not in numerics_words(Recipe(optimizer="sgd", weight_dtype="fp16"))
