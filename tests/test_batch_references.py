"""Published batch sizes: the laws' worked numbers, their spread, and what is told of it."""

from __future__ import annotations

import math

import pytest

from batchplan.errors import SpecError
from batchplan.learning import (
    CRITICAL,
    OPTIMAL,
    Certainty,
    batch_references,
    deepseek_batch,
    deepseek_compute,
    deepseek_rate,
    kaplan_critical,
    power_lines_critical,
    power_lines_optimal,
    smaller_batch_note,
    step_law_batch,
    step_law_rate,
)
from batchplan.spec import Method


# The laws of batch size: the numbers that follow from the constants of each paper.
@pytest.mark.parametrize(
    ("compute", "rate", "batch"), [(1e20, 9.860e-4, 1.0171e6), (1e22, 5.545e-4, 4.588e6)]
)
def test_deepseek_scales_rate_and_batch_with_compute(compute, rate, batch):
    assert deepseek_rate(compute=compute) == pytest.approx(rate, rel=1e-3)
    assert deepseek_batch(compute=compute) == pytest.approx(batch, rel=1e-3)


# DeepSeek LLM's own runs, table 2: 2304 and 4608 sequences of 4096, rates 4.2e-4 and 3.2e-4.
@pytest.mark.parametrize(
    ("layers", "width", "rate", "batch", "used_batch", "used_rate"),
    [
        (30, 4096, 4.246e-4, 9.22e6, 2304 * 4096, 4.2e-4),
        (95, 8192, 3.120e-4, 20.65e6, 4608 * 4096, 3.2e-4),
    ],
)
def test_deepseek_s_law_gives_about_what_deepseek_used(
    layers, width, rate, batch, used_batch, used_rate
):
    compute = deepseek_compute(
        non_embedding_params=12 * layers * width**2,
        data_tokens=2e12,
        seq_len=4096,
        hidden_size=width,
        num_layers=layers,
    )
    assert deepseek_rate(compute=compute) == pytest.approx(rate, rel=1e-3)
    assert deepseek_batch(compute=compute) == pytest.approx(batch, rel=1e-3)
    assert deepseek_rate(compute=compute) == pytest.approx(used_rate, rel=0.03)
    assert deepseek_batch(compute=compute) == pytest.approx(used_batch, rel=0.1)


def test_deepseek_counts_72_l_h_squared_and_attention_per_token():
    shape = {"seq_len": 4096, "hidden_size": 4096, "num_layers": 30}
    params = 12 * 30 * 4096**2
    with_attention = deepseek_compute(non_embedding_params=params, data_tokens=1, **shape)
    assert with_attention == pytest.approx(4.2279e10, rel=1e-4)
    assert deepseek_compute(non_embedding_params=params, data_tokens=1) == 72 * 30 * 4096**2


@pytest.mark.parametrize(
    ("params", "data", "rate", "batch"),
    [(1e9, 1e11, 1.6325e-3, 1.1077e6), (7e9, 1e12, 8.266e-4, 4.125e6)],
)
def test_the_step_law_takes_its_rate_from_both_and_its_batch_from_the_data(
    params, data, rate, batch
):
    found = step_law_rate(non_embedding_params=params, data_tokens=data)
    assert found == pytest.approx(rate, rel=1e-3)
    assert step_law_batch(data_tokens=data) == pytest.approx(batch, rel=1e-3)


@pytest.mark.parametrize(
    ("data", "optimal", "critical"), [(2e10, 552_517, 5.539e6), (1e11, 1.0234e6, 11.65e6)]
)
def test_power_lines_grow_with_the_data(data, optimal, critical):
    assert power_lines_optimal(data_tokens=data) == pytest.approx(optimal, rel=1e-3)
    assert power_lines_critical(data_tokens=data) == pytest.approx(critical, rel=1e-3)


def test_twice_the_data_is_nanochat_s_batch_before_it_rounds():
    """Nanochat: 2**19 (D / D_ref)**0.383 tokens, to a power of two: 683,698 stays 2**19."""
    grown = power_lines_optimal(data_tokens=2e10) / power_lines_optimal(data_tokens=1e10) * 2**19
    assert grown == pytest.approx(683_698, abs=1)
    assert round(math.log2(grown)) == 19


@pytest.mark.parametrize(("loss", "tokens"), [(3.0, 1.07e6), (2.0, 7.37e6)])
def test_kaplan_s_critical_batch_grows_as_the_loss_falls(loss, tokens):
    assert kaplan_critical(loss=loss) == pytest.approx(tokens, rel=2e-3)


@pytest.mark.parametrize(
    "law",
    [
        lambda value: power_lines_optimal(data_tokens=value),
        lambda value: step_law_batch(data_tokens=value),
        lambda value: deepseek_batch(compute=value),
        lambda value: kaplan_critical(loss=value),
    ],
)
@pytest.mark.parametrize("value", [0, -1, float("nan"), float("inf")])
def test_a_law_refuses_what_makes_no_sense(law, value):
    with pytest.raises(SpecError, match="finite number above zero"):
        law(value)


def references(**changes):
    question = {"method": Method.FULL, "data_tokens": 1e12, "num_params": 7e9}
    return batch_references(**{**question, **changes})


def batches(found, quantity):
    return {row.name: row.batch_tokens for row in found.rows if row.quantity == quantity}


def test_two_laws_agree_at_100b_tokens_and_part_at_1t():
    """Power Lines and the Step Law: within 9 % at 1e11 tokens, 1.7 times apart at 1e12."""
    near = references(data_tokens=1e11, num_params=None)
    (spread,) = [each for each in near.spreads if each.quantity == OPTIMAL]
    assert spread.ratio == pytest.approx(1.0824, abs=1e-3)
    assert set(batches(near, OPTIMAL)) == {"Power Lines", "Step Law"}
    (spread,) = [s for s in references(num_params=None).spreads if s.quantity == OPTIMAL]
    assert (spread.low_tokens, spread.high_tokens) == pytest.approx((2.47e6, 4.13e6), rel=5e-3)
    assert spread.ratio == pytest.approx(1.7, abs=0.05)


def test_laws_are_shown_only_where_what_they_need_is_known():
    assert set(batches(references(), OPTIMAL)) == {"Power Lines", "Step Law", "DeepSeek LLM"}
    by_loss = references(data_tokens=None, num_params=None, loss=3.0)
    assert [row.name for row in by_loss.rows] == ["Kaplan et al."]
    late = batches(references(), CRITICAL)
    assert late["Merrill et al."] == 16_777_216
    assert "Merrill et al." not in batches(references(data_tokens=1e11), CRITICAL)
    with pytest.raises(SpecError, match="size of the data or from the loss"):
        references(data_tokens=None)


def in_range(quantity, name, **changes):
    rows = references(**changes).rows
    return next(row.in_range for row in rows if (row.quantity, row.name) == (quantity, name))


def test_every_law_says_whether_it_was_fitted_there():
    assert in_range(OPTIMAL, "Power Lines", num_params=1e9) is True
    assert in_range(OPTIMAL, "Power Lines", num_params=7e9) is False
    assert in_range(OPTIMAL, "Power Lines", num_params=None) is None
    assert in_range(OPTIMAL, "DeepSeek LLM", num_params=1e9, data_tokens=1e9) is True
    assert in_range(OPTIMAL, "DeepSeek LLM") is False
    assert in_range(OPTIMAL, "Step Law") is None
    assert in_range(CRITICAL, "Kaplan et al.", num_params=50e6, loss=3.0) is True
    assert in_range(CRITICAL, "Kaplan et al.", num_params=50e6, loss=1.5) is False
    assert in_range(CRITICAL, "Kaplan et al.", num_params=7e9, loss=3.0) is False


def test_constants_from_memory_are_marked_as_such():
    sure = {row.name: row.certainty for row in references(loss=2.5).rows}
    assert sure["Power Lines"] is Certainty.MEMORY
    assert sure["Kaplan et al."] is Certainty.READ


@pytest.mark.parametrize(
    ("changes", "is_fine_tuning"),
    [
        ({}, False),
        ({"method": Method.LORA}, True),
        ({"data_tokens": 5e7}, True),
        ({"data_tokens": 5e7, "num_params": None}, False),
    ],
)
def test_references_for_a_fine_tune_are_only_a_hint(changes, is_fine_tuning):
    assert references(**changes).is_fine_tuning is is_fine_tuning


def note(**changes):
    question = {
        "global_batch_tokens": 1_000_000,
        "method": Method.FULL,
        "num_params": 7_000_000_000,
        "data_tokens": None,
        "accum_steps": 1,
        "num_ranks": 1,
    }
    return smaller_batch_note(**{**question, **changes})


def test_accumulating_on_one_device_is_told_what_k_1_would_do():
    found = note(accum_steps=8)
    assert "K = 1 would make 8 times the updates for the same FLOPs" in found.text
    assert note(accum_steps=8, num_ranks=2) is None
    assert note() is None


def test_a_batch_well_above_the_critical_one_is_told_once():
    """Power Lines at 50M tokens: 0.0471 (5e7)**0.462 sequences of 2048 are 347,756 tokens."""
    found = note(data_tokens=50_000_000, accum_steps=10)
    assert "2.9 times the critical batch of Power Lines" in found.text
    assert "347,756" in found.text
    assert "only a hint" in found.text
    assert found.text.endswith("K = 3 would reach it.")
    assert note(data_tokens=50_000_000, global_batch_tokens=600_000) is None
    assert "hint" not in note(data_tokens=10**10, num_params=10**8, global_batch_tokens=10**8).text
    assert note(data_tokens=10**12) is None
