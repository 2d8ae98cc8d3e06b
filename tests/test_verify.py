"""The pure side of ``verify``: weights, mistakes by their signature, and verdicts."""

from __future__ import annotations

import io
import random
import re
from typing import Any

import pytest
from console_blocks import ROOT

import batchplan
from batchplan.errors import SpecError
from batchplan.experiments.verify_checks import CAUSES, Story, causes, judge
from batchplan.learning.accumulation import (
    TEXTS,
    Fault,
    Window,
    buffer_error_limit,
    correct_weights,
    name_clip_fault,
    name_count_fault,
    name_fault,
    token_weight_ratios,
    weighted_loss,
)
from batchplan.render.verify import print_verify

PAGE = (ROOT / "docs" / "verify.md").read_text(encoding="utf-8")
TARGETS = (15, 450, 150, 45)


def test_two_micro_batches_of_10_and_30_tokens_lose_1_25_and_naively_1_5() -> None:
    # T-LN1: nll sums 20 and 30 over 40 tokens, against the mean of the means 2 and 1.
    assert weighted_loss((2, 1), correct_weights((10, 30))) == pytest.approx(1.25)
    assert weighted_loss((2, 1), (0.5, 0.5)) == pytest.approx(1.5)
    assert token_weight_ratios((10, 30)) == pytest.approx((2.0, 0.667), abs=5e-4)


def test_the_right_weights_are_those_of_one_mean_over_all_tokens() -> None:
    rng = random.Random(0)
    micro_batches = [[rng.random() for _ in range(count)] for count in (3, 40, 7)]
    tokens = [loss for micro_batch in micro_batches for loss in micro_batch]
    means = [sum(losses) / len(losses) for losses in micro_batches]
    weights = correct_weights([len(losses) for losses in micro_batches])
    assert weighted_loss(means, weights) == pytest.approx(sum(tokens) / len(tokens))


def test_sixteen_sums_in_bf16_are_expected_to_lose_twice_what_four_do() -> None:
    assert buffer_error_limit(4) == 2 * 2**-9
    assert buffer_error_limit(16) == 2 * buffer_error_limit(4)


def _window(weights: tuple[float, ...], **changed: Any) -> Window:
    given = {"targets": TARGETS, "accum_steps": 4} | changed
    return Window(weights=weights, **given)


@pytest.mark.parametrize(
    ("weights", "fault"),
    [
        ((15 / 660, 450 / 660, 150 / 660, 45 / 660), None),
        ((1, 1, 1, 1), Fault.MISSING_DIVISION),
        ((60 / 660, 1800 / 660, 600 / 660, 180 / 660), Fault.MISSING_DIVISION),
        ((1 / 16,) * 4, Fault.DIVIDED_TWICE),
        ((15 / 2640, 450 / 2640, 150 / 2640, 45 / 2640), Fault.DIVIDED_TWICE),
        ((0.25,) * 4, Fault.MEAN_OF_MEANS),
        ((15, 450, 150, 45), Fault.SUMMED_TOKENS),
        ((0, 0, 0, 45 / 660), Fault.ZERO_GRAD_EVERY_MICRO_BATCH),
        ((0.3, 0.1, 0.2, 0.4), None),
    ],
)
def test_the_weights_of_a_full_window_name_the_mistake(
    weights: tuple[float, ...], fault: Fault | None
) -> None:
    assert name_fault(_window(weights)) is fault


def test_noise_in_the_fourth_digit_changes_no_name() -> None:
    rng = random.Random(1)
    for weights, fault in (
        ((0.25,) * 4, Fault.MEAN_OF_MEANS),
        ((1.0,) * 4, Fault.MISSING_DIVISION),
    ):
        noisy = tuple(weight * (1 + rng.uniform(-4e-4, 4e-4)) for weight in weights)
        assert name_fault(_window(noisy)) is fault


def test_a_short_window_divided_by_the_configured_k_is_named() -> None:
    short = {"targets": (96, 96, 96), "accum_steps": 4}
    assert name_fault(_window((1 / 3,) * 3, **short)) is None
    assert name_fault(_window((0.25,) * 3, **short)) is Fault.CONFIGURED_STEPS


def test_labels_counted_before_the_shift_are_named() -> None:
    # Two sequences of 12 tokens have 24 labels and 22 targets.
    weights = (11 / 24, 11 / 24)
    assert name_fault(_window(weights, targets=(11, 11), num_rows=2)) is Fault.FIRST_LABELS
    assert name_fault(_window((0.5, 0.5), targets=(11, 11), num_rows=2)) is None


def test_gradients_of_earlier_windows_are_a_forgotten_zero_grad() -> None:
    right = correct_weights(TARGETS)
    assert name_fault(_window(right, earlier_weights=(1e-6, -1e-6))) is None
    assert name_fault(_window(right, earlier_weights=right)) is Fault.ZERO_GRAD_FORGOTTEN


def test_ranks_that_count_their_own_tokens_are_named() -> None:
    # Rank 0 has 15 + 150 targets, rank 1 has 450 + 45; DDP averages the two.
    own = (15 / 165 / 2, 450 / 495 / 2, 150 / 165 / 2, 45 / 495 / 2)
    given = {"accum_steps": 2, "num_ranks": 2, "ranks": (0, 1, 0, 1)}
    assert name_fault(_window(own, **given)) is Fault.RANK_TOKENS
    right = correct_weights(TARGETS)
    assert name_fault(_window(right, **given)) is None


def test_ranks_that_are_summed_or_averaged_twice_are_named() -> None:
    given = {"accum_steps": 4, "num_ranks": 2, "ranks": (0, 1) * 4, "targets": TARGETS * 2}
    for factor in (2, 0.5):
        weights = tuple(factor * weight for weight in correct_weights(TARGETS * 2))
        assert name_fault(_window(weights, **given)) is Fault.RANK_FACTOR


def test_clipping_each_micro_batch_leaves_the_last_one_the_heaviest() -> None:
    unclipped = _window(correct_weights(TARGETS))
    once = tuple(weight * 0.05 for weight in unclipped.weights)
    named = {"norm": 0.1, "max_norm": 0.1}
    assert name_clip_fault(_window(once), unclipped, clips=1, **named) is None
    often = tuple(w * share for w, share in zip(once, (0.1, 0.3, 0.7, 1), strict=True))
    found = name_clip_fault(_window(often), unclipped, clips=1, **named)
    assert found is Fault.CLIP_EVERY_MICRO_BATCH
    assert name_clip_fault(_window(once), unclipped, clips=4, **named) is found
    missing = name_clip_fault(unclipped, unclipped, clips=0, norm=2.0, max_norm=0.1)
    assert missing is Fault.CLIP_MISSING


@pytest.mark.parametrize(
    ("optimizer_steps", "scheduler_steps", "fault"),
    [
        (3, 3, None),
        (3, 11, Fault.SCHEDULER_EVERY_MICRO_BATCH),
        (11, 11, Fault.STEP_EVERY_MICRO_BATCH),
        (2, 2, Fault.LAST_WINDOW_DROPPED),
        (3, 5, None),
        (1, 3, None),
    ],
)
def test_counts_of_11_micro_batches_in_3_windows_name_what_steps_wrongly(
    optimizer_steps: int, scheduler_steps: int, fault: Fault | None
) -> None:
    named = name_count_fault(
        optimizer_steps=optimizer_steps,
        scheduler_steps=scheduler_steps,
        num_windows=3,
        num_micro_batches=11,
        accum_steps=4,
    )
    assert named is fault


def test_every_mistake_is_explained() -> None:
    assert set(TEXTS) == set(Fault)


def test_the_page_lists_every_mistake_and_every_cause() -> None:
    named = re.findall(r"^\| `([a-z-]+)` \|", PAGE, re.MULTILINE)
    assert set(named) == {*map(str, Fault), *CAUSES}


def _story(**events: Any) -> Story:
    story = Story(accum_steps=4)
    story.read({"event": "ready", "has_lengths": events.pop("has_lengths", True)})
    for run, subject in (("equal", "reference"), ("unequal", "reference"), ("ranks", "reference")):
        counts = {"optimizer_steps": 1, "scheduler_steps": 1, "clips": 0}
        sizes = {"num_windows": 1, "num_micro_batches": 4}
        story.read({"event": "counts", "run": run, "subject": subject, **counts, **sizes})
        story.read(_told(run, subject) | events)
    return story


def _told(run: str, subject: str) -> dict[str, Any]:
    return {
        "event": "window",
        "run": run,
        "subject": subject,
        "window": 0,
        "targets": list(TARGETS),
        "num_rows": 8,
        "ranks": [0, 0, 0, 0],
        "weights": list(correct_weights(TARGETS)),
        "earlier_weights": [],
        "residual": 0.0,
        "norm": 1.0,
        "max_norm": 0.0,
        "deviation": 1e-7,
        "cosine": 1.0,
        "ratio": 1.0,
    }


def _verdicts(story: Story) -> dict[str, Any]:
    return {check.code: check for check in judge(story, ["reference"])}


def test_what_was_not_run_is_no_pass() -> None:
    found = _verdicts(_story())
    assert found["C1"].ok is True
    assert found["C2"].ok is True
    assert found["C5"].ok is None
    assert found["C6"].ok is None
    assert found["C6"].text.startswith("not run: ")


def test_examples_of_one_target_each_leave_unequal_lengths_unchecked() -> None:
    found = _verdicts(_story(has_lengths=False))
    assert found["C2"].ok is None
    assert found["C4"].ok is None


@pytest.mark.parametrize(("deviation", "cosine"), [(1.1e-5, 1.0), (0.0, 1 - 2e-6)])
def test_a_gradient_beyond_either_limit_fails(deviation: float, cosine: float) -> None:
    check = _verdicts(_story(deviation=deviation, cosine=cosine))["C1"]
    assert check.ok is False
    assert check.fault is None
    assert "no mistake that has a name" in check.text


def test_what_no_micro_batch_explains_is_told_apart() -> None:
    check = _verdicts(_story(deviation=0.3, residual=0.25))["C1"]
    assert "25.0% of it is no sum of the model's gradients" in check.text


def test_weights_of_what_is_no_sum_of_micro_batches_name_no_mistake() -> None:
    # As label smoothing does: its gradients resemble those of earlier windows a little.
    story = _story(deviation=0.1, residual=0.01, earlier_weights=[0.01])
    check = _verdicts(story)["C1"]
    assert (check.ok, check.fault) == (False, None)
    assert check.text.endswith("as if the loss were another")


@pytest.mark.parametrize(
    ("figures", "words"),
    [
        ({"deviation": 0.8, "residual": 0.03}, "as if values were clipped, and not the norm"),
        ({}, "clipped once, but to another norm than was asked for: its norm is 0.1 times"),
    ],
)
def test_a_clip_that_is_wrong_in_its_own_way_is_told_by_its_norm(
    figures: dict[str, float], words: str
) -> None:
    story = _story()
    story.counts["clip", "reference"] = story.counts["equal", "reference"] | {"clips": 1}
    weights = [0.02 * weight for weight in correct_weights(TARGETS)]
    clipped = {"norm": 0.002, "max_norm": 0.02, "weights": weights}
    story.read(_told("clip", "reference") | clipped | figures)
    check = _verdicts(story)["C6"]
    assert (check.ok, check.fault) == (False, None)
    assert words in check.text


def test_a_loop_with_the_right_weights_is_not_blamed_for_its_model() -> None:
    story = _story(deviation=0.3, cosine=0.95)
    story.read({"event": "additivity", "run": "equal", "deviation": 0.3})
    assert "whatever the loop does" in _verdicts(story)["C1"].text


def test_a_model_that_is_only_just_away_is_not_0_percent_away() -> None:
    story = _story(deviation=0.00034, cosine=0.95)
    story.read({"event": "additivity", "run": "equal", "deviation": 0.000081})
    text = _verdicts(story)["C1"].text
    assert "0.008% away" in text
    assert "this loop makes it 0.03%" in text


def test_a_loss_that_adds_up_at_equal_lengths_alone_is_called_no_token_mean() -> None:
    story = _story()
    story.read({"event": "additivity", "run": "equal", "deviation": 1e-7})
    assert not list(causes(story))
    story.read({"event": "additivity", "run": "unequal", "deviation": 0.2})
    (cause,) = causes(story)
    assert cause.kind == "loss-weighting"


def test_an_input_that_would_change_nothing_is_refused() -> None:
    with pytest.raises(SpecError, match="--sharding does not go with verify"):
        batchplan.verify("gpt2", sharding="zero2")


@pytest.mark.parametrize(
    ("wrong", "words"),
    [
        ({"accum_steps": 2}, "--accum-steps 2 is too small: at least 3"),
        ({"accum_steps": 65}, "--accum-steps 65 is too large: at most 64"),
        ({"micro_batch": 0}, "--micro-batch 0 is too small: at least 1"),
        ({"max_seconds": "soon"}, "--max-seconds 'soon'"),
    ],
)
def test_a_wrong_number_is_refused_before_anything_runs(wrong: dict[str, Any], words: str) -> None:
    with pytest.raises(SpecError, match=words):
        batchplan.verify("gpt2", **wrong)


def test_the_page_tells_failures_causes_and_what_was_not_run() -> None:
    check = {"code": "C1", "subject": "reference", "limit": 1e-5, "fault": None}
    document = {
        "model": {"id": "tiny", "architecture": "TinyForCausalLM"},
        "inputs": {"method": "full", "accum_steps": 4, "micro_batch": 2},
        "device": "cpu",
        "checks": [
            check | {"ok": False, "deviation": 0.3, "text": "away"},
            check | {"ok": None, "deviation": None, "text": "not run: no time was left"},
        ],
        "causes": [{"text": "norm: mixes", "deviation": 0.3, "left": 1e-7, "fix": "use another"}],
        "memory": {
            "source": "a trace",
            "seq_len": 512,
            "layouts": [
                {"micro_batch": 8, "accum_steps": 1, "measured_bytes": 1, "estimated_bytes": 1}
            ],
        },
        "seconds": 3.0,
        "caveats": [],
    }
    file = io.StringIO()
    print_verify(document, file=file, width=70)
    shown = file.getvalue()
    for words in (
        "FAILED",
        "not run",
        "no time was left",
        "1 of 1 checks failed",
        "1 were not run",
        "norm: mixes (gradient 0.3 away, 1e-07 without it).",
        "Instead: use another.",
        "8 × 1",
    ):
        assert words in shown
    assert all(len(line) <= 70 for line in shown.splitlines())
