"""torchtune's YAML goes through its own validator, and its components are made."""

from __future__ import annotations

import ast
import inspect
import re
import subprocess
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest
import yaml
from older import TORCHTUNE
from trainer_jobs import differences, job, parsed, read_back, recipe_of, recipes, written

from batchplan.configfile import Severity, parse
from batchplan.errors import SpecError
from batchplan.spec import ModelInfo, Recipe
from batchplan.trainers import emit, format_of, obstacles, realised

LLAMA = ModelInfo(id="meta-llama/Llama-3.1-8B", architecture="LlamaForCausalLM", source="catalog")
QWEN = ModelInfo(id="Qwen/Qwen2.5-7B", architecture="Qwen2ForCausalLM", source="catalog")
TWO_NODES = {"num_ranks": 16, "nodes": 2}
ONE_NODE = {"num_ranks": 8, "nodes": 1}
ALONE = {"num_ranks": 1, "nodes": 1}


def recipe(*, several: bool = False, **fields: object) -> Recipe:
    """A recipe as torchtune runs it."""
    given = {"sharding": "fsdp-full" if several else "ddp", "numerics": "bf16", **fields}
    return realised("torchtune", Recipe.model_validate(given), several_devices=several)


def settings(files) -> dict:
    return yaml.safe_load(files[0].text)


@pytest.mark.slow
@pytest.mark.xdist_group("older")
def test_torchtune_takes_the_files_in_an_environment_of_its_own(older):
    test = f"{__file__}::{test_torchtune_makes_what_the_plan_decided.__name__}"
    done = subprocess.run(
        [str(older(TORCHTUNE)), "-m", "pytest", "-q", "-p", "no:cacheprovider", test],
        capture_output=True,
        text=True,
        cwd=Path(__file__).parent.parent,
        check=False,
    )
    assert "1 passed" in done.stdout, done.stdout[-3000:] + done.stderr[-2000:]


@pytest.mark.slow
def test_torchtune_makes_what_the_plan_decided(tmp_path):
    pytest.importorskip("torchtune", reason="run by the test above where it can be installed")
    torch = pytest.importorskip("torch")
    import torchtune
    from omegaconf import OmegaConf
    from torchtune import config
    from torchtune.config._utils import _get_component_from_path

    folder = Path(torchtune.__file__).parent.parent / "recipes"
    has_bitsandbytes = find_spec("bitsandbytes") is not None
    for several in (True, False):
        shape = TWO_NODES if several else ALONE
        for one in recipes("torchtune", several_devices=several):
            files = emit("torchtune", job(one, **shape, model=LLAMA))
            got = OmegaConf.load(written(files, tmp_path))
            if got.optimizer._component_.startswith("bitsandbytes.") and not has_bitsandbytes:
                continue  # the validator imports what it is to check
            config.validate(got)
            name = re.search(r"\w+_finetune_\w+", files[1].text)[0]
            # Recipes read these without a default, so that a missing one stops the run.
            assert _read_by((folder / f"{name}.py").read_text()) <= set(got)
            for part in ("model", "tokenizer", "checkpointer", "loss", "metric_logger"):
                arguments = {key: got[part][key] for key in got[part] if key != "_component_"}
                made = _get_component_from_path(got[part]["_component_"])
                inspect.signature(made).bind(**arguments)
            assert (got.batch_size, got.gradient_accumulation_steps) == (3, 4)
            assert got.tokenizer.max_seq_len == 2048
            assert got.dtype == one.numerics.value
            assert isinstance(got.optimizer.lr, float)
            if got.optimizer._component_.startswith("torch."):
                weight = torch.nn.Parameter(torch.ones(2, 2))
                optimizer = config.instantiate(got.optimizer, [weight])
                group = optimizer.param_groups[0]
                assert group["lr"] == 2e-5
                assert group.get("momentum", 0) == (0.9 if one.optimizer == "sgd-momentum" else 0)
                if one.optimizer == "adamw":
                    assert bool(group["fused"]) is (one.optimizer_impl == "fused")
                    assert group["betas"][1] == 0.999
                schedule = config.instantiate(
                    got.lr_scheduler, optimizer, num_training_steps=1000, last_epoch=-1
                )
                warms_up = got.lr_scheduler.num_warmup_steps > 0
                assert warms_up or not one.optimizer.value.startswith("adam")
                assert schedule.get_last_lr() == [0.0 if warms_up else 2e-5]


def _read_by(source: str) -> set[str]:
    """Names that a recipe reads as attributes of its config."""
    return {
        node.attr
        for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.Attribute) and getattr(node.value, "id", "") == "cfg"
    } - {"get"}


@pytest.mark.parametrize(
    ("shape", "starts"),
    [
        (ALONE, "tune run full_finetune_single_device --config plan.yaml"),
        (ONE_NODE, "tune run --nproc_per_node=8 full_finetune_distributed --config plan.yaml"),
        (
            TWO_NODES,
            "tune run --nproc_per_node=8 --nnodes=2 --rdzv_backend=c10d "
            '--rdzv_endpoint="${HEAD_NODE:?address of the first node}:29500" '
            "full_finetune_distributed --config plan.yaml",
        ),
    ],
    ids=("alone", "one node", "two nodes"),
)
def test_every_device_is_started(shape, starts):
    one = recipe(several=shape["num_ranks"] > 1)
    files = emit("torchtune", job(one, **shape, model=LLAMA))
    assert files[1].text.splitlines()[-1] == starts
    asked = settings(files)
    step = asked["batch_size"] * asked["gradient_accumulation_steps"] * shape["num_ranks"]
    assert step == 12 * shape["num_ranks"]


@pytest.mark.parametrize(
    ("model", "builder"),
    [
        ("Qwen/Qwen2.5-7B", "qwen2_5.qwen2_5_7b_base"),
        ("Qwen/Qwen2.5-7B-Instruct", "qwen2_5.qwen2_5_7b_instruct"),
        ("meta-llama/Meta-Llama-3.1-8B", "llama3_1.llama3_1_8b"),
        ("./checkpoints/Llama-3.2-1B/", "llama3_2.llama3_2_1b"),
        ("google/gemma-2-9b", "gemma2.gemma2_9b"),
        ("microsoft/phi-4", "phi4.phi4_14b"),
    ],
)
def test_a_model_is_known_by_its_name(model, builder):
    asked = ModelInfo(id=model, architecture="any", source="hub")
    files = emit("torchtune", job(recipe(), **ALONE, model=asked))
    assert settings(files)["model"]["_component_"] == f"torchtune.models.{builder}"
    files = emit("torchtune", job(recipe(method="lora"), **ALONE, model=asked))
    module, _, name = builder.partition(".")
    assert settings(files)["model"]["_component_"] == f"torchtune.models.{module}.lora_{name}"


@pytest.mark.parametrize(
    ("model", "files"),
    [
        ("meta-llama/Llama-3.2-1B", ["model.safetensors"]),
        (
            "meta-llama/Llama-2-7b-hf",
            ["pytorch_model-00001-of-00002.bin", "pytorch_model-00002-of-00002.bin"],
        ),
        (
            "Qwen/Qwen2.5-72B",
            {"filename_format": "model-{}-of-{}.safetensors", "max_filename": "00037"},
        ),
    ],
)
def test_the_files_of_the_checkpoint_are_named_as_on_the_hub(model, files):
    asked = ModelInfo(id=model, architecture="any", source="hub")
    checkpointer = settings(emit("torchtune", job(recipe(), **ALONE, model=asked)))["checkpointer"]
    assert checkpointer["checkpoint_files"] == files


@pytest.mark.parametrize(
    ("model", "fields", "says"),
    [
        ("Qwen/Qwen3-8B", {}, "no component for Qwen/Qwen3-8B"),
        ("google/gemma-2b", {"method": "lora", "lora_targets": "q_proj,lm_head"}, "embedding"),
        (LLAMA.id, {"method": "lora", "lora_targets": "q_proj,up_proj"}, "together or not at all"),
        (LLAMA.id, {"method": "lora", "lora_targets": "gate_proj,up_proj,down_proj"}, "one of q_p"),
        (LLAMA.id, {"method": "lora", "lora_targets": "c_attn"}, "knows no c_attn"),
        (QWEN.id, {"method": "qlora", "lora_targets": "q_proj,v_proj"}, "quantises only layers"),
    ],
)
def test_models_and_layers_that_it_lacks_give_one_line(model, fields, says):
    asked = ModelInfo(id=model, architecture="any", source="hub")
    with pytest.raises(SpecError, match=says):
        emit("torchtune", job(recipe(**fields), **ALONE, model=asked))


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({"numerics": "bf16-master", "sharding": "fsdp-full"}, "under fsdp-full it takes fp32, bf"),
        ({"method": "qlora", "numerics": "fp32"}, "under ddp it takes bf16"),
        ({"sharding": "fsdp-hybrid"}, "it takes --sharding ddp, fsdp-full, fsdp-grad-op"),
        ({"sharding": "fsdp-full", "optimizer": "adamw-8bit"}, "tensors of FSDP2"),
        ({"optimizer": "adafactor"}, "no optimizer adafactor"),
        ({"checkpointing": "selective"}, "one device have no selective"),
        ({"method": "lora", "checkpointing": "selective"}, "adapters have no selective"),
        ({"offload": "params"}, "cannot offload without"),
        ({"loss": "fused"}, "no setting for loss fused"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_torchtune_cannot_do_is_refused(fields, says):
    given = {**recipe().model_dump(mode="json"), **fields}
    (text, *_) = obstacles("torchtune", Recipe.model_validate(given))
    assert says in text


def test_a_part_of_an_epoch_is_counted_in_steps():
    plan = replace(job(recipe(), **ALONE, model=LLAMA), epoch_steps=100, epochs=0.25)
    asked = settings(emit("torchtune", plan))
    assert (asked["epochs"], asked["max_steps_per_epoch"]) == (1, 25)
    asked = settings(emit("torchtune", replace(plan, epochs=2)))
    assert (asked["epochs"], asked["max_steps_per_epoch"]) == (2, None)


SHIPPED = b"""
# as llama3_1/8B_lora.yaml, without what is not planned with
output_dir: /tmp/torchtune/llama3_1_8B/lora
tokenizer:
  _component_: torchtune.models.llama3.llama3_tokenizer
  path: /tmp/Meta-Llama-3.1-8B-Instruct/original/tokenizer.model
  max_seq_len: 4096
model:
  _component_: torchtune.models.llama3_1.lora_llama3_1_8b
  lora_attn_modules: ['q_proj', 'v_proj', 'output_proj']
  apply_lora_to_mlp: True
  apply_lora_to_output: False
  lora_rank: 8
  lora_alpha: 16
  lora_dropout: 0.0
checkpointer:
  _component_: torchtune.training.FullModelHFCheckpointer
  checkpoint_dir: /tmp/Meta-Llama-3.1-8B-Instruct/
  model_type: LLAMA3
batch_size: 2
optimizer:
  _component_: torch.optim.AdamW
  fused: True
  weight_decay: 0.01
  lr: 0.0003
lr_scheduler:
  _component_: torchtune.training.lr_schedulers.get_cosine_schedule_with_warmup
  num_warmup_steps: 100
loss:
  _component_: torchtune.modules.loss.CEWithChunkedOutputLoss
epochs: 1
gradient_accumulation_steps: 8
compile: True
dtype: bf16
enable_activation_checkpointing: False
"""


def test_a_config_as_people_write_it_is_read():
    reading = format_of("torchtune").read((parse("8B_lora.yaml", SHIPPED),))
    expected = {
        "model": "meta-llama/Llama-3.1-8B-Instruct",
        "method": "lora",
        "lora_targets": "q_proj,v_proj,o_proj,gate_proj,up_proj,down_proj",
        "lora_rank": 8,
        "numerics": "bf16",
        "micro_batch": 2,
        "accum_steps": 8,
        "seq_len": 4096,
        "learning_rate": 0.0003,
        "warmup_steps": 100,
        "optimizer": "adamw",
        "optimizer_impl": "fused",
        "checkpointing": "none",
    }
    assert {name: reading.values[name] for name in expected} == expected
    assert reading.of("micro_batch").line == 20
    assert [problem.key for problem in reading.problems] == ["compile"]
    one = recipe_of("torchtune", reading)
    assert (one.sharding, one.sync_each_batch, one.adapter_dtype) == ("fsdp-full", True, "bf16")


@pytest.mark.parametrize(
    ("old", "new", "option", "value"),
    [
        (b".lora_llama", b".qlora_llama", "method", "qlora"),
        (b"lora_dropout: 0.0", b"quantize_base: true", "method", "qlora"),
        (b"_checkpointing: False", b"_checkpointing: True", "checkpointing", "full"),
        (b"enable_activation_checkpointing: False", b"", "checkpointing", "none"),
        (b"compile: True", b"ac_mode: selective", "checkpointing", "selective"),
        (b"compile: True", b"fsdp_reshard_after_forward: False", "sharding", "fsdp-grad-op"),
        (b"compile: True", b"fsdp_cpu_offload: True", "offload", "params"),
        (b"  fused: True\n", b"", "optimizer_impl", "foreach"),
        (
            b"torch.optim.AdamW",
            b"bitsandbytes.optim.PagedAdamW8bit",
            "optimizer",
            "paged-adamw-8bit",
        ),
        (b"_to_mlp: True", b"_to_mlp: False", "lora_targets", "q_proj,v_proj,o_proj"),
    ],
)
def test_one_key_changes_one_thing(old, new, option, value):
    assert old in SHIPPED
    reading = format_of("torchtune").read((parse("a.yaml", SHIPPED.replace(old, new)),))
    assert reading.values[option] == value


def test_adamw_loops_over_the_tensors_of_fsdp2_unless_told_otherwise():
    file = parse("a.yaml", SHIPPED.replace(b"  fused: True\n", b""))
    start = parse(
        "a.sh", b"tune run --nproc_per_node 2 lora_finetune_distributed --config a.yaml\n"
    )
    reading = format_of("torchtune").read((file, start))
    assert (reading.values["num_ranks"], reading.values["optimizer_impl"]) == (2, "for-loop")


@pytest.mark.parametrize("odd", [b"[]", b"{}", b"a", b"-1", b"null", b"{_component_: [1], lr: {}}"])
def test_odd_values_never_raise(odd):
    keys = "model tokenizer optimizer dataset batch_size dtype ac_mode checkpointer lr_scheduler"
    text = b"\n".join(key.encode() + b": " + odd for key in keys.split())
    reading = format_of("torchtune").read((parse("a.yaml", text),))
    assert all(one.severity is Severity.NOTE for one in reading.problems)


def test_a_file_is_read_back_as_it_was_meant():
    for several in (True, False):
        for one in recipes("torchtune", several_devices=several):
            shape = ONE_NODE if several else ALONE
            files = emit("torchtune", job(one, **shape, model=LLAMA))
            assert all(not file.repeated for file in parsed(files))
            reading = read_back("torchtune", files)
            after = recipe_of("torchtune", reading, several_devices=several)
            assert differences("torchtune", one, after) == {}
            assert reading.values["num_ranks"] == shape["num_ranks"]
            assert reading.values["model"] == LLAMA.id
