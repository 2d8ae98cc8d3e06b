"""The emitted JSON is read by DeepSpeed's own config, and starts its engine on the CPU."""

from __future__ import annotations

import itertools
import json
import math
import re
import shlex
import subprocess
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ports import free_port
from trainer_jobs import job, name, written

from batchplan.configfile import parse
from batchplan.errors import SpecError
from batchplan.spec import Recipe
from batchplan.trainers import emit, format_of, obstacles, realised

ENGINE = Path(__file__).parent / "engines" / "emitted_deepspeed.py"
STAGE = {"zero1": 1, "zero2": 2, "zero3": 3}


def recipe(**given: object) -> Recipe:
    """What DeepSpeed makes of a recipe on several devices."""
    return realised("deepspeed", Recipe.model_validate(given), several_devices=True)


def mixes() -> Iterator[Recipe]:
    """Every method, sharding and numerics, with every offload that goes with it."""
    for way in format_of("deepspeed").ways:
        for method, sharding, numerics, offload in itertools.product(
            way.methods, way.shardings, way.numerics, ("none", "optimizer", "params")
        ):
            found = recipe(method=method, sharding=sharding, numerics=numerics, offload=offload)
            if way.alone is not True and not obstacles("deepspeed", found):
                yield found


MIXES = tuple(mixes())


def config(plan: Recipe, **more: Any) -> dict[str, Any]:
    return json.loads(emit("deepspeed", job(plan, **more))[0].text)


@pytest.fixture
def understood(monkeypatch):
    """Return a function that gives DeepSpeed's own reading of a config, on 16 pretended ranks."""
    pytest.importorskip("deepspeed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.runtime import config as theirs

    class Ranks:
        def get_data_parallel_world_size(self) -> int:
            return 16

    monkeypatch.setattr(theirs.dist, "get_rank", lambda *_, **__: 0)
    return lambda written: theirs.DeepSpeedConfig(written, mpu=Ranks())


@pytest.mark.parametrize("plan", MIXES, ids=name)
def test_deepspeed_reads_every_value_the_plan_decided(plan, understood):
    found = understood(config(plan))
    assert found.train_micro_batch_size_per_gpu == 3
    assert found.gradient_accumulation_steps == 4
    assert found.train_batch_size == 3 * 4 * 16
    assert found.zero_config.stage == STAGE[plan.sharding]
    half, other = ("bfloat16", "float16") if "bf16" in plan.numerics else ("float16", "bfloat16")
    assert getattr(found, f"{half}_config").enabled is True
    assert getattr(found, f"{other}_config").enabled is False
    assert isinstance(found.optimizer_params["lr"], float)
    assert found.optimizer_params["lr"] == 2e-5
    assert found.optimizer_name == "adamw"
    assert found.dataloader_drop_last is True
    zero = found.zero_config
    assert (zero.offload_optimizer is not None) is (plan.offload != "none")
    assert (zero.offload_param is not None) is (plan.offload == "params")


@pytest.mark.parametrize("sharding", STAGE)
def test_bucket_sizes_are_deepspeeds_own_and_written_out(sharding, understood):
    # A batch has to be given; everything else is left to DeepSpeed.
    own = understood({"train_batch_size": 16, "zero_optimization": {"stage": STAGE[sharding]}})
    block = config(recipe(sharding=sharding))["zero_optimization"]
    zero = understood(config(recipe(sharding=sharding))).zero_config
    for theirs, key in (
        ("reduce_bucket_size", "reduce_bucket_size"),
        ("prefetch_bucket_size", "stage3_prefetch_bucket_size"),
        ("param_persistence_threshold", "stage3_param_persistence_threshold"),
        ("overlap_comm", "overlap_comm"),
        ("contiguous_gradients", "contiguous_gradients"),
    ):
        assert getattr(zero, theirs) == getattr(own.zero_config, theirs)
        assert (key in block) is (not key.startswith("stage3") or sharding == "zero3")


def test_a_batch_that_does_not_multiply_out_is_refused_by_deepspeed(understood):
    wrong = config(recipe(sharding="zero2")) | {"train_batch_size": 191}
    with pytest.raises(AssertionError):
        understood(wrong)


def test_no_number_is_left_to_anyone_and_nothing_is_said_twice():
    for plan in MIXES:
        main, *beside = emit("deepspeed", job(plan))
        assert '"auto"' not in main.text
        loop = yaml.safe_load(beside[0].text)
        assert not {"DataLoader", "optimizer", "GradientAccumulationPlugin"} & set(loop)


@pytest.mark.parametrize(
    ("optimizer", "implementation", "says"),
    [
        ("adamw", "fused", {"type": "AdamW"}),
        ("adamw", "foreach", {"type": "AdamW", "torch_adam": True, "foreach": True}),
        ("adamw", "for-loop", {"type": "AdamW", "torch_adam": True, "foreach": False}),
        ("sgd", "fused", {"type": "SGD"}),
        ("sgd-momentum", "fused", {"type": "SGD", "momentum": 0.9}),
        ("lion", "fused", {"type": "Lion"}),
    ],
)
def test_optimizers_have_the_names_of_deepspeed(optimizer, implementation, says):
    found = config(recipe(sharding="zero2", optimizer=optimizer, optimizer_impl=implementation))
    block = {"type": found["optimizer"]["type"], **found["optimizer"]["params"]}
    assert {k: v for k, v in block.items() if k not in ("lr", "betas")} == says
    assert found.get("zero_allow_untested_optimizer", False) is optimizer.startswith("sgd")


def test_every_optimizer_is_one_the_engine_knows():
    pytest.importorskip("deepspeed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.runtime.config import DEEPSPEED_OPTIMIZERS
    import torch

    for optimizer in format_of("deepspeed").values["optimizer"]:
        kind = config(recipe(sharding="zero2", optimizer=optimizer))["optimizer"]["type"]
        assert kind.lower() in DEEPSPEED_OPTIMIZERS or hasattr(torch.optim, kind)


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
def test_the_launch_line_starts_every_device(num_ranks, nodes):
    plan = recipe(sharding="zero1")
    line = emit("deepspeed", job(plan, num_ranks=num_ranks, nodes=nodes))[-1].text.splitlines()[-1]
    words = shlex.split(re.sub(r"\$\{(\w+)[^}]*\}", r"\1", line))
    assert words[0] == "deepspeed"
    assert f"--num_gpus={num_ranks // nodes}" in words
    several = {"--no_ssh", "--node_rank=NODE_RANK", "--master_addr=HEAD_NODE", "--num_nodes=2"}
    assert (several <= set(words)) is (nodes > 1)
    assert words[-3:] == ["train.py", "--deepspeed_config", "plan.json"]


def test_the_launcher_takes_the_flags():
    runner = pytest.importorskip("deepspeed.launcher.runner")
    line = emit("deepspeed", job(recipe(sharding="zero1")))[-1].text.splitlines()[-1]
    values = {"NODE_RANK": "1", "HEAD_NODE": "10.0.0.1", "HOSTFILE": "hosts"}
    line = re.sub(r"\$\{(\w+)[^}]*\}", lambda found: values[found[1]], line)
    arguments = runner.parse_args(shlex.split(line)[1:])
    assert (arguments.num_nodes, arguments.num_gpus, arguments.node_rank) == (2, 8, 1)
    assert (arguments.no_ssh, arguments.hostfile) == (True, "hosts")
    assert (arguments.master_addr, arguments.master_port) == ("10.0.0.1", 29500)
    assert arguments.user_script == "train.py"


@pytest.mark.parametrize(
    "given",
    [
        {"sharding": "ddp", "numerics": "fp32"},
        {"sharding": "ddp", "numerics": "bf16-master"},
        {"sharding": "zero2", "numerics": "bf16"},
        {"sharding": "fsdp-full"},
        {"sharding": "zero2", "optimizer": "adafactor"},
        {"sharding": "zero2", "optimizer": "adamw-8bit"},
        {"sharding": "zero2", "offload": "params"},
        {"sharding": "zero2", "zero_buckets": "auto"},
        {"sharding": "zero2", "method": "qlora"},
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_not_approximated(given):
    # What the trainer decides by itself is DeepSpeed's own, but for what is under test.
    wanted = Recipe.model_validate({"zero_buckets": "default"} | given)
    assert obstacles("deepspeed", wanted)
    with pytest.raises(SpecError, match="deepspeed cannot run this plan"):
        emit("deepspeed", job(wanted))


WRITTEN_BY_HAND = """{
  "train_batch_size": 256, "train_micro_batch_size_per_gpu": 4,
  "optimizer": {"type": "adam", "params": {"lr": 1e-4, "betas": [0.9, 0.95], "torch_adam": true}},
  "scheduler": {"type": "WarmupLR", "params": {"warmup_num_steps": 500}},
  "fp16": {"enabled": true},
  "zero_optimization": {"stage": 3, "offload_param": {"device": "nvme"}}
}"""
WITHOUT_ZERO = '{"train_micro_batch_size_per_gpu": 1, "bf16": {"enabled": true}}'
SCRIPT = """
config = {"train_micro_batch_size_per_gpu": 2, "gradient_accumulation_steps": 8,
          "zero_optimization": {"stage": 2}, "bf16": {"enabled": True}}
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype=torch.bfloat16)
engine, optimizer, _, _ = deepspeed.initialize(model=model, config=config)
"""


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (
            "ds.json",
            WRITTEN_BY_HAND,
            {"global_batch": 256, "micro_batch": 4, "sharding": "zero3", "offload": "params"}
            | {"numerics": "fp16-master", "optimizer": "adamw", "optimizer_impl": "foreach"}
            | {"learning_rate": 1e-4, "beta2": 0.95, "warmup_steps": 500}
            | {"schedule": "constant_with_warmup", "zero_buckets": "default"},
        ),
        ("ds.json", WITHOUT_ZERO, {"micro_batch": 1, "sharding": "ddp", "numerics": "bf16-master"}),
        (
            "train.py",
            SCRIPT,
            {"micro_batch": 2, "accum_steps": 8, "sharding": "zero2", "numerics": "bf16-master"}
            | {"model": "Qwen/Qwen2.5-7B"},
        ),
    ],
)
def test_files_that_people_write_are_understood(file, text, says):
    reading = format_of("deepspeed").read([parse(file, text.encode())])
    assert not reading.problems
    assert {key: reading.values.get(key) for key in says} == says


def test_switches_that_change_what_is_kept_are_named_as_not_understood():
    text = '{"zero_optimization": {"stage": 1}, "bf16": {"bf16_optimizer_states": true}}'
    (problem,) = format_of("deepspeed").read([parse("ds.json", text.encode())]).problems
    assert problem.key == "bf16.bf16_optimizer_states"


@pytest.mark.parametrize(
    "text",
    [
        '{"zero_optimization": [2]}',
        '{"zero_optimization": {"stage": [2], "offload_param": "cpu"}, "fp16": true}',
        '{"zero_optimization": {"stage": true}, "optimizer": {"type": [], "params": 3}}',
        '{"train_micro_batch_size_per_gpu": {"a": 1}, "scheduler": {"type": {}}}',
    ],
)
def test_odd_values_are_no_crash(text):
    assert format_of("deepspeed").read([parse("a.json", text.encode())]).trainer == "deepspeed"


# Torch's AdamW: DeepSpeed would compile its own, which takes longer than the rest.
@pytest.mark.slow
@pytest.mark.xdist_group("real-engines")
@pytest.mark.parametrize(("ranks", "shardings"), [(1, ("zero1",)), (2, ("zero2", "zero3"))])
def test_the_config_starts_a_real_engine(ranks, shardings, tmp_path):
    pytest.importorskip("deepspeed")
    pytest.importorskip("transformers")
    sizes = {"micro_batch": 3, "accum_steps": 2, "num_ranks": ranks, "nodes": 1}
    plans = [
        job(recipe(sharding=sharding, optimizer_impl="foreach"), **sizes, stem=sharding)
        for sharding in shardings
    ]
    configs = [str(written(emit("deepspeed", plan), tmp_path)) for plan in plans]
    asked = {"configs": configs, "ranks": ranks, "port": free_port(), "folder": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, str(ENGINE)],
        input=json.dumps(asked),
        text=True,
        capture_output=True,
        check=False,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    for rank in range(ranks):
        engines = json.loads((tmp_path / f"{rank}.json").read_text())
        for sharding, found in zip(shardings, engines, strict=True):
            assert (found["micro_batch"], found["accum_steps"]) == (3, 2)
            assert found["global_batch"] == 3 * 2 * ranks
            assert found["stage"] == STAGE[sharding]
            assert found["bf16"] is True
            assert found["bucket"] == 500_000_000
            assert found["optimizer"].startswith("torch.optim")
            assert found["learning_rate"] == [2e-5]
            assert found["steps"] == 1, "two micro-batches are one step"
            assert found["shapes"] == [[3, 8], [3, 8]]
            assert all(math.isfinite(loss) for loss in found["losses"])
