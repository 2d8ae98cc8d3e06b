"""Learning-rate rules: worked numbers of the papers, limits, and honest advice."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchplan.errors import SpecError
from batchplan.learning import (
    PublishedRun,
    advise,
    beta2_for_half_life,
    examples_multiplier,
    half_life_tokens,
    reference_runs,
    saturating_rate,
    scale_adam,
    scale_linear,
    scale_sqrt,
    shift_beta2,
    steps_multiplier,
    surge_rate,
    width_rate,
)
from batchplan.spec import Method, Optimizer

kappas = st.floats(1e-3, 1e3)


def published(name: str, num_params: int, tokens: int, lr: float | None) -> PublishedRun:
    return PublishedRun(
        run=name,
        num_params=num_params,
        global_batch_tokens=tokens,
        global_batch_tokens_end=None,
        seq_len=2048,
        peak_lr=lr,
        optimizer="adamw",
        source="test",
        note="",
    )


RUNS = (
    published("GPT-3 175B", 175_000_000_000, 3_200_000, 6e-5),
    published("Llama 7B", 7_000_000_000, 4_000_000, 3e-4),
    published("Pythia 12B", 12_000_000_000, 2_000_000, 1.2e-4),
    published("Chinchilla 70B", 70_000_000_000, 1_500_000, 1e-4),
)


def ask(**changes):
    question = {
        "method": Method.FULL,
        "optimizer": Optimizer.ADAMW,
        "num_params": 7_000_000_000,
        "hidden_size": None,
        "global_batch_size": 16,
        "seq_len": 2048,
    }
    return advise(**{**question, **changes})


def codes(advice):
    return {caveat.code for caveat in advice.caveats}


def test_eight_times_the_batch_is_2_83_times_the_rate_by_the_square_root():
    assert scale_sqrt(learning_rate=2e-4, kappa=8) == pytest.approx(5.6569e-4, rel=1e-4)


def test_eight_times_the_batch_is_eight_times_the_rate_by_the_linear_rule():
    assert scale_linear(learning_rate=2e-4, kappa=8) == pytest.approx(1.6e-3)


def test_half_the_batch_is_half_the_rate_by_the_linear_rule():
    assert scale_linear(learning_rate=2e-5, kappa=16 / 32) == pytest.approx(1e-5)
    advice = ask(optimizer=Optimizer.SGD, global_batch_size=16, base_lr=2e-5, base_batch=32)
    assert (advice.value, advice.rule) == (pytest.approx(1e-5), "linear")


def test_the_whole_square_root_rule_moves_betas_and_eps():
    moved = scale_adam(learning_rate=3e-4, beta1=0.9, beta2=0.95, eps=1e-8, kappa=4)
    assert moved.learning_rate == pytest.approx(6e-4)
    assert (moved.beta1, moved.beta2) == (pytest.approx(0.60), pytest.approx(0.80))
    assert moved.eps == pytest.approx(5e-9)


def test_the_whole_square_root_rule_ends_where_beta1_reaches_zero():
    with pytest.raises(SpecError, match=r"no beta1 at kappa = 10"):
        scale_adam(learning_rate=3e-4, beta1=0.9, beta2=0.95, eps=1e-8, kappa=10)


def test_beta2_follows_its_half_life():
    assert shift_beta2(beta2=0.95, kappa=4) == pytest.approx(0.81450625)
    half_life = half_life_tokens(beta2=0.95, tokens_per_step=524_288)
    assert half_life == pytest.approx(7_084_917, abs=1)
    assert half_life / 524_288 == pytest.approx(13.513, abs=1e-3)
    moved = beta2_for_half_life(half_life_tokens=half_life, tokens_per_step=512)
    assert moved == pytest.approx(0.99994991, abs=1e-8)


@pytest.mark.parametrize(
    ("ratio", "rate", "steps", "examples"),
    [
        (0.1, 0.0909, 11, 1.1),
        (0.5, 0.3333, 3, 1.5),
        (1, 0.5, 2, 2),
        (2, 0.6667, 1.5, 3),
        (10, 0.9091, 1.1, 11),
    ],
)
def test_the_noise_scale_saturates_the_rate_and_trades_steps_for_examples(
    ratio, rate, steps, examples
):
    assert saturating_rate(max_rate=1, noise_ratio=ratio) == pytest.approx(rate, abs=5e-5)
    assert steps_multiplier(ratio) == pytest.approx(steps)
    assert examples_multiplier(ratio) == pytest.approx(examples)


@pytest.mark.parametrize(
    ("ratio", "rate"), [(1 / 16, 0.470588), (0.25, 0.8), (1, 1), (4, 0.8), (16, 0.470588)]
)
def test_the_surge_peaks_at_the_noise_scale(ratio, rate):
    assert surge_rate(peak_rate=1, noise_ratio=ratio) == pytest.approx(rate, abs=1e-6)


@given(st.floats(1e-6, 1e-4))
def test_far_below_the_noise_scale_surge_is_the_square_root_rule(ratio):
    doubled = surge_rate(peak_rate=1, noise_ratio=2 * ratio)
    assert doubled / surge_rate(peak_rate=1, noise_ratio=ratio) == pytest.approx(2**0.5, rel=1e-3)


@given(st.floats(0.999, 0.99999), st.floats(0.1, 10))
def test_both_beta2_rules_agree_to_first_order(beta2, kappa):
    by_root = scale_adam(learning_rate=1, beta1=beta2, beta2=beta2, eps=1, kappa=kappa).beta2
    assert by_root == pytest.approx(shift_beta2(beta2=beta2, kappa=kappa), abs=1e-4)


@given(kappas, kappas)
def test_two_changes_of_batch_are_one(first, second):
    for scale in (scale_linear, scale_sqrt):
        twice = scale(learning_rate=scale(learning_rate=1e-4, kappa=first), kappa=second)
        assert twice == pytest.approx(scale(learning_rate=1e-4, kappa=first * second))


@pytest.mark.parametrize("kappa", [0, -1, float("nan"), float("inf")])
def test_a_batch_ratio_that_makes_no_sense_is_refused(kappa):
    with pytest.raises(SpecError, match="kappa must be a finite number above zero"):
        scale_sqrt(learning_rate=1e-4, kappa=kappa)


# tinker-cookbook: recommended learning rates.
@pytest.mark.parametrize(
    ("hidden_size", "family", "is_lora", "rate"),
    [
        (4096, "llama", True, 2.8564e-4),
        (4096, "llama", False, 2.8564e-5),
        (8192, "llama", True, 1.6623e-4),
        (4096, "qwen", True, 4.7298e-4),
        (2048, "llama", True, 4.9082e-4),
    ],
)
def test_the_width_formula_gives_the_published_rates(hidden_size, family, is_lora, rate):
    found = width_rate(hidden_size=hidden_size, family=family, is_lora=is_lora)
    assert found == pytest.approx(rate, rel=1e-4)


def test_the_width_formula_refuses_families_it_was_not_calibrated_for():
    with pytest.raises(SpecError, match="not calibrated for 'gemma'"):
        width_rate(hidden_size=4096, family="gemma", is_lora=True)


def test_a_given_rate_at_this_very_batch_comes_back_unchanged():
    advice = ask(base_lr=2e-5)
    assert (advice.value, advice.base.source) == (2e-5, "given")
    assert not advice.caveats


def test_adam_scales_by_the_square_root_from_sequences_or_tokens():
    by_sequences = ask(base_lr=1e-4, base_batch=4)
    by_tokens = ask(base_lr=1e-4, base_batch_tokens=4 * 2048)
    assert by_sequences.value == by_tokens.value == pytest.approx(2e-4)
    assert by_sequences.valid_range == (0.5, 32)
    assert codes(by_sequences) == {"learning-rate-heuristic"}


@pytest.mark.parametrize(("size", "warns"), [(2, False), (128, False), (1, True), (129, True)])
def test_outside_an_eighth_to_eight_times_the_advice_says_it_extrapolates(size, warns):
    advice = ask(base_lr=1e-4, base_batch=16, global_batch_size=size)
    assert ("learning-rate-extrapolated" in codes(advice)) is warns


def test_a_full_fine_tune_starts_from_a_documented_default():
    advice = ask()
    assert advice.value == pytest.approx(1e-5)
    assert "ms-swift" in advice.base.source
    assert "learning-rate-not-tuned" in codes(advice)


def test_lora_starts_ten_times_higher_and_warns_above_128_sequences():
    full, lora = ask(), ask(method=Method.LORA)
    assert lora.value == pytest.approx(10 * full.value)
    assert "lora-large-batch" not in codes(ask(method=Method.QLORA, global_batch_size=128))
    assert "lora-large-batch" in codes(ask(method=Method.QLORA, global_batch_size=129))


def test_a_pre_training_batch_keeps_the_fine_tuning_base_and_tells_the_published_rate_beside():
    advice = ask(global_batch_size=4096, runs=RUNS)
    assert advice.value == pytest.approx(1e-5 * 16)
    (beside,) = [c.text for c in advice.caveats if c.code == "learning-rate-from-scratch"]
    assert "Llama 7B's 0.0003" in beside
    assert f"{3e-4 * (4096 * 2048 / 4_000_000) ** 0.5:.3g} here" in beside


def test_runs_without_a_rate_are_no_reference_for_the_rate():
    runs = (published("unknown", 7_000_000_000, 4_000_000, None), *RUNS)
    beside = [c.text for c in ask(global_batch_size=2000, runs=runs).caveats if "scratch" in c.code]
    assert "Llama 7B" in beside[0]


def test_lion_and_muon_are_called_unstudied_and_sgd_is_linear():
    for optimizer in (Optimizer.LION, Optimizer.MUON, Optimizer.ADAFACTOR):
        advice = ask(optimizer=optimizer)
        assert advice.rule == "sqrt"
        assert "learning-rate-unstudied" in codes(advice)
        assert advice.beta2 is None
    assert ask(optimizer=Optimizer.SGD_MOMENTUM).rule == "linear"


def test_beta2_moves_with_the_batch_and_stops_where_practice_does():
    assert ask(global_batch_size=8).beta2 == pytest.approx(0.999**0.5)
    clamped = ask(global_batch_size=16 * 128)
    assert clamped.beta2 == 0.9
    assert "beta2-clamped" in codes(clamped)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_lr": 1e-4, "base_batch": 8, "base_batch_tokens": 8}, "not both"),
        ({"base_batch": 8}, "needs its base learning rate"),
        ({"base_lr": 1e-4, "base_batch": 0}, "base batch must be above zero"),
        ({"base_lr": -1e-4}, "learning rate must be a finite number above zero"),
    ],
)
def test_a_base_that_makes_no_sense_is_refused(changes, message):
    with pytest.raises(SpecError, match=message):
        ask(**changes)


def test_reference_runs_are_nearest_in_size_and_batch():
    names = [
        run.run for run in reference_runs(num_params=13_000_000_000, tokens=2_000_000, runs=RUNS)
    ]
    assert names == ["Pythia 12B", "Llama 7B", "Chinchilla 70B"]


@given(
    st.sampled_from(Method),
    st.sampled_from(Optimizer),
    st.integers(1, 10**12),
    st.integers(1, 10**6),
    st.integers(1, 10**5),
)
def test_advice_is_always_a_positive_finite_rate(method, optimizer, params, size, seq_len):
    advice = ask(
        method=method,
        optimizer=optimizer,
        num_params=params,
        global_batch_size=size,
        seq_len=seq_len,
        hidden_size=64,
        runs=RUNS,
    )
    assert 0 < advice.value < float("inf")
    assert advice.beta2 is None or 0.9 <= advice.beta2 <= 1
    assert advice.warmup_steps is None or advice.warmup_steps >= 1


def test_the_source_of_a_lora_rate_is_one_clean_sentence():
    advice = ask(method=Method.LORA)
    assert advice.base.source == (
        "10 × ms-swift's full fine-tuning default of 1e-05 (LoRA Without Regret)"
    )


def test_the_caveat_of_an_untuned_rate_leaves_the_base_to_the_base():
    (text,) = [c.text for c in ask().caveats if c.code == "learning-rate-not-tuned"]
    assert text == (
        "A documented starting point, not tuned for your data: sweep 0.5, 1 and 2 times the value."
    )
