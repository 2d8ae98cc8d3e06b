"""The emitted script compiles, and every keyword is one that the release looked at takes."""

from __future__ import annotations

import ast
import itertools
import json
import shlex
import warnings
from pathlib import Path

import pytest
from trainer_jobs import job, name, recipe_of

from batchplan.configfile import parse
from batchplan.errors import SpecError
from batchplan.spec import (
    Attention,
    Checkpointing,
    Loss,
    Method,
    Numerics,
    Offload,
    Optimizer,
    Recipe,
    Sharding,
)
from batchplan.trainers import emit, format_of, obstacles, realised

SNAPSHOT = Path(__file__).parent.parent / "profiles" / "trainers" / "unsloth.json"
CALLS = {
    "FastLanguageModel.from_pretrained": "from_pretrained",
    "FastLanguageModel.get_peft_model": "get_peft_model",
    "SFTConfig": "config",
}
DTYPES = {"bf16": "bfloat16", "fp16": "float16"}


def recipe(**given) -> Recipe:
    return realised("unsloth", Recipe(**given), several_devices=True)


MIXES = tuple(
    recipe(method=method, numerics=numerics, checkpointing=checkpointing, optimizer=optimizer)
    for way in format_of("unsloth").ways
    for method, numerics, checkpointing, optimizer in itertools.product(
        way.methods, way.numerics, ("none", "full"), ("adamw", "adamw-8bit")
    )
)


def script_of(found: Recipe, **more) -> str:
    main, _ = emit("unsloth", job(found, **more))
    assert main.name == "plan.py"
    return main.text


def calls_of(text: str) -> dict[str, dict[str, object]]:
    """The keyword arguments of every call; what is no literal as its text."""
    found = {}
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Call):
            keywords = {}
            for keyword in node.keywords:
                try:
                    keywords[keyword.arg] = ast.literal_eval(keyword.value)
                except ValueError:
                    keywords[keyword.arg] = ast.unparse(keyword.value)
            found[ast.unparse(node.func)] = keywords
    return found


@pytest.mark.parametrize("found", MIXES, ids=name)
def test_every_keyword_is_known_and_every_decision_is_in_the_script(found):
    text = script_of(found)
    compile(text, "plan.py", "exec")
    calls = calls_of(text)
    known = json.loads(SNAPSHOT.read_text(encoding="utf-8"))["files"]
    for call, role in CALLS.items():
        assert set(calls.get(call, {})) <= set(known[role]["keys"])
    loading = calls["FastLanguageModel.from_pretrained"]
    assert loading["model_name"] == "Qwen/Qwen2.5-7B"
    assert loading["dtype"] == f"torch.{DTYPES[found.numerics.split('-')[0]]}"
    assert loading["load_in_4bit"] is (found.method is Method.QLORA)
    assert loading.get("load_in_16bit", False) is (found.method is Method.LORA)
    assert loading.get("full_finetuning", False) is (found.method is Method.FULL)
    _check_adapters(found, calls)
    arguments = calls["SFTConfig"]
    assert loading["max_seq_length"] == arguments["max_length"] == 2048
    assert arguments["per_device_train_batch_size"] == 3
    assert arguments["gradient_accumulation_steps"] == 4
    assert arguments["learning_rate"] == 2e-5
    half, _, autocast = found.numerics.partition("-")
    assert arguments["bf16"] is (half == "bf16" and bool(autocast))
    assert arguments["fp16"] is (half == "fp16")
    eight_bit = found.optimizer is Optimizer.ADAMW_8BIT
    assert arguments["optim"] == ("adamw_bnb_8bit" if eight_bit else "adamw_torch_fused")


def _check_adapters(found, calls):
    loading = calls["FastLanguageModel.from_pretrained"]
    adapters = calls.get("FastLanguageModel.get_peft_model")
    assert (adapters is None) is (found.method is Method.FULL)
    key = "use_gradient_checkpointing"
    places = [call[key] for call in (loading, adapters or {}) if key in call]
    assert places == [found.checkpointing == "full"]
    if adapters is None:
        has_fp32_weights = found.numerics.endswith("autocast")
        assert loading["float32_mixed_precision"] is has_fp32_weights
        return
    assert (adapters["r"], adapters["lora_dropout"]) == (found.lora_rank, found.lora_dropout)
    assert adapters["target_modules"] == "all-linear"


@pytest.mark.slow
@pytest.mark.parametrize("found", MIXES, ids=name)
def test_trl_takes_the_arguments(found, tmp_path, monkeypatch):
    trl = pytest.importorskip("trl")
    import transformers.training_args as training_args

    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    keywords = calls_of(script_of(found))["SFTConfig"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        arguments = trl.SFTConfig(**keywords)
    for key, value in keywords.items():
        assert getattr(arguments, key) == value


def test_one_name_is_a_list_of_one_and_no_pattern():
    for targets, expected in (("q_proj", ["q_proj"]), ("q_proj,v_proj", ["q_proj", "v_proj"])):
        found = recipe(method="lora", numerics="bf16-autocast", lora_targets=targets)
        adapters = calls_of(script_of(found))["FastLanguageModel.get_peft_model"]
        assert adapters["target_modules"] == expected


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
def test_the_launch_line_starts_every_device(num_ranks, nodes):
    found = recipe(method="qlora", numerics="bf16-autocast")
    *_, launch = emit("unsloth", job(found, num_ranks=num_ranks, nodes=nodes))
    words = shlex.split(launch.text.splitlines()[-1])
    assert words[0] == ("torchrun" if num_ranks > 1 else "python"), "or DDP wraps it, buckets too"
    assert (f"--nproc_per_node={num_ranks // nodes}" in words) is (num_ranks > 1)
    assert (f"--nnodes={nodes}" in words) is (nodes > 1)
    assert words[-2] == "plan.py"


@pytest.mark.parametrize(
    "change",
    [
        {"sharding": Sharding.ZERO2, "numerics": Numerics.BF16_MASTER},
        {"sharding": Sharding.FSDP_FULL},
        {"numerics": Numerics.BF16},
        {"numerics": Numerics.FP32},
        {"checkpointing": Checkpointing.SELECTIVE},
        {"offload": Offload.OPTIMIZER},
        {"loss": Loss.STANDARD},
        {"double_quant": False},
        {"reentrant": False, "checkpointing": Checkpointing.FULL},
        {"optimizer": Optimizer.MUON},
        {"attention": Attention.EAGER},
    ],
    ids=str,
)
def test_what_unsloth_cannot_do_is_refused_not_approximated(change):
    base = recipe(method="qlora", numerics="bf16-autocast")
    assert not obstacles("unsloth", base)
    refused = base.model_copy(update=change)
    assert obstacles("unsloth", refused)
    with pytest.raises(SpecError, match="unsloth cannot run this plan"):
        emit("unsloth", job(refused))


def test_weights_follow_the_method():
    """Source: unsloth_zoo training_utils.py, prepare_model_for_training."""
    weights = {
        (method, numerics): recipe(method=method, numerics=numerics).weight_dtype
        for method in ("full", "qlora")
        for numerics in ("bf16-autocast", "fp16-autocast")
    }
    assert weights == {
        ("full", "bf16-autocast"): None,
        ("full", "fp16-autocast"): None,
        ("qlora", "bf16-autocast"): "bf16",
        ("qlora", "fp16-autocast"): "fp16",
    }
    assert recipe(method="full", numerics="bf16").norm_dtype == "fp32"
    assert recipe(method="qlora", numerics="bf16-autocast").expandable_segments


def reading_of(text: str):
    return format_of("unsloth").read([parse("train.py", text.encode())])


def test_a_script_written_by_hand_is_understood():
    reading = reading_of("""
from unsloth import FastLanguageModel
import torch
max_seq_length = 4096
model, tok = FastLanguageModel.from_pretrained(model_name="unsloth/Llama-3.2-1B-Instruct",
    max_seq_length=max_seq_length, dtype=None, load_in_4bit=True)
model = FastLanguageModel.get_peft_model(model, r=32, lora_alpha=32, lora_dropout=0.0,
    target_modules=["q_proj", "v_proj"], use_gradient_checkpointing="unsloth")
args = SFTConfig(output_dir="out", per_device_train_batch_size=2, gradient_accumulation_steps=8,
    packing=True, learning_rate=2e-4, warmup_steps=30, optim="adamw_8bit", num_train_epochs=1)
SFTTrainer(model=model, processing_class=tok, args=args, train_dataset=ds).train()
""")
    assert reading.values == {
        "model": "unsloth/Llama-3.2-1B-Instruct",
        "seq_len": 4096,
        "method": "qlora",
        "lora_rank": 32,
        "lora_dropout": 0.0,
        "lora_targets": "q_proj,v_proj",
        "checkpointing": "full",
        "micro_batch": 2,
        "accum_steps": 8,
        "packing": True,
        "learning_rate": 2e-4,
        "warmup_steps": 30,
        "optimizer": "adamw-8bit",
        "epochs": 1,
    }
    assert not reading.problems


@pytest.mark.parametrize(
    ("loading", "method", "numerics"),
    [
        ("", "qlora", "bf16-autocast"),
        ("load_in_4bit=False", "lora", "bf16-autocast"),
        ("load_in_4bit=False, load_in_16bit=True", "lora", "bf16-autocast"),
        ("dtype=torch.float16", "qlora", "fp16-autocast"),
        ("full_finetuning=True", "full", "bf16"),
        ("full_finetuning=True, float32_mixed_precision=True", "full", "bf16-autocast"),
        ("full_finetuning=True, dtype=torch.float16", "full", "fp16-autocast"),
    ],
)
def test_loading_flags_decide_method_and_numerics(loading, method, numerics):
    found = recipe_of("unsloth", reading_of(f"FastModel.from_pretrained('x', {loading})\n"))
    assert (found.method, found.numerics) == (method, numerics)


@pytest.mark.parametrize("value", ["[1]", "{'a': 1}", "None", "True", "'x'", "-1", "f()", "(1, 2)"])
def test_odd_values_never_raise(value):
    keys = json.loads(SNAPSHOT.read_text(encoding="utf-8"))["files"]
    for call, role in CALLS.items():
        for key in keys[role]["keys"]:
            if "." not in key:
                assert reading_of(f"{call}({key}={value})\n").trainer == "unsloth"
