"""``batchplan probe``: what it asks of a device, what it says of the trials, and how it ends."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from dataclasses import dataclass, field, replace

import pytest
from console_blocks import ROOT
from test_docs import unmentioned

import batchplan
from batchplan.api import probe
from batchplan.cli.main import run
from batchplan.errors import ProbeError, SpecError
from batchplan.memory.device import COMMUNICATOR_BYTES
from batchplan.prober.measurement import load_all
from batchplan.prober.politeness import Process, State, without_cuda
from batchplan.prober.trial import Device, Job, Outcome, RankPeaks, Trial
from batchplan.render.probe import print_probe
from batchplan.sources import find_gpu
from batchplan.units import GIB, MIB

KEYS = {
    *("schema_version", "command", "inputs", "versions", "model", "device", "batch", "numerics"),
    *("fits", "intent", "measurement", "caveats"),
}
TRIAL_KEYS = {
    *("micro_batch", "outcome", "allocated_peak_bytes", "reserved_peak_bytes"),
    *("in_use_peak_bytes", "step_seconds", "seconds", "text", "ranks"),
}
ASKED = {"seq_len": 64, "numerics": "bf16-autocast"}
CONTEXT = 500 * MIB


@dataclass
class Machine:
    """A device made of a straight line: what a trial takes, and what there is."""

    fixed_bytes: int = 2 * GIB
    each_bytes: int = 700 * MIB
    total_bytes: int = 16 * GIB
    end: Outcome | None = None
    """Of every trial, whatever it takes."""
    num_devices: int = 1
    jobs: list[Job] = field(default_factory=list)
    tried: list[int] = field(default_factory=list)

    def __call__(self, job: Job, *, on_progress):
        """In place of the runner's ``Trials``."""

        def attempt(micro_batch: int) -> Trial:
            if on_progress is not None:
                on_progress("building the model")
            return self.run_trial(job, micro_batch)

        return nullcontext(attempt)

    def run_trial(self, job: Job, micro_batch: int) -> Trial:
        self.jobs.append(job)
        self.tried.append(micro_batch)
        peak = self.peak(micro_batch)
        room = min(self.total_bytes, job.memory_limit_bytes or self.total_bytes)
        outcome = self.end or (Outcome.FITS if peak <= room else Outcome.OUT_OF_MEMORY)
        if outcome is not Outcome.FITS:
            return Trial(micro_batch=micro_batch, outcome=outcome, text="it said so", seconds=9)
        ranks = tuple(
            RankPeaks(
                rank=rank,
                allocated_peak_bytes=peak - CONTEXT - 300 * MIB,
                reserved_peak_bytes=peak - CONTEXT - 100 * MIB,
                in_use_peak_bytes=peak - rank,
                context_bytes=CONTEXT,
                num_retries=0,
            )
            for rank in range(job.num_ranks)
        )
        return Trial(
            micro_batch=micro_batch,
            outcome=outcome,
            ranks=ranks,
            step_seconds=(3.0, 0.5),
            seconds=11.0,
            versions=(("torch", "2.13.0"),),
            notes=("it is a toy",),
            device_name="NVIDIA Toy",
            total_bytes=self.total_bytes,
        )

    def peak(self, micro_batch: int) -> int:
        return self.fixed_bytes + self.each_bytes * micro_batch

    @property
    def largest(self) -> int:
        return (self.total_bytes - self.fixed_bytes) // self.each_bytes


@pytest.fixture
def machine(monkeypatch, toy_model):
    made = Machine()
    monkeypatch.setattr("batchplan.api.probing.Trials", made)

    def look(device, *, num_devices):
        made.num_devices = num_devices
        gpu = find_gpu("a100-80gb").model_copy(update={"usable_bytes": made.total_bytes})
        if device is not Device.CUDA:
            gpu = without_cuda(device, made.total_bytes)
        return State(
            device=device, gpu=gpu, total_bytes=made.total_bytes, free_bytes=made.total_bytes
        )

    monkeypatch.setattr("batchplan.api.probe_inputs.look", look)
    return made


def asked(**more):
    return probe("pythia-70m", **{**ASKED, **more})


def page(answer, width: int = 100) -> str:
    file = io.StringIO()
    print_probe(answer.to_dict(), file=file, width=width)
    return file.getvalue()


def codes(answer) -> set[str]:
    return {caveat["code"] for caveat in answer.to_dict()["caveats"]}


def test_it_finds_what_really_fits_and_says_how_far_the_estimate_was_off(machine):
    answer = asked()
    document = answer.to_dict()
    assert document.keys() == KEYS
    found = document["measurement"]
    assert found["max_micro_batch"] == machine.largest == 20
    assert found["num_trials"] == len(machine.tried) == len(found["trials"])
    assert {20, 21} <= set(machine.tried)
    assert all(trial.keys() == TRIAL_KEYS for trial in found["trials"])
    assert answer.fits
    assert not answer.failed
    assert document["batch"]["micro_batch"] == 20
    assert found["device"] == "NVIDIA Toy"
    assert found["versions"] == {"torch": "2.13.0"}
    figures = {each["name"]: each for each in found["comparison"]}
    assert list(figures) == ["allocated", "reserved", "in use", "context", "overheads"]
    in_use = figures["in use"]
    assert in_use["measured_bytes"] == machine.peak(20)
    assert in_use["predicted_bytes"] == found["predicted"]["memory"]["peak_bytes"]
    assert in_use["deviation"] == in_use["measured_bytes"] / in_use["predicted_bytes"] - 1
    assert figures["context"]["measured_bytes"] == CONTEXT
    assert figures["context"]["predicted_bytes"] == answer.gpu.context_bytes
    assert figures["overheads"]["measured_bytes"] == CONTEXT + 100 * MIB
    assert unmentioned(document) == set()
    assert {"code": "probe-note", "text": "In a trial: it is a toy."} in document["caveats"]


def test_the_first_step_warms_up_and_counts_for_no_rate(machine):
    rate = asked().to_dict()["measurement"]["tokens_per_second"]
    assert rate["measured"] == 20 * 2 * 64 / 0.5
    assert rate["predicted"] > 0


def test_every_trial_runs_the_trainers_recipe_at_the_whole_length(machine):
    answer = asked(accum_steps=4, timeout=77, weights=True, method="lora", lora_rank=4)
    (job, *others) = machine.jobs
    assert all(other == job for other in others)
    assert (job.seq_len, job.accum_steps, job.timeout_seconds) == (64, 4, 77)
    assert (job.recipe.method, job.recipe.lora_rank) == ("lora", 4)
    assert job.recipe == answer.recipe
    assert job.weights
    assert job.config["model_type"] == "gpt_neox"
    assert job.memory_limit_bytes is None  # the device is ours: it ends where its memory does


def test_a_limit_makes_a_smaller_device(machine):
    answer = asked(memory_limit="8GiB")
    assert {job.memory_limit_bytes for job in machine.jobs} == {8 * GIB}
    assert answer.found.max_micro_batch == (8 * GIB - 2 * GIB) // (700 * MIB)
    assert answer.to_dict()["device"]["usable_bytes"] == 8 * GIB


def test_a_shared_device_is_limited_to_our_share(machine, monkeypatch):
    busy = State(
        device=Device.CUDA,
        gpu=find_gpu("a100-80gb"),
        total_bytes=80 * GIB,
        free_bytes=60 * GIB,
        processes=(Process(pid=42, num_bytes=20 * GIB),),
    )
    monkeypatch.setattr("batchplan.api.probe_inputs.look", lambda device, num_devices: busy)
    machine.total_bytes = 80 * GIB
    answer = asked()
    assert {job.memory_limit_bytes for job in machine.jobs} == {56 * GIB}
    assert "probe-reserve" in codes(answer)
    said = page(answer)
    assert "56.00 GiB may be taken" in said
    assert "process 42" in said


def test_the_search_stops_where_it_is_told_to(machine):
    answer = asked(max_micro_batch=3)
    assert answer.found.max_micro_batch == 3
    assert max(machine.tried) == 3
    assert "cap reached" in page(answer)


def test_a_dry_run_touches_nothing_and_says_what_it_would_do(machine):
    answer = asked(dry_run=True)
    assert machine.tried == []
    document = answer.to_dict()
    assert document["measurement"] is None
    intent = document["intent"]
    assert intent["start_bytes"] <= intent["usable_bytes"] == 16 * GIB
    assert 1 <= intent["fewest_trials"] <= intent["most_trials"]
    assert intent["seconds"] == intent["most_trials"] * intent["trial_seconds"]
    assert "Nothing was run." in page(answer)
    assert unmentioned(document) == set()


def test_a_dry_run_on_the_predicted_curve_starts_just_below_the_boundary(machine):
    intent = asked(dry_run=True).intent
    one_more = batchplan.estimate(
        "pythia-70m",
        gpu="a100-80gb",
        accum_steps=2,
        micro_batch=intent.predicted_micro_batch + 1,
        **ASKED,
    )
    beyond = one_more.memory.in_use_peak_bytes
    assert beyond > 0.995 * 16 * GIB  # between two whole bills it is interpolated
    assert 0.9 * 16 * GIB < intent.start_bytes < 16 * GIB
    assert intent.start_micro_batch <= intent.predicted_micro_batch


def test_nothing_fits(machine, capsys):
    machine.fixed_bytes = 17 * GIB
    answer = asked()
    assert (answer.found.max_micro_batch, answer.fits, answer.failed) == (0, False, "")
    assert "Nothing fits: micro-batch 1 does not." in page(answer)
    assert run(["probe", "pythia-70m", "--seq-len", "64"]) == 3


@pytest.mark.parametrize("end", [Outcome.CRASHED, Outcome.TIMED_OUT])
def test_a_child_that_dies_for_another_reason_is_a_failed_probe(machine, capsys, end):
    machine.end = end
    answer = asked()
    assert not answer.fits
    assert "it said so" in answer.failed
    assert "The probe failed" in page(answer)
    assert run(["probe", "pythia-70m", "--seq-len", "64", "--json"]) == 4
    out, err = capsys.readouterr()
    assert json.loads(out)["measurement"]["trials"][0]["outcome"] == end.value
    assert err.startswith("error: ")
    assert err.count("\n") == 1


def test_an_empty_machine_ends_with_one_line(toy_model, monkeypatch, capsys):
    def nothing(device, *, num_devices):
        raise ProbeError("No NVIDIA driver answers on this machine.")

    monkeypatch.setattr("batchplan.api.probe_inputs.look", nothing)
    assert run(["probe", "pythia-70m"]) == 4
    out, err = capsys.readouterr()
    assert (out, err) == ("", "error: No NVIDIA driver answers on this machine.\n")
    assert toy_model.asked == []


def test_ctrl_c_ends_with_130_and_nothing_on_stdout(machine, monkeypatch, capsys):
    def interrupted(job, micro_batch):
        raise KeyboardInterrupt

    monkeypatch.setattr(machine, "run_trial", interrupted)
    assert run(["probe", "pythia-70m", "--seq-len", "64"]) == 130
    assert capsys.readouterr() == ("", "interrupted\n")


def test_progress_says_which_trial_and_what_time_is_left(machine):
    said: list[str] = []
    answer = asked(on_progress=said.append)
    trials = [text for text in said if text.startswith("trial ")]
    assert len(trials) == 2 * len(answer.found.trials)
    assert trials[0].startswith(f"trial 1 of about {answer.intent.most_trials}, about ")
    assert trials[1].endswith(" left: building the model")
    # From the second on the time is that of the trials so far, 9 or 11 s each.
    left = answer.intent.most_trials - 1
    assert any(f"about {left * each}.0 s left" in trials[2] for each in (9, 11))


def test_one_rank_alone_leaves_room_for_what_the_others_would_need(machine):
    answer = asked(as_rank_of=8, sharding="fsdp-full")
    (job, *_) = machine.jobs
    assert (job.num_ranks, job.as_rank_of) == (1, 8)
    assert machine.num_devices == 1
    left_out = 16 * GIB - job.memory_limit_bytes
    assert left_out == COMMUNICATOR_BYTES
    assert "probe-as-rank" in codes(answer)
    assert answer.batch.num_ranks == 8
    predicted = {each.name: each.predicted_bytes for each in answer.comparison}
    assert predicted["in use"] == answer.predicted.in_use_peak_bytes - left_out
    assert predicted["in use"] == predicted["reserved"] + predicted["overheads"]
    assert answer.found.max_micro_batch == (16 * GIB - left_out - 2 * GIB) // (700 * MIB)


def test_several_ranks_are_told_apart(machine):
    answer = asked(devices=2, sharding="fsdp-full")
    assert machine.num_devices == 2
    assert {job.num_ranks for job in machine.jobs} == {2}
    assert [rank.rank for rank in answer.found.best.ranks] == [0, 1]
    assert "Ranks at micro-batch 20" in page(answer)


def test_on_the_cpu_only_live_tensors_stand_beside_the_estimate(machine, monkeypatch):
    real = machine.run_trial

    def bare(job, micro_batch):
        trial = real(job, micro_batch)
        ranks = tuple(replace(each, reserved_peak_bytes=None) for each in trial.ranks)
        return replace(trial, ranks=ranks)

    monkeypatch.setattr(machine, "run_trial", bare)
    answer = asked(device="cpu", memory_limit="8GiB")
    document = answer.to_dict()
    assert [each["name"] for each in document["measurement"]["comparison"]] == ["allocated"]
    terms = {
        term["name"]: term["bytes"]
        for term in document["measurement"]["predicted"]["memory"]["terms"]
    }
    assert [terms[name] for name in ("CUDA context", "cuBLAS workspace", "libraries")] == [0, 0, 0]
    assert document["measurement"]["tokens_per_second"]["predicted"] is None
    assert "probe-not-cuda" in codes(answer)


def test_asking_again_with_the_inputs_asks_the_same(machine):
    answer = asked(memory_limit="8GiB", accum_steps=3, max_micro_batch=64)
    inputs = {name: value for name, value in answer.inputs.items() if value is not None}
    again = probe(**inputs)
    assert again.inputs == answer.inputs
    assert again.to_dict()["measurement"] == answer.to_dict()["measurement"]


def test_a_saved_probe_is_one_file_and_unasked_nothing_is_written(machine, monkeypatch, tmp_path):
    monkeypatch.setenv("BATCHPLAN_DATA", str(tmp_path))
    assert asked().saved_to is None
    assert list(tmp_path.iterdir()) == []
    answer = asked(save=True)
    (path,) = tmp_path.rglob("*.json")
    assert answer.saved_to == path
    assert answer.to_dict()["measurement"]["saved_to"] == str(path)
    assert f"Saved to {path}." in page(answer, width=300)
    (kept,) = load_all().measurements
    assert (kept.max_micro_batch, kept.comparison) == (20, answer.comparison)
    machine.fixed_bytes = 17 * GIB
    assert asked(save=True).saved_to is None


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"device": "tpu"}, "--device 'tpu' is none of cuda, cpu, mps, auto"),
        ({"device": "cpu"}, "--device cpu needs --memory-limit SIZE"),
        ({"memory_limit": "24"}, "--memory-limit: '24' has no unit"),
        ({"accum_steps": 1}, "--accum-steps 1 is too small: at least 2"),
        ({"max_micro_batch": 0}, "--max-micro-batch 0 is too small"),
        ({"timeout": 0}, "--timeout 0 must be seconds"),
        ({"timeout": "nan"}, "--timeout 'nan' must be seconds"),
        ({"as_rank_of": 1}, "--as-rank-of 1 is too small: at least 2"),
        ({"as_rank_of": 2, "devices": 2}, "no --devices"),
        ({"gpu": "a100-80gb"}, "--device, not --gpu"),
        ({"params": "7B"}, "--params: probe trains a model"),
        ({"nodes": 2}, "--nodes: probe trains a model on one machine"),
        ({"surprise": 2}, "Unknown input 'surprise'"),
    ],
)
def test_bad_input_is_told_before_anything_runs(machine, given, said):
    with pytest.raises(SpecError) as caught:
        asked(**given)
    assert said in str(caught.value)
    assert machine.tried == []


@pytest.fixture
def local(machine, monkeypatch):
    """``--gpu local`` is the machine."""
    gpu = find_gpu("a100-80gb").model_copy(update={"usable_bytes": machine.total_bytes})
    state = State(device=Device.CUDA, gpu=gpu, total_bytes=16 * GIB, free_bytes=16 * GIB)
    monkeypatch.setattr("batchplan.sources.local_gpu.local_gpu", lambda: gpu)

    def look(device, *, num_devices=1):
        if num_devices > machine.num_devices:
            raise ProbeError("there are not so many")
        return state

    machine.num_devices = 1
    monkeypatch.setattr("batchplan.api.probed_plans.look", look)
    monkeypatch.setattr("batchplan.api.probed_plans.Trials", machine)
    return machine


def recommended(**more):
    wanted = {"gpu": "local", "target_sequences": 64, "tolerance": 0.5, **ASKED, **more}
    return batchplan.recommend("pythia-70m", **wanted)


def probed(answer) -> list[str]:
    return [each["text"] for each in answer.to_dict()["caveats"] if each["code"] == "probed"]


def test_a_plan_that_holds_keeps_its_place(local):
    local.each_bytes = MIB
    before = recommended()
    answer = recommended(probe=True)
    size = before.plans[0].batch.micro_batch
    assert local.tried == [size, size + 1]
    assert [plan.batch for plan in answer.plans] == [plan.batch for plan in before.plans]
    (said,) = probed(answer)
    assert f"micro-batch {size}" in said
    assert "it runs with" in said
    assert said.endswith(f"Micro-batch {size + 1} runs as well.")
    assert answer.inputs["probe"] is True
    assert local.jobs[0].accum_steps == min(2, before.plans[0].batch.accum_steps)


def test_a_plan_that_does_not_hold_is_left_out(local, monkeypatch):
    before = recommended()
    first, second, *_ = before.plans
    real = local.run_trial

    def runs_but_the_first(job, micro_batch):
        local.each_bytes = 17 * GIB if job.recipe == first.recipe else MIB
        return real(job, micro_batch)

    monkeypatch.setattr(local, "run_trial", runs_but_the_first)
    answer = recommended(probe=True)
    assert first.recipe != second.recipe
    assert [plan.recipe for plan in answer.plans] == [plan.recipe for plan in before.plans[1:]]
    said = probed(answer)
    assert "Probed plan 1" in said[0]
    assert "it runs out of memory here, so it was left out." in said[0]
    assert "Probed plan 2" in said[1]
    assert "it runs with" in said[1]


def test_where_no_plan_holds_nothing_fits(local, capsys):
    before = recommended()
    local.fixed_bytes = 17 * GIB
    answer = recommended(probe=True)
    assert not answer.fits
    assert answer.to_dict()["closest"]["micro_batch"] == before.plans[0].batch.micro_batch
    assert len(probed(answer)) == len(before.plans)
    command = ["recommend", "pythia-70m", "--gpu", "local", "--seq-len", "64", "--probe", "-q"]
    assert run(command) == 3


def test_a_crash_tells_nothing_against_a_plan(local):
    before = recommended()
    local.end = Outcome.CRASHED
    answer = recommended(probe=True)
    assert [plan.batch for plan in answer.plans] == [plan.batch for plan in before.plans]
    assert "tells nothing of memory: it said so" in probed(answer)[0]


def test_a_rank_of_a_cluster_is_probed_alone_or_not_at_all(local, monkeypatch):
    local.each_bytes = MIB
    answer = recommended(probe=True, devices=4, sharding="fsdp-full")
    assert {(job.num_ranks, job.as_rank_of) for job in local.jobs} == {(1, 4)}
    assert "as one rank of 4" in probed(answer)[0]
    local.jobs.clear()
    local.num_devices = 4
    assert "as one rank" not in probed(recommended(probe=True, devices=4, sharding="fsdp-full"))[0]
    assert {(job.num_ranks, job.as_rank_of) for job in local.jobs} == {(4, None)}

    def refuse(job, *, on_progress):
        raise SpecError("it needs every rank.")

    monkeypatch.setattr("batchplan.api.probed_plans.Trials", refuse)
    before = recommended(devices=4, sharding="fsdp-full")
    answer = recommended(probe=True, devices=4, sharding="fsdp-full")
    assert [plan.batch for plan in answer.plans] == [plan.batch for plan in before.plans]
    assert probed(answer) == ["Not probed further: it needs every rank."]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"gpu": "a100-80gb"}, "the plans are for a100-80gb. Use --gpu local"),
        ({"gpu": "local", "params": "7B"}, "--params has none"),
    ],
)
def test_only_this_machines_gpu_can_be_probed(local, given, said):
    model = None if "params" in given else "pythia-70m"
    with pytest.raises(SpecError, match=said):
        batchplan.recommend(model, probe=True, **given)
    assert run(["recommend", "pythia-70m", "--gpu", "any", "--probe"]) == 2


def on_this_cpu(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchplan", "probe", *arguments, "--device", "cpu"],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
        check=False,
    )


@pytest.fixture(scope="module")
def tiny(tmp_path_factory) -> str:
    """A Llama that trains in a moment."""
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 2},
        **{"num_attention_heads": 4, "num_key_value_heads": 4, "vocab_size": 512},
        **{"max_position_embeddings": 1024, "tie_word_embeddings": False},
    }
    path = tmp_path_factory.mktemp("tiny") / "config.json"
    path.write_text(json.dumps(config))
    return str(path)


@pytest.mark.slow
@pytest.mark.xdist_group("probe")
def test_the_command_trains_on_the_cpu_until_memory_really_runs_out(tiny):
    done = on_this_cpu(tiny, "--memory-limit", "96MiB", "--seq-len", "256", "--json")
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert unmentioned(document) == set()
    found = document["measurement"]
    outcomes = {trial["micro_batch"]: trial["outcome"] for trial in found["trials"]}
    largest = found["max_micro_batch"]
    assert (outcomes[largest], outcomes[largest + 1]) == ("fits", "out-of-memory")
    assert found["num_trials"] <= 6
    (allocated,) = found["comparison"]
    assert allocated["name"] == "allocated"
    assert allocated["measured_bytes"] < 96 * MIB
    assert done.stderr == ""


@pytest.mark.slow
@pytest.mark.xdist_group("probe")
def test_the_command_says_when_nothing_fits(tiny):
    done = on_this_cpu(tiny, "--memory-limit", "8MiB", "--seq-len", "256")
    assert (done.returncode, done.stderr) == (3, "")
    assert "Nothing fits: micro-batch 1 does not." in done.stdout


def test_the_function_is_not_hidden_by_a_package_of_its_name():
    script = "import batchplan.prober.trial\nfrom batchplan import probe\nprint(callable(probe))"
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert done.stdout.strip() == "True"
