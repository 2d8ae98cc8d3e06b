"""Every trainer's policy: complete, without gaps, true of the libraries that are installed."""

from __future__ import annotations

import dataclasses
import importlib.metadata
import importlib.util
import itertools
import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

import batchplan
from batchplan.errors import UnknownNameError
from batchplan.spec import Batch, Recipe
from batchplan.states.numerics import resolve_dtypes
from batchplan.trainers import TRAINERS, obstacles, realised, settle, trainer_defaults
from batchplan.trainers.defaults import NEWEST
from batchplan.trainers.policies import POLICIES
from batchplan.trainers.policies.peft_targets import peft_targets
from batchplan.trainers.policies.rows import CHECKPOINT, PEFT_TARGETS, Versions, built_on

OPTIONS = {
    *("micro_batch", "accum_steps", "method", "numerics", "optimizer", "optimizer_impl"),
    *("checkpointing", "reentrant", "attention", "loss", "sharding", "offload"),
    *(
        "sync_each_batch",
        "bucket_view",
        "fsdp_version",
        "zero_buckets",
        "fp32_outputs",
        "adapter_dtype",
    ),
    *("frozen_upcast", "norm_dtype", "lora_rank", "lora_targets", "lora_dropout"),
    *("double_quant", "expandable_segments", "weight_dtype", "grad_dtype", "optimizer_dtype"),
    "master_weights",
}
FACTS = {*Recipe.model_fields, *OPTIONS, "several_devices"}
MARKERS = {CHECKPOINT: "bf16", PEFT_TARGETS: "q_proj,v_proj"}
ROWS = [
    pytest.param(policy.trainer, row, id=f"{policy.trainer}-{row.option}-{at}")
    for policy in POLICIES.values()
    for at, row in enumerate(policy.rows)
]
SITUATIONS = [
    {"sharding": sharding, "method": method}
    for sharding in ("ddp", "zero1", "zero2", "zero3", "fsdp-grad-op", "fsdp-full", "fsdp-hybrid")
    for method in ("full", "lora", "qlora")
]


def edges(rows) -> list[dict[str, str]]:
    """Return releases on both sides of every version that a row names."""
    found: dict[str, set[tuple[int, ...]]] = {}
    for versions in (versions for row in rows for versions in row.versions):
        found.setdefault(versions.package, {(0,)}).update(
            {versions.since, versions.before, (*versions.since[:-1], versions.since[-1] + 1)}
        )
    texts = [
        [".".join(map(str, edge)) for edge in edges if edge < (10**6,)] for edges in found.values()
    ]
    return [dict(zip(found, combined, strict=True)) for combined in itertools.product(*texts)]


def settled(trainer: str, versions=NEWEST, *, several=False, **given) -> dict[str, object]:
    found = settle(trainer, versions, given=given, several_devices=several)
    values = {name: MARKERS.get(value, value) for name, value in found.values.items()}
    return {**values, **given}


def recipe(trainer: str, versions=NEWEST, **more) -> Recipe:
    values = settled(trainer, versions, **more)
    return Recipe(**{name: v for name, v in values.items() if name in Recipe.model_fields})


def test_the_trainers_are_those_of_the_command_line():
    assert set(TRAINERS) == {
        *("hf-trainer", "trl", "accelerate", "deepspeed", "axolotl", "llamafactory"),
        *("ms-swift", "unsloth", "torchtune", "litgpt", "lightning", "torchtitan"),
    }


@pytest.mark.parametrize("trainer", TRAINERS)
def test_every_trainer_has_exactly_one_value_of_every_option_in_every_release(trainer):
    plain = [row for row in POLICIES[trainer].rows if not row.when]
    for option in OPTIONS:
        rows = [row for row in plain if row.option == option]
        for releases in edges(rows) or [{}]:
            numbers = {name: tuple(map(int, text.split("."))) for name, text in releases.items()}
            holding = [row for row in rows if row.holds_for(numbers)]
            assert len(holding) == 1, (option, releases)
    assert set(trainer_defaults(trainer, {})) == OPTIONS


@pytest.mark.parametrize(("trainer", "row"), ROWS)
def test_every_row_is_about_known_options_and_says_where_it_was_read(trainer, row):
    assert row.option in OPTIONS
    assert row.key
    assert row.source.startswith("no library") or " " in row.source
    assert set(row.when) <= FACTS
    assert {versions.package for versions in row.versions} <= set(NEWEST)
    kind = Recipe if row.option in Recipe.model_fields else Batch
    value = MARKERS.get(row.value, row.value)
    assert getattr(kind(**{row.option: value}), row.option) == value
    for name, allowed in row.when.items():
        if name in Recipe.model_fields:
            for value in allowed:
                Recipe(**{name: value})


@pytest.mark.parametrize("trainer", TRAINERS)
@pytest.mark.parametrize("several", [False, True])
@pytest.mark.parametrize("given", SITUATIONS, ids=str)
def test_every_situation_gives_a_recipe_that_can_be_resolved(trainer, several, given):
    found = recipe(trainer, several=several, **given)
    assert resolve_dtypes(found)
    for name, value in given.items():
        assert getattr(found, name) == value


@pytest.mark.parametrize("trainer", TRAINERS)
def test_what_is_given_is_never_decided(trainer):
    given = {"numerics": "fp32", "checkpointing": "none", "loss": "standard", "lora_rank": 4}
    found = settle(trainer, {}, given=given)
    assert not set(given) & set(found.values)
    for name in ("weight_dtype", "grad_dtype", "optimizer_dtype", "master_weights"):
        assert found.values.get(name) is None


def test_a_trainers_own_row_replaces_the_plain_one_and_follows_the_conditional_ones():
    rows = POLICIES["hf-trainer"].rows
    (own,) = (row for row in rows if row.option == "micro_batch")
    own = dataclasses.replace(own, value=3)
    built = built_on(rows, own)
    assert built[-1] is own
    assert [row for row in built if row.option == "micro_batch"] == [own]
    assert [row for row in built if row.when] == [row for row in rows if row.when]


def test_a_version_range_ends_before_its_end():
    some = Versions(package="trl", since=(1, 6), before=(1, 15))
    assert [some.hold(v) for v in ((1, 5, 9), (1, 6), (1, 14, 2), (1, 15), (1, 15, 0))] == [
        *(False, True, True, False, False)
    ]


@pytest.mark.parametrize(
    ("version", "loss", "checkpointing", "numerics"),
    [
        ("0.13.0", "standard", "none", "bf16"),
        ("0.24.0", "standard", "full", "bf16-autocast"),
        ("1.5.0", "standard", "full", "bf16-autocast"),
        ("1.6.0", "chunked", "full", "bf16-autocast"),
        ("1.16.0", "chunked", "full", "bf16-autocast"),
    ],
)
def test_trl_follows_its_release(version, loss, checkpointing, numerics):
    found = recipe("trl", {"trl": version})
    assert (found.loss, found.checkpointing, found.numerics) == (loss, checkpointing, numerics)


@pytest.mark.parametrize(
    ("version", "frozen", "adapter", "norms"),
    [("0.24.0", "bf16", "fp32", "fp32"), ("1.16.0", "fp32", "bf16", None)],
)
def test_trl_changed_what_a_quantised_model_keeps_in_fp32(version, frozen, adapter, norms):
    found = recipe("trl", {"trl": version}, method="qlora")
    dtypes = resolve_dtypes(found)
    assert (dtypes.frozen, dtypes.weights, found.norm_dtype) == (frozen, adapter, norms)


@pytest.mark.parametrize(
    ("trainer", "sharding"),
    [
        *itertools.product(("trl", "ms-swift"), ("fsdp-full", "zero2", "zero3")),
        *(("axolotl", "zero2"), ("axolotl", "zero3")),
    ],
)
def test_sharded_bf16_training_keeps_fp32_copies(trainer, sharding):
    found = recipe(trainer, method="full", sharding=sharding)
    dtypes = resolve_dtypes(found)
    assert found.numerics == "bf16-master"
    assert (dtypes.weights, dtypes.optimizer, dtypes.has_master) == ("bf16", "fp32", True)


def test_axolotls_own_fsdp_up_casts_nothing():
    dtypes = resolve_dtypes(recipe("axolotl", method="full", sharding="fsdp-full"))
    assert (dtypes.weights, dtypes.gradients, dtypes.optimizer) == ("bf16", "bf16", "bf16")
    assert not dtypes.has_master


def test_a_bf16_flag_alone_does_not_up_cast():
    dtypes = resolve_dtypes(recipe("axolotl"))
    assert (dtypes.weights, dtypes.gradients, dtypes.optimizer) == ("bf16", "bf16", "bf16")
    assert dtypes.autocast


def test_what_is_quantised_is_exempt_from_fsdps_up_cast():
    assert recipe("trl", method="qlora", sharding="fsdp-full").numerics == "bf16-autocast"


def test_deepspeed_syncs_after_every_pass_and_fsdp_does_not():
    assert recipe("hf-trainer", sharding="zero2").sync_each_batch is True
    assert recipe("hf-trainer", sharding="fsdp-full").sync_each_batch is False


# What follows asks the installed libraries.


@pytest.fixture(scope="module")
def installed() -> dict[str, str]:
    names = ("transformers", "torch", "accelerate", "peft", "deepspeed")
    return {name: importlib.metadata.version(name) for name in names if _has(name)}


def _has(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


@pytest.mark.slow
def test_transformers_rows_are_those_of_its_arguments(installed):
    arguments = pytest.importorskip("transformers.training_args")
    own = {f.name: f for f in dataclasses.fields(arguments.TrainingArguments)}
    rows = trainer_defaults("hf-trainer", installed)
    assert own["per_device_train_batch_size"].default == rows["micro_batch"].value
    assert own["gradient_accumulation_steps"].default == rows["accum_steps"].value
    optim = "adamw_torch_fused" if rows["optimizer_impl"].value == "fused" else "adamw_torch"
    assert own["optim"].default == optim
    named = "activation_checkpointing" if "activation_checkpointing" in own else None
    checkpoints = own[named or "gradient_checkpointing"].default
    assert bool(checkpoints) == (rows["checkpointing"].value == "full")
    assert own["bf16"].default is False
    assert own["use_liger_kernel"].default is False


@pytest.mark.slow
def test_accelerate_rows_are_those_of_its_plugins(installed):
    dataclasses_ = pytest.importorskip("accelerate.utils.dataclasses")
    rows = trainer_defaults("accelerate", installed)
    accumulation = dataclasses_.GradientAccumulationPlugin(num_steps=2)
    assert accumulation.sync_each_batch is rows["sync_each_batch"].value
    ddp = dataclasses_.DistributedDataParallelKwargs()
    assert ddp.gradient_as_bucket_view is rows["bucket_view"].value


@pytest.mark.slow
def test_peft_rows_are_those_of_its_config(installed):
    peft = pytest.importorskip("peft")
    config = peft.LoraConfig()
    rows = trainer_defaults("hf-trainer", installed)
    assert config.r == rows["lora_rank"].value
    assert config.lora_dropout == rows["lora_dropout"].value
    assert config.target_modules is None
    assert rows["lora_targets"].value == PEFT_TARGETS


@pytest.mark.slow
def test_peft_puts_adapters_where_the_table_says():
    constants = pytest.importorskip("peft.utils.constants")
    theirs = constants.TRANSFORMERS_MODELS_TO_LORA_TARGET_MODULES_MAPPING
    for model_type, targets in theirs.items():
        if not isinstance(targets, str):
            assert peft_targets(model_type) == ",".join(targets), model_type


@pytest.mark.slow
def test_peft_keeps_fp32_adapters_of_a_bf16_base():
    peft, torch = pytest.importorskip("peft"), pytest.importorskip("torch")
    base = torch.nn.Sequential(torch.nn.Linear(8, 8)).to(torch.bfloat16)
    model = peft.get_peft_model(base, peft.LoraConfig(target_modules=["0"]))
    adapters = {p.dtype for name, p in model.named_parameters() if "lora_" in name}
    assert adapters == {torch.float32}
    assert resolve_dtypes(recipe("hf-trainer", method="lora")).weights == "fp32"


@pytest.mark.slow
def test_deepspeed_rows_are_those_of_its_config(installed):
    if not _has("deepspeed"):
        pytest.skip("deepspeed is not installed")
    script = (
        "from deepspeed.runtime.zero.config import DeepSpeedZeroConfig as Z; import json; c = Z();"
        "print('\\n' + json.dumps([int(c.stage), c.reduce_bucket_size, c.offload_optimizer]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, check=True
    )
    stage, bucket, offload = json.loads(done.stdout.splitlines()[-1])
    rows = trainer_defaults("deepspeed", installed)
    assert (stage, rows["sharding"].value) == (0, "ddp")
    assert (bucket, rows["zero_buckets"].value) == (5e8, "default")
    assert (offload, rows["offload"].value) == (None, "none")


class StoppedError(Exception):
    """Raised by the model where accelerate is done with its dtypes."""


def dtypes_under_fsdp(precision: str, *, is_quantised: bool) -> set[str]:
    """Return what accelerate makes of a bf16 model's trained weights before it shards them."""
    torch = pytest.importorskip("torch")
    fsdp_utils = pytest.importorskip("accelerate.utils.fsdp_utils")

    class Params4bit(torch.nn.Parameter):
        pass

    class Model(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.trained = torch.nn.Linear(8, 8, dtype=torch.bfloat16)
            if is_quantised:
                self.frozen = Params4bit(torch.zeros(8, dtype=torch.bfloat16), requires_grad=False)

        def state_dict(self, *args, **kwargs):
            raise StoppedError

    plugin = SimpleNamespace(
        set_auto_wrap_policy=lambda model: None,
        reshard_after_forward=True,
        cpu_offload=None,
        mixed_precision_policy=None,
        ignored_modules=None,
        cpu_ram_efficient_loading=False,
    )
    accelerator = SimpleNamespace(
        state=SimpleNamespace(fsdp_plugin=plugin),
        mixed_precision=precision,
        is_main_process=False,
        device=torch.device("cpu"),
    )
    model = Model()
    with pytest.raises(StoppedError):
        fsdp_utils.fsdp2_prepare_model(accelerator, model)
    return {str(p.dtype).removeprefix("torch.") for p in model.trained.parameters()}


@pytest.mark.slow
def test_accelerate_up_casts_what_fsdp_shards_only_under_mixed_precision():
    assert dtypes_under_fsdp("bf16", is_quantised=False) == {"float32"}
    assert dtypes_under_fsdp("no", is_quantised=False) == {"bfloat16"}
    assert dtypes_under_fsdp("bf16", is_quantised=True) == {"bfloat16"}
    assert recipe("accelerate", sharding="fsdp-full").numerics == "bf16"


# And the commands.


@pytest.mark.parametrize("trainer", TRAINERS)
def test_estimate_takes_every_trainer_and_says_what_it_assumed(trainer):
    answer = batchplan.estimate(params="7e9", gpu="a100-80gb", devices=2, trainer=trainer)
    (caveat,) = [c for c in answer.caveats if c.code == "trainer-defaults"]
    assert f"as {trainer} does by default" in caveat.text
    assert f"numerics {answer.recipe.numerics}" in caveat.text
    again = batchplan.estimate(**answer.inputs)
    assert again.memory == answer.memory
    assert again.recipe == answer.recipe


@pytest.mark.parametrize(
    ("devices", "passes"), [(1, 16), (2, 8), (3, 6), (16, 1), (64, 1)], ids=str
)
@pytest.mark.slow
def test_ms_swift_fills_a_step_up_to_sixteen_sequences(devices, passes):
    answer = batchplan.estimate(
        "qwen2.5-0.5b", gpu="a100-80gb", devices=devices, trainer="ms-swift", method="full"
    )
    assert (answer.batch.micro_batch, answer.batch.accum_steps) == (1, passes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "options", "words"),
    [
        ("trl", {"method": "qlora"}, "TRL casts adapters of a quantised model to bf16"),
        (
            "trl",
            {"sharding": "fsdp-full", "devices": 2},
            "Accelerate keeps FSDP's shards in fp32 under bf16",
        ),
        ("unsloth", {}, "method qlora"),
        ("hf-trainer", {"sharding": "zero2", "devices": 2}, "DeepSpeed keeps fp32 copies"),
    ],
)
def test_estimate_names_the_up_casts_it_applied(trainer, options, words):
    answer = batchplan.estimate(
        "qwen2.5-0.5b", gpu="a100-80gb", seq_len=512, trainer=trainer, **options
    )
    (caveat,) = [c for c in answer.caveats if c.code == "trainer-defaults"]
    assert words in caveat.text


@pytest.mark.parametrize("trainer", TRAINERS)
def test_recommend_plans_what_the_trainer_can_run(trainer):
    answer = batchplan.recommend(
        params="7e9", gpu="h200", devices=8, trainer=trainer, target_tokens="1M"
    )
    best = answer.plans[0].recipe
    assert best == realised(trainer, best, versions=answer.installed, several_devices=True)
    assert not obstacles(trainer, best, versions=answer.installed)


def test_an_unknown_trainer_is_refused_everywhere():
    for call in (lambda: trainer_defaults("tlr", {}), lambda: settle("tlr", {}, given={})):
        with pytest.raises(UnknownNameError, match="trl"):
            call()
