"""The emitted files go through accelerate's own launcher and plugins, value by value."""

from __future__ import annotations

import json
import os
import pydoc
import re
import shlex
from dataclasses import replace
from typing import Any

import pytest
import yaml
from trainer_jobs import differences, job, mixes, name, read_back, recipe_of, written

from batchplan.configfile import parse
from batchplan.errors import SpecError
from batchplan.spec import Offload, Optimizer, OptimizerImpl, Recipe, Sharding
from batchplan.trainers import emit, format_of, obstacles, realised

STAGE = {Sharding.ZERO1: 1, Sharding.ZERO2: 2, Sharding.ZERO3: 3}
FSDP = {Sharding.FSDP_GRAD_OP, Sharding.FSDP_FULL, Sharding.FSDP_HYBRID}
CAST = {"bf16-autocast": "bf16", "bf16-master": "bf16", "fp16-autocast": "fp16"} | {
    "fp16-master": "fp16"
}


def recipe(several_devices: bool = True, **given: object) -> Recipe:
    """What accelerate makes of a recipe."""
    wanted = Recipe.model_validate(given)
    return realised("accelerate", wanted, several_devices=several_devices)


MIXES = tuple(mixes("accelerate"))


def block(plan: Any, suffix: str) -> dict[str, Any]:
    """The YAML file of a set whose name ends so."""
    (text,) = (file.text for file in emit("accelerate", plan) if file.name.endswith(suffix))
    return yaml.safe_load(text)


def command(plan: Any) -> list[str]:
    """The words of the launch line, on the second node where there are two."""
    line = emit("accelerate", plan)[-1].text.strip().splitlines()[-1]
    line = re.sub(r"\$\{NODE_RANK[^}]*\}", "1", line)
    return shlex.split(re.sub(r"\$\{HEAD_NODE[^}]*\}", "10.0.0.1", line))


@pytest.fixture
def launched(tmp_path, monkeypatch):
    """Return a function that gives what ``accelerate launch`` hands to the script."""
    pytest.importorskip("accelerate")
    from accelerate.commands import launch
    from accelerate.commands.config.config_args import load_config_from_file
    from accelerate.utils.launch import prepare_deepspeed_cmd_env, prepare_multi_gpu_env

    monkeypatch.chdir(tmp_path)

    def run(plan: Any) -> tuple[Any, dict[str, str]]:
        config = load_config_from_file(str(written(emit("accelerate", plan), tmp_path)))
        parser = launch.launch_command_parser()
        program, verb, *words = command(plan)
        assert (program, verb) == ("accelerate", "launch")
        arguments = parser.parse_args(words)
        known = {action.dest for action in parser._actions}
        for nested in (config.fsdp_config, config.deepspeed_config, config.parallelism_config):
            assert set(nested) <= known
        arguments, *_ = launch._validate_launch_command(arguments)
        if arguments.use_deepspeed:
            # As launch_command does before it starts the processes.
            fields = ",".join(config.deepspeed_config)
            arguments.deepspeed_fields_from_accelerate_config = fields
            own_launcher, environment = prepare_deepspeed_cmd_env(arguments)
            assert own_launcher is None, "every node starts its own processes"
        else:
            environment = prepare_multi_gpu_env(arguments)
        prefixes = ("FSDP", "ACCELERATE", "PARALLELISM")
        for key in [key for key in os.environ if key.startswith(prefixes)]:
            monkeypatch.delenv(key)
        for key, value in environment.items():
            if key.startswith(prefixes):
                monkeypatch.setenv(key, value)
        return arguments, environment

    return run


# Both values of checkpointing only where FSDP's own key says it.
@pytest.mark.slow
@pytest.mark.parametrize(
    "plan", [r for r in MIXES if r.sharding in FSDP or r.checkpointing == "full"], ids=name
)
def test_the_launcher_hands_over_what_was_planned(plan, launched):
    arguments, environment = launched(job(plan))
    assert (arguments.num_processes, arguments.num_machines) == (16, 2)
    assert (arguments.nnodes, arguments.nproc_per_node, arguments.node_rank) == ("2", "8", 1)
    assert (arguments.rdzv_backend, arguments.rdzv_endpoint) == ("static", "10.0.0.1:29500")
    assert arguments.use_fsdp is (plan.sharding in FSDP)
    assert arguments.use_deepspeed is (plan.sharding in STAGE)
    assert arguments.multi_gpu is (plan.sharding is Sharding.DDP)
    if plan.sharding in STAGE:
        check_deepspeed(plan)
        return
    cast = CAST.get(plan.numerics, "no")
    if (plan.method, plan.numerics) in {("lora", "fp16"), ("qlora", "fp16")}:
        cast = "fp16"  # fp32 adapters over an fp16 base need its loss scaling
    assert environment["ACCELERATE_MIXED_PRECISION"] == cast
    if plan.sharding in FSDP:
        check_fsdp(plan, environment)


def check_fsdp(plan: Recipe, environment: dict[str, str]) -> None:
    from accelerate.utils import FullyShardedDataParallelPlugin

    plugin = FullyShardedDataParallelPlugin()
    assert plugin.fsdp_version == 2
    assert plugin.reshard_after_forward is (plan.sharding is not Sharding.FSDP_GRAD_OP)
    assert plugin.activation_checkpointing is (plan.checkpointing == "full")
    assert "CPUOffloadPolicy" not in type(plugin.cpu_offload).__name__
    assert plugin.auto_wrap_policy.__name__ == "transformer_auto_wrap_policy"
    if plan.sharding is Sharding.FSDP_HYBRID:
        assert environment["PARALLELISM_CONFIG_DP_REPLICATE_SIZE"] == "2"
        assert environment["PARALLELISM_CONFIG_DP_SHARD_SIZE"] == "8"
        assert environment["ACCELERATE_USE_PARALLELISM_CONFIG"] == "true"


def check_deepspeed(plan: Recipe) -> None:
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin

    plugin = DeepSpeedPlugin()
    assert plugin.zero_stage == STAGE[plan.sharding]
    assert plugin.deepspeed_config[CAST[plan.numerics]] == {"enabled": True}
    # What Accelerator.prepare does with the loop's own numbers.
    loop = block(job(plan), ".loop.yaml")
    micro, steps = loop["DataLoader"]["batch_size"], loop["GradientAccumulationPlugin"]["num_steps"]
    zero = "zero_optimization"
    plugin.fill_match(
        "gradient_accumulation_steps", must_match=False, gradient_accumulation_steps=steps
    )
    completed = {
        "train_micro_batch_size_per_gpu": micro,
        "train_batch_size": micro * steps * 16,
        f"{zero}.reduce_bucket_size": 1,
        f"{zero}.stage3_prefetch_bucket_size": 1,
        f"{zero}.stage3_param_persistence_threshold": 1,
    }
    plugin.deepspeed_config_process(must_match=False, **completed)
    assert "auto" not in json.dumps(plugin.deepspeed_config)
    assert plugin.deepspeed_config["gradient_accumulation_steps"] == 4
    assert plugin.deepspeed_config["train_batch_size"] == 3 * 4 * 16
    assert plugin.zero3_init_flag is (plan.sharding is Sharding.ZERO3)


def test_one_device_is_launched_without_a_process_group(launched):
    arguments, environment = launched(job(recipe(False, numerics="bf16"), num_ranks=1, nodes=1))
    assert not any((arguments.multi_gpu, arguments.use_fsdp, arguments.use_deepspeed))
    assert arguments.num_processes == 1
    assert environment["ACCELERATE_MIXED_PRECISION"] == "no"


@pytest.mark.parametrize("offload", [Offload.NONE, Offload.PARAMS])
def test_fsdp_offloads_what_the_plan_offloads(offload, launched):
    from accelerate.utils import FullyShardedDataParallelPlugin

    launched(job(recipe(sharding="fsdp-full", offload=offload)))
    kind = type(FullyShardedDataParallelPlugin().cpu_offload).__name__
    assert kind.startswith("CPUOffload") is (offload is Offload.PARAMS)


@pytest.mark.parametrize(
    ("offload", "devices"),
    [("none", ("none", "none")), ("optimizer", ("cpu", "none")), ("params", ("cpu", "cpu"))],
)
def test_deepspeed_offloads_what_the_plan_offloads(offload, devices, launched):
    pytest.importorskip("deepspeed")
    from accelerate.utils import DeepSpeedPlugin

    launched(job(recipe(sharding="zero3", offload=offload)))
    plugin = DeepSpeedPlugin()
    assert (plugin.offload_optimizer_device, plugin.offload_param_device) == devices


def test_the_loops_arguments_are_those_of_its_calls():
    pytest.importorskip("accelerate")
    torch = pytest.importorskip("torch")
    from accelerate import Accelerator
    from accelerate.utils import DistributedDataParallelKwargs, GradientAccumulationPlugin

    loop = block(job(recipe(numerics="bf16", bucket_view=True)), ".loop.yaml")
    plugin = GradientAccumulationPlugin(**loop["GradientAccumulationPlugin"])
    handler = DistributedDataParallelKwargs(**loop["DistributedDataParallelKwargs"])
    assert handler.gradient_as_bucket_view is True
    accelerator = Accelerator(
        cpu=True,
        gradient_accumulation_plugin=plugin,
        kwargs_handlers=[handler],
        **loop["Accelerator"],
    )
    assert accelerator.gradient_accumulation_steps == 4
    assert accelerator.step_scheduler_with_optimizer is False
    loader = torch.utils.data.DataLoader(range(10), **loop["DataLoader"])
    assert [len(batch) for batch in loader] == [3, 3, 3]


@pytest.mark.parametrize("every", [True, False])
def test_when_gradients_are_sharded_is_the_loops_own_setting(every):
    plan = job(recipe(sharding="fsdp-full", sync_each_batch=every), accum_steps=1)
    loop = block(plan, ".loop.yaml")
    assert loop["GradientAccumulationPlugin"] == {"num_steps": 1, "sync_each_batch": every}


@pytest.mark.parametrize("optimizer", list(format_of("accelerate").values["optimizer"]))
def test_every_optimizer_is_made_by_its_class(optimizer):
    torch = pytest.importorskip("torch")
    loop = block(job(recipe(numerics="bf16", optimizer=optimizer)), ".loop.yaml")
    path, arguments = loop["optimizer"]["class_path"], loop["optimizer"]["init_args"]
    pytest.importorskip(path.partition(".")[0], exc_type=ImportError)
    made = pydoc.locate(path)([torch.nn.Parameter(torch.zeros(2, 2))], **arguments)
    assert isinstance(made, torch.optim.Optimizer)
    assert made.defaults["lr"] == 2e-5
    assert made.defaults.get("momentum", 0) == (0.9 if optimizer == "sgd-momentum" else 0)
    assert made.defaults.get("fused") in ((True,) if optimizer == "adamw" else (None, False))


@pytest.mark.parametrize(
    ("implementation", "says"),
    [("fused", {"fused": True}), ("foreach", {"foreach": True}), ("for-loop", {"foreach": False})],
)
def test_how_adamw_runs_is_among_its_arguments(implementation, says):
    loop = block(job(recipe(numerics="bf16", optimizer_impl=implementation)), ".loop.yaml")
    arguments = loop["optimizer"]["init_args"]
    assert {k: v for k, v in arguments.items() if k in ("fused", "foreach")} == says


def test_checkpointing_is_said_once():
    for plan in MIXES:
        files = emit("accelerate", job(plan))
        of_model = "gradient_checkpointing_enable" in block(job(plan), ".loop.yaml")
        fsdp = yaml.safe_load(files[0].text).get("fsdp_config", {})
        said = [of_model, fsdp.get("fsdp_activation_checkpointing", False)]
        assert sum(said) == (plan.checkpointing == "full")


def test_deepspeed_and_its_precision_are_configured_in_one_place():
    for plan in MIXES:
        main, *beside = emit("accelerate", job(plan))
        settings = yaml.safe_load(main.text)
        if plan.sharding not in STAGE:
            assert "deepspeed_config" not in settings
            continue
        # Accelerate refuses a mixed_precision beside a DeepSpeed file that has its own.
        assert "mixed_precision" not in settings
        assert "zero_stage" not in settings["deepspeed_config"]
        assert settings["deepspeed_config"]["deepspeed_config_file"] == beside[0].name
        assert "optimizer" not in json.loads(beside[0].text)


@pytest.mark.parametrize("buckets", ["auto", "default"])
def test_bucket_sizes_are_those_of_the_plan(buckets):
    zero = block(job(recipe(sharding="zero2", zero_buckets=buckets)), ".ds.json")
    zero = zero["zero_optimization"]
    assert zero["reduce_bucket_size"] == {"auto": "auto", "default": 500_000_000}[buckets]
    # A second bucket is only planned for where it is small.
    assert zero["overlap_comm"] is (buckets == "auto")


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
def test_the_launch_line_starts_every_device(num_ranks, nodes):
    plan = job(recipe(num_ranks > 1, numerics="bf16"), num_ranks=num_ranks, nodes=nodes)
    main = yaml.safe_load(emit("accelerate", plan)[0].text)
    assert (main["num_processes"], main["num_machines"]) == (num_ranks, nodes)
    words = command(plan)
    assert words[:4] == ["accelerate", "launch", "--config_file", "plan.yaml"]
    assert ("--machine_rank=1" in words) is (nodes > 1)


def test_the_length_of_a_run_is_written_where_it_is_known():
    plan = job(recipe(numerics="bf16"))
    assert "num_training_steps" not in block(plan, ".loop.yaml")["get_scheduler"]
    known = replace(plan, epoch_steps=100, epochs=2.5)
    assert block(known, ".loop.yaml")["get_scheduler"]["num_training_steps"] == 250
    assert read_back("accelerate", emit("accelerate", known)).values["max_steps"] == 250


def test_views_of_buckets_and_own_bucket_sizes_are_read_back():
    for given in (
        {"numerics": "bf16", "bucket_view": True},
        {"sharding": "zero1", "zero_buckets": "default"},
        {"numerics": "bf16", "optimizer_impl": OptimizerImpl.FOR_LOOP},
    ):
        plan = recipe(**given)
        after = recipe_of("accelerate", read_back("accelerate", emit("accelerate", job(plan))))
        assert not differences("accelerate", plan, after)


@pytest.mark.parametrize(
    "given",
    [
        {"numerics": "bf16", "sharding": "zero2"},
        {"numerics": "bf16-master", "sharding": "ddp"},
        {"numerics": "bf16-autocast", "sharding": "fsdp-full"},
        {"numerics": "bf16", "optimizer": Optimizer.MUON},
        {"numerics": "bf16", "checkpointing": "selective"},
        {"numerics": "bf16", "loss": "chunked"},
        {"sharding": "fsdp-full", "fsdp_version": 1},
        {"sharding": "fsdp-full", "checkpointing": "full", "reentrant": True},
        {"sharding": "zero2", "offload": "params"},
        {"method": "qlora", "sharding": "zero3"},
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_not_approximated(given):
    wanted = Recipe.model_validate(given)
    assert obstacles("accelerate", wanted)
    with pytest.raises(SpecError, match="accelerate cannot run this plan"):
        emit("accelerate", job(wanted))


INLINE = """
compute_environment: LOCAL_MACHINE
distributed_type: DEEPSPEED
mixed_precision: bf16
num_machines: 1
num_processes: 8
deepspeed_config: {zero_stage: 3, gradient_accumulation_steps: 8, gradient_clipping: 1.0,
  offload_optimizer_device: cpu, offload_param_device: none, zero3_init_flag: true}
"""
OLDER_FSDP = """
distributed_type: FSDP
mixed_precision: 'no'
num_processes: 4
fsdp_config: {fsdp_sharding_strategy: SHARD_GRAD_OP, fsdp_offload_params: false}
"""
SCRIPT = """
accelerator = Accelerator(gradient_accumulation_steps=4, mixed_precision="bf16")
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype=torch.float32)
model.gradient_checkpointing_enable(gradient_checkpointing_kwargs={"use_reentrant": True})
loader = torch.utils.data.DataLoader(data, batch_size=3)
evaluation = torch.utils.data.DataLoader(data, batch_size=64)
optimizer = bnb.optim.AdamW8bit(model.parameters(), lr=1e-4, betas=(0.9, 0.95))
"""
FLAGS = """
accelerate launch --use_fsdp --fsdp_version 2 --fsdp_reshard_after_forward false \\
    --mixed_precision bf16 --num_processes 8 train.py
"""


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (
            "a.yaml",
            INLINE,
            {"sharding": "zero3", "accum_steps": 8, "offload": "optimizer", "num_ranks": 8}
            | {"numerics": "bf16-master", "zero_buckets": "default"},
        ),
        ("a.yaml", OLDER_FSDP, {"sharding": "fsdp-grad-op", "num_ranks": 4}),
        ("a.yaml", "distributed_type: NO\nnum_processes: 1", {"sharding": "ddp", "num_ranks": 1}),
        (
            "train.py",
            SCRIPT,
            {"accum_steps": 4, "micro_batch": 3, "numerics": "bf16-autocast", "beta2": 0.95}
            | {"optimizer": "adamw-8bit", "learning_rate": 1e-4, "model": "Qwen/Qwen2.5-7B"}
            | {"checkpointing": "full", "reentrant": True, "weight_dtype": None},
        ),
        (
            "run.sh",
            FLAGS,
            {"sharding": "fsdp-grad-op", "fsdp_version": 2, "num_ranks": 8},
        ),
    ],
)
def test_files_that_people_write_are_understood(file, text, says):
    reading = format_of("accelerate").read([parse(file, text.encode())])
    assert not reading.problems
    assert {key: reading.values.get(key) for key in says} == says


@pytest.mark.parametrize(
    "text",
    [
        "distributed_type: [FSDP]\nfsdp_config: 3",
        "distributed_type: FSDP\nfsdp_config: {fsdp_version: [2], reshard_after_forward: {a: 1}}",
        "distributed_type: DEEPSPEED\ndeepspeed_config: {zero_stage: [3]}\nmixed_precision: {}",
        "GradientAccumulationPlugin: 4\nDataLoader: [1]\noptimizer: {class_path: 7}",
        "optimizer: {class_path: torch.optim.AdamW, init_args: [1]}\nget_scheduler: null",
    ],
)
def test_odd_values_are_no_crash(text):
    assert format_of("accelerate").read([parse("a.yaml", text.encode())]).trainer == "accelerate"
