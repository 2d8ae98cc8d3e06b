"""ms-swift's files: what is in them, what is read from what people write, what is refused.

Its pins conflict with ours, so the key snapshot of its release stands in for it here;
``python -m benchmarks.trainer_keys validate ms-swift`` asks the library itself.
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

THINNED = [
    (several, recipe)
    for several in (True, False)
    for recipe in list(recipes("ms-swift", several_devices=several))[::13]
]
"""A stride that is prime to the number of changes, so that each meets every mix in turn."""
SIZES = {True: {"num_ranks": 16, "nodes": 2}, False: {"num_ranks": 1, "nodes": 1}}


def recipe(*, several_devices: bool = True, **given: object) -> Recipe:
    return realised("ms-swift", Recipe(**given), several_devices=several_devices)


def settings(plan: Recipe, **more: int) -> dict:
    return yaml.safe_load(emit("ms-swift", job(plan, **more))[0].text)


def reading(text: str) -> Reading:
    return format_of("ms-swift").read([parse("config.yaml", text.encode())])


def test_every_value_has_a_type_and_a_word_that_the_release_takes():
    for several, plan in THINNED:
        assert not violations("ms-swift", settings(plan, **SIZES[several]))


@pytest.mark.parametrize(
    ("given", "dtype", "bf16", "fp16"),
    [
        ({"numerics": "bf16"}, "bfloat16", False, False),
        ({"numerics": "fp32"}, "float32", False, False),
        ({"numerics": "bf16-autocast"}, "float32", True, False),
        ({"numerics": "bf16-master", "sharding": "zero2"}, "bfloat16", True, False),
        ({"numerics": "bf16-master", "sharding": "fsdp-full"}, "float32", True, False),
        ({"method": "lora", "numerics": "fp16"}, "float16", False, True),
    ],
)
def test_the_dtype_of_the_weights_and_autocast_are_both_named(given, dtype, bf16, fp16):
    """Alone, torch_dtype float32 would switch fp16 on."""
    found = settings(recipe(**given))
    assert (found["torch_dtype"], found["bf16"], found["fp16"]) == (dtype, bf16, fp16)


def test_a_plan_is_in_the_file_under_its_names():
    plan = recipe(
        method="qlora",
        numerics="bf16",
        sharding="fsdp-full",
        attention="flash",
        loss="fused",
        lora_rank=64,
        lora_targets="q_proj,v_proj",
        double_quant=False,
    )
    found = settings(plan)
    expected = {
        "use_hf": True,
        "tuner_type": "lora",
        "quant_method": "bnb",
        "quant_bits": 4,
        "bnb_4bit_use_double_quant": False,
        "bnb_4bit_quant_storage": "bfloat16",
        "lora_rank": 64,
        "target_modules": ["q_proj", "v_proj"],
        "max_length": 2048,
        "packing": False,
        "per_device_train_batch_size": 3,
        "gradient_accumulation_steps": 4,
        "attn_impl": "flash_attention_2",
        "use_liger_kernel": True,
        "gradient_checkpointing": False,
        "fsdp": "plan.fsdp.json",
    }
    assert {key: found.get(key) for key in expected} == expected
    assert found["accelerator_config"]["dispatch_batches"] is False, "what swift says by itself"


@pytest.mark.parametrize("sharding", ["fsdp-grad-op", "fsdp-full", "fsdp-hybrid"])
def test_fsdp_checkpoints_in_its_own_file_and_never_reentrantly(sharding):
    plan = recipe(numerics="bf16-master", sharding=sharding, checkpointing="full")
    main, beside, launch = emit("ms-swift", job(plan))
    found, config = yaml.safe_load(main.text), json.loads(beside.text)
    assert config["fsdp_config"]["activation_checkpointing"] is True
    assert found["gradient_checkpointing"] is False
    assert found["gradient_checkpointing_kwargs"] == {"use_reentrant": False}
    kept = sharding == "fsdp-grad-op"
    assert config["fsdp_config"]["reshard_after_forward"] is not kept
    assert config["fsdp"].startswith("shard_grad_op" if kept else "full_shard")
    assert ("DP_REPLICATE_SIZE=2" in launch.text) is (sharding == "fsdp-hybrid")
    assert "deepspeed" not in found


@pytest.mark.parametrize("buckets", ["auto", "default"])
def test_deepspeeds_buckets_are_those_of_the_plan_and_not_of_the_shipped_files(buckets):
    plan = recipe(numerics="bf16-master", sharding="zero2", zero_buckets=buckets)
    main, beside, _ = emit("ms-swift", job(plan))
    assert yaml.safe_load(main.text)["deepspeed"] == beside.name
    size = json.loads(beside.text)["zero_optimization"]["reduce_bucket_size"]
    assert size == {"auto": "auto", "default": 500_000_000}[buckets]


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
def test_the_launch_line_starts_every_device(num_ranks, nodes):
    plan = recipe(numerics="bf16", several_devices=num_ranks > 1)
    files = emit("ms-swift", job(plan, num_ranks=num_ranks, nodes=nodes))
    text = files[-1].text
    each = num_ranks // nodes
    assert (f"export NPROC_PER_NODE={each}\n" in text) is (num_ranks > 1), "or DDP wraps it"
    visible = ",".join(str(device) for device in range(each))
    assert f"{{CUDA_VISIBLE_DEVICES:-{visible}}}" in text, "more would be shared out"
    assert ("export NNODES=2\n" in text) is (nodes == 2)
    assert ("NODE_RANK" in text) is (nodes == 2)
    assert text.endswith("swift sft plan.yaml\n")
    assert read_back("ms-swift", files).values.get("num_ranks", 1) == num_ranks


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"numerics": "bf16", "sharding": "zero2"}, "fp32 copies"),
        ({"numerics": "bf16", "loss": "chunked"}, "chunked"),
        ({"numerics": "bf16", "offload": "optimizer"}, "offload"),
        ({"numerics": "bf16", "checkpointing": "selective"}, "selective"),
        ({"method": "qlora", "numerics": "bf16-master", "sharding": "zero3"}, "4-bit"),
    ],
)
def test_what_it_cannot_do_is_refused(given, words):
    assert words in " ".join(obstacles("ms-swift", recipe(**given)))


LORA = """
model: Qwen/Qwen2.5-7B-Instruct
tuner_type: lora
lora_rank: 16
lora_alpha: 32
target_modules: [all-linear]
torch_dtype: bfloat16
attn_impl: flash_attn
dataset: [data.jsonl]
max_length: 4096
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 1.0e-04
warmup_ratio: 0.03
gradient_checkpointing: true
num_train_epochs: 1
deepspeed: zero2_offload
"""


def test_a_file_that_people_write_is_understood():
    found = reading(LORA)
    assert not found.problems
    expected = {
        "model": "Qwen/Qwen2.5-7B-Instruct",
        "method": "lora",
        "lora_rank": 16,
        "lora_targets": "all-linear",
        "seq_len": 4096,
        "packing": True,
        "micro_batch": 2,
        "accum_steps": 8,
        "learning_rate": 1e-4,
        "warmup_ratio": 0.03,
        "numerics": "bf16-master",
        "sharding": "zero2",
        "offload": "optimizer",
        "checkpointing": "full",
        "attention": "flash",
        "epochs": 1,
    }
    assert {name: found.values[name] for name in expected} == expected


@pytest.mark.parametrize(
    ("text", "numerics", "weights"),
    [
        ("torch_dtype: bfloat16\n", "bf16-autocast", "bf16"),
        ("torch_dtype: float32\n", "fp16-autocast", None),
        ("torch_dtype: float32\nbf16: true\n", "bf16-autocast", None),
        ("torch_dtype: bfloat16\nbf16: false\n", "bf16", None),
        ("model: x\n", "bf16-autocast", "bf16"),
    ],
)
def test_autocast_follows_the_dtype_where_nothing_else_is_said(text, numerics, weights):
    found = recipe_of("ms-swift", reading(f"tuner_type: full\n{text}"))
    assert (found.numerics, found.weight_dtype) == (numerics, weights)


def test_the_shipped_fsdp_file_checkpoints_by_itself():
    found = recipe_of("ms-swift", reading("tuner_type: full\nfsdp: fsdp2\n"))
    assert (found.sharding, found.checkpointing, found.fsdp_version) == ("fsdp-full", "full", 2)
    assert found.reentrant is False


def test_older_names_are_read():
    found = reading("train_type: lora\nquantization_bit: 4\n")
    assert found.values["method"] == "qlora"


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("tuner_type: adalora\n", "tuner_type"),
        ("quant_bits: 8\n", "quant_bits"),
        ("attn_impl: flex_attention\n", "attn_impl"),
    ],
)
def test_what_is_not_modelled_is_noted(text, key):
    assert [problem.key for problem in reading(text).problems] == [key]


@pytest.mark.parametrize(
    "text",
    [
        "tuner_type: [lora]\ntorch_dtype: [a]\nmodel: 7\nfsdp: {a: b}\ndeepspeed: {stage: x}\n",
        "target_modules: {a: b}\nquant_bits: []\nbf16: maybe\noptim: 3\nfsdp: [x]\n",
        "gradient_checkpointing_kwargs: nothing\nlearning_rate: [1]\nattn_impl: {}\n",
    ],
)
def test_odd_values_are_no_reason_to_fail(text):
    assert reading(text).trainer == "ms-swift"
