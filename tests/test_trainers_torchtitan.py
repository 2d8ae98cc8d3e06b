"""torchtitan's flags against those of its release, and its batch by its own assertion.

Its pins conflict with ours: ``python -m benchmarks.trainer_keys validate torchtitan FILE`` parses
a script with the ConfigManager, here the flags are held against the snapshot.
"""

from __future__ import annotations

import shlex
from dataclasses import replace

import pytest
from trainer_jobs import differences, job, parsed, read_back, recipe_of, recipes

from batchplan.configfile import parse
from batchplan.errors import SpecError
from batchplan.sources.trainer_keys import load_trainer_keys
from batchplan.spec import ModelInfo, Recipe
from batchplan.trainers import emit, format_of, obstacles, realised

LLAMA = ModelInfo(id="meta-llama/Llama-3.1-8B", architecture="LlamaForCausalLM", source="catalog")
SHAPES = {
    "alone": {"num_ranks": 1, "nodes": 1},
    "one node": {"num_ranks": 8, "nodes": 1},
    "two nodes": {"num_ranks": 16, "nodes": 2},
}


def recipe(*, several: bool = True, **fields: object) -> Recipe:
    """A recipe as torchtitan runs it."""
    given = Recipe.model_validate({"sharding": "fsdp-full", **fields})
    return realised("torchtitan", given, several_devices=several)


def command(files) -> list[str]:
    """The words of the launch command, as a shell splits them."""
    (script,) = files
    (line,) = [line for line in script.text.replace("\\\n", " ").splitlines() if "--module" in line]
    return shlex.split(line)


def flags(words: list[str]) -> dict[str, list[str]]:
    """The trainer's flags with their values; ``=`` and a blank are the same to it."""
    found: dict[str, list[str]] = {}
    for word in words[words.index("--module") : -1]:
        if word.startswith("--"):
            name, *value = word.removeprefix("--").split("=", 1)
            assert name not in found
            found[name] = value
        else:
            found[next(reversed(found))].append(word)
    return found


@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_every_flag_is_one_of_the_release(shape):
    known = load_trainer_keys("torchtitan")
    several = shape["num_ranks"] > 1
    for one in recipes("torchtitan", several_devices=several):
        if one.sharding == "fsdp-hybrid" and shape["nodes"] == 1:
            continue
        words = command(emit("torchtitan", job(one, **shape, model=LLAMA)))
        given = flags(words)
        for name, values in given.items():
            key = known.key("config", name)
            assert key is not None, name
            assert (len(values) == 0) is (key.types == {"bool"}), name
            assert not key.choices or values[0] in key.choices, name
            if key.types <= {"int", "float"}:
                float(*values)
        assert words[-1] == f"activation-checkpoint:{one.checkpointing}"
        number = {name: int(*given[name]) for name in NUMBERS}
        replicas, shards = number[NUMBERS[2]], number[NUMBERS[3]]
        assert replicas * shards == shape["num_ranks"]
        assert (replicas > 1) is (one.sharding == "fsdp-hybrid")
        # As Trainer.__init__ asserts and divides.
        assert divmod(number[NUMBERS[0]], number[NUMBERS[1]] * replicas * shards) == (4, 0)


NUMBERS = (
    "training.global_batch_size",
    "training.local_batch_size",
    "parallelism.data_parallel_replicate_degree",
    "parallelism.data_parallel_shard_degree",
)


@pytest.mark.parametrize(
    ("shape", "launcher"),
    [
        (SHAPES["alone"], ["torchrun", "--nproc_per_node=1"]),
        (SHAPES["one node"], ["torchrun", "--nproc_per_node=8"]),
        (SHAPES["two nodes"], ["torchrun", "--nproc_per_node=8", "--nnodes=2"]),
    ],
    ids=SHAPES,
)
def test_every_device_is_started(shape, launcher):
    words = command(emit("torchtitan", job(recipe(), **shape, model=LLAMA)))
    assert words[: len(launcher)] == launcher
    assert words[words.index("-m") + 1] == "torchtitan.train"


@pytest.mark.parametrize(
    ("numerics", "weights", "compute"),
    [
        ("bf16-master", "float32", "bfloat16"),
        ("bf16", "bfloat16", "bfloat16"),
        ("fp32", "float32", "float32"),
    ],
)
def test_numerics_are_two_flags(numerics, weights, compute):
    files = emit("torchtitan", job(recipe(numerics=numerics), **SHAPES["one node"], model=LLAMA))
    given = flags(command(files))
    assert given["training.dtype"] == [weights]
    assert given["training.mixed_precision_param"] == [compute]


def test_the_length_of_the_run_is_in_steps():
    plan = replace(job(recipe(), **SHAPES["one node"], model=LLAMA), epoch_steps=101, epochs=2.5)
    assert flags(command(emit("torchtitan", plan)))["training.steps"] == ["252"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"method": "lora", "numerics": "bf16"}, "LoRAConverter needs a configuration in Python"),
        ({"sharding": "ddp"}, "it takes --sharding fsdp"),
        ({"numerics": "fp16-master"}, "it takes bf16-master, bf16, fp32"),
        ({"optimizer": "adamw-8bit"}, "no optimizer adamw-8bit"),
        ({"checkpointing": "selective"}, "no checkpointing selective"),
        ({"loss": "standard"}, "no setting for loss standard: it runs chunked"),
        ({"offload": "optimizer"}, "offloads weights and optimizer together"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_torchtitan_cannot_do_is_refused(fields, says):
    given = {**recipe().model_dump(mode="json"), **fields}
    (text, *_) = obstacles("torchtitan", Recipe.model_validate(given))
    assert says in text


@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-405B", "gpt2"])
def test_models_without_a_configuration_give_one_line(model):
    asked = ModelInfo(id=model, architecture="any", source="hub")
    with pytest.raises(SpecError, match=f"no configuration for {model}"):
        emit("torchtitan", job(recipe(), **SHAPES["one node"], model=asked))


def test_a_command_as_people_write_it_is_read():
    text = b"""
torchrun --nproc-per-node 8 -m torchtitan.train --module qwen3 --config qwen3_14b \\
  --training.local-batch-size 2 --training.global_batch_size 128 \\
  --optimizer.param_groups.0.optimizer_kwargs.lr 3e-5 \\
  --parallelism.fsdp_reshard_after_forward never --parallelism.tensor_parallel_degree 2 \\
  --training.dtype bfloat16 activation-checkpoint:none
"""
    reading = format_of("torchtitan").read((parse("run.sh", text),))
    expected = {
        "model": "Qwen/Qwen3-14B",
        "micro_batch": 2,
        "global_batch": 128,
        "seq_len": 4096,  # the configuration's own
        "learning_rate": 3e-5,
        "num_ranks": 8,
        "sharding": "fsdp-grad-op",
        "numerics": "bf16",
        "checkpointing": "none",
    }
    assert {name: reading.values[name] for name in expected} == expected
    assert reading.of("micro_batch").line == 3
    assert [problem.key for problem in reading.problems] == ["parallelism.tensor_parallel_degree"]


def test_silence_is_what_the_configuration_says():
    text = b"torchrun --nproc_per_node=8 -m torchtitan.train --module llama3 --config llama3_70b\n"
    reading = format_of("torchtitan").read((parse("run.sh", text),))
    one = recipe_of("torchtitan", reading)
    assert (reading.values["micro_batch"], reading.values["seq_len"]) == (8, 8192)
    assert (one.checkpointing, one.numerics, one.loss) == ("full", "bf16-master", "chunked")


def test_checkpointing_as_older_releases_name_it_is_read():
    words = "--activation_checkpoint.mode none --training.seq_len 4096"
    text = f"torchrun -m torchtitan.train --module llama3 --config llama3_8b {words}\n"
    reading = format_of("torchtitan").read((parse("run.sh", text.encode()),))
    assert reading.values["checkpointing"] == "none", "its configuration's own is another"
    assert reading.of("checkpointing").key.endswith("activation_checkpoint.mode")
    other = text.replace("mode none", "mode memory_budget")
    (problem,) = format_of("torchtitan").read((parse("run.sh", other.encode()),)).problems
    assert problem.key == "activation_checkpoint.mode"


@pytest.mark.parametrize(
    "words",
    [
        "--training.local_batch_size a --training.global_batch_size -1",
        "--parallelism.data_parallel_replicate_degree 1 2 3 --config",
        "--training.dtype --training.mixed_precision_param= --optimizer.implementation 1",
        "--config llama3_8b --hf_assets_path activation_checkpoint:full",
    ],
)
def test_odd_values_never_raise(words):
    text = f"torchrun -m torchtitan.train --module llama3 {words}\n".encode()
    assert format_of("torchtitan").read((parse("run.sh", text),)).trainer == "torchtitan"


def test_a_script_is_read_back_as_it_was_meant():
    for one in recipes("torchtitan"):
        files = emit("torchtitan", job(one, **SHAPES["two nodes"], model=LLAMA))
        assert all(not file.repeated for file in parsed(files))
        reading = read_back("torchtitan", files)
        assert differences("torchtitan", one, recipe_of("torchtitan", reading)) == {}
        assert reading.values["num_ranks"] == 16
        assert reading.values["beta2"] == 0.999
        assert reading.problems == ()
