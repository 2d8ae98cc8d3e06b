"""LLaMA-Factory's files: what is in them, what is read from what people write, what is refused.

Its pins conflict with ours, so the key snapshot of its release stands in for it here;
``python -m benchmarks.trainer_keys validate llamafactory`` asks the library itself.
"""

from __future__ import annotations

import json

import pytest
import yaml
from trainer_jobs import job, read_back, recipe_of, recipes
from trainer_snapshots import violations

from batchplan.configfile import parse
from batchplan.spec import Recipe
from batchplan.trainers import Reading, emit, format_of, obstacles, realised

STAGES = {"zero1": 1, "zero2": 2, "zero3": 3}
THINNED = [
    (several, recipe)
    for several in (True, False)
    for recipe in list(recipes("llamafactory", several_devices=several))[::9]
]
"""A stride that is prime to the number of changes, so that each meets every mix in turn."""
SIZES = {True: {"num_ranks": 16, "nodes": 2}, False: {"num_ranks": 1, "nodes": 1}}


def recipe(*, several_devices: bool = True, **given: object) -> Recipe:
    return realised("llamafactory", Recipe(**given), several_devices=several_devices)


def settings(plan: Recipe, **more: int) -> dict:
    return yaml.safe_load(emit("llamafactory", job(plan, **more))[0].text)


def reading(*texts: str) -> Reading:
    files = [parse(f"config{at}.yaml", text.encode()) for at, text in enumerate(texts)]
    return format_of("llamafactory").read(files)


def script(plan: Recipe, **more: int) -> str:
    return emit("llamafactory", job(plan, **more))[-1].text


def test_every_value_has_a_type_and_a_word_that_the_release_takes():
    for several, plan in THINNED:
        files = emit("llamafactory", job(plan, **SIZES[several]))
        assert not violations("llamafactory", yaml.safe_load(files[0].text))
        for file in files[1:]:
            if file.name.endswith("accelerate.yaml"):
                assert not violations("accelerate", yaml.safe_load(file.text))


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ({"numerics": "bf16"}, {"pure_bf16": True}),
        ({"numerics": "bf16-autocast"}, {"bf16": True, "fp16": False}),
        ({"numerics": "fp16-autocast"}, {"bf16": False, "fp16": True}),
        ({"numerics": "fp32"}, {"bf16": False, "fp16": False}),
        ({"numerics": "bf16-master", "sharding": "zero3"}, {"bf16": True, "fp16": False}),
        ({"numerics": "bf16-master", "sharding": "fsdp-full"}, {"bf16": True, "fp16": False}),
    ],
)
def test_what_trains_is_fp32_unless_it_says_pure_bf16(given, expected):
    found = settings(recipe(**given))
    assert {key: found.get(key) for key in expected} == expected
    assert ("bf16" in found) is not ("pure_bf16" in found)


def test_a_plan_is_in_the_file_under_its_names():
    plan = recipe(
        method="qlora",
        numerics="bf16-autocast",
        checkpointing="full",
        reentrant=True,
        attention="eager",
        loss="fused",
        lora_rank=64,
        lora_targets="q_proj,v_proj",
        double_quant=False,
    )
    assert plan.weight_dtype == "bf16", "the base as it was saved"
    found = settings(plan)
    expected = {
        "finetuning_type": "lora",
        "quantization_bit": 4,
        "quantization_method": "bnb",
        "double_quantization": False,
        "lora_rank": 64,
        "lora_target": "q_proj,v_proj",
        "cutoff_len": 2048,
        "packing": False,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 4,
        "flash_attn": "disabled",
        "enable_liger_kernel": True,
        "disable_gradient_checkpointing": False,
        "use_reentrant_gc": True,
        "optim": "adamw_torch_fused",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert "gradient_checkpointing" not in found, "it has a switch of its own"


@pytest.mark.parametrize("sharding", ["fsdp-grad-op", "fsdp-full", "fsdp-hybrid"])
def test_fsdp_is_in_accelerates_file_alone(sharding):
    plan = recipe(numerics="bf16-master", sharding=sharding, checkpointing="full")
    main, beside, launch = emit("llamafactory", job(plan))
    found, config = yaml.safe_load(main.text), yaml.safe_load(beside.text)
    assert not {"fsdp", "fsdp_config", "deepspeed"} & found.keys()
    assert config["num_processes"] == 16
    assert config["fsdp_config"]["fsdp_reshard_after_forward"] is (sharding != "fsdp-grad-op")
    assert ("parallelism_config" in config) is (sharding == "fsdp-hybrid")
    assert found["disable_gradient_checkpointing"] is False
    assert config["fsdp_config"]["fsdp_activation_checkpointing"] is False, "checkpointed once"
    assert "mixed_precision" not in config, "the trainer's file says it"
    assert f"--config_file {beside.name} " in launch.text
    assert launch.text.endswith("-m llamafactory.launcher plan.yaml\n")


@pytest.mark.parametrize("sharding", ["zero1", "zero2", "zero3"])
def test_a_deepspeed_file_lies_beside(sharding):
    plan = recipe(sharding=sharding, numerics="bf16-master")
    main, beside, _ = emit("llamafactory", job(plan))
    assert yaml.safe_load(main.text)["deepspeed"] == beside.name
    assert json.loads(beside.text)["zero_optimization"]["stage"] == STAGES[sharding]


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
@pytest.mark.parametrize("sharding", ["ddp", "fsdp-full"])
def test_the_launch_line_starts_every_device(sharding, num_ranks, nodes):
    if sharding != "ddp" and num_ranks == 1:
        pytest.skip("nothing to shard over")
    plan = recipe(numerics="bf16", sharding=sharding, several_devices=num_ranks > 1)
    sizes = {"num_ranks": num_ranks, "nodes": nodes}
    text = script(plan, **sizes)
    if sharding == "ddp":
        several = num_ranks > 1
        assert ("export FORCE_TORCHRUN=1\n" in text) is several, "or DDP wraps it"
        assert (f"export NPROC_PER_NODE={num_ranks // nodes}\n" in text) is several
        assert ("{CUDA_VISIBLE_DEVICES:-0}" in text) is not several
        assert ("export NNODES=2\n" in text) is (nodes == 2)
        assert text.endswith("llamafactory-cli train plan.yaml\n")
    assert ("NODE_RANK" in text) is (nodes == 2)
    values = read_back("llamafactory", emit("llamafactory", job(plan, **sizes))).values
    assert values.get("num_ranks", 1) == num_ranks
    assert values.get("num_nodes", 1) == nodes


def test_its_launcher_is_told_about_expandable_segments_both_ways():
    plan = recipe(numerics="bf16")
    assert plan.expandable_segments, "as its launcher does on several devices"
    assert "expandable_segments:True" in script(plan)
    off = plan.model_copy(update={"expandable_segments": False})
    assert "export OPTIM_TORCH=0\n" in script(off)
    reading_of_it = read_back("llamafactory", emit("llamafactory", job(off)))
    assert recipe_of("llamafactory", reading_of_it).expandable_segments is False


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"numerics": "bf16", "sharding": "zero2"}, "fp32 copies"),
        ({"numerics": "bf16-autocast", "sharding": "fsdp-full"}, "fp32"),
        ({"method": "lora", "numerics": "fp32"}, "cannot run lora"),
        ({"numerics": "fp16"}, "cannot run full"),
        ({"numerics": "bf16", "offload": "optimizer"}, "offload"),
        ({"numerics": "bf16", "checkpointing": "selective"}, "selective"),
    ],
)
def test_what_it_cannot_do_is_refused(given, words):
    assert words in " ".join(obstacles("llamafactory", recipe(**given)))


LORA = """
model_name_or_path: Qwen/Qwen2.5-7B-Instruct
quantization_bit: 4
flash_attn: fa2
enable_liger_kernel: true
use_reentrant_gc: false
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 16
lora_dropout: 0.05
lora_target: q_proj, v_proj
cutoff_len: 4096
neat_packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 2.0e-04
warmup_ratio: 0.03
optim: adamw_torch
bf16: true
upcast_layernorm: true
"""


def test_a_file_that_people_write_is_understood():
    found = reading(LORA)
    assert not found.problems
    expected = {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "method": "qlora",
        "lora_rank": 16,
        "lora_dropout": 0.05,
        "lora_targets": "q_proj,v_proj",
        "seq_len": 4096,
        "packing": True,
        "micro_batch": 2,
        "accum_steps": 8,
        "learning_rate": 2e-4,
        "warmup_ratio": 0.03,
        "optimizer_impl": "foreach",
        "numerics": "bf16-autocast",
        "norm_dtype": "fp32",
        "loss": "fused",
        "reentrant": False,
        "attention": "flash",
    }
    assert {name: found.values[name] for name in expected} == expected
    plan = recipe_of("llamafactory", found)
    assert (plan.weight_dtype, plan.checkpointing) == ("bf16", "full")


def test_a_file_that_says_little_means_what_the_trainer_does():
    plan = recipe_of("llamafactory", reading("finetuning_type: full\n"))
    assert (plan.numerics, plan.checkpointing, plan.reentrant) == ("fp32", "full", True)


def test_accelerates_file_beside_it_is_read_too():
    launch = "distributed_type: FSDP\nnum_processes: 4\nfsdp_config: {fsdp_offload_params: true}\n"
    found = reading("finetuning_type: full\nbf16: true\n", launch)
    assert found.values["sharding"] == "fsdp-full"
    assert (found.values["num_ranks"], found.values["offload"]) == (4, "params")
    assert found.values["numerics"] == "bf16-master"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("finetuning_type: oft\n", "finetuning_type"),
        ("quantization_bit: 8\n", "quantization_bit"),
        ("optim: no-such-thing\n", "optim"),
        ("flash_attn: shift\n", "flash_attn"),
    ],
)
def test_what_is_not_modelled_is_noted(text, key):
    assert [problem.key for problem in reading(text).problems] == [key]


@pytest.mark.parametrize(
    "text",
    [
        "finetuning_type: [lora]\nquantization_bit: four\nlora_target: {a: b}\nbf16: yes please\n",
        "flash_attn: 3\noptim: {a: b}\ndeepspeed: [1]\nfsdp: 7\nlearning_rate: null\n",
        "distributed_type: [FSDP]\nfsdp_config: 3\nnum_processes: many\n",
    ],
)
def test_odd_values_are_no_reason_to_fail(text):
    assert reading(text).trainer == "llamafactory"
