"""What must hold of every trainer's format: a plan survives being written and read again."""

from __future__ import annotations

import re
from functools import cache

import pytest
import yaml
from trainer_jobs import (
    Recipe,
    differences,
    job,
    name,
    parsed,
    read_back,
    recipe_of,
    recipes,
)

from batchplan.configfile import Format
from batchplan.errors import SpecError
from batchplan.spec import Method, ModelInfo, Numerics
from batchplan.trainers import (
    TRAINERS,
    Job,
    emit,
    format_of,
    no_sharding,
    obstacles,
    preferred_numerics,
    realisable_shardings,
    realised,
)
from batchplan.trainers.reading import BESIDE_RECIPE

LLAMA = ModelInfo(
    id="meta-llama/Llama-3.1-8B",
    architecture="LlamaForCausalLM",
    source="catalog",
    hidden_size=4096,
    num_layers=32,
)
"""A model that every trainer has; torchtune and torchtitan know families by name."""
SIZES = {True: {"num_ranks": 16, "nodes": 2}, False: {"num_ranks": 1, "nodes": 1}}
EVERY = [
    # One process for each trainer: listing what it can run takes longer than most tests.
    pytest.param(trainer, several, marks=pytest.mark.xdist_group(trainer))
    for trainer in TRAINERS
    for several in (False, True)
]
EACH = [pytest.param(trainer, marks=pytest.mark.xdist_group(trainer)) for trainer in TRAINERS]


@cache
def realisable(trainer: str, several_devices: bool) -> tuple[Recipe, ...]:
    """Every recipe that the trainer can run."""
    return tuple(recipes(trainer, several_devices=several_devices))


def jobs(trainer: str, several_devices: bool, *, every: int = 1) -> list[tuple[Recipe, Job]]:
    """Plans for every ``every``-th recipe that the trainer can run."""
    sizes = SIZES[several_devices]
    found = realisable(trainer, several_devices)[::every]
    return [(recipe, job(recipe, model=LLAMA, **sizes)) for recipe in found]


@pytest.mark.slow
@pytest.mark.parametrize(("trainer", "several"), EVERY)
def test_a_plan_is_read_back_as_it_was_written(trainer, several):
    # A stride that shares no factor with the axes meets every value of each.
    checked = 0
    for recipe, plan in jobs(trainer, several, every=11):
        reading = read_back(trainer, emit(trainer, plan))
        assert not reading.problems, name(recipe)
        after = recipe_of(trainer, reading, several_devices=several)
        assert not differences(trainer, recipe, after), name(recipe)
        checked += 1
    assert checked


@pytest.mark.parametrize(("trainer", "several"), EVERY)
def test_the_batch_is_read_back_as_it_was_planned(trainer, several):
    for recipe, plan in jobs(trainer, several, every=41):
        values = read_back(trainer, emit(trainer, plan)).values
        assert values.keys() <= {*Recipe.model_fields, *BESIDE_RECIPE}
        batch = plan.plan.batch
        assert values["micro_batch"] == batch.micro_batch, name(recipe)
        step = values.get("accum_steps", 0) or values["global_batch"] // (
            batch.micro_batch * batch.num_ranks
        )
        assert step == batch.accum_steps, name(recipe)
        # A script that says no number starts one process.
        assert values.get("num_ranks", 1) == batch.num_ranks, name(recipe)
        assert values.get("seq_len", batch.seq_len) == batch.seq_len
        assert values["learning_rate"] == 2e-5
        assert isinstance(values["learning_rate"], float)


@pytest.mark.parametrize("trainer", EACH)
def test_numbers_are_numbers_and_nothing_is_written_twice(trainer):
    for several in (False, True):
        for _, plan in jobs(trainer, several, every=41):
            for file in parsed(emit(trainer, plan)):
                assert not file.repeated, file.name
                for entry in file.entries.values():
                    is_text = isinstance(entry.value, str)
                    assert not (is_text and re.fullmatch(r"[-+.\de]*\d[-+.\de]*", entry.value))
                if file.format is Format.YAML:
                    assert yaml.safe_load(file.text) == file.data


@pytest.mark.parametrize("trainer", EACH)
def test_the_main_file_has_the_suffix_and_the_set_says_how_to_start(trainer):
    for several in (False, True):
        for recipe, plan in jobs(trainer, several, every=41):
            files = emit(trainer, plan)
            assert files[0].name == f"plan{format_of(trainer).suffix}"
            assert all(file.name.startswith("plan") for file in files)
            scripts = [file for file in parsed(files) if file.format is Format.SHELL]
            assert scripts, name(recipe)
            assert len({file.name for file in files}) == len(files)


@pytest.mark.parametrize("trainer", EACH)
def test_what_a_trainer_makes_of_a_recipe_is_something_it_can_run(trainer):
    for several in (False, True):
        for recipe in realisable(trainer, several)[::41]:
            again = realised(trainer, recipe, several_devices=several)
            assert again == recipe, "realising a second time changes nothing"
            assert not obstacles(trainer, recipe)


@pytest.mark.parametrize("trainer", EACH)
def test_why_a_plan_is_as_it_is_stands_in_the_main_file(trainer):
    ((_, plan), *_) = jobs(trainer, several_devices=False, every=10**6)
    text = emit(trainer, plan)[0].text
    if format_of(trainer).suffix == ".json":
        text = "\n".join(file.text for file in emit(trainer, plan))
    for words in ("Peak memory", "headroom", "tokens a step", "from the target"):
        assert words in text


@pytest.mark.parametrize("trainer", EACH)
def test_an_impossible_recipe_is_refused_in_words(trainer):
    recipe = Recipe(numerics="fp32", sharding="ddp", loss="standard", optimizer="muon")
    problems = obstacles(trainer, recipe)
    assert problems
    with pytest.raises(SpecError, match=f"{trainer} cannot run this plan"):
        emit(trainer, job(recipe, model=LLAMA))


@pytest.mark.parametrize("trainer", EACH)
def test_one_line_installs_what_a_run_needs(trainer):
    for _, plan in jobs(trainer, several_devices=True, every=97):
        text = "\n".join(file.text for file in emit(trainer, plan))
        assert text.count("Install: pip install ") == 1
        assert format_of(trainer).needs[0].package in text


@pytest.mark.parametrize("trainer", EACH)
def test_adapters_count_the_same_whatever_the_trainers_own_scale_is(trainer):
    for several in (False, True):
        for recipe, plan in jobs(trainer, several, every=41):
            text = "\n".join(file.text for file in emit(trainer, plan))
            found = re.findall(r"lora_alpha[:=] ?(\d+)", text)
            adapts = recipe.method is not Method.FULL
            assert found == [str(2 * recipe.lora_rank)] * adapts, name(recipe)


@pytest.mark.parametrize("trainer", EACH)
def test_a_script_for_several_nodes_says_what_to_set_on_each(trainer):
    if not any(way.is_for(16) for way in format_of(trainer).ways):
        pytest.skip("one device only")
    ((_, plan), *_) = jobs(trainer, several_devices=True, every=10**6)
    script = emit(trainer, plan)[-1].text
    (said,) = re.findall(r"# Run this on each of the 2 nodes, with (.*) set\.", script)
    # A variable with :? is one without which the shell stops.
    assert set(said.split(", ")) == set(re.findall(r"\$\{(\w+):\?", script))
    assert "HEAD_NODE" in said


@pytest.mark.parametrize("trainer", EACH)
@pytest.mark.parametrize("count", [1, 8])
@pytest.mark.parametrize("method", list(Method))
def test_where_nobody_names_numerics_those_that_run_are_planned(trainer, count, method):
    numerics = preferred_numerics(
        trainer, method=method, sharding=None, has_bf16=True, counts=(count,)
    )
    assert "fp16" not in numerics.value
    if not realisable_shardings(trainer, numerics, count, method=method):
        ways = [way for way in format_of(trainer).ways if method in way.methods]
        assert not any(way.is_for(count) for way in ways), "others would have run"
        assert no_sharding(trainer, Recipe(method=method, numerics=numerics), count)


def test_numerics_that_are_refused_with_a_method_are_not_planned():
    asked = {"sharding": None, "has_bf16": False, "counts": (1,)}
    assert preferred_numerics("trl", method=Method.QLORA, **asked) is Numerics.FP32


@pytest.mark.parametrize(
    ("trainer", "given", "count", "says"),
    [
        ("litgpt", {"method": "qlora", "numerics": "bf16"}, 8, "it trains qlora on one device"),
        ("deepspeed", {"method": "qlora", "numerics": "bf16"}, 8, "cannot train --method qlora"),
        ("torchtitan", {"method": "lora", "numerics": "bf16"}, 8, "its flags cannot add adapters"),
        ("torchtune", {"method": "qlora", "numerics": "fp16"}, 1, "it takes --numerics bf16"),
    ],
)
def test_why_nothing_can_be_searched_is_said_once(trainer, given, count, says):
    assert says in no_sharding(trainer, Recipe(**given), count)


@pytest.mark.parametrize(
    ("trainer", "sharding", "numerics", "count", "says"),
    [
        # Their recipes for several devices shard whatever the plan says.
        ("torchtune", "ddp", "bf16", 2, "on several devices; it takes --sharding fsdp-full"),
        ("litgpt", "ddp", "bf16", 2, "on several devices; it takes --sharding fsdp-full"),
        # "Using fsdp only works in distributed training": transformers Trainer.
        ("hf-trainer", "fsdp-full", "bf16-master", 1, "on one device; it takes --sharding zero1"),
        ("torchtune", "fsdp-full", "bf16", 1, "on one device; it takes --sharding ddp"),
    ],
)
def test_a_sharding_for_other_counts_of_devices_is_refused(
    trainer, sharding, numerics, count, says
):
    asked = Recipe(sharding=sharding, numerics=numerics)
    recipe = realised(trainer, asked, several_devices=count > 1)
    assert not obstacles(trainer, recipe), "with as many devices as it is for"
    with pytest.raises(SpecError, match=says):
        emit(trainer, job(recipe, model=LLAMA, num_ranks=count, nodes=1))


@pytest.mark.parametrize("sharding", ["zero2", "zero3"])
def test_every_stage_of_zero_runs_on_one_device(sharding):
    recipe = realised("hf-trainer", Recipe(sharding=sharding), several_devices=False)
    script = emit("hf-trainer", job(recipe, num_ranks=1, nodes=1))[-1].text
    assert "torchrun --nproc_per_node=1 " in script


@pytest.mark.parametrize("architecture", ["BertForMaskedLM", "T5ForConditionalGeneration"])
@pytest.mark.parametrize("trainer", EACH)
def test_only_trainers_whose_loop_is_your_own_take_other_than_decoders(trainer, architecture):
    model = ModelInfo(id="some/model", architecture=architecture, source="catalog")
    ((recipe, _), *_) = jobs(trainer, several_devices=False, every=10**6)
    plan = job(recipe, model=model, num_ranks=1, nodes=1)
    if trainer in ("hf-trainer", "accelerate", "deepspeed", "lightning"):
        assert emit(trainer, plan)
    else:
        with pytest.raises(SpecError, match="some/model"):
            emit(trainer, plan)


@pytest.mark.parametrize(("reentrant", "method"), [(True, "lora"), (False, "lora"), (True, "full")])
def test_reentrant_checkpoints_of_adapters_need_inputs_with_gradients(reentrant, method):
    asked = Recipe(method=method, numerics="bf16", checkpointing="full", reentrant=reentrant)
    recipe = realised("hf-trainer", asked, several_devices=True)
    (model,) = [one for one in emit("hf-trainer", job(recipe)) if one.name.endswith(".model.yaml")]
    needs = reentrant and method == "lora"
    assert ("model.enable_input_require_grads()" in model.text) is needs


@pytest.mark.parametrize("trainer", EACH)
def test_comments_are_no_wider_than_an_editor(trainer):
    for several in (False, True):
        for _, plan in jobs(trainer, several, every=61):
            lines = [line for file in emit(trainer, plan) for line in file.text.splitlines()]
            assert all(len(line) <= 100 for line in lines if line.startswith("#"))
