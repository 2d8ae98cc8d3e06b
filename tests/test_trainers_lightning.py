"""The emitted config goes through LightningCLI's own parser, and its strategies are made of it."""

from __future__ import annotations

import csv
import json
import pydoc
import re
import shlex
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml
from trainer_jobs import (
    MODEL,
    differences,
    job,
    mixes,
    name,
    parsed,
    read_back,
    recipe_of,
    written,
)

from batchplan.configfile import parse
from batchplan.errors import SpecError
from batchplan.spec import Optimizer, Recipe
from batchplan.trainers import emit, format_of, obstacles, realised
from batchplan.trainers.shared.layers import layer_classes

CATALOG = Path(__file__).parent.parent / "profiles" / "models"
STAGE = {"zero1": 1, "zero2": 2, "zero3": 3}
STRATEGY = {
    "fsdp-full": "FULL_SHARD",
    "fsdp-grad-op": "SHARD_GRAD_OP",
    "fsdp-hybrid": "HYBRID_SHARD",
}
# What Lightning's words are for each of ours; adapters over 16-bit weights stay fp32 only
# without a "-true", which casts every weight of the module.
PRECISION = {
    ("full", "fp32"): "32-true",
    ("full", "bf16"): "bf16-true",
    ("full", "fp16"): "16-true",
    ("adapter", "fp32"): "32-true",
    ("adapter", "bf16"): "32-true",
    ("adapter", "fp16"): "16-mixed",
}
MIXED = {"bf16": "bf16-mixed", "fp16": "16-mixed"}


def recipe(several_devices: bool = True, **given: object) -> Recipe:
    """What Lightning makes of a recipe."""
    wanted = Recipe.model_validate(given)
    return realised("lightning", wanted, several_devices=several_devices)


MIXES = tuple(mixes("lightning"))


def block(plan: Any, suffix: str = "plan.yaml") -> dict[str, Any]:
    """The YAML file of a set whose name ends so."""
    (text,) = (file.text for file in emit("lightning", plan) if file.name.endswith(suffix))
    return yaml.safe_load(text)


def precision(plan: Recipe) -> str:
    if plan.numerics.endswith(("-autocast", "-master")):
        return MIXED[plan.numerics.partition("-")[0]]
    return PRECISION["full" if plan.method == "full" else "adapter", plan.numerics.value]


@pytest.fixture(scope="module")
def parser():
    """Return a function that gives what ``fit --config`` parses, with classes of nobody."""
    pytest.importorskip("lightning")
    pytest.importorskip("jsonargparse")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from lightning.pytorch import LightningDataModule, LightningModule
        from lightning.pytorch.cli import LightningCLI

    class ParsesOnly(LightningCLI):
        def instantiate_classes(self) -> None:
            """A Trainer of eight GPUs needs eight GPUs."""

        def _run_subcommand(self, subcommand: str) -> None:
            """Nothing is trained."""

    def parse_with(path: Path) -> Any:
        words = ["fit", "--config", str(path)]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of the test runner's own words in sys.argv
            cli = ParsesOnly(
                LightningModule, LightningDataModule, args=words, seed_everything_default=False
            )
        return cli.config["fit"]

    return parse_with


@pytest.fixture(scope="module")
def strategy_of():
    """Return a function that makes the strategy object of a parsed config."""
    jsonargparse = pytest.importorskip("jsonargparse")
    from lightning.pytorch.strategies import Strategy

    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Strategy, "strategy")

    def make(settings: dict[str, Any]) -> Any:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parser.instantiate_classes(parser.parse_object({"strategy": settings})).strategy

    return make


# One of three: parsing reads signatures anew each time, half a second of it.
@pytest.mark.slow
@pytest.mark.parametrize("plan", MIXES[::3], ids=name)
def test_lightning_parses_every_value_the_plan_decided(plan, parser, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = parser(written(emit("lightning", job(plan)), tmp_path))
    trainer, optimizer = found.trainer, found.optimizer
    assert (trainer.devices, trainer.num_nodes) == (8, 2)
    assert trainer.accumulate_grad_batches == 4
    assert trainer.precision == precision(plan)
    kinds = {"fsdp": "FSDPStrategy", "zero": "DeepSpeedStrategy", "ddp": "DDPStrategy"}
    (kind,) = (kinds[word] for word in kinds if plan.sharding.startswith(word))
    assert trainer.strategy.class_path == f"lightning.pytorch.strategies.{kind}"
    assert isinstance(optimizer.init_args.lr, float)
    assert optimizer.init_args.lr == 2e-5
    assert optimizer.class_path == "torch.optim.AdamW"
    assert optimizer.init_args.fused is True


@pytest.mark.slow
def test_lightning_refuses_a_key_that_it_does_not_know(parser, tmp_path, capsys):
    (file, *_) = emit("lightning", job(recipe(numerics="bf16")))
    path = tmp_path / "wrong.yaml"
    path.write_text(file.text.replace("accumulate_grad_batches", "accumulate_batches"))
    with pytest.raises(SystemExit):
        parser(path)
    assert "accumulate_batches" in capsys.readouterr().err


@pytest.mark.slow
@pytest.mark.parametrize("sharding", STRATEGY)
@pytest.mark.parametrize("checkpointing", ["none", "full"])
def test_the_fsdp_strategy_wraps_the_layers_of_the_model(sharding, checkpointing, strategy_of):
    pytest.importorskip("lightning")
    plan = recipe(sharding=sharding, checkpointing=checkpointing, offload="params")
    made = strategy_of(block(job(plan))["trainer"]["strategy"])
    layer = pydoc.locate("transformers.models.qwen2.modeling_qwen2.Qwen2DecoderLayer")
    assert made.sharding_strategy.name == STRATEGY[sharding]
    assert made.kwargs["auto_wrap_policy"]._module_classes == {layer}
    assert made.cpu_offload.offload_params is True
    checkpointed = made._activation_checkpointing_kwargs.get("auto_wrap_policy")
    classes = set() if checkpointed is None else checkpointed._module_classes
    assert classes == ({layer} if checkpointing == "full" else set())


@pytest.mark.slow
@pytest.mark.parametrize("sharding", STAGE)
def test_the_deepspeed_strategy_takes_the_file_and_adds_the_rest(
    sharding, strategy_of, tmp_path, monkeypatch
):
    pytest.importorskip("lightning")
    pytest.importorskip("deepspeed")
    from lightning.fabric.strategies.deepspeed import _format_precision_config

    monkeypatch.chdir(tmp_path)
    main = written(emit("lightning", job(recipe(sharding=sharding))), tmp_path)
    trainer = yaml.safe_load(main.read_text())["trainer"]
    made = strategy_of(trainer["strategy"])
    zero = made.config["zero_optimization"]
    assert zero["stage"] == STAGE[sharding]
    assert zero["reduce_bucket_size"] == 500_000_000, "not Lightning's own 200 million"
    # What Lightning would refuse to find there, or leave as it finds it.
    assert not {"gradient_accumulation_steps", "bf16", "gradient_clipping"} & set(made.config)
    scaling = dict.fromkeys(
        ("loss_scale", "loss_scale_window", "min_loss_scale", "initial_scale_power", "hysteresis"),
        1,
    )
    _format_precision_config(config=made.config, precision=trainer["precision"], **scaling)
    assert made.config["bf16"] == {"enabled": True}


@pytest.mark.parametrize("plan", MIXES, ids=name)
def test_weights_are_loaded_in_the_dtype_that_the_strategy_keeps(plan):
    loaded = block(job(plan), ".model.yaml")["from_pretrained"]["dtype"]
    keeps_fp32 = plan.numerics == "fp32" or plan.numerics.endswith("-autocast")
    if plan.sharding in STRATEGY and plan.numerics.endswith("-master"):
        keeps_fp32 = True
    half = "bfloat16" if plan.numerics.startswith("bf16") else "float16"
    assert loaded == ("float32" if keeps_fp32 else half)
    assert block(job(plan))["trainer"]["precision"] == precision(plan)


def test_fused_adamw_and_fsdp_are_not_asked_to_clip():
    # Lightning raises for both: MixedPrecision.clip_gradients, FSDPPrecision.clip_grad_by_norm.
    for plan in MIXES:
        scales_itself = precision(plan).endswith("-mixed") and plan.sharding == "ddp"
        clips = "gradient_clip_val" in block(job(plan))["trainer"]
        assert clips is not (scales_itself or plan.sharding in STRATEGY)
    foreach = recipe(numerics="bf16-autocast", optimizer_impl="foreach")
    assert block(job(foreach))["trainer"]["gradient_clip_val"] == 1.0


@pytest.mark.slow
def test_what_lightning_says_of_clipping_is_as_the_config_takes_it():
    pytest.importorskip("lightning")
    torch = pytest.importorskip("torch")
    from lightning.pytorch.plugins.precision import MixedPrecision

    weights = [torch.nn.Parameter(torch.zeros(1))]
    plugin = MixedPrecision("bf16-mixed", "cpu")
    for implementation, clips in (("fused", False), ("foreach", True)):
        plan = block(job(recipe(numerics="bf16-autocast", optimizer_impl=implementation)))
        made = torch.optim.AdamW(weights, **plan["optimizer"]["init_args"])
        if clips:
            plugin.clip_gradients(made, plan["trainer"]["gradient_clip_val"])
        else:
            with pytest.raises(RuntimeError, match="fused"):
                plugin.clip_gradients(made, 1.0)


@pytest.mark.parametrize("optimizer", list(format_of("lightning").values["optimizer"]))
def test_optimizers_are_named_once_and_by_class(optimizer):
    plan = job(recipe(numerics="bf16", optimizer=optimizer))
    assert block(plan)["optimizer"]["init_args"]["lr"] == 2e-5
    assert "optimizer" not in block(plan, ".loop.yaml")
    assert read_back("lightning", emit("lightning", plan)).values["optimizer"] == optimizer


def test_an_offloaded_optimizer_is_deepspeeds_own():
    plan = recipe(sharding="zero2", offload="optimizer")
    path = block(job(plan))["optimizer"]["class_path"]
    assert path == "deepspeed.ops.adam.DeepSpeedCPUAdam"
    after = recipe_of("lightning", read_back("lightning", emit("lightning", job(plan))))
    assert not differences("lightning", plan, after)


def test_checkpointing_is_said_once():
    for plan in MIXES:
        of_model = "gradient_checkpointing_enable" in block(job(plan), ".loop.yaml")
        strategy = block(job(plan))["trainer"]["strategy"]["init_args"]
        said = [of_model, "activation_checkpointing_policy" in strategy]
        assert sum(said) == (plan.checkpointing == "full")


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
def test_every_device_is_started(num_ranks, nodes):
    plan = job(recipe(num_ranks > 1, numerics="bf16"), num_ranks=num_ranks, nodes=nodes)
    trainer = block(plan)["trainer"]
    assert (trainer["devices"], trainer["num_nodes"]) == (num_ranks // nodes, nodes)
    assert trainer["strategy"] == "auto" or num_ranks > 1
    script = parsed(emit("lightning", plan))[-1]
    assert shlex.split(script.text.splitlines()[-1])[:3] == ["python", "train.py", "fit"]
    several = {"MASTER_ADDR", "MASTER_PORT", "NODE_RANK"}
    assert (several <= set(re.findall(r"^export (\w+)=", script.text, re.MULTILINE))) is (nodes > 1)
    reading = read_back("lightning", emit("lightning", plan))
    assert (reading.values["num_ranks"], reading.values["num_nodes"]) == (num_ranks, nodes)


def test_the_length_of_a_run_is_epochs_where_they_are_whole_and_steps_otherwise():
    plan = replace(job(recipe(numerics="bf16")), epoch_steps=100)
    assert block(replace(plan, epochs=2))["trainer"]["max_epochs"] == 2
    part = block(replace(plan, epochs=2.5))["trainer"]
    assert part["max_steps"] == 250
    assert "max_epochs" not in part


def test_a_model_whose_layers_are_not_known_is_refused_only_under_fsdp():
    model = MODEL.model_copy(update={"architecture": "NoSuchForCausalLM"})
    with pytest.raises(SpecError, match="NoSuchForCausalLM"):
        emit("lightning", job(recipe(sharding="fsdp-full"), model=model))
    assert emit("lightning", job(recipe(sharding="zero2"), model=model))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_model_of_the_catalog_has_its_layers():
    transformers = pytest.importorskip("transformers")
    with (CATALOG / "index.csv").open(encoding="utf-8", newline="") as file:
        files = {row["file"] for row in csv.DictReader(file)}
    texts = ((CATALOG / file).read_text(encoding="utf-8") for file in files)
    for architecture in {json.loads(text)["architectures"][0] for text in texts}:
        classes = [pydoc.locate(path) for path in layer_classes(architecture)]
        own = getattr(transformers, architecture)
        assert {made.__module__ for made in classes} == {own.__module__}
        # Encoders name none, ModernBERT its embeddings too.
        named = set(own._no_split_modules or ())
        assert {made.__name__ for made in classes} <= named or not named


@pytest.mark.parametrize(
    "given",
    [
        {"numerics": "bf16-autocast", "sharding": "fsdp-full"},
        {"method": "lora", "numerics": "bf16", "sharding": "fsdp-full"},
        {"numerics": "bf16-master", "sharding": "ddp"},
        {"numerics": "bf16", "sharding": "zero2"},
        {"numerics": "bf16", "optimizer": Optimizer.MUON},
        {"numerics": "bf16", "checkpointing": "selective"},
        {"sharding": "fsdp-full", "fsdp_version": 2},
        {"sharding": "zero2", "zero_buckets": "auto"},
        {"method": "lora", "numerics": "bf16", "adapter_dtype": "bf16"},
    ],
    ids=str,
)
def test_what_it_cannot_do_is_refused_not_approximated(given):
    own = {"zero_buckets": "default", "fsdp_version": 1}
    wanted = Recipe.model_validate(own | given)
    assert obstacles("lightning", wanted)
    with pytest.raises(SpecError, match="lightning cannot run this plan"):
        emit("lightning", job(wanted))


SCRIPT = """
model = AutoModelForCausalLM.from_pretrained("Qwen/Qwen2.5-7B", dtype=torch.float32)
loader = DataLoader(data, batch_size=3, num_workers=4)
strategy = FSDPStrategy(sharding_strategy="SHARD_GRAD_OP", cpu_offload=True)
trainer = L.Trainer(devices=4, num_nodes=2, accumulate_grad_batches=8, precision="bf16-mixed",
                    strategy=strategy)
"""
WORD = """
trainer: {devices: "0,1", strategy: deepspeed_stage_2_offload, precision: 16-mixed}
optimizer: {class_path: AdamW, init_args: {lr: 1.0e-4}}
"""
MODULE = """
trainer: {devices: 2, accumulate_grad_batches: 4, precision: 16}
data: {class_path: Rows, init_args: {batch_size: 6}}
"""
WHOLE = """
from_pretrained: {dtype: float32}
lora: {r: 8, target_modules: [q_proj]}
trainer: {devices: 1, precision: bf16-true}
"""
SHARDED_HALVES = """
from_pretrained: {dtype: bfloat16}
trainer: {devices: 8, strategy: fsdp, precision: bf16-mixed}
"""


@pytest.mark.parametrize(
    ("file", "text", "says"),
    [
        (
            "train.py",
            SCRIPT,
            {"num_ranks": 8, "accum_steps": 8, "micro_batch": 3, "sharding": "fsdp-grad-op"}
            | {"offload": "params", "numerics": "bf16-master"},
        ),
        (
            "a.yaml",
            WORD,
            {"num_ranks": 2, "sharding": "zero2", "offload": "optimizer"}
            | {"numerics": "fp16-master", "learning_rate": 1e-4, "optimizer": "adamw"},
        ),
        # The batch of a DataModule, by the name that Lightning's own tuner changes.
        (
            "a.yaml",
            MODULE,
            {"micro_batch": 6, "accum_steps": 4, "num_ranks": 2, "numerics": "fp16-autocast"},
        ),
        # The whole module is cast: base and adapters, whatever they were loaded in.
        ("a.yaml", WHOLE, {"method": "lora", "numerics": "bf16", "adapter_dtype": "bf16"}),
        # FSDP's shards stay as they were loaded: no fp32 copies here.
        ("a.yaml", SHARDED_HALVES, {"sharding": "fsdp-full", "numerics": "bf16"}),
    ],
)
def test_files_that_people_write_are_understood(file, text, says):
    reading = format_of("lightning").read([parse(file, text.encode())])
    assert not reading.problems
    assert {key: reading.values.get(key) for key in says} == says


def test_words_that_nobody_knows_are_named():
    text = "trainer: {strategy: colossalai, precision: transformer-engine}"
    problems = format_of("lightning").read([parse("a.yaml", text.encode())]).problems
    assert {problem.key for problem in problems} == {"strategy", "precision"}


@pytest.mark.parametrize(
    "text",
    [
        "trainer: [1]\noptimizer: 3",
        "trainer: {devices: {a: 1}, num_nodes: [2], strategy: [fsdp], precision: [16]}",
        "trainer: {strategy: {class_path: [FSDPStrategy], init_args: 3}}",
        "trainer: {strategy: {class_path: DeepSpeedStrategy, init_args: {stage: [3]}}}",
    ],
)
def test_odd_values_are_no_crash(text):
    assert format_of("lightning").read([parse("a.yaml", text.encode())]).trainer == "lightning"
