"""The emitted TrainingArguments are read back by transformers itself, value by value."""

from __future__ import annotations

import csv
import itertools
import json
import re
import shlex
import warnings
from dataclasses import replace
from pathlib import Path

import pytest
import yaml
from trainer_jobs import MODEL, job, name, read_back, recipes

from batchplan.errors import SpecError, UnknownNameError
from batchplan.spec import (
    Attention,
    Checkpointing,
    Loss,
    Method,
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
    realised,
    trainer_defaults,
)
from batchplan.trainers.shared.auto_class import auto_class

CATALOG = Path(__file__).parent.parent / "profiles" / "models"
ZERO_STAGE = {Sharding.ZERO1: 1, Sharding.ZERO2: 2, Sharding.ZERO3: 3}
REALISABLE = [
    realised(
        "hf-trainer",
        Recipe(numerics=numerics, sharding=sharding, checkpointing=checkpointing),
        several_devices=True,
    )
    for numerics in Numerics
    for sharding in realisable_shardings("hf-trainer", numerics, 16, num_nodes=2)
    for checkpointing in (Checkpointing.NONE, Checkpointing.FULL)
]


def file_of(files: tuple[EmittedFile, ...], suffix: str) -> str:
    """The text of the file whose name ends so."""
    (found,) = [file.text for file in files if file.name.endswith(suffix)]
    return found


def kwargs_of(recipe: Recipe, **more) -> dict:
    """What train.py passes to from_pretrained and LoraConfig."""
    return yaml.safe_load(file_of(emit("hf-trainer", job(recipe, **more)), ".model.yaml"))


def parsed(files: tuple[EmittedFile, ...], tmp_path, monkeypatch):
    """Read the main file with transformers' own parser, as the user's script will."""
    training_args = pytest.importorskip("transformers.training_args")
    from transformers import HfArgumentParser

    # Otherwise a machine without a GPU refuses bf16.
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    for file in files:
        (tmp_path / file.name).write_text(file.text, encoding="utf-8")
    if any(file.name.endswith(".json") for file in files):
        for key, value in {
            "RANK": "0",
            "LOCAL_RANK": "0",
            "WORLD_SIZE": "1",
            "MASTER_ADDR": "127.0.0.1",
            "MASTER_PORT": "0",  # any that is free
        }.items():
            monkeypatch.setenv(key, value)
        # It would compile a kernel for ranks of one machine.
        backend = pytest.importorskip("deepspeed.comm.torch")
        monkeypatch.setattr(backend, "build_shm_op", lambda: None)
    parser = HfArgumentParser(training_args.TrainingArguments)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        (arguments,) = parser.parse_yaml_file(str(tmp_path / files[0].name))
    return arguments


@pytest.mark.slow
@pytest.mark.parametrize("recipe", REALISABLE, ids=name)
def test_transformers_reads_every_value_the_plan_decided(recipe, tmp_path, monkeypatch):
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
    main, *beside = emit("hf-trainer", job(recipe))
    others = [file for file in beside if file.name.endswith(".json")]
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
    main, other, *_ = emit("hf-trainer", job(recipe))
    config = json.loads(other.text)
    assert config["zero_optimization"]["offload_optimizer"]["device"] == "cpu"
    assert config["optimizer"]["type"] == "AdamW"
    assert "optim" not in yaml.safe_load(main.text)


def test_fsdp_with_master_weights_loads_them_in_fp32():
    sharded = kwargs_of(Recipe(sharding=Sharding.FSDP_FULL))
    assert sharded["from_pretrained"]["dtype"] == "float32"
    split = kwargs_of(Recipe(sharding=Sharding.ZERO3))
    assert split["from_pretrained"]["dtype"] == "bfloat16"


def test_one_micro_batch_a_step_needs_no_accumulation_settings():
    files = emit("hf-trainer", job(Recipe(sharding=Sharding.FSDP_FULL), accum_steps=1))
    assert "accelerator_config" not in yaml.safe_load(files[0].text)


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
def test_the_launch_script_starts_every_device(num_ranks, nodes):
    recipe = realised("hf-trainer", Recipe(numerics=Numerics.BF16), several_devices=num_ranks > 1)
    text = file_of(emit("hf-trainer", job(recipe, num_ranks=num_ranks, nodes=nodes)), ".sh")
    assert (f"torchrun --nproc_per_node={num_ranks // nodes} " in text) is (num_ranks > 1)
    assert ("--nnodes=2" in text) is (nodes == 2)
    assert ("HEAD_NODE" in text) is (nodes == 2)


def test_how_long_sequences_are_is_in_the_files():
    files = emit("hf-trainer", job(Recipe(sharding=Sharding.FSDP_FULL), seq_len=1536))
    assert yaml.safe_load(file_of(files, ".model.yaml"))["tokenizer"]["max_length"] == 1536
    assert read_back("hf-trainer", files).values["seq_len"] == 1536


def test_one_device_starts_without_a_launcher_but_for_deepspeed():
    alone = {"num_ranks": 1, "nodes": 1}
    plain, zero = (
        file_of(emit("hf-trainer", job(recipe, **alone)), ".sh")
        for recipe in (
            Recipe(numerics=Numerics.BF16),
            Recipe(numerics=Numerics.BF16_MASTER, sharding=Sharding.ZERO1),
        )
    )
    assert plain.splitlines()[1:] == [
        'export CUDA_VISIBLE_DEVICES="${CUDA_VISIBLE_DEVICES:-0}"',
        "python train.py --config plan.yaml",
    ]
    assert "torchrun --nproc_per_node=1 " in zero


def test_the_allocator_is_set_in_the_environment():
    recipe = Recipe(numerics=Numerics.BF16, expandable_segments=True)
    text = file_of(emit("hf-trainer", job(recipe)), ".sh")
    assert "export PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True\n" in text


def test_hybrid_sharding_is_switched_on_in_the_environment():
    text = file_of(emit("hf-trainer", job(Recipe(sharding=Sharding.FSDP_HYBRID))), ".sh")
    assert "export PARALLELISM_CONFIG_DP_REPLICATE_SIZE=2\n" in text
    assert "export PARALLELISM_CONFIG_DP_SHARD_SIZE=8\n" in text


@pytest.mark.slow
def test_transformers_and_peft_take_the_model_kwargs():
    transformers = pytest.importorskip("transformers")
    peft = pytest.importorskip("peft")
    recipe = Recipe(method=Method.QLORA, numerics=Numerics.BF16, sharding=Sharding.FSDP_FULL)
    kwargs = kwargs_of(recipe)
    quantised = kwargs["from_pretrained"]["quantization_config"]
    config = transformers.BitsAndBytesConfig(**quantised)
    assert config.load_in_4bit
    assert config.bnb_4bit_quant_type == "nf4"
    assert str(config.bnb_4bit_quant_storage) == "torch.bfloat16"
    adapters = peft.LoraConfig(**kwargs["lora"])
    assert (adapters.r, adapters.target_modules) == (16, "all-linear")


def test_only_sharded_4_bit_weights_name_their_storage():
    recipe = Recipe(method=Method.QLORA, numerics=Numerics.BF16)
    loading = kwargs_of(recipe)["from_pretrained"]
    assert "bnb_4bit_quant_storage" not in loading["quantization_config"]


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


def test_both_frameworks_are_searched_by_default():
    assert {recipe.sharding for recipe in recipes("hf-trainer")} == set(Sharding)


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
    (found,) = re.findall(r"^# Install: pip install (.*)$", text, flags=re.MULTILINE)
    assert shlex.split(found) == ["transformers>=4.56", "accelerate", *packages.split()]


def test_fsdp_needs_the_release_whose_arguments_say_it_all():
    sharded = Recipe(sharding=Sharding.FSDP_FULL, numerics=Numerics.BF16_MASTER)
    recipe = realised("hf-trainer", sharded, several_devices=True)
    assert "# Install: pip install 'transformers>=5.10'" in emit("hf-trainer", job(recipe))[0].text
    assert not obstacles("hf-trainer", recipe, versions={"transformers": "5.10.0"})
    (text,) = obstacles("hf-trainer", recipe, versions={"transformers": "4.57.1"})
    assert text == "it needs transformers>=5.10, not 4.57.1"
    (text,) = obstacles("hf-trainer", recipe, versions={"transformers": "4.50.0"})
    assert text == "it needs transformers>=5.10, not 4.50.0", "the strictest alone"


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
        ("Qwen2ForCausalLM", "AutoModelForCausalLM", "CAUSAL_LM"),
        ("GPT2LMHeadModel", "AutoModelForCausalLM", "CAUSAL_LM"),
        ("LlamaModel", "AutoModelForCausalLM", "CAUSAL_LM"),
        ("T5ForConditionalGeneration", "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
        ("MarianMTModel", "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
        ("BartModel", "AutoModelForSeq2SeqLM", "SEQ_2_SEQ_LM"),
        ("BertForMaskedLM", "AutoModelForMaskedLM", None),
        ("XLMRobertaModel", "AutoModelForMaskedLM", None),
        (
            "Gemma3ForConditionalGeneration",
            "Gemma3ForConditionalGeneration",
            "CAUSAL_LM",
        ),
    ],
)
def test_an_architecture_is_loaded_with_the_class_that_takes_it(architecture, loader, task):
    before = job(Recipe(method=Method.LORA, numerics=Numerics.BF16))
    model = MODEL.model_copy(update={"architecture": architecture})
    text = file_of(emit("hf-trainer", replace(before, model=model)), ".model.yaml")
    assert f"{loader}.from_pretrained(" in text
    assert yaml.safe_load(text)["lora"].get("task_type") == task


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
