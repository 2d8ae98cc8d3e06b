"""What the source lessons teach, with their own numbers, through the public functions."""

from __future__ import annotations

from time import process_time

import pytest
from strategies import toy_profile, toy_profiles

import batchplan
from batchplan.errors import SpecError

GB = 10**9
# fp16 weights, fp32 gradients and moments, no master copies: 2 + 4 + 8 = 14 bytes a parameter.
LESSON_DTYPES = {
    "weight_dtype": "fp16",
    "grad_dtype": "fp32",
    "optimizer_dtype": "fp32",
    "master_weights": False,
}


@pytest.fixture
def toy_model(monkeypatch):
    """Every model behaves as a small hand-made one, so nothing is traced."""

    def profile(*, recipe, seq_len, **_):
        return toy_profiles(recipe, seq_len)

    monkeypatch.setattr("batchplan.api.profiles.activation_profile", profile)
    return "qwen2.5-0.5b"


def terms(answer) -> dict[str, float]:
    return {term.name: term.num_bytes / GB for term in answer.memory.terms if term.num_bytes}


@pytest.mark.parametrize(
    ("devices", "micro_batch", "accum_steps", "seq_len", "sequences", "tokens"),
    [
        (1, 8, 4, 2048, 32, 65_536),
        (8, 2, 128, 2048, 2048, 4_194_304),
        (50, 16, 4, 4096, 3200, 13_107_200),
    ],
)
def test_l1_the_effective_batch_is_the_product_of_its_parts(
    devices, micro_batch, accum_steps, seq_len, sequences, tokens
):
    answer = batchplan.estimate(
        params="1B",
        gpu="80GB",
        devices=devices,
        micro_batch=micro_batch,
        accum_steps=accum_steps,
        seq_len=seq_len,
    )
    batch = answer.to_dict()["batch"]
    assert batch["global_batch_size"] == sequences
    assert batch["global_batch_tokens"] == tokens


def test_l2_four_million_tokens_on_eight_gpus_is_244_accumulation_steps():
    answer = batchplan.recommend(
        params="7e9",
        gpu="80GB",
        devices=8,
        target_tokens="4M",
        seq_len=2048,
        micro_batch=1,
        sharding="zero2",
    )
    best = answer.plans[0]
    assert best.batch.accum_steps == 244
    assert best.batch.global_batch_size == 1952  # of 4e6 / 2048 = 1953.1
    assert best.target_deviation == pytest.approx((1952 * 2048 - 4e6) / 4e6)


def test_l3_seven_billion_parameters_need_100_gb():
    answer = batchplan.estimate(
        params="7e9", gpu="80GB", sharding="ddp", activations="2GB", **LESSON_DTYPES
    )
    assert terms(answer) == {
        "weights": 14,
        "optimizer states": 56,
        "gradients": 28,
        "activations saved": 2,
    }
    assert answer.memory.peak_bytes == 100 * GB
    assert not answer.fits
    assert answer.headroom_bytes == -20 * GB


def test_l3_zero_1_on_eight_gpus_brings_it_to_51_gb():
    answer = batchplan.estimate(
        params="7e9", gpu="80GB", sharding="zero1", devices=8, activations="2GB", **LESSON_DTYPES
    )
    assert terms(answer) == {
        "weights": 14,
        "optimizer states": 7,
        "gradients": 28,
        "activations saved": 2,
    }
    assert answer.fits


@pytest.mark.parametrize(
    ("options", "gigabytes"),
    [
        ({"sharding": "zero2"}, 65),
        ({"zero": 3}, 45.5),
        ({"sharding": "zero3", "offload": "optimizer"}, 19.5),
    ],
)
def test_l4_thirteen_billion_parameters_on_four_40_gb_gpus(options, gigabytes):
    answer = batchplan.estimate(params="13e9", gpu="40GB", devices=4, **options, **LESSON_DTYPES)
    assert answer.memory.peak_bytes == gigabytes * GB
    assert answer.fits is (gigabytes <= 40)


def test_l4_the_rescue_is_the_ladder_from_zero_2_over_zero_3_to_offload():
    answer = batchplan.recommend(
        params="13e9", gpu="40GB", devices=4, sharding="zero2", **LESSON_DTYPES
    )
    assert not answer.fits
    assert answer.found.closest.memory.peak_bytes == 65 * GB
    rungs = [
        (rung.change, rung.plan.memory.peak_bytes / GB, rung.plan.fits)
        for rung in answer.found.ladder
    ]
    assert rungs == [
        ({"sharding": "zero3"}, 45.5, False),
        ({"offload": "optimizer"}, 19.5, True),
    ]


def test_l3_the_rescue_of_seven_billion_parameters_is_zero_1():
    answer = batchplan.recommend(
        params="7e9", gpu="80GB", devices=8, sharding="ddp", activations="2GB", **LESSON_DTYPES
    )
    assert not answer.fits
    assert answer.found.closest.memory.peak_bytes == 100 * GB
    (rung,) = answer.found.ladder
    for offer in (rung, answer.found.rescues[0]):
        assert offer.change == {"sharding": "zero1"}
        assert offer.plan.memory.peak_bytes == 51 * GB
        assert offer.saved_bytes == 49 * GB
        assert offer.plan.fits


@pytest.fixture
def toy_13b(monkeypatch):
    """Every model has the shape of Llama 2 13B: 40 layers, 5120 wide, 12.9 billion parameters."""

    def profile(*, recipe, seq_len, **_):
        return toy_profile(
            num_layers=40,
            hidden_size=5120,
            vocabulary=32_000,
            method=recipe.method,
            checkpointing=recipe.checkpointing,
        )

    monkeypatch.setattr("batchplan.api.profiles.activation_profile", profile)
    return "llama-2-13b"


@pytest.mark.parametrize("micro_batch", [4, 1])
def test_l5_full_training_of_13b_does_not_fit_one_a100_40(toy_13b, micro_batch):
    begin = process_time()
    answer = batchplan.recommend(toy_13b, gpu="a100-40gb", micro_batch=micro_batch, seq_len=2048)
    assert process_time() - begin < 5
    assert not answer.fits
    check_rescues_of_13b(answer)


@pytest.mark.slow
def test_l5_holds_for_the_model_s_own_code(tmp_path, monkeypatch):
    monkeypatch.setenv("BATCHPLAN_CACHE", str(tmp_path))
    for micro_batch in (4, 1):
        answer = batchplan.recommend(
            "llama-2-13b", gpu="a100-40gb", micro_batch=micro_batch, seq_len=2048
        )
        assert not answer.fits
        check_rescues_of_13b(answer)


def check_rescues_of_13b(answer):
    found = answer.found
    assert all(rescue.plan.fits for rescue in found.rescues)
    assert len(found.rescues[0].change.keys() - {"accum-steps"}) <= 2
    # 13 billion 16-bit gradients and weights alone are 52 GB: without adapters, it takes the host
    # or more than one card of 40 GB.
    for rescue in found.rescues:
        assert {"method", "offload", "devices", "gpu"} & set(rescue.change)
    methods = {rescue.change.get("method") for rescue in found.rescues}
    assert {"lora", "qlora"} & methods
    assert found.ladder[-1].plan.fits


def test_l6_accumulation_has_the_same_batch_and_gradients_but_less_memory(toy_model):
    shared = {"gpu": "a100-80gb", "seq_len": 2048}
    split = batchplan.estimate(toy_model, micro_batch=1, accum_steps=8, **shared)
    whole = batchplan.estimate(toy_model, micro_batch=8, accum_steps=1, **shared)
    assert split.batch.global_batch_tokens == whole.batch.global_batch_tokens
    assert split.memory.peak_bytes < whole.memory.peak_bytes
    planned = batchplan.recommend(toy_model, micro_batch=1, accum_steps=8, **shared).plans[0]
    at_once = batchplan.recommend(toy_model, micro_batch=8, accum_steps=1, **shared).plans[0]
    # The plan adds what the quick price says is more; the other run is played in full.
    assert planned.peak_bytes_without_accumulation == pytest.approx(
        at_once.memory.peak_bytes, rel=0.03
    )
    assert planned.memory.peak_bytes < at_once.memory.peak_bytes


@pytest.mark.parametrize(
    ("sharding", "amortises"), [("ddp", True), ("zero1", True), ("zero3", False)]
)
def test_l7_accumulation_amortises_the_communication_of_some_strategies_only(
    toy_model, sharding, amortises
):
    def exchanged(accum_steps: int) -> float:
        answer = batchplan.recommend(
            toy_model,
            gpu="rtx-4090",
            devices=8,
            sharding=sharding,
            checkpointing="none",
            micro_batch=1,
            accum_steps=accum_steps,
            seq_len=128,
        )
        parts = answer.plans[0].step_time.parts
        return sum(part.seconds for part in parts if "communication" in part.name)

    once, often = exchanged(1), exchanged(16)
    assert once > 0
    if amortises:
        assert often == pytest.approx(once, rel=0.01)
    else:
        assert often > 8 * once


def test_l8_accumulation_costs_time_and_an_epoch_says_how_much(toy_model):
    shared = {"gpu": "a100-80gb", "seq_len": 2048, "micro_batch": 8, "epoch_tokens": "100M"}
    once = batchplan.recommend(toy_model, accum_steps=1, **shared)
    often = batchplan.recommend(toy_model, accum_steps=16, **shared)
    assert often.plans[0].step_time.mid > 10 * once.plans[0].step_time.mid
    epoch = often.to_dict()["epoch"]
    assert epoch["steps"] == -(-100_000_000 // (8 * 16 * 2048))
    assert epoch["seconds"] == epoch["steps"] * often.plans[0].step_time.mid


def test_l9_the_linear_rule_halves_the_rate_when_the_batch_halves():
    answer = batchplan.learning_rate(lr=2e-5, from_batch=32, to_batch=16, optimizer="sgd")
    assert answer.learning_rate.value == pytest.approx(1e-5)
    assert answer.learning_rate.rule == "linear"


def test_l9_adam_follows_the_square_root_and_says_where_it_holds():
    answer = batchplan.learning_rate(lr="2e-4", from_batch=32, to_batch=128, optimizer="adamw")
    assert answer.learning_rate.value == pytest.approx(4e-4)
    assert answer.learning_rate.rule == "sqrt"
    low, high = answer.learning_rate.valid_range
    assert low < 32 < high
    far = batchplan.learning_rate(lr="2e-4", from_batch=32, to_batch=32_000)
    assert len(far.learning_rate.caveats) >= 1


@pytest.mark.parametrize(
    ("run", "tokens", "end", "rate"),
    [
        ("GPT-3 175B", 3_200_000, None, 6e-5),
        ("Llama 7B", 4_000_000, None, 3e-4),
        ("Llama 2 70B", 4_000_000, None, 1.5e-4),
        ("Chinchilla 70B", 1_500_000, 3_000_000, 1e-4),
        ("Pythia 12B", 2_097_152, None, 1.2e-4),
    ],
)
def test_l13_published_runs_are_shown_as_the_lesson_lists_them(run, tokens, end, rate):
    from batchplan.api import catalog

    (found,) = catalog.runs(run)["runs"]
    assert found["global_batch_tokens"] == tokens
    assert found["global_batch_tokens_end"] == end
    assert found["peak_lr"] == rate
    assert found["source"]


def test_l13_a_plan_shows_the_runs_nearest_to_it():
    answer = batchplan.recommend(
        params="70B", gpu="80GB", devices=64, target_tokens="4M", seq_len=4096
    )
    names = [run["run"] for run in answer.to_dict()["reference_runs"]]
    assert "Llama 2 70B" in names


def test_l15_a_plan_outside_fine_tuning_practice_says_so(toy_model):
    def codes(micro_batch: int) -> set[str]:
        answer = batchplan.recommend(
            toy_model, gpu="a100-80gb", micro_batch=micro_batch, accum_steps=1, seq_len=512
        )
        return {caveat.code for caveat in answer.plans[0].caveats}

    assert "micro-batch-outside-practice" in codes(16)
    assert "micro-batch-outside-practice" not in codes(8)


def test_lora_on_bare_parameters_is_refused_because_shapes_decide():
    with pytest.raises(SpecError, match="needs a MODEL"):
        batchplan.estimate(params="7e9", gpu="80GB", method="lora")
