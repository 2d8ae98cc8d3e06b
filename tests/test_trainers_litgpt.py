"""LitGPT's YAML goes through its own parser, and its passes are counted by its own arithmetic."""

from __future__ import annotations

from dataclasses import replace

import pytest
import yaml
from trainer_jobs import differences, job, parsed, read_back, recipe_of, recipes, written

from batchplan.configfile import Severity, parse
from batchplan.errors import SpecError
from batchplan.spec import ModelInfo, Recipe
from batchplan.trainers import emit, format_of, obstacles, realised

ONE_NODE = {"num_ranks": 8, "nodes": 1}
ALONE = {"num_ranks": 1, "nodes": 1}
QLORA = {"method": "qlora", "numerics": "bf16"}
PRECISION = {
    "fp32": "32-true",
    "bf16": "bf16-true",
    "fp16": "16-true",
    "bf16-autocast": "bf16-mixed",
    "fp16-autocast": "16-mixed",
    "bf16-master": "bf16-mixed",
    "fp16-master": "16-mixed",
}


def recipe(*, several: bool = False, **fields: object) -> Recipe:
    """A recipe as LitGPT runs it."""
    given = {"sharding": "fsdp-full" if several else "ddp", "numerics": "bf16-autocast", **fields}
    if several and given.get("method", "full") == "full" and "numerics" not in fields:
        given["numerics"] = "bf16-master"
    return realised("litgpt", Recipe.model_validate(given), several_devices=several)


def settings(files) -> dict:
    return yaml.safe_load(files[0].text)


@pytest.mark.slow
def test_litgpt_reads_every_value_the_plan_decided(tmp_path):
    pytest.importorskip("litgpt")
    torch = pytest.importorskip("torch")
    from jsonargparse import auto_parser
    from litgpt.args import TrainArgs
    from litgpt.finetune import full, lora
    from litgpt.utils import instantiate_torch_optimizer

    parsers = {"full": auto_parser(full.setup), "lora": auto_parser(lora.setup)}
    for several in (True, False):
        shape = {"num_ranks": 16, "nodes": 2} if several else ALONE
        for one in recipes("litgpt", several_devices=several):
            files = emit("litgpt", job(one, **shape))
            parser = parsers["full" if one.method == "full" else "lora"]
            got = parser.parse_path(str(written(files, tmp_path))).as_dict()
            train = TrainArgs(**dict(got["train"]))
            assert train.gradient_accumulation_iters(got["devices"], got["num_nodes"]) == 4
            assert train.micro_batch_size == 3
            assert train.max_seq_length == 2048
            assert got["precision"] == PRECISION[one.numerics]
            arguments = got["optimizer"]["init_args"]
            assert arguments["lr"] == 2e-5
            assert isinstance(arguments["lr"], float)
            if one.method == "qlora":
                assert got["quantize"] == ("bnb.nf4-dq" if one.double_quant else "bnb.nf4")
            elif got["optimizer"]["class_path"].startswith("torch."):
                weight = torch.nn.Parameter(torch.ones(2, 2))
                optimizer = instantiate_torch_optimizer(dict(got["optimizer"]), [weight])
                group = optimizer.param_groups[0]
                assert group["lr"] == 2e-5
                assert group.get("momentum", 0) == (0.9 if one.optimizer == "sgd-momentum" else 0)
                if one.optimizer == "adamw":
                    assert bool(group["fused"]) is (one.optimizer_impl == "fused")
                    assert (group["foreach"] is False) is (one.optimizer_impl == "for-loop")


@pytest.mark.parametrize(
    ("shape", "starts"),
    [
        (ALONE, "litgpt finetune_full --config plan.yaml"),
        (ONE_NODE, "litgpt finetune_full --config plan.yaml"),
        (
            {"num_ranks": 16, "nodes": 2},
            "torchrun --nproc_per_node=8 --nnodes=2 --rdzv_backend=c10d "
            '--rdzv_endpoint="${HEAD_NODE:?address of the first node}:29500" '
            "-m litgpt finetune_full --config plan.yaml",
        ),
    ],
    ids=("alone", "one node", "two nodes"),
)
def test_every_device_is_started_and_the_passes_come_out_even(shape, starts):
    files = emit("litgpt", job(recipe(several=shape["num_ranks"] > 1), **shape))
    assert files[1].text.splitlines()[-1] == starts
    asked = settings(files)
    devices = asked["devices"] * asked["num_nodes"]
    assert devices == shape["num_ranks"]
    each, left = divmod(asked["train"]["global_batch_size"], devices)
    assert (left, each % asked["train"]["micro_batch_size"]) == (0, 0)
    assert each // asked["train"]["micro_batch_size"] == 4


@pytest.mark.parametrize(
    ("model", "download"),
    [
        ("meta-llama/Llama-3.2-1B", "meta-llama/Llama-3.2-1B"),
        # Listed as Meta-Llama-3.1-8B, and `litgpt download` refuses what is not listed.
        ("meta-llama/Llama-3.1-8B", "meta-llama/Llama-3.1-8B --model_name Llama-3.1-8B"),
    ],
)
def test_the_model_is_downloaded_by_a_name_that_litgpt_takes(model, download):
    info = ModelInfo(id=model, architecture="LlamaForCausalLM", source="catalog")
    text = emit("litgpt", job(recipe(), **ALONE, model=info))[0].text
    assert f"# Before:  litgpt download {download}\n" in text
    assert "requests\n" in text, "it imports requests for its own data, and declares it nowhere"


def test_a_part_of_an_epoch_is_counted_in_steps():
    plan = job(recipe(), **ALONE)
    half = settings(emit("litgpt", replace(plan, epoch_steps=101, epochs=2.5)))
    whole = settings(emit("litgpt", replace(plan, epoch_steps=101, epochs=2)))
    assert (half["train"]["epochs"], half["train"]["max_steps"]) == (3, 252)
    assert whole["train"]["epochs"] == 2
    assert "max_steps" not in whole["train"]


@pytest.mark.parametrize(
    ("fields", "says"),
    [
        ({**QLORA, "optimizer": "adamw-8bit"}, "AdamW only"),
        ({**QLORA, "sharding": "fsdp-full"}, "cannot run qlora with --sharding fsdp-full"),
        ({**QLORA, "optimizer_impl": "foreach"}, "no foreach form"),
        ({**QLORA, "numerics": "bf16-autocast"}, "it takes fp32, bf16, fp16"),
        ({"sharding": "zero3", "numerics": "bf16-master"}, "it takes --sharding ddp, fsdp-full"),
        ({"method": "lora", "numerics": "bf16", "several": True, "optimizer": "lion"}, "FSDP2"),
        ({"method": "lora", "numerics": "fp16-autocast", "several": True}, "fp32, bf16, fp16"),
        ({"offload": "params", "several": True}, "no offload params"),
        ({"checkpointing": "selective"}, "no setting for checkpointing selective"),
    ],
    ids=lambda value: "" if isinstance(value, str) else "-".join(map(str, value.values())),
)
def test_what_litgpt_cannot_do_is_refused(fields, says):
    several = fields.get("several", False)
    known = {name: value for name, value in fields.items() if name != "several"}
    asked = Recipe.model_validate({**recipe(several=several).model_dump(mode="json"), **known})
    (text, *_) = obstacles("litgpt", asked)
    assert says in text


@pytest.mark.parametrize(
    ("targets", "on"),
    [
        ("all-linear", {"query", "key", "value", "projection", "mlp"}),
        ("q_proj,v_proj", {"query", "value"}),
        ("down_proj,gate_proj,up_proj,lm_head", {"mlp", "head"}),
    ],
)
def test_adapters_are_switched_on_layer_by_layer(targets, on):
    one = recipe(method="lora", lora_targets=targets)
    asked = settings(emit("litgpt", job(one, **ALONE)))
    switches = ("query", "key", "value", "projection", "mlp", "head")
    assert {name for name in switches if asked[f"lora_{name}"]} == on


@pytest.mark.parametrize(
    ("targets", "architecture", "says"),
    [
        ("q_proj,gate_proj", "Qwen2ForCausalLM", "adapters on gate_proj alone"),
        ("all-linear", "GPT2LMHeadModel", "no model of architecture GPT2LMHeadModel"),
        ("all-linear", "parameters only", "no model of architecture parameters only"),
    ],
)
def test_layers_and_models_that_it_lacks_give_one_line(targets, architecture, says):
    model = ModelInfo(id="some/model", architecture=architecture, source="hub")
    plan = job(recipe(method="lora", lora_targets=targets), **ALONE, model=model)
    with pytest.raises(SpecError, match=says):
        emit("litgpt", plan)


def test_a_config_as_people_write_it_is_read():
    text = b"""
precision: bf16-true
quantize: bnb.nf4
checkpoint_dir: checkpoints/meta-llama/Llama-2-7b-hf
devices: 1
lora_r: 32
lora_alpha: 16
lora_dropout: 0.05
lora_query: true
lora_key: false
lora_value: true
lora_projection: false
lora_mlp: false
lora_head: false
data:
  class_path: litgpt.data.Alpaca2k
train:
  global_batch_size: 8
  micro_batch_size: 1
  lr_warmup_steps: 10
  epochs: 4
  max_seq_length: 512
optimizer:
  class_path: torch.optim.AdamW
  init_args:
    lr: 0.0002
    betas: [0.9, 0.95]
"""
    reading = format_of("litgpt").read((parse("lora.yaml", text),))
    values = reading.values
    assert {name: values[name] for name in EXPECTED} == EXPECTED
    assert reading.of("micro_batch").line == 19
    assert reading.problems == ()
    one = recipe_of("litgpt", reading, several_devices=False)
    # PagedAdamW keeps fp32 moments, and adapters of a bf16 model are bf16.
    assert (one.optimizer, one.adapter_dtype, one.checkpointing) == ("adamw", "bf16", "none")


EXPECTED = {
    "model": "meta-llama/Llama-2-7b-hf",
    "method": "qlora",
    "numerics": "bf16",
    "double_quant": False,
    "num_ranks": 1,
    "lora_rank": 32,
    "lora_targets": "q_proj,v_proj",
    "lora_dropout": 0.05,
    "global_batch": 8,
    "micro_batch": 1,
    "seq_len": 512,
    "warmup_steps": 10,
    "epochs": 4,
    "learning_rate": 0.0002,
    "beta2": 0.95,
}


def test_flags_override_the_file_and_name_the_command():
    script = parse(
        "go.sh", b"litgpt finetune_full --config a.yaml --devices 4 --train.micro-batch-size 2\n"
    )
    file = parse("a.yaml", b"precision: bf16-mixed\ntrain: {global_batch_size: 64}\n")
    reading = format_of("litgpt").read((file, script))
    assert reading.values["num_ranks"] == 4
    assert reading.values["micro_batch"] == 2
    assert reading.values["numerics"] == "bf16-master"  # FSDP keeps fp32 shards


def test_adapters_under_fsdp2_loop_over_their_tensors_unless_told_otherwise():
    text = b"devices: 8\nprecision: bf16-true\nlora_r: 8\noptimizer: AdamW\n"
    reading = format_of("litgpt").read((parse("a.yaml", text),))
    one = recipe_of("litgpt", reading)
    assert (one.fsdp_version, one.optimizer_impl) == (2, "for-loop")


@pytest.mark.parametrize(
    "odd", [b"[]", b"{}", b"a", b"-1", b"1e999", b"[[1], {a: b}]", b"null", b"{lr: [1], betas: 3}"]
)
def test_odd_values_never_raise(odd):
    keys = "checkpoint_dir precision quantize devices num_nodes lora_r lora_query train optimizer"
    text = b"\n".join(key.encode() + b": " + odd for key in keys.split())
    reading = format_of("litgpt").read((parse("a.yaml", text),))
    assert all(one.severity is Severity.NOTE for one in reading.problems)


def test_a_file_is_read_back_as_it_was_meant():
    for several in (True, False):
        for one in recipes("litgpt", several_devices=several):
            shape = ONE_NODE if several else ALONE
            files = emit("litgpt", job(one, **shape))
            assert all(not file.repeated for file in parsed(files))
            reading = read_back("litgpt", files)
            after = recipe_of("litgpt", reading, several_devices=several)
            assert differences("litgpt", one, after) == {}
            assert reading.values["num_ranks"] == shape["num_ranks"]
