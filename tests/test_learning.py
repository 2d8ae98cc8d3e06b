"""Learning-rate rules: worked numbers of the papers, limits, and honest advice."""

from __future__ import annotations

import io
from dataclasses import replace

import pytest
from console_blocks import ROOT
from hypothesis import given
from hypothesis import strategies as st

import batchplan
from batchplan.errors import SpecError
from batchplan.learning import (
    Base,
    Change,
    PublishedRun,
    advise,
    beta2_for_half_life,
    comparable_runs,
    compare,
    examples_multiplier,
    half_life_tokens,
    keep_time_scale,
    rate_for,
    reference_runs,
    saturating_rate,
    scale_adam,
    scale_linear,
    scale_sqrt,
    shift_beta2,
    steps_multiplier,
    surge_rate,
    time_scale_tokens,
    width_rate,
    within_epoch,
)
from batchplan.learning.references import REFERENCES
from batchplan.learning.rules import RULES
from batchplan.render.learning import print_learning_rate
from batchplan.render.recommend import print_recommendation
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


@given(st.floats(1e-6, 1e6))
def test_steps_and_examples_lie_on_one_hyperbola(ratio):
    """(S / S_min - 1) (E / E_min - 1) = 1, McCandlish et al., equation 2.7."""
    product = (steps_multiplier(ratio) - 1) * (examples_multiplier(ratio) - 1)
    assert product == pytest.approx(1, rel=1e-6)


def test_at_the_noise_scale_both_are_twice_their_least():
    assert steps_multiplier(1) == examples_multiplier(1) == 2


@given(st.floats(1e-8, 1e-5))
def test_far_below_the_noise_scale_the_saturating_rate_is_linear_and_far_above_flat(ratio):
    below = saturating_rate(max_rate=1, noise_ratio=2 * ratio)
    assert below == pytest.approx(2 * saturating_rate(max_rate=1, noise_ratio=ratio), rel=1e-4)
    assert saturating_rate(max_rate=1, noise_ratio=1 / ratio) == pytest.approx(1, abs=1e-4)


@given(st.floats(1e-6, 1e6))
def test_the_surge_is_the_same_on_both_sides_of_its_peak(ratio):
    mirrored = surge_rate(peak_rate=1, noise_ratio=1 / ratio)
    assert surge_rate(peak_rate=1, noise_ratio=ratio) == pytest.approx(mirrored)


@given(st.floats(1e-8, 1e-6))
def test_far_below_the_noise_scale_the_surge_is_twice_the_root_of_its_peak(ratio):
    assert surge_rate(peak_rate=1, noise_ratio=ratio) == pytest.approx(2 * ratio**0.5, rel=1e-5)


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


def change(**changes):
    question = {
        "base": Base(value=2e-4, global_batch_size=32, source="given"),
        "batch": 256,
        "optimizer": Optimizer.ADAMW,
        "method": Method.FULL,
    }
    return Change(**{**question, **changes})


def values(**changes):
    return {value.name: value for value in compare(change(**changes))}


def test_all_rules_stand_side_by_side_with_the_recommended_one_first():
    names = [value.name for value in compare(change())]
    assert names[0] == "sqrt"
    assert set(names) == {
        *("linear", "sqrt", "saturating", "surge", "beta2 half-life", "LoRA factor")
    }
    found = values()
    assert found["sqrt"].settings.learning_rate == pytest.approx(5.6569e-4, rel=1e-4)
    assert found["linear"].settings.learning_rate == pytest.approx(1.6e-3)
    assert found["beta2 half-life"].settings.beta2 == pytest.approx(0.999**8)
    assert [name for name, value in found.items() if value.is_recommended] == ["sqrt"]
    sgd = compare(change(optimizer=Optimizer.SGD))
    assert (sgd[0].name, sgd[0].holds) == ("linear", True)


def test_the_root_rule_moves_all_of_adam_s_settings_while_beta1_is_left():
    base = Base(value=3e-4, global_batch_size=64, source="given")
    moved = values(base=base, beta2=0.95)["sqrt"].settings
    assert moved.learning_rate == pytest.approx(6e-4)
    assert (moved.beta1, moved.beta2, moved.eps) == pytest.approx((0.60, 0.80, 5e-9))
    far = values(base=replace(base, global_batch_size=25.6), beta2=0.95)["sqrt"]
    assert far.settings.beta1 is None
    assert not far.holds


def test_rules_by_the_noise_scale_need_one():
    for name in ("saturating", "surge"):
        blind = values()[name]
        assert blind.settings.learning_rate is None
        assert "noise scale" in blind.verdict


# Batch over noise scale 1 to 4: 0.5 to 0.8 of lr_max, and the peak to 0.8 of it.
@pytest.mark.parametrize(
    ("name", "optimizer", "factor"),
    [("saturating", Optimizer.SGD, 0.8 / 0.5), ("surge", Optimizer.ADAMW, 0.8)],
)
def test_a_measured_noise_scale_moves_the_rate_along_its_curve(name, optimizer, factor):
    found = values(batch=128, noise_scale=32, optimizer=optimizer)[name]
    assert found.settings.learning_rate == pytest.approx(2e-4 * factor)
    assert found.holds


@pytest.mark.parametrize(
    ("changes", "name", "words"),
    [
        ({"batch": 257}, "sqrt", "more than 8 times"),
        ({"batch": 3.9}, "sqrt", "more than 8 times"),
        ({"noise_scale": 100}, "sqrt", "above the noise scale"),
        ({"optimizer": Optimizer.LION}, "sqrt", "an assumption for lion"),
        ({"optimizer": Optimizer.ADAMW}, "linear", "not for adamw"),
        ({"optimizer": Optimizer.SGD}, "sqrt", "not for sgd"),
        ({"optimizer": Optimizer.SGD, "noise_scale": 100}, "linear", "above the noise scale"),
        ({"batch": 32 * 200}, "beta2 half-life", "below 0.9"),
        ({}, "LoRA factor", "adapters only"),
        ({"method": Method.LORA}, "LoRA factor", "only if the base is a full fine-tune's"),
    ],
)
def test_a_rule_says_why_it_does_not_hold(changes, name, words):
    found = values(**changes)[name]
    assert not found.holds
    assert words in found.verdict


def test_the_rate_stops_growing_at_the_noise_scale():
    uncapped, capped = rate_for(change()), rate_for(change(noise_scale=64))
    assert capped.value == pytest.approx(2e-4 * 2**0.5)
    assert capped.value < uncapped.value
    assert "learning-rate-capped" in codes(capped)
    assert capped.valid_range == (4, 64)
    assert (capped.noise.ratio, capped.noise.examples_multiplier) == (4, 5)
    assert capped.noise.steps_multiplier == 1.25
    assert rate_for(change(noise_scale=1000)).value == uncapped.value


@given(st.floats(0.1, 1e4), st.floats(0.1, 1e4), st.floats(0.1, 1e4))
def test_there_and_back_under_a_noise_scale_is_where_one_was(first, second, noise):
    there = rate_for(
        change(
            base=Base(value=1e-4, global_batch_size=first, source="given"),
            batch=second,
            noise_scale=noise,
        )
    )
    back = rate_for(
        change(
            base=Base(value=there.value, global_batch_size=second, source="given"),
            batch=first,
            noise_scale=noise,
        )
    )
    assert back.value == pytest.approx(1e-4)


@pytest.mark.parametrize(
    "changes", [{"noise_scale": 0}, {"noise_scale": float("nan")}, {"batch": -1}, {"beta2": 1}]
)
def test_a_change_that_makes_no_sense_is_refused(changes):
    with pytest.raises(SpecError):
        change(**changes)


@given(kappas, st.floats(1e-5, 1), st.floats(1e-3, 1))
def test_the_weight_decay_told_keeps_adamw_s_time_scale(kappa, rate, decay):
    """tau = B / (lr * decay), before and after, each by its own numbers."""
    moved = rate * kappa**0.5
    kept = keep_time_scale(
        kappa=kappa,
        rate_factor=kappa**0.5,
        weight_decay=decay,
        learning_rate=moved,
        tokens_per_step=1e6 * kappa,
        data_tokens=10**9,
    )
    before = time_scale_tokens(learning_rate=rate, weight_decay=decay, tokens_per_step=1e6)
    assert kept.value == pytest.approx(decay * kappa**0.5)
    assert kept.time_scale_tokens == pytest.approx(before)
    assert kept.data_share == pytest.approx(before / 1e9)


def test_with_an_unchanged_rate_weight_decay_follows_the_batch():
    assert keep_time_scale(kappa=4, rate_factor=1).keeping_factor == 4


def test_weight_decay_is_told_of_adamw_alone_and_of_a_base_that_moves():
    assert ask(base_lr=1e-4, base_batch=4).weight_decay.keeping_factor == pytest.approx(2)
    assert ask(base_lr=1e-4, base_batch=4, weight_decay=0.1).weight_decay.value == 0.2
    assert ask(base_lr=1e-4).weight_decay is None
    assert ask().weight_decay is None
    assert ask(base_lr=1e-4, base_batch=4, optimizer=Optimizer.SGD).weight_decay is None
    with pytest.raises(SpecError, match="above zero"):
        time_scale_tokens(learning_rate=1e-4, weight_decay=0, tokens_per_step=1)


def test_beta2_comes_with_its_half_life_in_tokens():
    """0.95 at 524,288 tokens a step forgets half in 7,084,917; at 512 it must be 0.99994991."""
    base = Base(value=3e-4, global_batch_size=1024, source="given")
    moved = rate_for(change(base=base, batch=1, tokens=512, beta2=0.95))
    assert moved.beta2 == pytest.approx(0.99994991, abs=1e-8)
    assert moved.half_life_tokens == pytest.approx(7_084_917, rel=1e-4)
    assert rate_for(change()).half_life_tokens is None


def test_the_steps_of_an_epoch_shorten_warmup_and_warn_below_100():
    per_step = 16 * 2048
    enough, few = (ask(data_tokens=steps * per_step) for steps in (100, 99))
    assert (enough.steps_per_epoch, enough.warmup_steps) == (100, 10)
    assert "few-steps" not in codes(enough)
    assert (few.steps_per_epoch, few.warmup_steps) == (99, 9)
    assert {"few-steps", "warmup-shortened"} <= codes(few)
    (text,) = [c.text for c in few.caveats if c.code == "few-steps"]
    assert f"A batch of {99 * per_step // 100:,} tokens makes 100." in text
    assert ask(data_tokens=per_step + 1).steps_per_epoch == 2


def test_an_epoch_that_is_known_is_not_told_twice():
    once = ask(data_tokens=10**6)
    assert within_epoch(once, data_tokens=10**6, tokens_per_step=16 * 2048) is once


def test_a_given_rate_for_lora_is_asked_whose_it_is():
    assert "lora-factor" in codes(ask(base_lr=1e-4, method=Method.LORA))
    assert "lora-factor" not in codes(ask(method=Method.LORA))


def test_the_linear_rule_asks_for_a_warmup_where_the_rate_rises():
    sgd = {"optimizer": Optimizer.SGD, "base_lr": 0.1}
    assert "linear-needs-warmup" in codes(ask(**sgd, base_batch=8))
    assert "linear-needs-warmup" not in codes(ask(**sgd, base_batch=32))


def test_published_runs_are_compared_with_full_training_within_ten_times_the_batch():
    found = comparable_runs(
        method=Method.FULL, num_params=13_000_000_000, tokens=250_000, runs=RUNS
    )
    assert [run.run for run in found] == ["Pythia 12B", "Chinchilla 70B"]
    assert not comparable_runs(
        method=Method.LORA, num_params=13_000_000_000, tokens=2_000_000, runs=RUNS
    )


def test_the_page_shows_every_rule_and_law_as_the_program_has_it():
    page = (ROOT / "docs" / "learning-rate.md").read_text(encoding="utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| ") and "`" in line]
    expected = [f"| {r.name} | `{r.formula}` | {r.family} | {r.valid_when} |" for r in RULES]
    expected += [f"| {r.name} | {r.quantity} | `{r.formula}` | {r.fitted} |" for r in REFERENCES]
    assert rows == expected


def page_of(answer, printer=print_learning_rate, **options):
    file = io.StringIO()
    printer(answer.to_dict(), file=file, width=200, **options)
    return file.getvalue()


MOVED = {"lr": "2e-4", "from_batch": 32, "to_batch": 256, "seq_len": 2048}


def test_an_answer_s_inputs_give_it_again():
    answer = batchplan.learning_rate(
        **MOVED, noise_scale="1M", data_tokens="100B", params="7e9", weight_decay="0.1", loss=2.5
    )
    again = batchplan.learning_rate(**answer.to_dict()["inputs"])
    assert again.to_dict() == answer.to_dict()


def test_every_batch_may_be_in_tokens_or_sequences():
    def rate(**changes):
        return batchplan.learning_rate(**(MOVED | changes)).learning_rate

    expected = rate(noise_scale=128)
    assert expected.value == pytest.approx(4e-4)
    assert rate(noise_scale="262144").value == rate().value  # no suffix: sequences
    assert rate(noise_scale="262.144k", to_batch="524.288k").value == pytest.approx(4e-4)
    in_tokens = rate(
        from_batch="65.536k", to_batch="524.288k", noise_scale="262.144k", seq_len=None
    )
    assert in_tokens.value == pytest.approx(4e-4)
    assert in_tokens.half_life_tokens == pytest.approx(expected.half_life_tokens)


def test_a_batch_in_tokens_alone_is_not_taken_for_as_many_sequences():
    answer = batchplan.learning_rate(lr=1e-4, from_batch="1M", to_batch="2M", method="lora")
    assert "lora-large-batch" not in codes(answer.learning_rate)
    assert answer.unit == "tokens"


def test_the_page_of_lr_tells_the_rule_and_on_request_all_of_them():
    answer = batchplan.learning_rate(**MOVED, noise_scale=128, weight_decay="0.1")
    page = page_of(answer)
    assert "Weight decay 0.4 (× 4) keeps AdamW's time scale of 3.28B tokens." in page
    assert "At 2 times the noise scale it takes 1.5 times the fewest steps and 3 times" in page
    assert "saturating" not in page
    told = page_of(answer, explain=True)
    for rule in RULES:
        assert f"- {rule.name}: {rule.formula}." in told
        assert rule.source in told


def test_laws_come_alone_and_published_runs_beside_a_batch():
    alone = batchplan.learning_rate(data_tokens="1T", params="7e9")
    assert alone.to_dict()["learning_rate"] is None
    page = page_of(alone)
    assert page.startswith("Published batches, fitted on pre-training from scratch.")
    assert "From memory of the paper, not re-read: Power Lines" in page
    assert "The optimal ones are 3 times apart." in page
    beside = batchplan.learning_rate(lr=3e-4, from_batch="1M", to_batch="4M", params="7e9")
    assert "Llama 7B" in page_of(beside)


def test_a_plan_tells_the_batches_published_for_such_data_and_that_they_are_a_hint():
    asked = {"params": "7e9", "gpu": "80GB", "devices": 8, "target_tokens": "1M"}
    answer = batchplan.recommend(**asked, epoch_tokens="50M")
    page = page_of(answer, print_recommendation)
    assert "fitted on pre-training from scratch, which this is not: only a hint." in page
    assert "347,756" in page
    rate = answer.to_dict()["plans"][0]["learning_rate"]
    assert rate["steps_per_epoch"] == answer.to_dict()["epoch"]["steps"]
    assert f"of {rate['steps_per_epoch']} in one epoch" in page
    assert page.count("Fewer than 100 optimizer steps") == 1
    assert all("few-steps" in codes(plan.learning_rate) for plan in answer.plans)
    assert "Published batches" not in page_of(batchplan.recommend(**asked), print_recommendation)


@pytest.mark.parametrize("optimizer", ["sgd", "lion", "muon"])
@pytest.mark.parametrize("given", [{"beta2": 0.95}, {"weight_decay": 0.1}])
def test_what_only_adamw_has_is_refused_for_others(optimizer, given):
    with pytest.raises(SpecError, match=f"is AdamW's: leave it out with {optimizer}"):
        batchplan.learning_rate(lr=1e-3, from_batch=8, to_batch=16, optimizer=optimizer, **given)
