"""What FSDP2, DeepSpeed and DDP really hold on every rank, against the state arithmetic: exactly.

Real processes train a small Llama of odd sizes on the CPU and add up the storages they hold; see
``tests/engines/held.py``. Moments are compared without torch's 4-byte ``step`` counters, which the
arithmetic leaves out by design.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
from ports import free_port
from strategies import toy_profile

from batchplan.memory.activations import Place
from batchplan.memory.buffers import compute_buffers
from batchplan.memory.parameters import Parameters
from batchplan.memory.shards import flat_groups, reduced_elements
from batchplan.memory.states import States, compute_states
from batchplan.profile import ActivationProfile, ParameterGroup
from batchplan.spec import Cluster, Recipe
from batchplan.states.numerics import resolve_dtypes
from batchplan.states.sharding import RULES

HELD = Path(__file__).parent / "engines" / "held.py"
HIDDEN = 60
FROZEN = ("self_attn", "embed")
TERMS = ("weights", "frozen_weights", "master_weights", "optimizer_states")

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(find_spec("deepspeed") is None, reason="deepspeed is not installed"),
    # One process group of each size answers every question.
    pytest.mark.xdist_group("real-engines"),
]

FSDP = {"engine": "fsdp", "nodes": 1}
AUTO = {"stage3_param_persistence_threshold": 10 * HIDDEN, "reduce_bucket_size": HIDDEN * HIDDEN}
# Name, what the engine is asked for, and the recipe that means the same.
CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "ddp-bf16": (
        {"engine": "ddp", "dtype": "bfloat16", "optimizer": "adamw", "bucket_view": False},
        {"sharding": "ddp", "numerics": "bf16"},
    ),
    "ddp-fp32-adafactor": (
        {"engine": "ddp", "dtype": "float32", "optimizer": "adafactor", "bucket_view": False},
        {"sharding": "ddp", "numerics": "fp32", "optimizer": "adafactor"},
    ),
    "ddp-bf16-adafactor": (
        {"engine": "ddp", "dtype": "bfloat16", "optimizer": "adafactor", "bucket_view": False},
        {"sharding": "ddp", "numerics": "bf16", "optimizer": "adafactor"},
    ),
    "ddp-sgd-momentum": (
        {"engine": "ddp", "dtype": "bfloat16", "optimizer": "sgd-momentum", "bucket_view": False},
        {"sharding": "ddp", "numerics": "bf16", "optimizer": "sgd-momentum"},
    ),
    "fsdp-masters": (
        FSDP | {"dtype": "float32", "optimizer": "adamw"},
        {"sharding": "fsdp-full", "numerics": "bf16-master"},
    ),
    "fsdp-bf16": (
        FSDP | {"dtype": "bfloat16", "optimizer": "foreach"},
        {"sharding": "fsdp-full", "numerics": "bf16"},
    ),
    "fsdp-sgd": (
        FSDP | {"dtype": "bfloat16", "optimizer": "sgd"},
        {"sharding": "fsdp-grad-op", "numerics": "bf16", "optimizer": "sgd"},
    ),
    "fsdp-hybrid": (
        {"engine": "fsdp", "nodes": 2, "dtype": "float32", "optimizer": "adamw"},
        {"sharding": "fsdp-hybrid", "numerics": "bf16-master"},
    ),
    **{
        f"zero{stage}-bf16": (
            {"engine": "deepspeed", "stage": stage, "dtype": "bfloat16", "optimizer": "adamw"}
            | ({"zero": AUTO} if stage == 3 else {}),
            {"sharding": f"zero{stage}", "numerics": "bf16-master", "optimizer_impl": "for-loop"},
        )
        for stage in (1, 2, 3)
    },
    **{
        f"zero{stage}-fp32": (
            {"engine": "deepspeed", "stage": stage, "dtype": "float32", "optimizer": "sgd-momentum"}
            | ({"zero": AUTO} if stage == 3 else {}),
            {"sharding": f"zero{stage}", "numerics": "fp32", "optimizer": "sgd-momentum"},
        )
        for stage in (1, 2, 3)
    },
    # No size is configured: DeepSpeed's own defaults, with every parameter below the threshold.
    "zero3-defaults": (
        {"engine": "deepspeed", "stage": 3, "dtype": "bfloat16", "optimizer": "adafactor"},
        {
            "sharding": "zero3",
            "numerics": "bf16-master",
            "optimizer": "adafactor",
            "zero_buckets": "default",
        },
    ),
    **{
        f"zero{stage}-part-frozen": (
            {
                "engine": "deepspeed",
                "stage": stage,
                "dtype": "bfloat16",
                "optimizer": "adamw",
                "frozen": FROZEN,
            }
            | ({"zero": AUTO} if stage == 3 else {}),
            {"sharding": f"zero{stage}", "numerics": "bf16-master", "optimizer_impl": "for-loop"},
        )
        for stage in (2, 3)
    },
    "zero2-foreach": (
        {"engine": "deepspeed", "stage": 2, "dtype": "bfloat16", "optimizer": "foreach"},
        {"sharding": "zero2", "numerics": "bf16-master", "optimizer_impl": "foreach"},
    ),
    "zero1-accumulating": (
        {
            "engine": "deepspeed",
            "stage": 1,
            "dtype": "bfloat16",
            "optimizer": "adamw",
            "accum_steps": 2,
        },
        {"sharding": "zero1", "numerics": "bf16-master"},
    ),
}


@pytest.fixture(scope="module", params=[2, 4], ids=["2-ranks", "4-ranks"])
def held(request, tmp_path_factory) -> tuple[dict[str, list[dict[str, Any]]], list[Any]]:
    """What every rank held in every case, and the model's parameters by name and shape."""
    folder = tmp_path_factory.mktemp("held")
    asked = {
        "ranks": request.param,
        "port": free_port(),
        "folder": str(folder),
        "requests": [question for question, _ in CASES.values()],
    }
    done = subprocess.run(
        [sys.executable, str(HELD)],
        input=json.dumps(asked),
        text=True,
        capture_output=True,
        check=False,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr[-4000:]
    ranks = [json.loads((folder / f"{r}.json").read_text()) for r in range(request.param)]
    by_case = {name: [rank[at] for rank in ranks] for at, name in enumerate(CASES)}
    return by_case, json.loads((folder / "parameters.json").read_text())


def profile_of(parameters: list[Any], frozen: tuple[str, ...]) -> ActivationProfile:
    """A profile with the parameters of the real model, one group each, as registered."""
    toy = toy_profile(num_layers=3, hidden_size=HIDDEN)

    def groups(*names: str) -> tuple[ParameterGroup, ...]:
        return tuple(
            ParameterGroup(
                shape=tuple(shape),
                is_trained=not any(word in name for word in frozen),
                is_norm="norm" in name,
            )
            for name, shape in parameters
            if any(word in name for word in names)
        )

    embedding, layer, head = toy.stages
    return replace(
        toy,
        stages=(
            replace(embedding, parameters=groups("embed_tokens")),
            replace(layer, parameters=groups("layers.0.")),
            replace(head, parameters=groups("model.norm", "lm_head")),
        ),
    )


def ours(name: str, parameters: list[Any], num_ranks: int) -> States:
    question, fields = CASES[name]
    recipe = Recipe.model_validate(fields)
    cluster = Cluster(num_ranks=num_ranks, num_nodes=question.get("nodes", 1))
    rule = RULES[recipe.sharding]
    return compute_states(
        parameters=Parameters.of(profile_of(parameters, question.get("frozen", ())), recipe),
        recipe=recipe,
        dtypes=resolve_dtypes(recipe),
        rule=rule,
        num_shards=rule.num_shards(cluster),
    )


def fullest(ranks: list[dict[str, Any]], term: str) -> int:
    return max(rank.get(term, 0) for rank in ranks)


@pytest.mark.parametrize("name", CASES)
def test_the_fullest_rank_holds_these_bytes(held, name):
    by_case, parameters = held
    ranks = by_case[name]
    found = {term: fullest(ranks, term) for term in TERMS}
    states = ours(name, parameters, len(ranks))
    expected = {term: getattr(states, term) for term in TERMS}
    if CASES[name][0]["engine"] == "fsdp" and states.master_weights:
        # FSDP's parameters are the fp32 masters: our bill names them so.
        expected |= {"weights": states.master_weights, "master_weights": 0}
    assert found == expected


@pytest.mark.parametrize("name", [name for name in CASES if "zero1" not in name])
def test_the_fullest_rank_holds_these_gradients_after_a_backward(held, name):
    by_case, parameters = held
    found = max(max(rank["gradients"]) for rank in by_case[name])
    assert found == ours(name, parameters, len(by_case[name])).gradients


def test_zero_1_keeps_whole_gradients_until_they_are_reduced(held):
    """After the first of two micro-batches all are whole; after the second the partition is."""
    by_case, parameters = held
    ranks = by_case["zero1-accumulating"]
    assert {rank["gradients"][0] for rank in ranks} == {
        ours("zero1-accumulating", parameters, len(ranks)).gradients
    }
    recipe = Recipe(sharding="zero1")
    groups = flat_groups(
        Parameters.of(profile_of(parameters, ()), recipe), len(ranks), use_muon=False
    )
    assert max(rank["gradients"][1] for rank in ranks) == 2 * reduced_elements(groups)


SCALARS = 128
"""Bytes of one-element tensors of 8 bytes: the norm, its parts, the clip factor. 64 are seen, and 8
more where gloo's thread still holds one; the smallest parameter has 240."""


@pytest.mark.parametrize("name", [name for name in CASES if name.startswith(("zero2", "zero3"))])
def test_a_deepspeed_step_makes_what_we_say_and_a_few_scalars(held, name):
    """Everything the step allocates at its highest: flat copy, fp32 conversion, optimizer."""
    by_case, parameters = held
    ours_bytes = ours(name, parameters, len(by_case[name])).step_temporary
    found = fullest(by_case[name], "step") + fullest(by_case[name], "bucket")
    assert 0 <= found - ours_bytes <= SCALARS


def test_a_zero_1_step_has_only_the_reduced_gradients_besides(held):
    """Ours is on top of whole gradients, of which the step has a partition left."""
    by_case, parameters = held
    ranks = by_case["zero1-bf16"]
    states = ours("zero1-bf16", parameters, len(ranks))
    reduced = max(rank["gradients"][-1] for rank in ranks)
    in_step = reduced + fullest(ranks, "step")
    # The reduction itself comes before: all gradients, the partition, and one bucket of h*h.
    reducing = states.gradients + reduced + 2 * HIDDEN**2
    found = max(in_step, reducing)
    assert 0 <= found - (states.gradients + states.step_temporary) <= SCALARS


@pytest.mark.parametrize("name", ["zero3-bf16", "zero3-defaults"])
def test_zero_3_keeps_one_reduction_bucket(held, name):
    """Ours is that bucket and the copy being reduced, which is gone again after the backward."""
    by_case, parameters = held
    ranks = by_case[name]
    recipe = Recipe.model_validate(CASES[name][1])
    profile = profile_of(parameters, ())
    buffers = compute_buffers(
        profile=profile,
        recipe=recipe,
        dtypes=resolve_dtypes(recipe),
        rule=RULES[recipe.sharding],
        num_ranks=len(ranks),
        states=ours(name, parameters, len(ranks)),
    )
    bucket = fullest(ranks, "bucket")
    elements = bucket // 2
    assert elements == (HIDDEN**2 if name == "zero3-bf16" else 500_000_000)
    # Every parameter divides by the ranks, so none is copied by itself.
    copied = min(elements, profile.trainable_params)
    assert buffers.communication[Place.LAYER_BACKWARD] == bucket + 2 * copied
