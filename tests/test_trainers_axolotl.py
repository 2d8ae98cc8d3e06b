"""Axolotl's file: what is in it, what is read from files that people write, what is refused.

Its pins conflict with ours, so the key snapshot of its release stands in for it here;
``python -m benchmarks.trainer_keys validate axolotl`` asks the library itself.
"""

from __future__ import annotations

import json

import pytest
import yaml
from trainer_jobs import job, parsed, read_back, recipes
from trainer_snapshots import violations

from batchplan.configfile import parse
from batchplan.spec import Recipe
from batchplan.trainers import Reading, emit, format_of, obstacles, realised

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
THINNED = [
    (several, recipe)
    for several in (True, False)
    for recipe in list(recipes("axolotl", several_devices=several))[::9]
]
"""A stride that is prime to the number of changes, so that each meets every mix in turn."""


def recipe(*, several_devices: bool = True, **given: object) -> Recipe:
    return realised("axolotl", Recipe(**given), several_devices=several_devices)


def settings(plan: Recipe, **more: int) -> dict:
    return yaml.safe_load(emit("axolotl", job(plan, **more))[0].text)


def reading(text: str) -> Reading:
    return format_of("axolotl").read([parse("config.yaml", text.encode())])


def test_every_value_has_a_type_that_the_schema_takes():
    for several, plan in THINNED:
        sizes = {"num_ranks": 16, "nodes": 2} if several else {"num_ranks": 1, "nodes": 1}
        assert not violations("axolotl", settings(plan, **sizes))


def test_a_plan_is_in_the_file_under_axolotls_names():
    plan = recipe(
        method="qlora",
        numerics="bf16-autocast",
        sharding="fsdp-full",
        checkpointing="full",
        loss="fused",
        attention="flash",
        lora_rank=64,
        lora_targets="q_proj,v_proj",
        double_quant=False,
    )
    found = settings(plan)
    assert {key: found[key] for key in ("micro_batch_size", "gradient_accumulation_steps")} == {
        "micro_batch_size": 3,
        "gradient_accumulation_steps": 4,
    }
    assert (found["sequence_len"], found["pad_to_sequence_len"]) == (2048, True)
    assert found["sample_packing"] is False
    assert (found["adapter"], found["load_in_4bit"], found["lora_r"]) == ("qlora", True, 64)
    assert found["lora_target_modules"] == ["q_proj", "v_proj"]
    assert "lora_target_linear" not in found
    assert found["bnb_config_kwargs"] == {"bnb_4bit_use_double_quant": False}
    assert found["attn_implementation"] == "flash_attention_2"
    assert found["plugins"] == ["axolotl.integrations.liger.LigerPlugin"]
    assert found["liger_fused_linear_cross_entropy"] is True
    assert found["fsdp_config"]["activation_checkpointing"] is True
    assert found["gradient_checkpointing"] is False
    assert found["embeddings_skip_upcast"] is True
    assert found["accelerator_config"] == {
        "gradient_accumulation_kwargs": {"sync_each_batch": True}
    }


def test_bf16_weights_under_ddp_run_under_autocast_and_nothing_else_is_offered():
    plan = recipe(numerics="bf16-autocast")
    assert plan.weight_dtype == plan.optimizer_dtype == "bf16"
    assert (settings(plan)["bf16"], settings(plan)["fp16"]) == (True, False)
    assert obstacles("axolotl", recipe(numerics="bf16"))
    assert obstacles("axolotl", recipe(numerics="fp16-autocast"))
    plain = settings(recipe(numerics="fp32"))
    assert (plain["bf16"], plain["fp16"]) == (False, False)


def test_its_fsdp_keeps_bf16_shards():
    found = reading("base_model: x\nbf16: true\nfsdp_config: {reshard_after_forward: true}\n")
    assert found.values["numerics"] == "bf16"
    assert settings(recipe(numerics="bf16", sharding="fsdp-full"))["bf16"] is True
    (text,) = obstacles("axolotl", recipe(numerics="bf16-master", sharding="fsdp-full"))
    assert "no fp32 copies" in text


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_a_deepspeed_file_lies_beside_and_nothing_is_configured_twice(sharding):
    plan = recipe(sharding=sharding, numerics="bf16-master", offload="optimizer")
    main, beside, _ = emit("axolotl", job(plan))
    found, config = yaml.safe_load(main.text), json.loads(beside.text)
    assert found["deepspeed"] == beside.name
    assert config["zero_optimization"]["stage"] == STAGES[sharding]
    assert "fsdp_config" not in found
    assert "optimizer" not in found, "DeepSpeed's own, in its file"
    assert config["optimizer"]["type"] == "AdamW"


def test_hybrid_sharding_counts_nodes_and_their_devices():
    found = settings(recipe(numerics="bf16", sharding="fsdp-hybrid"))
    assert (found["dp_replicate_size"], found["dp_shard_size"]) == (2, 8)


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
def test_the_launch_line_starts_every_device(num_ranks, nodes):
    plan = recipe(numerics="bf16-autocast", several_devices=num_ranks > 1)
    text = emit("axolotl", job(plan, num_ranks=num_ranks, nodes=nodes))[-1].text
    launcher = f"torchrun -- --nproc_per_node={num_ranks // nodes}" if num_ranks > 1 else "python"
    assert f"axolotl train plan.yaml --launcher {launcher}" in text
    assert ("--nnodes=2" in text) is (nodes == 2)
    assert ("--rdzv_id=plan" in text) is (nodes == 2), "else each node makes up one of its own"
    assert ("{CUDA_VISIBLE_DEVICES:-0}" in text) is (num_ranks == 1)
    values = read_back(
        "axolotl", emit("axolotl", job(plan, num_ranks=num_ranks, nodes=nodes))
    ).values
    assert values.get("num_ranks", 1) == num_ranks


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"numerics": "bf16", "sharding": "zero2"}, "fp32 copies"),
        ({"numerics": "bf16-autocast", "offload": "optimizer"}, "offload"),
        ({"numerics": "bf16-autocast", "loss": "chunked"}, "chunked"),
        ({"numerics": "bf16-autocast", "checkpointing": "selective"}, "selective"),
        ({"numerics": "bf16", "sharding": "fsdp-full", "optimizer": "adamw-8bit"}, "FSDP2"),
        (
            {
                "method": "qlora",
                "numerics": "bf16-autocast",
                "sharding": "ddp",
                "frozen_upcast": True,
            },
            "only under FSDP",
        ),
    ],
)
def test_what_it_cannot_do_is_refused(given, words):
    assert words in " ".join(obstacles("axolotl", recipe(**given)))


QLORA = """
base_model: Qwen/Qwen2.5-7B
adapter: qlora
load_in_4bit: true
lora_r: 32
lora_alpha: 64
lora_dropout: 0.05
lora_target_linear: true
datasets: [{path: mhenrichsen/alpaca_2k_test, type: alpaca}]
sequence_len: 4096
sample_packing: true
micro_batch_size: 2
gradient_accumulation_steps: 8
num_epochs: 1
optimizer: paged_adamw_8bit
learning_rate: 2.0e-04
lr_scheduler: cosine
warmup_ratio: 0.03
bf16: true
gradient_checkpointing: true
gradient_checkpointing_kwargs: {use_reentrant: true}
flash_attention: true
"""


def test_a_file_that_people_write_is_understood():
    found = reading(QLORA)
    assert not found.problems
    expected = {
        "model": "Qwen/Qwen2.5-7B",
        "method": "qlora",
        "lora_rank": 32,
        "lora_dropout": 0.05,
        "lora_targets": "all-linear",
        "seq_len": 4096,
        "packing": True,
        "micro_batch": 2,
        "accum_steps": 8,
        "epochs": 1,
        "optimizer": "paged-adamw-8bit",
        "learning_rate": 2e-4,
        "warmup_ratio": 0.03,
        "numerics": "bf16-autocast",
        "checkpointing": "full",
        "reentrant": True,
        "attention": "flash",
    }
    assert {name: found.values[name] for name in expected} == expected
    assert found.of("attention").line == QLORA[: QLORA.index("flash_attention")].count("\n") + 1


def test_older_names_inside_fsdp_config_still_count():
    found = reading("fsdp_config: {fsdp_reshard_after_forward: false, fsdp_offload_params: true}\n")
    assert found.values["sharding"] == "fsdp-grad-op"
    assert found.values["offload"] == "params"


def test_a_loss_without_its_plugin_is_pointed_out_and_mended():
    found = reading("liger_fused_linear_cross_entropy: true\n")
    assert "loss" not in found.values
    (problem,) = found.problems
    assert (problem.code, problem.line) == ("plugin-missing", 1)
    assert problem.edits[0].value == ["axolotl.integrations.liger.LigerPlugin"]
    listed = "plugins: [axolotl.integrations.cut_cross_entropy.CutCrossEntropyPlugin]\n"
    assert reading(f"{listed}cut_cross_entropy: true\n").values["loss"] == "fused"


def test_a_batch_size_that_changes_nothing_is_pointed_out():
    """The release gives 1 pass for micro_batch_size 2 and batch_size 32 (validated there)."""
    (problem,) = reading("micro_batch_size: 2\nbatch_size: 32\n").problems
    assert (problem.code, problem.line) == ("batch-size-ignored", 2)
    assert "gradient_accumulation_steps: 16" in problem.fix
    assert not reading("micro_batch_size: 2\ngradient_accumulation_steps: 4\n").problems


@pytest.mark.parametrize(
    "text",
    [
        "batch_size: 8\nmicro_batch_size: 0\n",
        "adapter: [lora]\nbf16: {a: 1}\nplugins: liger\nliger_fused_linear_cross_entropy: true\n",
        "fsdp_config: []\ndeepspeed: 3\nlora_target_modules: {a: b}\n",
        "gradient_checkpointing: 7\noptimizer: [adamw]\nattn_implementation: null\n",
        "optimizer: no-such-thing\nadapter: llama-adapter\ndp_replicate_size: two\n",
    ],
)
def test_odd_values_are_no_reason_to_fail(text):
    assert reading(text).trainer == "axolotl"


def test_what_is_not_modelled_is_noted():
    found = reading("selective_checkpointing: true\ngradient_checkpointing: offload\n")
    assert found.values["checkpointing"] == "full"
    assert [problem.key for problem in found.problems] == ["selective_checkpointing"]


def test_the_files_of_a_set_name_each_other():
    for several, plan in THINNED[::7]:
        sizes = {"num_ranks": 16, "nodes": 2} if several else {"num_ranks": 1, "nodes": 1}
        files = parsed(emit("axolotl", job(plan, **sizes)))
        named = files[0].get("deepspeed")
        assert (named in [file.name for file in files]) is (named is not None)
