"""Key snapshots of trainers: well formed, and true of the library that is installed here."""

import importlib
import importlib.metadata
import json

import pytest

from batchplan.errors import BatchplanError, SpecError
from batchplan.sources.profiles_dir import profiles_dir
from batchplan.sources.trainer_keys import TRAINERS, load_trainer_keys
from benchmarks.trainer_keys.__main__ import render
from benchmarks.trainer_keys.environments import TRAINERS as ENVIRONMENTS

TYPES = {"bool", "int", "float", "str", "list", "dict", "any"}
PLAIN = {bool: {"bool"}, int: {"int", "float"}, float: {"float"}, str: {"str"}, list: {"list"}}

# Picked by hand from the libraries' sources and shipped examples: a dump that lost a section or
# mistook a type does not pass.
PICKED = [
    ("hf-trainer", "config", "per_device_train_batch_size", "int"),
    ("hf-trainer", "config", "fsdp_config.transformer_layer_cls_to_wrap", None),
    ("hf-trainer", "config", "accelerator_config.gradient_accumulation_kwargs", "dict"),
    ("hf-trainer", "lora_config", "lora_alpha", "int"),
    ("hf-trainer", "quantization_config", "bnb_4bit_quant_storage", None),
    ("trl", "config", "max_length", "int"),
    ("trl", "config", "lora_target_modules", "list"),
    ("trl", "config", "dataset_name", "str"),
    ("accelerate", "config", "fsdp_config.fsdp_version", "int"),
    ("accelerate", "config", "fsdp_config.fsdp_activation_checkpointing", "bool"),
    ("accelerate", "config", "deepspeed_config.zero_stage", "int"),
    ("deepspeed", "config", "train_micro_batch_size_per_gpu", "int"),
    ("deepspeed", "config", "zero_optimization.offload_optimizer.device", "str"),
    ("deepspeed", "config", "optimizer.type", None),
    ("axolotl", "config", "micro_batch_size", "int"),
    ("axolotl", "config", "fsdp_config.reshard_after_forward", "bool"),
    ("axolotl", "config", "liger_fused_linear_cross_entropy", "bool"),
    ("llamafactory", "config", "cutoff_len", "int"),
    ("llamafactory", "config", "lora_rank", "int"),
    ("ms-swift", "config", "tuner_type", "str"),
    ("ms-swift", "config", "packing", "bool"),
    ("unsloth", "from_pretrained", "load_in_4bit", "bool"),
    ("unsloth", "get_peft_model", "lora_alpha", "int"),
    ("unsloth", "config", "max_length", "int"),
    ("torchtune", "config", "gradient_accumulation_steps", "int"),
    ("torchtune", "lora_finetune_distributed", "model.lora_rank", "int"),
    ("torchtune", "config", "dataset.packed", "bool"),
    ("litgpt", "finetune_lora", "train.micro_batch_size", "int"),
    ("litgpt", "finetune_full", "optimizer.class_path", "str"),
    ("lightning", "config", "trainer.accumulate_grad_batches", "int"),
    ("lightning", "FSDPStrategy", "cpu_offload", None),
    ("torchtitan", "config", "training.local_batch_size", "int"),
    ("torchtitan", "config", "parallelism.data_parallel_shard_degree", "int"),
]


def document(trainer):
    return json.loads((profiles_dir() / "trainers" / f"{trainer}.json").read_text("utf-8"))


def test_every_trainer_has_a_snapshot_and_an_environment():
    files = {path.stem for path in (profiles_dir() / "trainers").glob("*.json")}
    assert files == set(TRAINERS) == set(ENVIRONMENTS)


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_snapshot_is_written_as_the_tool_writes_it(trainer):
    text = (profiles_dir() / "trainers" / f"{trainer}.json").read_text("utf-8")
    assert render(json.loads(text)) == text


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_snapshot_is_of_the_release_that_its_environment_pins(trainer):
    environment = ENVIRONMENTS[trainer]
    assert document(trainer)["package"] == environment.package
    pins = [one for one in (*environment.requirements, *environment.alone) if "==" in one]
    assert f"{environment.package}=={document(trainer)['version']}" in pins


@pytest.mark.parametrize("trainer", TRAINERS)
def test_types_choices_and_defaults_agree(trainer):
    for file in document(trainer)["files"].values():
        for name, row in file["keys"].items():
            types = set(row["type"].split("|"))
            assert types <= TYPES, name
            assert set(row) <= {"type", "choices", "default", "plugin"}, name
            default = row.get("default")
            for value in row.get("choices", ()):
                assert "any" in types or PLAIN[type(value)] & types, name
            if default is not None and types.isdisjoint({"any", "dict"}):
                assert PLAIN[type(default)] & types, name


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_section_is_listed_when_its_keys_are(trainer):
    keys = load_trainer_keys(trainer)
    for role, file in keys.files.items():
        if role == "components" or trainer == "torchtitan":
            continue  # their dots are no sections: module paths, and flags
        for name in file.keys:
            above = name.rpartition(".")[0]
            assert not above or above in file.keys, name
        assert file.open <= set(file.keys), role


@pytest.mark.parametrize("trainer", TRAINERS)
def test_a_key_that_is_gone_is_not_listed_and_its_successor_is(trainer):
    keys = load_trainer_keys(trainer)
    main = next(iter(keys.files))
    for old, row in keys.renamed.items():
        call, _, argument = old.rpartition(".")
        role, key = (call, argument) if call in keys.files else (main, old)
        assert (key in keys.files[role].keys) == (row.removed_in is None), old
        # An argument of a call may have become a key of what the call is given.
        places = ((role, row.to), (main, str(row.to).partition(".")[2]))
        assert row.to is None or any(keys.is_known(*place) for place in places), old
        assert row.to is not None or row.removed_in is not None or row.note, old


@pytest.mark.parametrize("trainer", TRAINERS)
def test_since_is_of_keys_that_are_listed(trainer):
    keys = load_trainer_keys(trainer)
    listed = {name for file in keys.files.values() for name in file.keys}
    assert set(keys.since) <= listed


@pytest.mark.parametrize(("trainer", "role", "name", "kind"), PICKED)
def test_picked_keys_are_listed(trainer, role, name, kind):
    key = load_trainer_keys(trainer).key(role, name)
    assert key is not None
    assert kind is None or kind in key.types


@pytest.mark.parametrize(
    ("trainer", "old", "new"),
    [
        ("hf-trainer", "evaluation_strategy", "eval_strategy"),
        ("hf-trainer", "warmup_ratio", "warmup_steps"),
        ("trl", "max_seq_length", "max_length"),
        ("trl", "torch_dtype", "dtype"),
        ("axolotl", "flash_attention", "attn_implementation"),
        ("ms-swift", "train_type", "tuner_type"),
        ("lightning", "trainer.gpus", "trainer.devices"),
    ],
)
def test_nearest_gives_the_new_name_of_an_old_key(trainer, old, new):
    assert load_trainer_keys(trainer).nearest("config", old) == new


def test_nearest_gives_what_a_typo_meant_in_its_own_section():
    keys = load_trainer_keys("accelerate")
    typo = "fsdp_config.fsdp_reshard_aftr_forward"
    assert not keys.is_known("config", typo)
    assert keys.nearest("config", typo) == "fsdp_config.fsdp_reshard_after_forward"
    assert keys.nearest("config", "zzz") is None


def test_an_open_section_takes_any_key_and_no_other_does():
    keys = load_trainer_keys("deepspeed")
    assert keys.is_known("config", "optimizer.params.anything")
    assert not keys.is_known("config", "zero_optimization.anything")
    assert not keys.is_known("config", "anything")


def test_a_key_that_another_library_took_away_names_it():
    assert load_trainer_keys("trl").renamed["warmup_ratio"].package == "transformers"
    assert load_trainer_keys("trl").renamed["max_seq_length"].package == "trl"


def test_unknown_trainers_and_roles_are_refused():
    with pytest.raises(SpecError, match="known are accelerate"):
        load_trainer_keys("keras")
    with pytest.raises(BatchplanError, match="it has finetune_lora"):
        load_trainer_keys("litgpt").is_known("config", "train")


# -------------------------------------------------------------------- against the library itself


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "module"),
    [
        ("hf-trainer", "transformers"),
        ("trl", "trl"),
        ("accelerate", "accelerate"),
        ("deepspeed", "deepspeed"),
        ("lightning", "lightning"),
        ("torchtune", "torchtune"),
    ],
)
@pytest.mark.filterwarnings("ignore")  # theirs
def test_the_installed_library_has_these_keys(trainer, module, monkeypatch):
    monkeypatch.setenv("DS_ACCELERATOR", "cpu")
    pytest.importorskip(module, exc_type=ImportError)
    stored = document(trainer)
    if importlib.metadata.version(stored["package"]) != stored["version"]:
        pytest.skip(f"the snapshot is of {stored['package']} {stored['version']}")
    subject = importlib.import_module(
        f"benchmarks.trainer_keys.trainers.{trainer.replace('-', '_')}"
    )
    asked = {role: file["keys"] for role, file in subject.snapshot().items()}
    plain = json.loads(json.dumps(asked))
    assert plain == {role: file["keys"] for role, file in stored["files"].items()}
