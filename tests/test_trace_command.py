"""``batchplan trace``: what it says of a recording, and the command as its users meet it."""

from __future__ import annotations

import io
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
from console_blocks import ROOT

import batchplan
from batchplan.allocator import Allocation, Recording, live_peak, replay
from batchplan.api.peaks import REMAINDERS, TEMPORARIES
from batchplan.errors import SpecError
from batchplan.memory.device import libraries_bytes
from batchplan.render.trace import print_trace
from batchplan.tracer.recording import RecordedRun
from batchplan.units import GIB, MIB

KEYS = {
    *("schema_version", "command", "inputs", "versions", "model", "batch", "memory", "device"),
    *("numerics", "fits", "headroom_bytes", "runs_out_in", "retries", "timeline", "peak"),
    "caveats",
}
MEMORY_KEYS = {
    *("allocated_peak_bytes", "reserved_peak_bytes", "in_use_peak_bytes"),
    *("smallest_card_bytes", "libraries_bytes", "peak_phase"),
}
PEAK_KEYS = {
    *("step", "phase", "module", "op", "binds", "text", "by_kind", "by_module"),
    "top_allocations",
}
SMALL = ["trace", "qwen2.5-0.5b", "--seq-len", "128", "--micro-batch", "1"]


def environment(**more: str) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100", "NO_COLOR": "", **more}


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchplan", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(**more),
        check=False,
    )


class Story:
    """A recording written by hand: start, then steps of named phases."""

    def __init__(self) -> None:
        self.allocations: list[Allocation] = []
        self.events: list[int] = []
        self.marks: list[tuple[int, str]] = []

    def make(self, mib: float, kind: str = "activations", module: str = "", op: str = "mm") -> int:
        number = len(self.allocations)
        self.allocations.append(
            Allocation(num_bytes=int(mib * MIB), kind=kind, module=module, op=op)
        )
        self.events.append(number)
        return number

    def free(self, *numbers: int) -> None:
        self.events.extend(~number for number in numbers)

    def mark(self, text: str) -> None:
        self.marks.append((len(self.events), text))

    def told(self) -> Recording:
        return Recording(
            allocations=tuple(self.allocations),
            events=tuple(self.events),
            marks=tuple(self.marks),
        )


def plain_steps(
    *, weights: float = 100, activations: dict[str, float] | None = None, update: float = 0
) -> Recording:
    """Three steps of one micro-batch: forward makes, backward drops, the update may need more."""
    story = Story()
    story.make(weights, "weights")
    for step in (1, 2, 3):
        story.mark(f"forward, step {step}, micro-batch 1 of 1")
        made = [story.make(mib, module=name) for name, mib in (activations or {}).items()]
        story.mark(f"backward, step {step}, micro-batch 1 of 1")
        gradient = story.make(weights, "gradients", "model.layers.0.mlp")
        story.free(*made)
        if update:
            story.mark(f"optimizer step, step {step}")
            story.free(story.make(update, op="_foreach_sqrt.default"))
        story.mark(f"end of step, step {step}")
        story.free(gradient)
    return story.told()


def thrashing_steps() -> Recording:
    """Each step needs the large and the small pool in turn, and both do not fit at once."""
    story = Story()
    for step in (1, 2, 3):
        story.mark(f"forward, step {step}, micro-batch 1 of 1")
        story.free(story.make(40, module="model.layers.0"))
        story.mark(f"backward, step {step}, micro-batch 1 of 1")
        story.free(story.make(0.001, module="model.layers.0"))
        story.mark(f"end of step, step {step}")
    return story.told()


@pytest.fixture
def recorded(monkeypatch):
    """Answer for a recording as if the worker had sent it; return how it was asked."""
    asked = []

    def answer(recording: Recording, **fields):
        def record_step(**more):
            asked.append(more)
            return RecordedRun(
                recording=recording,
                versions={"torch": "2.13.0"},
                architecture="Qwen2ForCausalLM",
                num_params=494_032_768,
                num_trainable_params=494_032_768,
                notes=(),
            )

        monkeypatch.setattr("batchplan.api.tracing.record_step", record_step)
        fields = {"gpu": "24GiB", "seq_len": 128, "micro_batch": 1, **fields}
        return batchplan.trace("qwen2.5-0.5b", **fields)

    answer.asked = asked
    return answer


def page(answer: batchplan.api.TraceAnswer, width: int = 80) -> str:
    file = io.StringIO()
    print_trace(answer.to_dict(), file=file, width=width)
    return file.getvalue()


def beside(answer) -> int:
    return answer.gpu.context_bytes + libraries_bytes(answer.gpu)


def card_with(answer, mib: int) -> str:
    """Return a card that has so much for the allocator's segments."""
    return f"{mib * MIB + beside(answer)}B"


ACTIVATIONS = {"model.layers.0.mlp": 30, "model.layers.1.mlp": 30, "lm_head": 20, "": 15}


def test_the_document_has_its_fields_and_is_json(recorded):
    document = recorded(plain_steps(activations=ACTIVATIONS)).to_dict()
    assert document.keys() == KEYS
    assert document["memory"].keys() == MEMORY_KEYS
    assert document["peak"].keys() == PEAK_KEYS
    assert (document["schema_version"], document["command"]) == (1, "trace")
    assert json.loads(json.dumps(document, allow_nan=False)) == document


@pytest.mark.parametrize("expandable", [False, True])
def test_the_numbers_are_those_of_the_allocator(recorded, expandable):
    recording = plain_steps(activations=ACTIVATIONS, update=70)
    answer = recorded(recording, gpu="a100-80gb", expandable_segments=expandable)
    played = replay(recording, expandable_segments=expandable)
    memory = answer.memory
    assert memory.allocated_peak_bytes == played.allocated_peak_bytes
    assert memory.reserved_peak_bytes == played.reserved_peak_bytes
    assert memory.in_use_peak_bytes == played.reserved_peak_bytes + beside(answer)
    assert beside(answer) > 0
    least = live_peak(recording).num_bytes + beside(answer)
    assert least <= memory.smallest_card_bytes <= memory.in_use_peak_bytes
    assert answer.headroom_bytes == answer.gpu.usable_bytes - memory.in_use_peak_bytes
    assert max(one.allocated_bytes for one in answer.timeline) == memory.allocated_peak_bytes
    assert max(one.reserved_bytes for one in answer.timeline) == memory.reserved_peak_bytes


@pytest.mark.parametrize("update", [0, 300])
def test_the_kinds_at_the_peak_sum_to_the_allocated_peak(recorded, update):
    answer = recorded(plain_steps(activations=ACTIVATIONS, update=update))
    assert sum(answer.peak.by_kind.values()) == answer.memory.allocated_peak_bytes
    assert (TEMPORARIES in answer.peak.by_kind) is bool(update)
    assert (REMAINDERS in answer.peak.by_kind) is not bool(update)
    all_modules = recorded(plain_steps(activations=ACTIVATIONS, update=update), top=99).peak
    rest = answer.peak.by_kind.get(REMAINDERS, 0)
    held = sum(one.num_bytes for one in all_modules.by_module)
    alike = sum(one.num_bytes * one.count for one in all_modules.top_allocations)
    assert held + rest == alike + rest == answer.memory.allocated_peak_bytes


def test_what_is_alike_in_several_layers_is_one_row_and_a_single_one_keeps_its_name(recorded):
    peak = recorded(plain_steps(activations={**ACTIVATIONS, "model.layers.7.norm": 5})).peak
    rows = {(one.module, one.kind): (one.count, one.num_bytes) for one in peak.by_module}
    assert rows["model.layers.*.mlp", "activations"] == (2, 60 * MIB)
    assert rows["model.layers.7.norm", "activations"] == (1, 5 * MIB)
    top = recorded(plain_steps(activations=ACTIVATIONS), top=2).peak.top_allocations
    assert [(one.num_bytes, one.kind) for one in top] == [
        (100 * MIB, "weights"),
        (100 * MIB, "gradients"),
    ]


@pytest.mark.parametrize(
    ("activations", "update", "binds", "words"),
    [
        (ACTIVATIONS, 0, "layers", "The layers bind: 60.0 MiB of 95.0 MiB"),
        (ACTIVATIONS, 300, "optimizer-step", "the batch does not change this peak"),
        ({"lm_head": 90, "": 30, "model.layers.0": 9}, 0, "logits-and-loss", "Logits and loss"),
        ({"model.embed_tokens": 90, "model.layers.0": 9}, 0, "other-modules", "Embedding"),
        ({"model.layers.0": 9}, 0, "states", "activations are only 9.0 MiB"),
        (
            {f"base_model.model.{name}": mib for name, mib in (("lm_head", 50), ("model.h.0", 9))},
            *(0, "logits-and-loss", "Logits and loss bind: 50.0 MiB of 59.0 MiB"),
        ),
    ],
)
def test_what_binds_is_said_in_words(recorded, activations, update, binds, words):
    answer = recorded(plain_steps(activations=activations, update=update))
    assert answer.peak.binds == binds
    assert words in answer.peak.text
    assert answer.memory.peak_phase == ("optimizer step" if update else "backward")


def test_the_timeline_has_every_phase_in_order_an_update_without_events_too(recorded):
    answer = recorded(plain_steps(activations=ACTIVATIONS))
    steps = [[one.phase for one in answer.timeline if one.step == step] for step in (0, 1, 2, 3)]
    whole = ["forward", "backward", "optimizer step", "end of step"]
    assert steps == [["start"], whole, whole, whole]
    levels = {one.phase: one.allocated_bytes for one in answer.timeline if one.step == 3}
    assert levels["optimizer step"] == levels["end of step"] == 200 * MIB
    # The block of 15 MiB has a segment of 16 MiB, and the rest is too small to cut off.
    assert levels["backward"] == (295 + 1) * MIB


def test_recorded_micro_batches_stand_for_all(recorded):
    story = Story()
    for step in (1, 2, 3):
        for number in (1, 2):
            story.mark(f"forward, step {step}, micro-batch {number} of 2")
            story.free(story.make(10 * number, module="model.layers.0"))
        story.mark(f"end of step, step {step}")
    for passes, words in ((2, "micro-batch 2 of 2"), (1_000, "micro-batches 2 to 1,000")):
        answer = recorded(story.told(), accum_steps=passes)
        assert answer.peak.phase == f"forward, {words}"
        assert answer.batch.accum_steps == passes


def test_a_device_without_room_is_told_where_it_runs_out(recorded):
    recording = plain_steps(activations=ACTIVATIONS)
    answer = recorded(recording, gpu=card_with(recorded(recording), 200))
    assert not answer.fits
    assert answer.runs_out_in == "backward"
    assert answer.memory.in_use_peak_bytes == answer.gpu.usable_bytes
    missing = answer.memory.smallest_card_bytes - answer.gpu.usable_bytes
    assert answer.headroom_bytes == -missing < 0
    assert "Does not fit: it runs out in backward" in page(answer)


def test_running_only_by_giving_memory_back_in_every_step_is_not_fitting(recorded):
    enough = recorded(thrashing_steps())
    assert (enough.retries.total, enough.retries.last_step) == (0, 0)
    assert enough.fits
    answer = recorded(thrashing_steps(), gpu=card_with(enough, 40))
    assert answer.runs_out_in is None
    assert answer.retries.last_step == 2
    assert answer.retries.total == 5
    assert not answer.fits
    assert answer.headroom_bytes == -2 * MIB
    assert [one.code for one in answer.caveats if one.code.startswith("alloc")] == [
        "allocator-retries"
    ]
    assert "Runs only by thrashing: 2.0 MiB over" in page(answer)
    assert "2 times in every step" in page(answer)


def test_giving_memory_back_in_the_first_steps_alone_is_fitting(recorded):
    story = Story()
    story.free(story.make(4000, "weights"))
    for step in (1, 2, 3):
        story.mark(f"forward, step {step}, micro-batch 1 of 1")
        story.free(story.make(6000, module="model.layers.0"))
        story.mark(f"end of step, step {step}")
    answer = recorded(story.told(), gpu=card_with(recorded(story.told()), 6600))
    assert (answer.retries.total, answer.retries.last_step) == (1, 0)
    assert answer.fits
    assert answer.memory.reserved_peak_bytes == 10_000 * MIB
    assert answer.memory.in_use_peak_bytes == 6000 * MIB + beside(answer)
    assert answer.headroom_bytes == 600 * MIB
    assert "tight-fit" not in {one.code for one in answer.caveats}
    tight = recorded(story.told(), gpu=card_with(recorded(story.told()), 6100))
    assert "tight-fit" in {one.code for one in tight.caveats}
    assert not tight.fits
    assert "gives memory back once in the first steps" in " ".join(page(answer).split())


def test_a_peak_of_the_first_step_alone_is_said_to_be_one(recorded):
    story = Story()
    for step in (1, 2, 3):
        story.mark(f"forward, step {step}, micro-batch 1 of 1")
        story.free(story.make(60 if step == 1 else 40, module="model.layers.0"))
        story.mark(f"end of step, step {step}")
    assert "Peak in forward of the first step, at mm of model.layers.0." in page(
        recorded(story.told())
    )
    assert "first step" not in page(recorded(thrashing_steps()))


def test_what_is_asked_of_the_worker_is_the_configuration(recorded):
    answer = recorded(
        plain_steps(), gpu="h100-sxm-80gb", micro_batch="4", accum_steps="1k", method="lora"
    )
    (asked,) = recorded.asked
    assert asked["batch"] == answer.batch
    assert (answer.batch.micro_batch, answer.batch.accum_steps) == (4, 1000)
    assert asked["recipe"] == answer.recipe
    assert asked["config"]["model_type"] == "qwen2"
    assert asked["workspace_bytes"] == 32 * MIB
    assert answer.to_dict()["versions"] == {"torch": "2.13.0"}


def test_the_inputs_give_the_same_answer_again(recorded):
    first = recorded(plain_steps(), method="lora", lora_rank=8, accum_steps=3, top=3)
    again = batchplan.trace(**first.to_dict()["inputs"])
    # What the trainer had decided is now given, so nothing is left to tell.
    assert again.to_dict() | {"caveats": []} == first.to_dict() | {"caveats": []}


def test_what_is_left_out_is_as_the_trainer_does_it(recorded):
    answer = recorded(plain_steps(), micro_batch=None, seq_len=None)
    assert answer.batch.micro_batch == 8
    assert {"seq-len-assumed", "trainer-defaults"} <= {one.code for one in answer.caveats}


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"nodes": 2}, "one device"),
        ({"top": 0}, "--top"),
        ({"micro_batch": 0}, "--micro-batch"),
        ({"params": "7e9"}, "not both"),
        ({"gpu": ""}, "--gpu is missing"),
    ],
)
def test_python_refuses_what_cannot_be_traced(recorded, fields, words):
    with pytest.raises(SpecError, match=re.escape(words)):
        recorded(plain_steps(), **fields)


@pytest.mark.parametrize("width", [80, 140])
@pytest.mark.parametrize("gpu", ["24GiB", "150MiB", "a100-80gb"])
def test_the_page_keeps_to_the_width_and_leaves_no_trailing_space(recorded, gpu, width):
    recording = plain_steps(activations={"base_model.model.model.layers.31.self_attn.q": 3, "": 2})
    for line in page(recorded(recording, gpu=gpu), width).splitlines():
        assert len(line) <= width
        assert line == line.rstrip()


@pytest.mark.parametrize("gpu", ["24GiB", "150MiB"])
def test_the_snapshot_is_the_run_on_this_device(recorded, tmp_path, gpu):
    answer = recorded(plain_steps(activations=ACTIVATIONS), gpu=gpu)
    path = tmp_path / "step.pickle"
    answer.write_snapshot(path)
    last = pickle.loads(path.read_bytes())["device_traces"][0][-1]
    assert (last["action"] == "oom") is (not answer.fits)
    assert [entry.name for entry in tmp_path.iterdir()] == ["step.pickle"]


def test_a_snapshot_is_written_through_a_link_or_not_at_all(recorded, tmp_path):
    answer = recorded(plain_steps())
    target, link = tmp_path / "target.pickle", tmp_path / "link.pickle"
    target.write_bytes(b"old")
    link.symlink_to(target)
    answer.write_snapshot(link)
    assert link.is_symlink()
    assert pickle.loads(target.read_bytes())
    with pytest.raises(SpecError, match="Cannot write"):
        answer.write_snapshot(tmp_path / "none" / "x.pickle")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["trace"], "MODEL"),
        (["trace", "qwen2.5-0.5b"], "--gpu is missing"),
        ([*SMALL, "--gpu", "80"], "no unit"),
        ([*SMALL, "--gpu", "a100-80g"], "a100-80gb"),
        ([*SMALL, "--gpu", "24GiB", "--micro-batch", "0"], "--micro-batch"),
        ([*SMALL, "--gpu", "24GiB", "--accum-steps", "1e15"], "--accum-steps"),
        ([*SMALL, "--gpu", "24GiB", "--seq-len", "nan"], "--seq-len"),
        ([*SMALL, "--gpu", "24GiB", "--top", "0"], "--top"),
        ([*SMALL, "--gpu", "24GiB", "--devices", "2"], "No such option"),
        ([*SMALL, "--gpu", "24GiB", "--zero", "2"], "cannot be recorded yet"),
        ([*SMALL, "--gpu", "24GiB", "--offload", "optimizer"], "cannot be recorded yet"),
        ([*SMALL, "--gpu", "24GiB", "--optimizer", "adamw-8bit"], "cannot be recorded yet"),
        ([*SMALL, "--gpu", "24GiB", "--snapshot", "no/such/folder/x.pickle"], "no folder"),
        ([*SMALL, "--gpu", "24GiB", "--snapshot", "."], "it is a folder"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(arguments, words):
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


def test_a_model_that_cannot_be_had_is_exit_5():
    done = run("trace", "no/such-model", "--gpu", "80GB", "--offline")
    assert done.returncode == 5
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1


def test_the_internal_package_is_not_hidden_by_the_function():
    code = (
        "from batchplan import trace\nimport batchplan.tracer.runner\n"
        "assert callable(trace)\nassert batchplan.tracer.runner.run_worker"
    )
    subprocess.run([sys.executable, "-c", code], env=environment(), check=True, timeout=60)


@pytest.mark.slow
def test_a_real_model_is_traced_and_torch_reads_its_snapshot(tmp_path):
    pytest.importorskip("transformers")
    viz = pytest.importorskip("torch.cuda._memory_viz")
    path = tmp_path / "step.pickle"
    done = run(*SMALL, "--gpu", "a100-80gb", "--snapshot", str(path), "--json")
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    document = json.loads(done.stdout)
    memory, peak = document["memory"], document["peak"]
    assert sum(peak["by_kind"].values()) == memory["allocated_peak_bytes"]
    # bf16 weights, gradients and two moments of 494 M parameters.
    assert peak["by_kind"]["weights"] == pytest.approx(2 * 494_032_768, rel=1e-3)
    assert peak["by_kind"]["optimizer states"] == pytest.approx(4 * 494_032_768, rel=1e-3)
    assert memory["in_use_peak_bytes"] < 8 * GIB
    assert document["versions"].keys() == {"torch", "transformers"}
    assert not any(phase["step"] > 3 for phase in document["timeline"])
    data = pickle.loads(path.read_bytes())
    assert "segments: " in viz.segsum(data)
    assert viz.trace(data).startswith("Device 0 -")
    assert [entry.name for entry in tmp_path.iterdir()] == ["step.pickle"]


@pytest.mark.slow
def test_what_does_not_fit_is_exit_3_and_answered():
    pytest.importorskip("transformers")
    done = run(*SMALL, "--gpu", "4GiB")
    assert done.returncode == 3, done.stderr
    assert "Does not fit: it runs out in " in done.stdout
    assert done.stderr == ""
