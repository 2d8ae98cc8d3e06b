"""The emitted TrainingArguments are read back by transformers itself, value by value."""

from __future__ import annotations

import csv
import itertools
import json
import re
import socket
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from batchplan.errors import SpecError, UnknownNameError
from batchplan.learning import advise
from batchplan.memory import ErrorBand, Estimate, Moment, Term
from batchplan.planner.plan import Plan
from batchplan.spec import (
    Attention,
    Batch,
    Checkpointing,
    Gpu,
    Loss,
    Method,
    ModelInfo,
    Numerics,
    Offload,
    Optimizer,
    OptimizerImpl,
    Recipe,
    Sharding,
)
from batchplan.trainers import (
    EmittedFile,
    Job,
    emit,
    obstacles,
    realisable_shardings,
    trainer_defaults,
)
from batchplan.trainers.auto_class import auto_class

CATALOG = Path(__file__).parent.parent / "profiles" / "models"
ZERO_STAGE = {Sharding.ZERO1: 1, Sharding.ZERO2: 2, Sharding.ZERO3: 3}
GPU = Gpu(name="A100 SXM 80GB", usable_bytes=85_000_000_000)
MODEL = ModelInfo(id="Qwen/Qwen2.5-7B", architecture="Qwen2ForCausalLM", source="catalog")
REALISABLE = [
    Recipe(numerics=numerics, sharding=sharding, checkpointing=checkpointing)
    for numerics in Numerics
    for sharding in realisable_shardings("hf-trainer", numerics, 16, num_nodes=2)
    for checkpointing in (Checkpointing.NONE, Checkpointing.FULL)
]


ERROR = ErrorBand(percent=10.0, basis="none")


def job(recipe: Recipe, *, accum_steps: int = 4, num_ranks: int = 16, nodes: int = 2) -> Job:
    batch = Batch(micro_batch=3, accum_steps=accum_steps, num_ranks=num_ranks, seq_len=2048)
    peak = 60_000_000_000
    memory = Estimate(
        terms=(Term(name="weights", num_bytes=peak, formula="", source=""),),
        timeline=(Moment(phase="forward", stage="all", num_bytes=peak),),
        peak_phase="forward: all",
        allocated_peak_bytes=peak,
        reserved_peak_bytes=peak,
        in_use_peak_bytes=peak,
        host_bytes=0,
        allocated_error=ERROR,
        reserved_error=ERROR,
        in_use_error=ERROR,
        bound_bytes=peak,
    )
    rate = advise(
        method=recipe.method,
        optimizer=recipe.optimizer,
        num_params=7_000_000_000,
        hidden_size=None,
        global_batch_size=batch.global_batch_size,
        seq_len=2048,
        base_lr=2e-5,
        base_batch=batch.global_batch_size,
    )
    plan = Plan(
        recipe=recipe,
        batch=batch,
        num_nodes=nodes,
        memory=memory,
        usable_bytes=GPU.usable_bytes,
        step_time=None,
        target_deviation=0.01,
        learning_rate=rate,
    )
    return Job(plan=plan, model=MODEL, gpu=GPU)


def name(recipe: Recipe) -> str:
    return f"{recipe.numerics}-{recipe.sharding}-{recipe.checkpointing}"


def free_port() -> int:
    """A port nobody has, so that two test processes can each start a process group."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def parsed(files: tuple[EmittedFile, ...], tmp_path, monkeypatch):
    """Read the main file with transformers' own parser, as the user's script will."""
    training_args = pytest.importorskip("transformers.training_args")
    from transformers import HfArgumentParser

    # Otherwise a machine without a GPU refuses bf16.
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    for file in files:
        (tmp_path / file.name).write_text(file.text, encoding="utf-8")
    if len(files) > 1:
        for key, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": str(free_port()),
        }.items():
            monkeypatch.setenv(key, value)
    parser = HfArgumentParser(training_args.TrainingArguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (arguments,) = parser.parse_yaml_file(str(tmp_path / files[0].name))
    return arguments


@pytest.mark.slow
@pytest.mark.parametrize("recipe", REALISABLE, ids=name)
def test_transformers_reads_every_value_the_plan_decided(recipe, tmp_path, monkeypatch):
    if recipe.sharding in ZERO_STAGE:
        pytest.importorskip("deepspeed", reason="the parser builds DeepSpeed's own config object")
    arguments = parsed(emit("hf-trainer", job(recipe)), tmp_path, monkeypatch)
    assert arguments.per_device_train_batch_size == 3
    assert arguments.gradient_accumulation_steps == 4
    assert isinstance(arguments.learning_rate, float)
    assert arguments.learning_rate == 2e-5
    assert isinstance(arguments.warmup_steps, int)
    assert arguments.optim == "adamw_torch_fused"
    assert arguments.bf16 is (recipe.numerics in (Numerics.BF16_AUTOCAST, Numerics.BF16_MASTER))
    assert arguments.fp16 is (recipe.numerics in (Numerics.FP16_AUTOCAST, Numerics.FP16_MASTER))
    is_fsdp = recipe.sharding.value.startswith("fsdp")
    is_full = recipe.checkpointing is Checkpointing.FULL
    trainers_own = getattr(arguments, "activation_checkpointing", arguments.gradient_checkpointing)
    assert bool(trainers_own) is (is_full and not is_fsdp)
    assert bool(arguments.fsdp) is is_fsdp
    if is_fsdp:
        config = arguments.fsdp_config
        assert config["activation_checkpointing"] is is_full
        assert config["reshard_after_forward"] is (recipe.sharding is not Sharding.FSDP_GRAD_OP)
        kwargs = arguments.accelerator_config.gradient_accumulation_kwargs
        assert kwargs["sync_each_batch"] is True
    if recipe.sharding in ZERO_STAGE:
        config = arguments.hf_deepspeed_config.config
        assert config["zero_optimization"]["stage"] == ZERO_STAGE[recipe.sharding]
        assert config["train_micro_batch_size_per_gpu"] == 3
        assert config["gradient_accumulation_steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [o for o in Optimizer if o is not Optimizer.MUON])
def test_transformers_knows_every_optimizer_name(optimizer, tmp_path, monkeypatch):
    recipe = Recipe(numerics=Numerics.BF16, optimizer=optimizer)
    arguments = parsed(emit("hf-trainer", job(recipe)), tmp_path, monkeypatch)
    assert arguments.optim_args == ("momentum=0.9" if optimizer is Optimizer.SGD_MOMENTUM else None)


@pytest.mark.parametrize("recipe", REALISABLE, ids=name)
def test_nothing_is_configured_twice(recipe):
    main, *others = emit("hf-trainer", job(recipe))
    keys = re.findall(r"^(\w+):", main.text, flags=re.MULTILINE)
    assert len(keys) == len(set(keys))
    settings = yaml.safe_load(main.text)
    assert not {"fsdp", "deepspeed"} <= settings.keys()
    assert bool(others) is ("deepspeed" in settings)
    for other in others:
        assert settings["deepspeed"] == other.name
        config = json.loads(other.text)
        batch_keys = [key for key in config if "batch" in key or key.startswith("gradient_acc")]
        assert {config[key] for key in batch_keys} == {"auto"}
        assert config["zero_optimization"]["stage"] == ZERO_STAGE[recipe.sharding]


def test_deepspeed_accepts_the_json_with_numbers_in_it(monkeypatch):
    pytest.importorskip("deepspeed")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from deepspeed.runtime import config as deepspeed_config

        class Ranks:
            def get_data_parallel_world_size(self) -> int:
                return 16

        monkeypatch.setattr(deepspeed_config.dist, "get_rank", lambda *_, **__: 0)
        for offload in Offload:
            recipe = Recipe(sharding=Sharding.ZERO3, offload=offload)
            config = json.loads(emit("hf-trainer", job(recipe))[1].text)
            config |= {
                "train_batch_size": 3 * 4 * 16,
                "train_micro_batch_size_per_gpu": 3,
                "gradient_accumulation_steps": 4,
                "gradient_clipping": 1.0,
                "bf16": {"enabled": True},
                "fp16": {"enabled": False},
            }
            for key, value in config["zero_optimization"].items():
                if value == "auto":
                    config["zero_optimization"][key] = 1000
            read = deepspeed_config.DeepSpeedConfig(config, mpu=Ranks())
            assert read.zero_config.stage == 3


def test_offloading_the_optimizer_names_it_in_one_place_only():
    recipe = Recipe(sharding=Sharding.ZERO2, offload=Offload.OPTIMIZER)
    main, other = emit("hf-trainer", job(recipe))
    config = json.loads(other.text)
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert config["optimizer"]["type"] == "AdamW"
    assert "optim" not in yaml.safe_load(main.text)


def test_fsdp_with_master_weights_loads_them_in_fp32():
    recipe = Recipe(sharding=Sharding.FSDP_FULL)
    assert "dtype='float32'" in emit("hf-trainer", job(recipe))[0].text
    recipe = Recipe(sharding=Sharding.ZERO3)
    assert "dtype='bfloat16'" in emit("hf-trainer", job(recipe))[0].text


def test_one_micro_batch_a_step_needs_no_accumulation_settings():
    files = emit("hf-trainer", job(Recipe(sharding=Sharding.FSDP_FULL), accum_steps=1))
    assert "accelerator_config" not in yaml.safe_load(files[0].text)


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
def test_the_launch_line_starts_every_device(num_ranks, nodes):
    recipe = Recipe(numerics=Numerics.BF16)
    text = emit("hf-trainer", job(recipe, num_ranks=num_ranks, nodes=nodes))[0].text
    assert f"--nproc_per_node={num_ranks // nodes} " in text
    assert ("--nnodes=2" in text) is (nodes == 2)


def test_hybrid_sharding_says_how_it_is_switched_on():
    text = emit("hf-trainer", job(Recipe(sharding=Sharding.FSDP_HYBRID)))[0].text
    assert "PARALLELISM_CONFIG_DP_REPLICATE_SIZE=2" in text
    assert "PARALLELISM_CONFIG_DP_SHARD_SIZE=8" in text


def test_qlora_says_how_to_load_the_base():
    recipe = Recipe(method=Method.QLORA, numerics=Numerics.BF16, sharding=Sharding.FSDP_FULL)
    text = emit("hf-trainer", job(recipe))[0].text
    assert "load_in_4bit=True" in text
    assert "bnb_4bit_quant_storage='bfloat16'" in text
    assert "LoraConfig(r=16, target_modules='all-linear'" in text


@pytest.mark.parametrize(
    "recipe",
    [
        Recipe(numerics=Numerics.BF16, sharding=Sharding.ZERO2),
        Recipe(numerics=Numerics.BF16_MASTER, sharding=Sharding.DDP),
        Recipe(numerics=Numerics.BF16, checkpointing=Checkpointing.SELECTIVE),
        Recipe(numerics=Numerics.BF16, loss=Loss.CHUNKED),
        Recipe(numerics=Numerics.BF16, optimizer=Optimizer.MUON),
        Recipe(numerics=Numerics.BF16, optimizer_impl=OptimizerImpl.FOR_LOOP),
        Recipe(numerics=Numerics.BF16, offload=Offload.OPTIMIZER),
        Recipe(sharding=Sharding.ZERO2, offload=Offload.PARAMS),
        Recipe(sharding=Sharding.ZERO2, grad_dtype="fp32"),
        Recipe(numerics=Numerics.BF16, bucket_view=True),
    ],
)
def test_what_the_trainer_cannot_do_is_refused_not_approximated(recipe):
    assert obstacles("hf-trainer", recipe)
    with pytest.raises(SpecError, match="hf-trainer cannot run this plan"):
        emit("hf-trainer", job(recipe))


def test_everything_searched_by_default_can_be_emitted():
    for recipe, attention in itertools.product(REALISABLE, Attention):
        assert emit("hf-trainer", job(recipe.model_copy(update={"attention": attention})))


def test_an_unknown_trainer_is_refused_with_the_known_ones():
    with pytest.raises(UnknownNameError, match="hf-trainer"):
        trainer_defaults("hf-trainre", "5.23.0")


@pytest.mark.parametrize(("version", "numerics"), [("4.57.1", "fp32"), ("5.23.0", "checkpoint")])
def test_defaults_follow_the_release(version, numerics):
    assert trainer_defaults("hf-trainer", version)["numerics"].value == numerics


@pytest.mark.slow
def test_defaults_are_those_of_the_installed_transformers():
    training_args = pytest.importorskip("transformers.training_args")
    import importlib.metadata

    own = training_args.TrainingArguments.__dataclass_fields__
    version = importlib.metadata.version("transformers")
    rows = trainer_defaults("hf-trainer", version)
    assert own["per_device_train_batch_size"].default == rows["micro_batch"].value
    assert own["gradient_accumulation_steps"].default == rows["accum_steps"].value
    assert rows["optimizer_impl"].value in str(
        own["optim"].default or own["optim"].default_factory()
    )


def settings_of(recipe: Recipe, **more) -> dict:
    return yaml.safe_load(emit("hf-trainer", job(recipe, **more))[0].text)


def with_beta2(recipe: Recipe, beta2: float) -> Job:
    before = job(recipe)
    rate = replace(before.plan.learning_rate, beta2=beta2)
    return replace(before, plan=replace(before.plan, learning_rate=rate))


def test_beta2_is_in_the_config_where_the_advice_has_one():
    recipe = Recipe(numerics=Numerics.BF16)
    text = emit("hf-trainer", with_beta2(recipe, 0.98461234))[0].text
    assert yaml.safe_load(text)["adam_beta2"] == 0.9846
    assert "adam_beta2" not in settings_of(recipe.model_copy(update={"optimizer": Optimizer.SGD}))


@pytest.mark.slow
def test_beta2_arrives(tmp_path, monkeypatch):
    files = emit("hf-trainer", with_beta2(Recipe(numerics=Numerics.BF16), 0.98461234))
    assert parsed(files, tmp_path, monkeypatch).adam_beta2 == 0.9846


@pytest.mark.parametrize("beta2", [0.99999762, 1 - 1e-13, 1.0])
def test_a_beta2_that_torch_refuses_is_never_written(beta2):
    torch = pytest.importorskip("torch")
    text = emit("hf-trainer", with_beta2(Recipe(numerics=Numerics.BF16), beta2))[0].text
    written = yaml.safe_load(text).get("adam_beta2", 0.999)
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], betas=(0.9, written))
    assert optimizer.defaults["betas"][1] < 1


@pytest.mark.parametrize("method", [Method.LORA, Method.QLORA])
def test_adapters_over_an_fp16_base_get_loss_scaling(method):
    settings = settings_of(Recipe(method=method, numerics=Numerics.FP16))
    assert (settings["fp16"], settings["bf16"]) == (True, False)
    settings = settings_of(Recipe(method=method, numerics=Numerics.BF16))
    assert (settings["fp16"], settings["bf16"]) == (False, False)


def test_one_epoch_is_configured_where_its_length_is_known():
    before = job(Recipe(numerics=Numerics.BF16))
    text = emit("hf-trainer", replace(before, epoch_steps=1234))[0].text
    assert "num_train_epochs: 1  # 1,234 optimizer steps\n" in text
    text = emit("hf-trainer", replace(before, epoch_steps=1234, epochs=2.5))[0].text
    assert "num_train_epochs: 2.5  # 1,234 optimizer steps each\n" in text


@pytest.mark.parametrize(
    ("recipe", "packages"),
    [
        (Recipe(numerics=Numerics.BF16), ""),
        (Recipe(sharding=Sharding.ZERO1), "deepspeed"),
        (Recipe(method=Method.LORA, numerics=Numerics.BF16), "peft"),
        (Recipe(method=Method.QLORA, numerics=Numerics.BF16), "peft bitsandbytes"),
        (Recipe(numerics=Numerics.BF16, optimizer=Optimizer.ADAMW_8BIT), "bitsandbytes"),
        (Recipe(numerics=Numerics.BF16, loss=Loss.FUSED), "liger-kernel"),
        (Recipe(numerics=Numerics.BF16, attention=Attention.FLASH), "flash-attn"),
    ],
)
def test_what_must_be_installed_is_named(recipe, packages):
    text = emit("hf-trainer", job(recipe))[0].text
    found = re.findall(r"^# Install: pip install (.*)$", text, flags=re.MULTILINE)
    assert found == ([packages] if packages else [])


@pytest.mark.parametrize(
    ("numerics", "without"), [("bf16-master", "bf16-autocast"), ("fp16-master", "fp16-autocast")]
)
def test_deepspeed_on_one_device_says_why(numerics, without):
    recipe = Recipe(numerics=numerics, sharding=Sharding.ZERO1)
    alone = emit("hf-trainer", job(recipe, num_ranks=1, nodes=1))[0].text
    assert "ZeRO on one device, because DeepSpeed keeps the fp32 copies" in alone
    assert f"--numerics {without} does without it" in alone
    assert "ZeRO on one device" not in emit("hf-trainer", job(recipe))[0].text


@pytest.mark.parametrize(
    ("architecture", "loader", "task"),
    [
        ("Qwen2ForCausalLM", "AutoModelForCausalLM", 'task_type="CAUSAL_LM"'),
        ("GPT2LMHeadModel", "AutoModelForCausalLM", 'task_type="CAUSAL_LM"'),
        ("LlamaModel", "AutoModelForCausalLM", 'task_type="CAUSAL_LM"'),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM", 'task_type="SEQ_2_SEQ_LM"'),
        ("MarianMTModel", "AutoModelForSeq2SeqLM", 'task_type="SEQ_2_SEQ_LM"'),
        ("BartModel", "AutoModelForSeq2SeqLM", 'task_type="SEQ_2_SEQ_LM"'),
        ("BertForMaskedLM", "AutoModelForMaskedLM", None),
        ("XLMRobertaModel", "AutoModelForMaskedLM", None),
        (
            "Gemma3ForConditionalGeneration",
            "Gemma3ForConditionalGeneration",
            'task_type="CAUSAL_LM"',
        ),
    ],
)
def test_the_comment_loads_the_architecture_with_the_class_that_takes_it(
    architecture, loader, task
):
    before = job(Recipe(method=Method.LORA, numerics=Numerics.BF16))
    model = MODEL.model_copy(update={"architecture": architecture})
    text = emit("hf-trainer", replace(before, model=model))[0].text
    assert f"# Model:   {loader}.from_pretrained(" in text
    assert ("task_type" in text) is (task is not None)
    assert task is None or task in text


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_every_model_of_the_catalog_is_loaded_by_a_class_that_has_its_config():
    transformers = pytest.importorskip("transformers")
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    with (CATALOG / "index.csv").open(encoding="utf-8", newline="") as file:
        files = {row["file"] for row in csv.DictReader(file)}
    seen = set()
    for file in files:
        config = json.loads((CATALOG / file).read_text(encoding="utf-8"))
        (architecture,) = config["architectures"]
        if config["model_type"] not in CONFIG_MAPPING:
            continue
        seen.add(architecture)
        mapping = getattr(transformers, auto_class(architecture).name)._model_mapping
        chosen = mapping[CONFIG_MAPPING[config["model_type"]]]
        assert chosen.__name__ == architecture
    assert {"T5ForConditionalGeneration", "BertForMaskedLM", "Qwen2ForCausalLM"} <= seen


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_task_types_are_those_of_peft():
    peft = pytest.importorskip("peft")
    for architecture in ("Qwen2ForCausalLM", "T5ForConditionalGeneration"):
        assert auto_class(architecture).task_type in set(peft.TaskType)
