"""The throughput benchmark: data, shapes, fit, and what it says of the step time."""

from __future__ import annotations

import dataclasses
import re

import pytest

from batchplan.throughput import token_flops
from batchplan.throughput.bands import MEASURED_BAND
from benchmarks.accuracy.statistics import summarise
from benchmarks.throughput import report
from benchmarks.throughput.__main__ import main
from benchmarks.throughput.causes import cause_of
from benchmarks.throughput.fit import Constants, fit, fitting_cases
from benchmarks.throughput.replay import SOURCES, Case, all_cases, case_of
from benchmarks.throughput.rows import Row, load_rows
from benchmarks.throughput.scores import Score, all_scores, lines, ranking, same_devices, same_model
from benchmarks.throughput.shapes import SHAPES

ROWS = load_rows()
TUNED = [row for row in ROWS if row.source == "llm-foundry"]
PEAKS = {"A100": 312e12, "H100": 989.5e12}


def test_rows_have_unique_ids_and_one_figure_each():
    assert len({row.id for row in ROWS}) == len(ROWS) == 202
    assert all((row.tokens_per_second is None) != (row.micro_batch_ms is None) for row in ROWS)
    assert {row.source for row in ROWS} == set(SOURCES)
    held_out = sum(row.is_held_out for row in TUNED)
    assert 0.4 < held_out / len(TUNED) < 0.6


def test_every_published_parameter_count_is_the_shapes():
    assert all(SHAPES[row.model].num_params(row.seq_len) == row.params for row in TUNED)


# What the checkpoints' own configs give: meta-llama (6.74e9, 13.02e9), microsoft/phi-1_5 (1.42e9).
@pytest.mark.parametrize(
    ("model", "params"),
    [
        ("Llama-2-7B", 6_738_415_616),
        ("Llama-2-13B", 13_015_864_320),
        ("phi-1.5 1.3B", 1_418_270_720),
        ("StableLM 3B", 3_638_525_952),
    ],
)
def test_other_shapes_have_the_parameters_of_their_checkpoints(model, params):
    assert SHAPES[model].num_params(2048) == pytest.approx(params, rel=5e-4)


def test_every_published_mfu_follows_from_its_throughput_in_the_sources_convention():
    for row in TUNED:
        shape = SHAPES[row.model]
        flops = token_flops(
            matmul_params=row.params,
            attention_width=shape.num_layers * shape.hidden_size,
            keys=row.seq_len,
        )
        peak = next(peak for kind, peak in PEAKS.items() if kind in row.gpu)
        assert 100 * row.tokens_per_second * flops / peak == pytest.approx(
            row.mfu_percent, abs=0.12
        ), row.id


def test_our_mfu_of_a_row_is_below_the_sources_because_it_counts_half_the_keys():
    case = next(case for case in all_cases() if case.row.model == "MPT-7b")
    time = case.predicted()
    measured = time.mfu * time.mid / case.measured
    assert 0.6 < 100 * measured / case.row.mfu_percent < 1
    assert "causal-exact" in time.mfu_convention


def median(chosen: list[Score]) -> float:
    return summarise(score.error for score in chosen).median


def test_median_errors_are_within_what_is_promised():
    tuned = [score for score in all_scores() if score.case.row.source == "llm-foundry"]
    held_out = [score for score in tuned if not score.is_fitted]
    assert median(tuned) <= 0.10
    assert median(held_out) <= 0.10
    assert median(list(all_scores())) <= 0.20
    for kind in PEAKS:
        assert median([score for score in held_out if kind in score.case.row.gpu]) <= 0.10


def test_the_plan_predicted_fastest_is_the_best_or_as_good():
    for key in (same_devices, same_model):
        found = ranking(all_scores(), key)
        assert found.right >= 0.9 * found.groups
        assert found.pairs_right >= 0.8 * found.pairs


def test_the_band_says_how_many_held_out_runs_it_holds():
    held_out = [score for score in all_scores() if not score.is_fitted]
    within = sum(score.is_within for score in held_out)
    assert within >= 0.95 * len(held_out)
    assert [int(number) for number in re.findall(r"\d\d+", MEASURED_BAND.basis)[:2]] == [
        within,
        len(held_out),
    ]


def test_each_row_that_is_far_off_has_a_cause():
    far = [score for score in all_scores() if abs(score.error) > report.LISTED_FROM]
    assert far
    assert "not known" not in {cause_of(score.case.row) for score in far}
    assert cause_of(TUNED[4]) == "not known"


def test_the_fit_finds_the_constants_of_the_table():
    found, table = fit(fitting_cases()), report.constants_of_the_table()
    assert dataclasses.asdict(found) == pytest.approx(dataclasses.asdict(table), rel=0.03)


def as_if_measured(case: Case, constants: Constants) -> Case:
    """The case, had its device run exactly by these constants."""
    tokens = case.batch.micro_batch * case.batch.accum_steps * case.batch.seq_len
    speed = tokens / case.seconds(constants.reached(case.gpu.name))
    return dataclasses.replace(case, row=dataclasses.replace(case.row, tokens_per_second=speed))


def test_the_fit_recovers_the_constants_that_made_the_measurements():
    truth = Constants(
        a100_products=0.5,
        a100_scores=0.4,
        h100_products=0.7,
        h100_scores=0.2,
        elementwise_bytes=400.0,
        loss_bytes=20.0,
        overlap=0.6,
    )
    cases = [as_if_measured(case, truth) for case in fitting_cases()[::2]]
    assert dataclasses.asdict(fit(cases)) == pytest.approx(dataclasses.asdict(truth), rel=1e-3)


def synthetic(micro_batch: int, *, predicted: float, measured: float, num_ranks: int = 8) -> Score:
    """A score whose seconds for each token are given."""
    row = dataclasses.replace(TUNED[20], micro_batch=micro_batch, num_ranks=num_ranks)
    row = dataclasses.replace(row, tokens_per_second=1 / measured)
    case = case_of(row)
    seconds = predicted * case.measured / measured
    return Score(case=case, low=0.9 * seconds, mid=seconds, high=1.1 * seconds, is_fitted=False)


def test_a_choice_is_right_within_a_twentieth_and_wrong_beyond():
    near = [synthetic(1, predicted=2, measured=2), synthetic(2, predicted=1, measured=2.09)]
    wrong = [synthetic(1, predicted=2, measured=2), synthetic(2, predicted=1, measured=2.2)]
    assert (ranking(near, same_devices).right, ranking(near, same_devices).pairs) == (1, 0)
    found = ranking(wrong, same_devices)
    assert (found.groups, found.right, found.pairs, found.pairs_right) == (1, 0, 1, 0)
    ((picked, best, lost),) = found.misses
    assert (picked, best, lost) == (wrong[1], wrong[0], pytest.approx(0.1))
    apart = [wrong[0], synthetic(2, predicted=1, measured=2.2, num_ranks=16)]
    assert ranking(apart, same_devices).groups == 0
    assert ranking(apart, same_model).groups == 1


def test_a_line_counts_the_measurements_in_the_band():
    inside, outside = (
        synthetic(1, predicted=1.05, measured=1.0),
        synthetic(2, predicted=1.2, measured=1.0),
    )
    total = lines([inside, outside])[-1]
    assert (total.name, total.summary.count, total.within) == ("everything", 2, 1)
    assert total.summary.worst_over == pytest.approx(0.2)


def test_the_page_holds_the_tables_of_today():
    text = report.DOCUMENT.read_text(encoding="utf-8")
    assert text.count(report.BEGIN) == text.count(report.END) == 1
    for part in (
        report.error_table(all_scores()),
        report.ranking_text(all_scores()),
        report.row_table(all_scores()),
        report.other_constants_table(),
    ):
        assert part in text


def test_the_command_prints_every_row_when_asked(capsys):
    assert main(["--rows"]) == 0
    printed = capsys.readouterr().out
    assert all(row.id in printed for row in ROWS)


def test_rows_say_what_they_do_not_know():
    (row,) = [row for row in ROWS if row.model == "Llama-2-7B" and row.method == "qlora"]
    assert isinstance(row, Row)
    assert (row.params, row.seq_len, row.accum_steps, row.micro_batch_ms) == (
        None,
        None,
        None,
        220.8,
    )
