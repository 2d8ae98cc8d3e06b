"""LitGPT's own model in the worker: sizes it publishes, the fold, and peaks it measured."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from strategies import A100

from batchplan.errors import SpecError, TraceError
from batchplan.memory import estimate, prepare
from batchplan.memory.activations import fold
from batchplan.profile import ActivationProfile
from batchplan.spec import Batch, Cluster, Gpu, Recipe
from batchplan.tracer import activation_profile
from batchplan.tracer.environment import has_package, library_versions
from batchplan.tracer.request import trace_request
from batchplan.tracer.runner import run_worker

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("litgpt")]

LITGPT = "litgpt==0.5.13"
# What importing litgpt needs beyond torch and what transformers brings.
NEEDS = [
    *("lightning", "lightning-utilities", "pytorch-lightning", "torchmetrics", "jsonargparse"),
    *("requests", "urllib3", "charset-normalizer", "certifi"),
]
# tutorials/resource-tables.md of LitGPT (commit 2685705): parameters and trainable parameters of
# LoRA with rank 8 on query and value.
PUBLISHED_SIZES = [
    ("phi-1_5", 1_418_270_720, 1_572_864),
    ("stablelm-base-alpha-3b", 3_637_321_728, 2_097_152),
    ("Llama-2-7b-hf", 6_738_415_616, 4_194_304),
]
# The same table, one A100: torch.cuda.max_memory_allocated in GB of 1e9, as printed.
PUBLISHED_PEAKS = [
    ("phi-1_5", 1044, 1, 4.82),
    ("phi-1_5", 1044, 2, 6.76),
    ("stablelm-base-alpha-3b", 1034, 4, 16.92),
    ("Llama-2-7b-hf", 1304, 1, 21.30),
    ("Llama-2-7b-hf", 1304, 2, 29.07),
]
# QLoRA with bitsandbytes 0.41.1; the second number says whether scales are quantised too.
PUBLISHED_QLORA_PEAKS = [
    ("phi-1_5", 1044, False, 3.78),
    ("Llama-2-7b-hf", 1304, True, 13.84),
]
SMALL = {"model_type": "litgpt", "name": "phi-1_5", "n_layer": 8}


def lora(**changes: Any) -> Recipe:
    fields: dict[str, Any] = {
        "numerics": "bf16",
        "method": "lora",
        "adapter_dtype": "bf16",
        "lora_rank": 8,
        "lora_targets": "query,value",
        "lora_dropout": 0.05,
        "loss": "chunked",
        "optimizer": "adamw",
        "optimizer_impl": "foreach",
    }
    return Recipe.model_validate(fields | changes)


LORA = lora()
RECIPES = {
    "full": Recipe(numerics="bf16"),
    "full, checkpointed": Recipe(numerics="bf16", checkpointing="full"),
    "full, in terms of 128 rows": Recipe(numerics="bf16", loss="chunked"),
    "autocast": Recipe(numerics="bf16-autocast"),
    "lora": LORA,
    "lora, checkpointed": lora(checkpointing="full"),
}
SEQ_LEN, MICRO_BATCH = 512, 4


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An interpreter with our torch and LitGPT in front."""
    folder = tmp_path_factory.mktemp("litgpt")
    command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*command, str(folder / "lib"), LITGPT, *NEEDS], check=True)
    python = folder / "python"
    python.write_text(
        f'#!/bin/sh\nPYTHONPATH={folder}/lib:$PYTHONPATH exec {sys.executable} "$@"\n'
    )
    python.chmod(0o755)
    return python


@pytest.fixture(scope="module")
def older_bitsandbytes(python: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with bitsandbytes 0.41.1 as far as the worker asks: its version."""
    folder = tmp_path_factory.mktemp("bitsandbytes")
    metadata = folder / "lib" / "bitsandbytes-0.41.1.dist-info" / "METADATA"
    metadata.parent.mkdir(parents=True)
    metadata.write_text("Metadata-Version: 2.1\nName: bitsandbytes\nVersion: 0.41.1\n")
    wrapper = folder / "python"
    wrapper.write_text(f'#!/bin/sh\nPYTHONPATH={folder}/lib:$PYTHONPATH exec {python} "$@"\n')
    wrapper.chmod(0o755)
    return wrapper


def profile_of(
    python: Path, config: dict[str, Any], recipe: Recipe, seq_len: int = SEQ_LEN
) -> ActivationProfile:
    return activation_profile(
        config=config, recipe=recipe, seq_len=seq_len, python=python, library="litgpt"
    )


def test_an_environment_without_litgpt_is_told_what_to_install():
    assert not has_package(None, "litgpt")
    with pytest.raises(TraceError, match="has no litgpt"):
        library_versions(None, "litgpt")


@pytest.mark.parametrize(("name", "params", "trainable"), PUBLISHED_SIZES)
def test_parameters_are_as_many_as_litgpt_publishes(python, name, params, trainable):
    config = {"model_type": "litgpt", "name": name}
    profile = profile_of(python, config, LORA)
    assert (profile.num_params, profile.trainable_params) == (params, trainable)
    assert profile_of(python, config, RECIPES["full"]).trainable_params == params
    assert dict(profile.versions)["litgpt"] == "0.5.13"


@pytest.mark.parametrize(("name", "seq_len", "micro_batch", "measured"), PUBLISHED_PEAKS)
def test_published_peaks_are_met(python, name, seq_len, micro_batch, measured):
    """Nothing is fitted to them."""
    assert peak(python, name, LORA, seq_len, micro_batch) == pytest.approx(measured, rel=0.005)


@pytest.mark.parametrize(("name", "seq_len", "double_quant", "measured"), PUBLISHED_QLORA_PEAKS)
def test_published_qlora_peaks_are_met(older_bitsandbytes, name, seq_len, double_quant, measured):
    recipe = lora(method="qlora", double_quant=double_quant, optimizer="paged-adamw-8bit")
    assert peak(older_bitsandbytes, name, recipe, seq_len, 1) == pytest.approx(measured, rel=0.005)


def peak(python: Path, name: str, recipe: Recipe, seq_len: int, micro_batch: int) -> float:
    """Live tensors in GB at their highest."""
    bill = estimate(
        profile=profile_of(python, {"model_type": "litgpt", "name": name}, recipe, seq_len),
        recipe=recipe,
        batch=Batch(micro_batch=micro_batch, num_ranks=1, seq_len=seq_len),
        cluster=Cluster(),
        gpu=Gpu(name="A100", usable_bytes=40 * 10**9, compute_capability="8.0"),
    )
    return bill.allocated_peak_bytes / 1e9


@pytest.mark.parametrize("name", RECIPES)
def test_the_fold_equals_the_whole_model(python, name):
    recipe = RECIPES[name]
    profile = profile_of(python, SMALL, recipe)
    request = trace_request(
        config=SMALL, model_ref="", recipe=recipe, seq_len=SEQ_LEN, library="litgpt"
    )
    case = {"request": request, "micro_batch": MICRO_BATCH, "seq_len": SEQ_LEN}
    done = subprocess.run(
        [str(python), str(Path(__file__).parent / "whole_model.py")],
        input=json.dumps([case]),
        capture_output=True,
        text=True,
        check=True,
        timeout=600,
    )
    ((first, _),) = json.loads(done.stdout)
    setting = prepare(profile=profile, recipe=recipe, cluster=Cluster(), gpu=A100)
    life = next(iter(setting.lives(2)))
    instants = fold(profile=profile, micro_batch=MICRO_BATCH, seq_len=SEQ_LEN, life=life)
    assert max(i.num_bytes for i in instants) == pytest.approx(first, rel=0.01)


@pytest.mark.parametrize(
    ("config", "recipe", "message"),
    [
        (SMALL | {"name": "no-such-model"}, LORA, "does not accept this config"),
        (SMALL, lora(lora_targets="qkv"), "no LoRA target 'qkv'"),
        (SMALL, lora(adapter_dtype=None), "--adapter-dtype bf16"),
        (SMALL, lora(loss="fused"), "no fused loss"),
        (SMALL, lora(checkpointing="selective"), "every block or none"),
        (SMALL | {"name": "Mixtral-8x7B-v0.1"}, LORA, "experts"),
    ],
)
def test_what_litgpt_cannot_do_is_one_clear_line(python, config, recipe, message):
    request = trace_request(
        config=config, model_ref="", recipe=recipe, seq_len=SEQ_LEN, library="litgpt"
    )
    with pytest.raises((SpecError, TraceError), match=message) as caught:
        run_worker(request, python=python)
    assert "\n" not in str(caught.value)


def test_adapters_may_be_named_as_transformers_does(python):
    named = lora(lora_targets="q_proj,v_proj")
    there = profile_of(python, SMALL, named)
    assert there == profile_of(python, SMALL, LORA)
