"""``python -m benchmarks.gpu_check``: the grid, the table, and a miniature of it on the CPU."""

from __future__ import annotations

import json
import time
from contextlib import nullcontext

import pytest

from batchplan.errors import ProbeError, SpecError
from batchplan.prober.politeness import State
from batchplan.prober.trial import Device, Outcome, RankPeaks, Trial
from batchplan.sources import find_gpu, resolve_model
from batchplan.units import GIB
from benchmarks.gpu_check.__main__ import main
from benchmarks.gpu_check.grid import METHODS, MODELS, SETTINGS, grid


def test_every_quarter_of_the_grid_has_every_model_by_every_method():
    cases = list(grid())
    pairs = {(model, method) for model in MODELS for method in METHODS}
    quarter = len(pairs)
    assert len(cases) == len(set(cases)) == quarter * len(SETTINGS)
    for start in range(0, len(cases), quarter):
        found = cases[start : start + quarter]
        assert {(case.model, case.method) for case in found} == pairs
        assert {(case.checkpointing, case.seq_len) for case in found} == set(SETTINGS)


def test_the_models_are_of_the_catalog_and_of_half_a_billion_to_eight():
    assert set(METHODS) == {"full", "lora", "qlora"}
    for model in MODELS:
        assert resolve_model(model, offline=True).info.source.startswith("catalog")


@pytest.fixture
def machine(monkeypatch, toy_model):
    """A GPU whose every trial takes what the estimate says and a tenth more."""

    def attempt(job, micro_batch):
        if job.recipe.method == "qlora":
            raise SpecError("bitsandbytes is not installed.")
        return Trial(
            micro_batch=micro_batch,
            outcome=attempt.outcome,
            ranks=(
                RankPeaks(
                    rank=0,
                    allocated_peak_bytes=10 * GIB,
                    reserved_peak_bytes=11 * GIB,
                    in_use_peak_bytes=12 * GIB,
                    context_bytes=GIB // 2,
                    num_retries=0,
                ),
            ),
            step_seconds=(2.0, 1.0),
            seconds=5.0,
            device_name="NVIDIA Toy",
            versions=(("torch", "2.13.0"),),
        )

    attempt.outcome = Outcome.FITS
    state = State(
        device=Device.CUDA, gpu=find_gpu("a100-80gb"), total_bytes=80 * GIB, free_bytes=80 * GIB
    )
    monkeypatch.setattr("batchplan.api.probe_inputs.look", lambda device, num_devices: state)
    monkeypatch.setattr(
        "benchmarks.gpu_check.measure.Trials",
        lambda job, on_progress: nullcontext(lambda size: attempt(job, size)),
    )
    return attempt


def check(tmp_path, *arguments: str) -> dict:
    path = tmp_path / "found.json"
    assert main(["-o", str(path), *arguments]) == 0
    return json.loads(path.read_text())


def test_predicted_and_measured_stand_beside_each_other(machine, tmp_path, capsys):
    document = check(tmp_path)
    assert (document["device"], document["num_left_out"]) == ("NVIDIA Toy", 0)
    assert len(document["cases"]) == 48
    ran = [case for case in document["cases"] if case["outcome"] == "fits"]
    assert {case["method"] for case in ran} == {"full", "lora"}
    for case in ran:
        assert 1 <= case["micro_batch"] <= 16
        assert case["measured"]["allocated"] == 10 * GIB
        assert case["predicted"].keys() == case["measured"].keys()
    refused = [case for case in document["cases"] if case["outcome"] == "refused"]
    assert {case["method"] for case in refused} == {"qlora"}
    said = capsys.readouterr().out
    error = ran[0]["predicted"]["allocated"] / (10 * GIB) - 1
    assert f"{100 * error:+.1f} %" in said
    assert "bitsandbytes is not installed." in said


def test_what_was_predicted_to_fit_and_did_not_is_named(machine, tmp_path, capsys):
    machine.outcome = Outcome.OUT_OF_MEMORY
    check(tmp_path)
    assert "Predicted to fit, and did not: qwen2.5-0.5b full none 1024, " in capsys.readouterr().out


def test_the_budget_ends_it_between_cases(machine, tmp_path, monkeypatch, capsys):
    now = time.monotonic()
    ticks = iter(range(1000))
    monkeypatch.setattr("benchmarks.gpu_check.__main__.time.monotonic", lambda: now + next(ticks))
    document = check(tmp_path, "--budget", "20")
    assert 2 <= len(document["cases"]) <= 10
    assert document["num_left_out"] == 48 - len(document["cases"])
    assert f"{document['num_left_out']} more were left out" in capsys.readouterr().out


def test_without_a_gpu_it_is_one_line_and_exit_4(monkeypatch, tmp_path, capsys):
    def nothing(device, num_devices):
        raise ProbeError("The NVIDIA driver shows no GPU.")

    monkeypatch.setattr("batchplan.api.probe_inputs.look", nothing)
    path = tmp_path / "found.json"
    assert main(["-o", str(path)]) == 4
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: The NVIDIA driver shows no GPU.\n")
    assert not path.exists()


@pytest.mark.slow
@pytest.mark.xdist_group("probe")
def test_a_miniature_really_trains_on_the_cpu(tmp_path, capsys):
    document = check(tmp_path, "--device", "cpu", "--tiny", "--memory-limit", "256MiB")
    assert [case["outcome"] for case in document["cases"]] == ["fits"] * 3
    by_way = {
        (c["method"], c["checkpointing"]): c["measured"]["allocated"] for c in document["cases"]
    }
    assert by_way["full", "full"] < by_way["full", "none"]
    assert by_way["lora", "none"] < by_way["full", "none"]
    assert "allocated" in capsys.readouterr().out
