"""The accuracy benchmark: rows, mappings, statistics and report, without tracing anything."""

from __future__ import annotations

import dataclasses
import doctest
import json
import re
from collections import Counter
from pathlib import Path
from types import ModuleType

import pytest
from console_blocks import ROOT

from batchplan.api.recipes import fill
from batchplan.api.request import resolve
from batchplan.spec import Batch, Cluster, Recipe
from benchmarks.accuracy import gpus, report, results, rows, statistics
from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.environments import ENVIRONMENTS
from benchmarks.accuracy.models import model_for, own_model
from benchmarks.accuracy.replay import (
    CURRENT,
    DIED,
    MATCHED,
    RAN,
    RIGHT,
    TIGHT,
    Comparison,
    Score,
    ask,
    replay,
    sort_rows,
    versions_for,
)
from benchmarks.accuracy.rows import MEASURED_DIR, Row, held_out, load_rows
from benchmarks.accuracy.sources import case_of
from benchmarks.accuracy.stated import gap_of
from benchmarks.accuracy.statistics import average, percentile, relative_error, summarise
from benchmarks.peers import questions as peer_questions
from benchmarks.peers.answers import Answers, summary_of
from benchmarks.peers.tools import NOT_ASKED, TOOLS

ROWS = load_rows()
SCORABLE, OTHERS = sort_rows(ROWS)
SIZES = ("devices", "micro_batch", "accum_steps")


def test_rows_have_unique_ids_and_say_where_they_were_read():
    assert len({row.id for row in ROWS}) == len(ROWS) > 600
    assert all(row.source_repo and row.source_path for row in ROWS)
    assert {row.grade for row in ROWS} == {"A", "B", "C"}
    assert {row.scope for row in ROWS} == {"train_step", "component"}


def test_every_file_holds_the_rows_of_its_source():
    for path in MEASURED_DIR.glob("*.jsonl"):
        lines = path.read_text(encoding="utf-8").splitlines()
        assert {json.loads(line)["source_group"] for line in lines} == {path.stem}


def test_a_scorable_row_has_something_to_compare_with():
    for row, case in SCORABLE:
        is_verdict = case.gpu_is_known and row.outcome in ("fits", "oom")
        assert row.measured or is_verdict, row.id
        low, high = row.measured or (1, 1)
        assert 0 < low <= high


def test_every_scorable_row_is_a_question_that_estimate_takes():
    """Inputs are resolved, filled and checked as ``estimate`` does it, up to the trace."""
    for row, case in SCORABLE:
        sizes = {name: case.fields[name] for name in SIZES}
        fields = {name: value for name, value in case.fields.items() if name not in sizes}
        request = resolve(case.model, fields | {"offline": True})
        fill(request.given, {})
        Cluster(num_ranks=sizes["devices"])
        Batch(
            micro_batch=sizes["micro_batch"],
            accum_steps=sizes["accum_steps"],
            num_ranks=sizes["devices"],
            seq_len=request.seq_len,
        )
        assert case.environment is None or case.environment in ENVIRONMENTS, row.id


def test_rows_that_are_not_scored_give_a_reason():
    assert all(reason.strip() for _, reason in OTHERS)
    assert len(SCORABLE) + len(OTHERS) == len(ROWS)
    assert len(SCORABLE) > 250


@pytest.mark.parametrize("parallel", ["tp", "pp"])
def test_split_models_are_never_scored(parallel: str):
    for row, _ in SCORABLE:
        assert getattr(row, parallel) == 1


def test_held_out_rows_are_chosen_by_the_hash_of_their_id():
    """Fixed examples: the choice must never move, or what was held out has been seen."""
    assert [number for number in range(12) if held_out(f"row-{number}")] == [7]
    assert held_out("a")
    share = sum(row.is_held_out for row, _ in SCORABLE) / len(SCORABLE)
    assert 0.15 < share < 0.25


def test_error_is_zero_where_the_intervals_meet():
    assert relative_error((100, 100), (100, 100)) == 0
    assert relative_error((105, 105), (100, 107)) == 0
    assert relative_error((100, 110), (105, 105)) == 0
    assert relative_error((80, 80), (100, 107)) == pytest.approx(-0.2)
    assert relative_error((214, 214), (100, 107)) == pytest.approx(1.0)


def test_summary_of_a_hand_example():
    found = summarise([0.10, -0.30, 0.02, -0.06, 0.0])
    assert found is not None
    assert found.count == 5
    assert found.mean == pytest.approx(0.096)
    assert found.median == pytest.approx(0.06)
    assert found.p95 == pytest.approx(0.26)  # between 0.10 and 0.30 at place 3.8
    assert (found.worst_over, found.worst_under) == (0.10, -0.30)
    assert summarise([]) is None
    assert percentile([7.0], 0.95) == 7.0


def test_sources_weigh_the_same_however_many_rows_they_have():
    many, one = summarise([0.1] * 9), summarise([-0.3])
    whole = average([many, one, None])
    assert whole is not None
    assert whole.count == 10
    assert whole.mean == pytest.approx(0.2)
    assert (whole.worst_over, whole.worst_under) == (pytest.approx(0.1), pytest.approx(-0.3))
    assert average([None]) is None


def score(row_id: str, versions: str, predicted: int, **changes: object) -> Score:
    blank = Score(
        row_id=row_id,
        source="lab",
        is_counted=True,
        is_held_out=False,
        versions=versions,
        comparisons=(
            Comparison(
                quantity="allocated", predicted=(predicted, predicted), measured=(10**9, 10**9)
            ),
        ),
        predicted_fits=True,
        measured_fits=True,
        peak_phase="optimizer step",
    )
    return dataclasses.replace(blank, **changes)  # type: ignore[arg-type]


EXAMPLE = results.Results(
    batchplan="0",
    libraries={CURRENT: {"transformers": "5"}},
    scores=(
        score("a", CURRENT, 1_200_000_000),
        score("a", MATCHED, 1_010_000_000),
        score("b", CURRENT, 900_000_000, measured_fits=False),
        score("c", CURRENT, 0, comparisons=(), failure="TraceError: no"),
        score("d", CURRENT, 5_000_000_000, is_counted=False),
    ),
    not_scored=(results.NotScored(source="lab", reason="a kernel", row_ids=("e", "f")),),
    held_out=(),
)


def test_matched_versions_win_where_there_are_any():
    chosen = results.with_versions(EXAMPLE.scores, MATCHED)
    assert [(one.row_id, one.versions) for one in chosen][:2] == [("a", MATCHED), ("b", CURRENT)]
    tables = {
        (line.source, line.versions): line.summary
        for line in results.lines(EXAMPLE.scores)
        if not line.is_stated
    }
    assert tables["lab", MATCHED].mean == pytest.approx((0.01 + 0.1) / 2)
    assert tables["lab", CURRENT].mean == pytest.approx((0.2 + 0.1) / 2)
    assert tables["all", MATCHED].count == 2


def test_rows_that_are_fully_stated_are_averaged_apart():
    scores = [score("a", CURRENT, 1_100_000_000), score("b", CURRENT, 10**9, is_stated=False)]
    tables = {line.is_stated: line.summary for line in results.lines(scores, (CURRENT,))}
    assert (tables[True].count, tables[False].count) == (1, 2)
    assert tables[True].mean == pytest.approx(0.1)
    assert tables[False].mean == pytest.approx(0.05)


@pytest.mark.parametrize(
    ("predicted", "is_tight", "measured", "verdict"),
    [
        (True, False, True, RIGHT),
        (True, False, False, DIED),
        (False, False, True, RAN),
        (False, True, True, TIGHT),
        (False, True, False, RIGHT),
        (False, False, False, RIGHT),
        (None, False, True, ""),
        (True, False, None, ""),
    ],
)
def test_a_verdict_says_which_way_it_went_wrong(
    predicted: bool | None, is_tight: bool, measured: bool | None, verdict: str
):
    one = score("a", CURRENT, 1, predicted_fits=predicted, is_tight=is_tight)
    assert dataclasses.replace(one, measured_fits=measured).verdict == verdict


def test_verdicts_are_counted_over_stated_rows_and_over_all():
    scores = [
        score("a", CURRENT, 1),
        score("b", CURRENT, 1, measured_fits=False, is_stated=False),
        score("c", CURRENT, 1, predicted_fits=False),
        score("d", CURRENT, 1, predicted_fits=False, is_tight=True),
    ]
    stated, whole = results.verdicts(scores, CURRENT)
    assert (stated.ran, stated.ran_called_impossible, stated.ran_called_too_tight) == (3, 1, 1)
    assert (stated.died, whole.died, whole.died_called_fitting) == (0, 1, 1)
    assert [one.row_id for one in results.wrong_verdicts(scores, CURRENT)] == ["b", "c", "d"]


def test_the_runs_in_the_readme_have_the_figures_of_the_results():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    cells = r"\| ([\d,]+) \| ([\d,]+) \| (\S+) % \|"
    said = [
        [float(cell.replace(",", "")) for cell in row]
        for row in re.findall(rf"^\| [^|]+ {cells[:-3]} {cells}$", readme, re.MULTILINE)
    ]
    known = {}
    for one in results.load().scores:
        if one.source == "fms-acceleration" and one.versions == MATCHED:
            live, used = one.comparisons
            measured = live.measured[0], round(used.measured[0] / 2**20)
            known[measured] = live.predicted[0], round(used.predicted[0] / 2**20)
    # The others are held out, and their errors are in no file.
    found = [row for row in said if (row[1], row[4]) in known]
    assert len(said) == 9
    assert len(found) >= 5
    for live, live_measured, live_error, used, used_measured, used_error in found:
        assert (live, used) == known[live_measured, used_measured]
        assert live_error == pytest.approx(100 * (live / live_measured - 1), abs=0.06)
        assert used_error == pytest.approx(100 * (used / used_measured - 1), abs=0.06)


def test_what_a_row_leaves_open_does_not_depend_on_how_near_the_answer_is():
    gaps = {row.source_group for row, _ in SCORABLE if gap_of(row)}
    whole = {row.source_group for row, _ in SCORABLE if not gap_of(row)}
    assert {"fms-acceleration", "hf-transformers-docs", "rasbt", "litgpt"} <= whole
    assert {"ms-swift", "galvatron", "llmq-llamafactory"} <= gaps
    assert all(gap_of(row) for row in ROWS if row.grade == "C")
    fields = {field.name for field in dataclasses.fields(Row)}
    assert not {"error", "predicted"} & fields


def test_every_field_of_the_recipe_is_given_so_that_no_trainer_fills_one(monkeypatch):
    import batchplan

    seen = {}
    monkeypatch.setattr(batchplan, "estimate", lambda model, **fields: seen.update(fields))
    for _, case in SCORABLE[::25]:
        seen.clear()
        ask(case, CURRENT)
        missing = Recipe.model_fields.keys() - seen.keys()
        assert all(Recipe().model_dump()[name] is None for name in missing)


def test_own_code_is_read_from_a_folder_that_names_its_classes():
    folder = Path(own_model("gpt_from_scratch", native=True))
    assert json.loads((folder / "config.json").read_text())["native"] is True
    assert own_model("gpt_from_scratch", native=True) == str(folder)
    for name in ("bert_2022", "gpt_from_scratch", "lightning_demo"):
        assert json.loads(Path(own_model(name), "config.json").read_text())["auto_map"]


def test_other_tools_have_an_adapter_each():
    adapters = Path(peer_questions.__file__).with_name("adapters")
    assert {f"{tool.adapter}.py" for tool in TOOLS} <= {path.name for path in adapters.iterdir()}
    assert len({tool.name for tool in TOOLS} | NOT_ASKED.keys()) == len(TOOLS) + len(NOT_ASKED)


def test_ours_is_averaged_over_the_rows_that_a_tool_answered(tmp_path: Path):
    asked = [
        peer_questions.Question(
            row_id=name, source="lab", measured=10**9, our_error=error, document={}
        )
        for name, error in (("a", 0.01), ("b", 0.5))
    ]
    found = summary_of(TOOLS[0], asked, [{"bytes": 1_200_000_000}, {"reason": "qlora"}])
    assert found.tool is not None
    assert found.ours is not None
    assert (found.tool.count, found.ours.count) == (1, 1)
    assert (found.tool.mean, found.ours.mean) == (pytest.approx(0.2), pytest.approx(0.01))
    assert found.refusals == {"qlora": 1}
    path = tmp_path / "answers.json"
    path.write_text(Answers.dump([found]), encoding="utf-8")
    assert Answers.load(path) == (found,)


def test_the_report_tells_wrong_cases_failures_and_what_was_not_scored():
    text = report.document(EXAMPLE)
    assert text == report.document(EXAMPLE)
    assert "| b | yes | ran out of memory, called fitting |" in text
    assert "| lab | 2 | a kernel |" in text
    assert "- c (current): TraceError: no" in text
    assert "| b | yes | current | allocated | 0.900 | 1.000 | -10.0 % | optimizer step |" in text
    assert "| d | yes | current | allocated | 5.000 |" in text.partition("## Rows outside")[2]
    assert "| a | current" not in text  # listed with the versions it was measured with, or not


def test_results_survive_a_round_trip(tmp_path: Path):
    path = tmp_path / "results.json"
    results.save(EXAMPLE, path)
    assert results.load(path) == EXAMPLE
    assert all(json.loads(path.read_text())[name] is not None for name in ("scores", "held_out"))


def test_held_out_rows_are_published_as_averages_alone():
    found = results.held_out_lines(EXAMPLE.scores)
    assert {line.source for line in found} == {"all"}
    if results.RESULTS_FILE.is_file():
        kept = {one.row_id for one in results.load().scores}
        assert not any(held_out(row_id) for row_id in kept)


def test_the_document_is_what_the_committed_results_generate():
    expected = report.document(results.load())
    assert report.DOCUMENT.read_text(encoding="utf-8") == expected


def test_committed_results_cover_the_rows_that_are_scored_today():
    kept = {one.row_id for one in results.load().scores}
    assert kept == {row.id for row, _ in SCORABLE if not row.is_held_out}


def test_a_row_that_raises_is_a_failure_and_no_crash():
    row = next(row for row, _ in SCORABLE)
    case = Case(model="no/such-model", fields={"gpu": "a100-80gb"})
    found = replay(row, case, CURRENT)
    assert found.failure.startswith("SourceError")
    assert not found.comparisons
    assert replay(row, Case(model="gpt2", fields={"gpu": "no-such-gpu"}), CURRENT).failure


def test_a_row_is_traced_with_the_versions_that_it_has():
    both = (MATCHED, CURRENT)
    plain = Case(model="gpt2", fields={})
    assert versions_for(plain, both) == versions_for(plain, (MATCHED,)) == (CURRENT,)
    own = dataclasses.replace(plain, environment="transformers-4.48")
    assert versions_for(own, (MATCHED,)) == (MATCHED,)
    assert versions_for(own, both) == both
    bound = dataclasses.replace(own, needs_environment=True)
    assert versions_for(bound, (CURRENT,)) == versions_for(bound, both) == (MATCHED,)


def test_unknown_models_and_sources_are_not_scored():
    with pytest.raises(NotScoredError, match="no certain config"):
        model_for("no/such-model")
    row = dataclasses.replace(ROWS[0], source_group="elsewhere", scope="train_step")
    with pytest.raises(NotScoredError, match="no mapping"):
        case_of(row)


def test_a_cut_model_has_the_layers_asked_for():
    path = Path(model_for("meta-llama/Llama-2-13b-hf", num_hidden_layers=2))
    assert json.loads(path.read_text())["num_hidden_layers"] == 2
    assert model_for("meta-llama/Llama-2-13b-hf", num_hidden_layers=2) == str(path)


def test_every_core_row_of_the_best_grades_is_scored_or_told():
    missing = Counter(row.source_group for row, _ in OTHERS if row.is_counted)
    scored = Counter(row.source_group for row, _ in SCORABLE if row.is_counted)
    assert sum(scored.values()) > 3 * sum(missing.values())


@pytest.mark.parametrize("module", [gpus, report, rows, statistics])
def test_examples_in_docstrings_hold(module: ModuleType):
    found = doctest.testmod(module)
    assert found.attempted
    assert not found.failed


def test_rows_are_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        ROWS[0].grade = "A"  # type: ignore[misc]
    assert isinstance(ROWS[0], Row)
