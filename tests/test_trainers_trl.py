"""The emitted YAML is read back by TRL's own parser, value by value."""

from __future__ import annotations

import importlib
import itertools
import re
import shlex
import warnings
from collections.abc import Iterator
from dataclasses import fields

import pytest
import yaml
from trainer_jobs import job, name, parsed, read_back, recipe_of, written

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

ZERO_STAGE = {Sharding.ZERO1: 1, Sharding.ZERO2: 2, Sharding.ZERO3: 3}
CAST = {"bf16-autocast": "bf16", "fp16-autocast": "fp16", "bf16-master": "bf16"} | {
    "fp16-master": "fp16"
}
ATTENTION = {"eager": "eager", "sdpa": "sdpa", "flash": "flash_attention_2"}
SHARDED = {Sharding.FSDP_GRAD_OP, Sharding.FSDP_FULL, Sharding.FSDP_HYBRID}


def recipe(**given) -> Recipe:
    """What TRL makes of a recipe on several devices."""
    return realised("trl", Recipe(**given), several_devices=True)


def mixes() -> Iterator[Recipe]:
    """Every method, sharding and numerics, each with and without checkpointing."""
    for way in format_of("trl").ways:
        if way.alone is not True:
            for method, sharding, numerics, checkpointing in itertools.product(
                way.methods, way.shardings, way.numerics, ("none", "full")
            ):
                found = recipe(
                    method=method,
                    sharding=sharding,
                    numerics=numerics,
                    checkpointing=checkpointing,
                )
                if not obstacles("trl", found):
                    yield found


MIXES = tuple(mixes())


def settings_of(found: Recipe, **more) -> dict:
    return yaml.safe_load(emit("trl", job(found, **more))[0].text)


@pytest.fixture
def trl_parse(tmp_path, monkeypatch):
    """Read files as ``trl sft --config`` does."""
    trl = pytest.importorskip("trl")
    import transformers.training_args as training_args

    # Otherwise a machine without a GPU refuses bf16.
    monkeypatch.setattr(training_args, "is_torch_bf16_gpu_available", lambda: True)
    monkeypatch.chdir(tmp_path)
    surroundings = {"RANK": 0, "LOCAL_RANK": 0, "WORLD_SIZE": 1}
    surroundings |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": 0}  # any port that is free

    def parse_files(files):
        main = written(files, tmp_path)
        if any(file.name.endswith(".ds.json") for file in files):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                pytest.importorskip("deepspeed", reason="TRL builds DeepSpeed's own config object")
            # It would compile a kernel for ranks of one machine.
            backend = importlib.import_module("deepspeed.comm.torch")
            monkeypatch.setattr(backend, "build_shm_op", lambda: None)
            for variable, value in surroundings.items():
                monkeypatch.setenv(variable, str(value))
        parser = trl.TrlParser((trl.ScriptArguments, trl.SFTConfig, trl.ModelConfig))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return parser.parse_args_and_config(["--config", str(main)])

    return parse_files


@pytest.mark.slow
@pytest.mark.parametrize("found", MIXES, ids=name)
def test_trl_reads_every_value_the_plan_decided(found, trl_parse):
    script, arguments, model = trl_parse(emit("trl", job(found)))
    assert script.dataset_name is None
    assert arguments.per_device_train_batch_size == 3
    assert arguments.gradient_accumulation_steps == 4
    assert (arguments.max_length, arguments.packing) == (2048, False)
    assert type(arguments.learning_rate) is float
    assert arguments.learning_rate == 2e-5
    assert type(arguments.warmup_steps) is int
    assert arguments.optim == "adamw_torch_fused"
    fp16_adapters = found.method is not Method.FULL and found.numerics is Numerics.FP16
    cast = "fp16" if fp16_adapters else CAST.get(found.numerics)
    assert (arguments.bf16, arguments.fp16) == (cast == "bf16", cast == "fp16")
    assert model.attn_implementation == ATTENTION[found.attention]
    _check_loading(found, model)
    _check_sharding(found, arguments)
    full = found.checkpointing is Checkpointing.FULL
    assert arguments.gradient_checkpointing is (full and found.sharding not in SHARDED)
    if full and found.sharding not in SHARDED:
        # One object under both names: what TRL forces on the older reaches the Trainer.
        assert arguments.gradient_checkpointing_kwargs == {"use_reentrant": found.reentrant}
        newer = getattr(arguments, "activation_checkpointing_kwargs", None)
        assert newer in (None, arguments.gradient_checkpointing_kwargs)


def _check_loading(found, model):
    assert model.model_name_or_path == "Qwen/Qwen2.5-7B"
    master = found.method is Method.FULL and found.sharding in SHARDED
    half = {"bf16": "bfloat16", "fp16": "float16"}.get(found.numerics.split("-")[0])
    whole = found.numerics.endswith("autocast") or (master and found.numerics.endswith("master"))
    assert model.dtype == ("float32" if whole or half is None else half)
    assert model.use_peft is (found.method is not Method.FULL)
    assert model.load_in_4bit is (found.method is Method.QLORA)
    if model.use_peft:
        assert (model.lora_r, model.lora_dropout) == (found.lora_rank, found.lora_dropout)
        assert model.lora_target_modules == "all-linear"
    if model.load_in_4bit:
        assert (model.bnb_4bit_quant_type, model.use_bnb_nested_quant) == ("nf4", True)
        sharded = found.sharding in SHARDED
        assert model.bnb_4bit_quant_storage == (model.dtype if sharded else None)


def _check_sharding(found, arguments):
    assert bool(arguments.fsdp) is (found.sharding in SHARDED)
    if found.sharding in SHARDED:
        config = arguments.fsdp_config
        assert config["version"] == 2
        assert config["activation_checkpointing"] is (found.checkpointing is Checkpointing.FULL)
        assert config["reshard_after_forward"] is (found.sharding is not Sharding.FSDP_GRAD_OP)
        kwargs = arguments.accelerator_config.gradient_accumulation_kwargs
        assert kwargs["sync_each_batch"] is found.sync_each_batch
    if found.sharding in ZERO_STAGE:
        config = arguments.hf_deepspeed_config.config
        assert config["zero_optimization"]["stage"] == ZERO_STAGE[found.sharding]
        assert config["train_micro_batch_size_per_gpu"] == 3
        assert config["gradient_accumulation_steps"] == 4


@pytest.mark.slow
@pytest.mark.parametrize("optimizer", [o for o in Optimizer if o is not Optimizer.MUON])
def test_trl_knows_every_optimizer_and_target(optimizer, trl_parse):
    found = recipe(
        method="lora", numerics="bf16", optimizer=optimizer, lora_targets="q_proj,v_proj"
    )
    _, arguments, model = trl_parse(emit("trl", job(found)))
    momentum = optimizer is Optimizer.SGD_MOMENTUM
    assert arguments.optim_args == ("momentum=0.9" if momentum else None)
    assert model.lora_target_modules == ["q_proj", "v_proj"]


@pytest.mark.slow
def test_trl_refuses_a_key_that_it_does_not_know(trl_parse, tmp_path):
    main, *others = emit("trl", job(recipe(numerics="bf16")))
    wrong = type(main)(name=main.name, text=main.text + "max_seq_length: 2048\n")
    with pytest.raises(ValueError, match="max_seq_length"):
        trl_parse((wrong, *others))


@pytest.mark.slow
def test_the_defaults_that_are_not_written_are_trls_own():
    trl = pytest.importorskip("trl")
    own = {
        field.name: field.default for field in (*fields(trl.SFTConfig), *fields(trl.ModelConfig))
    }
    assert own["max_length"] == 1024
    assert own["dtype"] == "float32"
    assert (own["bf16"], own["gradient_checkpointing"]) == (None, True)
    assert (own["lora_r"], own["lora_dropout"], own["use_bnb_nested_quant"]) == (16, 0.05, False)


@pytest.mark.slow
def test_what_trls_own_accelerate_configs_say():
    pytest.importorskip("trl")
    import importlib.resources

    from batchplan.trainers.trl import _SHIPPED

    folder = importlib.resources.files("trl.accelerate_configs")
    names = {file.name.removesuffix(".yaml") for file in folder.iterdir() if ".yaml" in file.name}
    assert names == set(_SHIPPED)
    for shipped, says in _SHIPPED.items():
        config = yaml.safe_load(folder.joinpath(f"{shipped}.yaml").read_text(encoding="utf-8"))
        alone = config["distributed_type"] == "NO"  # accelerate then starts one process
        assert says["num_ranks"] == (1 if alone else config["num_processes"])
        stage = config.get("deepspeed_config", {}).get("zero_stage")
        assert stage == ZERO_STAGE.get(says["sharding"])
        assert config.get("fsdp_config", {}).get("fsdp_version") == says.get("fsdp_version")


@pytest.mark.parametrize("found", MIXES, ids=name)
def test_nothing_is_configured_twice(found):
    files = emit("trl", job(found))
    keys = re.findall(r"^(\w+):", files[0].text, flags=re.MULTILINE)
    assert len(keys) == len(set(keys))
    settings = yaml.safe_load(files[0].text)
    assert not {"fsdp", "deepspeed"} <= settings.keys()
    inner = settings.get("fsdp_config", {}).get("activation_checkpointing", False)
    assert not (inner and settings["gradient_checkpointing"])
    beside = [file.name for file in files if file.name.endswith(".ds.json")]
    assert beside == [settings[key] for key in ("deepspeed",) if key in settings]


@pytest.mark.parametrize(
    ("release", "asks"), [("1.16.0", "'trl>=1.6'"), ("1.5.0", "'trl>=0.26,<1.6'")]
)
def test_releases_that_hold_other_logits_are_not_installed(release, asks):
    versions = {"trl": release}
    asked = Recipe(numerics="bf16")
    found = realised("trl", asked, versions=versions, several_devices=False)
    assert found.loss == ("chunked" if release == "1.16.0" else "standard")
    text = emit("trl", job(found, num_ranks=1, nodes=1), versions=versions)[0].text
    assert f"# Install: pip install {asks}" in text


@pytest.mark.parametrize(("num_ranks", "nodes"), [(1, 1), (8, 1), (16, 2)])
def test_the_launch_line_starts_every_device(num_ranks, nodes):
    *_, launch = emit("trl", job(recipe(numerics="bf16"), num_ranks=num_ranks, nodes=nodes))
    assert launch.name == "plan.launch.sh"
    words = shlex.split(launch.text.splitlines()[-1])
    assert words[0] == ("torchrun" if num_ranks > 1 else "python"), "or DDP wraps it, buckets too"
    assert (f"--nproc_per_node={num_ranks // nodes}" in words) is (num_ranks > 1)
    assert ("{CUDA_VISIBLE_DEVICES:-0}" in launch.text) is (num_ranks == 1)
    assert (f"--nnodes={nodes}" in words) is (nodes > 1)
    assert words[words.index("-m") + 1] == "trl.scripts.sft"
    assert words[words.index("--config") + 1] == "plan.yaml"
    assert "DATASET" in words[words.index("--dataset_name") + 1]


@pytest.mark.parametrize(
    "refused",
    [
        Recipe(numerics=Numerics.BF16, sharding=Sharding.ZERO2),
        Recipe(numerics=Numerics.BF16_MASTER, sharding=Sharding.DDP),
        Recipe(numerics=Numerics.BF16, loss=Loss.STANDARD),
        Recipe(numerics=Numerics.BF16, loss=Loss.FUSED),
        Recipe(numerics=Numerics.BF16, loss=Loss.CHUNKED, checkpointing=Checkpointing.SELECTIVE),
        Recipe(numerics=Numerics.BF16, loss=Loss.CHUNKED, optimizer=Optimizer.MUON),
        Recipe(numerics=Numerics.BF16, loss=Loss.CHUNKED, offload=Offload.OPTIMIZER),
        Recipe(method=Method.QLORA, sharding=Sharding.ZERO3, loss=Loss.CHUNKED),
        recipe(method="qlora", numerics="fp16"),
        recipe(method="qlora", numerics="fp16-autocast", sharding="fsdp-full"),
        Recipe(
            method=Method.QLORA,
            numerics=Numerics.BF16,
            loss=Loss.CHUNKED,
            adapter_dtype="fp32",
        ),
    ],
    ids=name,
)
def test_what_trl_cannot_do_is_refused_not_approximated(refused):
    assert obstacles("trl", refused)
    with pytest.raises(SpecError, match="trl cannot run this plan"):
        emit("trl", job(refused))


def test_adapters_under_zero3_checkpoint_with_reentrance_whatever_is_asked():
    asked = {"method": "lora", "sharding": "zero3", "checkpointing": "full"}
    found = recipe(**asked)
    assert found.reentrant
    kwargs = settings_of(found)["gradient_checkpointing_kwargs"]
    assert kwargs == {"use_reentrant": True}
    refused = realised("trl", Recipe(**asked), several_devices=True, given=frozenset({"reentrant"}))
    assert not refused.reentrant
    assert obstacles("trl", refused)
    for other in ({"sharding": "zero2"}, {"method": "full"}, {"checkpointing": "none"}):
        assert not recipe(**{**asked, **other}).reentrant
    written_off = parse(
        "plan.yaml",
        b"use_peft: true\ndtype: bfloat16\ndeepspeed: {zero_optimization: {stage: 3}}\n"
        b"gradient_checkpointing: true\ngradient_checkpointing_kwargs: {use_reentrant: false}\n",
    )
    assert recipe_of("trl", format_of("trl").read([written_off])).reentrant


def test_one_target_is_named_twice_because_trl_would_make_a_pattern_of_it():
    found = recipe(method="lora", numerics="bf16", lora_targets="q_proj")
    assert settings_of(found)["lora_target_modules"] == ["q_proj", "q_proj"]
    assert read_back("trl", emit("trl", job(found))).values["lora_targets"] == "q_proj"


@pytest.mark.slow
def test_peft_finds_one_target_in_what_trl_makes_of_it(trl_parse):
    from peft import LoraConfig
    from peft.tuners.tuners_utils import check_target_module_exists

    found = recipe(method="lora", numerics="bf16", lora_targets="q_proj")
    *_, model = trl_parse(emit("trl", job(found)))
    name = "model.layers.0.self_attn.q_proj"
    targets = LoraConfig(target_modules=model.lora_target_modules)
    assert check_target_module_exists(targets, name)
    assert not check_target_module_exists(LoraConfig(target_modules="q_proj"), name)


def test_adapters_of_a_quantised_model_are_bf16_by_trls_choice():
    assert recipe(method="qlora", numerics="bf16").adapter_dtype == "bf16"
    assert recipe(method="lora", numerics="bf16").adapter_dtype is None


def test_the_loss_is_trls_own_and_has_no_key():
    found = recipe(numerics="bf16")
    assert found.loss is Loss.CHUNKED
    main, *_ = emit("trl", job(found))
    assert "# Loss:    in chunks" in main.text
    assert not {"loss_type", "use_liger_kernel"} & yaml.safe_load(main.text).keys()


def test_everything_searched_by_default_can_be_emitted():
    for found, attention in itertools.product(MIXES, Attention):
        assert emit("trl", job(found.model_copy(update={"attention": attention})))


def reading_of(text: str, file: str = "sft.yaml"):
    return format_of("trl").read([parse(file, text.encode())])


def test_a_yaml_written_by_hand_is_understood():
    reading = reading_of("""
model_name_or_path: Qwen/Qwen2.5-7B
dtype: bfloat16
attn_implementation: kernels-community/flash-attn2
dataset_name: trl-lib/Capybara
max_length: 4096
packing: true
per_device_train_batch_size: 2
gradient_accumulation_steps: 8
learning_rate: 2e-4
warmup_steps: 0.03
gradient_checkpointing_kwargs: {use_reentrant: false}
use_peft: true
lora_r: 32
lora_target_modules: [all-linear]
load_in_4bit: true
use_bnb_nested_quant: true
accelerate_config: fsdp2
env: {PYTORCH_CUDA_ALLOC_CONF: "expandable_segments:True"}
""")
    assert reading.values == {
        "model": "Qwen/Qwen2.5-7B",
        "attention": "flash",
        "seq_len": 4096,
        "packing": True,
        "micro_batch": 2,
        "accum_steps": 8,
        "learning_rate": 2e-4,
        "warmup_ratio": 0.03,
        "method": "qlora",
        "lora_rank": 32,
        "lora_targets": "all-linear",
        "double_quant": True,
        "sharding": "fsdp-full",
        "fsdp_version": 2,
        "num_ranks": 8,
        "numerics": "bf16-autocast",  # bf16 is on by default, over a base in bf16
        "weight_dtype": "bf16",
        "expandable_segments": True,
    }
    assert not reading.problems
    assert recipe_of("trl", reading).checkpointing is Checkpointing.FULL


def test_a_script_and_a_command_line_are_understood():
    script = """
from trl import SFTConfig, SFTTrainer
args = SFTConfig(per_device_train_batch_size=4, learning_rate=1e-4, bf16=False, max_length=512,
                 gradient_checkpointing=False, model_init_kwargs={"dtype": torch.bfloat16})
SFTTrainer(model="Qwen/Qwen3-0.6B", args=args, peft_config=LoraConfig(r=4)).train()
"""
    values = reading_of(script, "train.py").values
    assert (values["model"], values["seq_len"]) == ("Qwen/Qwen3-0.6B", 512)
    assert (values["method"], values["lora_rank"]) == ("lora", 4)
    assert (values["numerics"], values["checkpointing"]) == ("bf16", "none")
    command = (
        "trl sft --model_name_or_path Qwen/Qwen3-0.6B --use_peft --learning_rate 2e-4 "
        "--gradient-accumulation-steps 8 --accelerate_config zero2 --num_processes 4\n"
    )
    values = reading_of(command, "go.sh").values
    assert values["model"] == "Qwen/Qwen3-0.6B"
    assert (values["method"], values["sharding"]) == ("lora", "zero2")
    assert (values["accum_steps"], values["learning_rate"]) == (8, 2e-4)
    assert values["num_ranks"] == 4


def test_an_accelerate_config_beside_it_is_understood():
    main = b"use_peft: true\ndtype: bfloat16\nbf16: true\ngradient_checkpointing: false\n"
    beside = b"distributed_type: FSDP\nmixed_precision: bf16\nnum_processes: 4\nfsdp_config:\n" + (
        b"  fsdp_version: 2\n  fsdp_reshard_after_forward: false\n"
        b"  fsdp_activation_checkpointing: true\n"
    )
    files = [parse("sft.yaml", main), parse("fsdp2.yaml", beside)]
    found = recipe_of("trl", format_of("trl").read(files))
    assert (found.sharding, found.checkpointing) == ("fsdp-grad-op", "full")
    assert (found.method, found.numerics) == ("lora", "bf16-autocast")
    assert format_of("trl").read(files).values["num_ranks"] == 4


@pytest.mark.parametrize(
    ("text", "numerics", "weights"),
    [
        ("dtype: bfloat16", "bf16-autocast", "bf16"),
        ("bf16: true", "bf16-autocast", None),
        ("bf16: false", "fp32", None),
        ("bf16: false\ndtype: bfloat16", "bf16", None),
        ("fp16: true", "fp16-autocast", None),
        ("fp16: true\nbf16: false\ndtype: float16", "fp16-autocast", "fp16"),
        ("packing: false", "bf16-autocast", None),
    ],
)
def test_bf16_is_on_unless_it_is_switched_off(text, numerics, weights):
    found = recipe_of("trl", reading_of(text))
    assert (found.numerics, found.weight_dtype) == (numerics, weights)


def test_what_is_not_modelled_is_said():
    reading = reading_of(
        "activation_offloading: true\nuse_liger_kernel: true\nload_in_8bit: true\n"
        "gradient_checkpointing_kwargs: {selective: true}\n"
    )
    assert {finding.key for finding in reading.problems} == {
        "activation_offloading",
        "use_liger_kernel",
        "load_in_8bit",
        "gradient_checkpointing_kwargs.selective",
    }
    assert "loss" not in reading.values


@pytest.mark.parametrize("value", ["[1]", "{a: 1}", "null", "true", "'x'", "-1", "2.5"])
def test_odd_values_never_raise(value):
    trainer = format_of("trl")
    keys = {key for found in MIXES for key in settings_of(found)}
    for key in sorted(keys | {"accelerate_config", "env", "num_processes"}):
        file = parse("plan.yaml", f"{key}: {value}\n".encode())
        assert trainer.read([file]).trainer == "trl"


def test_files_are_told_from_the_transformers_own():
    marks = format_of("trl").marks
    for found in (recipe(numerics="bf16"), recipe(method="lora", numerics="bf16")):
        main, *_ = parsed(emit("trl", job(found)))
        assert marks & set(main.data)
        assert read_back("trl", emit("trl", job(found))).of("method").key == "use_peft"
