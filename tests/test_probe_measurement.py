"""Saved probes: what a file holds, that none is lost, and that it teaches overheads alone."""

from __future__ import annotations

import json
import random
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import toy_profiles

import batchplan
from batchplan.errors import ProbeError
from batchplan.memory import QuickPrice, confirm, prepare, price
from batchplan.memory.device import ALLOCATED_ERROR, IN_USE_ERROR, LIBRARIES_SOURCE
from batchplan.memory.run import Played
from batchplan.prober import overheads as teaching
from batchplan.prober.comparison import Compared
from batchplan.prober.measurement import Measurement, load_all, measurement, save
from batchplan.prober.overheads import error_percent, overheads, taught, teach
from batchplan.prober.search import PROVEN, Found
from batchplan.prober.trial import Device, Job, Outcome, RankPeaks, Trial
from batchplan.sources.gpus import find_gpu
from batchplan.spec import Batch, Cluster, Gpu, Recipe
from batchplan.units import GIB, MIB

A100 = find_gpu("a100-80gb")
DRIVER_NAME = "NVIDIA A100-SXM4-80GB"
RESERVED = 40 * GIB
OVERHEADS = {"CUDA context", "libraries"}


def measured(
    *,
    context: int = 450 * MIB,
    libraries: int = 700 * MIB,
    off: int = 0,
    name: str = DRIVER_NAME,
    text: str = "",
    num_retries: int = 0,
    reserved: int = RESERVED,
    proof: str = PROVEN,
    **of_job,
) -> Measurement:
    """A probe of which the reserved bytes were predicted right but for ``off``."""
    in_use = reserved + off + context + libraries
    peaks = RankPeaks(
        rank=0,
        allocated_peak_bytes=reserved - GIB,
        reserved_peak_bytes=reserved + off,
        in_use_peak_bytes=in_use,
        context_bytes=context,
        num_retries=num_retries,
    )
    trials = (
        Trial(
            micro_batch=4,
            outcome=Outcome.FITS,
            ranks=(peaks,),
            step_seconds=(2.5, 0.25),
            seconds=21.5,
            versions=(("torch", "2.13.0"), ("transformers", "5.23.0")),
            device_name=name,
            total_bytes=80 * GIB,
        ),
        Trial(
            micro_batch=5,
            outcome=Outcome.OUT_OF_MEMORY,
            device_name=name,
            total_bytes=80 * GIB,
            text=text,
        ),
    )
    figures = {
        "allocated": (reserved - GIB, reserved - GIB),
        "reserved": (reserved, reserved + off),
        "in use": (reserved + 1525 * MIB, in_use),
        "context": (501 * MIB, context),
        "overheads": (1525 * MIB, context + libraries),
    }
    job = {"config": {"hidden_size": 64}, "model_ref": "a/b", "recipe": Recipe(), "seq_len": 2048}
    return measurement(
        job=Job(**(job | of_job)),
        model_id=of_job.get("model_ref", "a/b"),
        found=Found(max_micro_batch=4, trials=trials, proof=proof),
        comparison=tuple(
            Compared(name=name, predicted_bytes=predicted, measured_bytes=got)
            for name, (predicted, got) in figures.items()
        ),
        version="0.1.0",
        driver="570.86",
        created=datetime(2026, 11, 22, 12, 0, tzinfo=UTC),
    )


@pytest.fixture
def own(tmp_path, monkeypatch):
    """The user's folder, empty, with nothing contributed."""
    monkeypatch.setenv("BATCHPLAN_DATA", str(tmp_path / "data"))
    monkeypatch.setattr(teaching, "contributed", lambda: load_all(tmp_path / "contributed"))
    return tmp_path


# --- the file


def test_what_is_saved_is_read_again(own):
    first = measured(recipe=Recipe(method="lora", lora_rank=8), as_rank_of=4)
    path = save(first)
    assert path.parent == own / "data" / "measurements"
    assert load_all().measurements == (first,)
    document = json.loads(path.read_text(encoding="utf-8"))
    assert document["schema_version"] == 1
    assert document["device"]["driver"] == "570.86"
    assert document["batch"]["micro_batch"] == document["max_micro_batch"] == 4
    assert document["trials"][0]["ranks"][0]["context_bytes"] == 450 * MIB
    assert len(document["config_sha256"]) == 64


def test_nothing_is_ever_overwritten_and_nothing_left_behind(own):
    runs = [measured(context=size * MIB) for size in range(1, 25)]
    with ThreadPoolExecutor(8) as pool:
        paths = list(pool.map(save, runs))
    assert len(set(paths)) == len(runs)
    assert sorted(paths[0].parent.iterdir()) == sorted(paths)
    assert {m.compared("context").measured_bytes for m in load_all().measurements} == {
        size * MIB for size in range(1, 25)
    }


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(ProbeError, match="could not be saved"):
        save(measured(), tmp_path / "file" / "below")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "JSON"),
        ("[]", "should be an object"),
        ('{"schema_version": 2}', "schema_version"),
        ("\0\1", "JSON"),
        ('"' + "x" * (5 * MIB) + '"', "too many"),
    ],
)
def test_a_broken_file_costs_a_caveat_alone(own, content, reason):
    path = save(measured())
    path.with_name("broken.json").write_text(content, encoding="utf-8")
    loaded = load_all()
    assert len(loaded.measurements) == 1
    (caveat,) = loaded.caveats
    assert caveat.code == "measurement-skipped"
    assert "broken.json" in caveat.text
    assert reason in caveat.text


def test_bytes_that_are_no_text_and_files_being_written_are_no_accident(own):
    folder = save(measured()).parent
    (folder / "latin.json").write_bytes(b"\xff\xfe\xfd")
    (folder / "empty.json").touch()
    (folder / ".hidden.json").write_text("{")
    loaded = load_all()
    assert len(loaded.measurements) == 1
    assert [caveat.code for caveat in loaded.caveats] == ["measurement-skipped"]


def test_without_a_folder_there_is_nothing(own):
    assert load_all().measurements == load_all().caveats == ()


def test_no_path_of_the_machine_is_in_the_file(own):
    said = "/home/someone/secret/train.py: out of memory"
    path = save(
        measured(
            text=said,
            model_ref="/home/someone/secret/my-model",
            proof=f"inconclusive: micro-batch 5 crashed ({said})",
        )
    )
    content = path.read_text(encoding="utf-8")
    assert "someone" not in content
    assert "my-model" in content
    assert load_all().measurements[0].proof == "inconclusive"


# --- what it teaches


def test_context_and_libraries_are_medians_over_the_runs_of_the_device():
    runs = [
        measured(context=context * MIB, libraries=libraries * MIB)
        for context, libraries in ((400, 900), (500, 500), (450, 600))
    ]
    others = [
        measured(name="NVIDIA H100 80GB HBM3", context=9 * GIB),
        measured(name="cpu", device=Device.CPU, context=9 * GIB),
        measured(num_ranks=2, libraries=9 * GIB),
    ]
    found = overheads([*runs, *others], A100)
    assert found is not None
    assert (found.context_bytes, found.libraries_bytes) == (450 * MIB, 600 * MIB)
    assert found.num_measurements == 3
    assert found.spread_bytes == 300 * MIB
    assert overheads(others, A100) is None
    assert teach(A100, others) is A100


def test_a_device_is_known_by_the_drivers_name_and_the_catalogs():
    local = A100.model_copy(update={"name": DRIVER_NAME})
    assert overheads([measured()], A100) == overheads([measured()], local) is not None
    assert overheads([measured()], find_gpu("a100-40gb")) is None
    assert overheads([measured()], find_gpu("80GiB")) is None


@given(order=st.permutations(range(6)))
def test_the_order_of_files_does_not_matter(order):
    runs = [measured(context=(400 + 10 * at) * MIB, off=at * MIB) for at in range(6)]
    assert teach(A100, [runs[at] for at in order]) == teach(A100, runs)


def test_runs_that_the_limit_pressed_teach_overheads_but_no_error():
    pressed = measured(off=-6 * GIB, num_retries=3)
    found = overheads([pressed, measured()], A100)
    assert found is not None
    assert found.num_measurements == 2
    assert found.error_percent == 3.0


def test_the_band_follows_the_spread_and_never_undercuts_that_of_live_tensors():
    assert error_percent([0.0] * 9) == ALLOCATED_ERROR.percent
    assert error_percent([0.0]) == error_percent([]) == 3.0
    assert error_percent([0.06]) == 6.0
    assert error_percent([0.01, -0.01, 0.0]) > error_percent([0.002, -0.002, 0.0])
    assert error_percent([0.004, -0.004] * 10) < error_percent([0.004, -0.004] * 2)


def test_the_band_is_the_prediction_interval_of_the_textbooks():
    """Of means 0: t x s x sqrt(1 + 1/n), with t = 4.303 at 2 and 3.182 at 3 degrees of freedom."""
    assert error_percent([0.02, -0.02, 0.0]) == pytest.approx(4.303 * 2 * 1.1547, abs=0.1)
    assert error_percent([0.02, -0.02] * 2) == pytest.approx(3.182 * 2.3094 * 1.1180, abs=0.1)


@pytest.mark.parametrize("number", [3, 5, 9])
def test_the_band_holds_the_next_run_nineteen_times_of_twenty(number):
    draw = random.Random(number)
    hits = 0
    for _ in range(4000):
        *seen, following = (draw.gauss(0, 0.02) for _ in range(number + 1))
        hits += abs(following) <= error_percent(seen) / 100
    assert 0.94 < hits / 4000 < 0.985  # around zero it is no narrower than around the mean


SETTINGS = [
    Recipe(numerics="bf16"),
    Recipe(numerics="bf16-autocast", checkpointing="full"),
    Recipe(numerics="bf16", method="lora"),
]


def setting_of(recipe: Recipe, gpu: Gpu, ranks: int = 1):
    cluster = Cluster(num_ranks=ranks)
    return prepare(profile=toy_profiles(recipe, 1000), recipe=recipe, cluster=cluster, gpu=gpu)


@pytest.fixture
def played(monkeypatch):
    """The allocator keeps a twentieth beyond live tensors; the toy profile has no scripts."""

    def play(setting, batch, *, capacity_bytes=None):
        live = price(setting, batch).allocated_peak_bytes
        return Played(
            allocated_peak_bytes=live,
            reserved_peak_bytes=live + live // 20,
            retries_a_step=0,
            ran_out=False,
        )

    monkeypatch.setattr("batchplan.memory.reserve.play", play)


@pytest.mark.parametrize("recipe", SETTINGS, ids=lambda recipe: f"{recipe.method}")
def test_an_estimate_moves_by_the_overheads_and_the_band_alone(recipe, played):
    known = teach(A100, [measured(off=at * 20 * MIB) for at in (-1, 0, 1)])
    batch = Batch(micro_batch=8, accum_steps=2, seq_len=1000)
    before, after = (confirm(setting_of(recipe, gpu), batch) for gpu in (A100, known))
    changed = {
        old.name
        for old, new in zip(before.terms, after.terms, strict=True)
        if old.num_bytes != new.num_bytes
    }
    assert changed == OVERHEADS
    assert after.term("CUDA context") == 450 * MIB
    assert after.term("libraries") == 700 * MIB
    assert after.allocated_peak_bytes == before.allocated_peak_bytes
    assert after.reserved_peak_bytes == before.reserved_peak_bytes
    assert (after.allocated_error, after.reserved_error) == (
        before.allocated_error,
        before.reserved_error,
    )
    assert ALLOCATED_ERROR.percent <= after.in_use_error.percent < before.in_use_error.percent
    assert before.in_use_error == IN_USE_ERROR
    assert after.in_use_error.basis.endswith("n = 3")
    sources = {term.name: term.source for term in after.terms}
    assert sources["CUDA context"] == sources["libraries"]
    assert "measured on this device (3 runs" in sources["libraries"]
    assert LIBRARIES_SOURCE in {term.source for term in before.terms}


@pytest.mark.parametrize("off", [0, 20 * MIB, 4 * GIB])
def test_the_quick_price_stays_below_the_confirmed_one(off, played):
    """Whether the measurements narrow the band or widen it."""
    known = teach(A100, [measured(off=sign * off) for sign in (-1, 1, 1)])
    for recipe in SETTINGS:
        setting = setting_of(recipe, known)
        quick = QuickPrice(setting, 1000)
        for micro_batch in (1, 8):
            batch = Batch(micro_batch=micro_batch, accum_steps=2, seq_len=1000)
            bound = quick.bound_bytes(micro_batch, 2)
            assert abs(bound - price(setting, batch).bound_bytes) <= 200
            assert bound <= confirm(setting, batch).bound_bytes + 200


def test_a_sharded_run_keeps_its_band(played):
    known = teach(A100, [measured()])
    recipe = Recipe(numerics="bf16", sharding="fsdp-full")
    batch = Batch(micro_batch=8, num_ranks=4, seq_len=1000)
    before, after = (confirm(setting_of(recipe, gpu, 4), batch) for gpu in (A100, known))
    assert after.in_use_error == before.in_use_error
    assert after.term("communicator") == before.term("communicator")


def test_the_users_own_come_before_contributed_ones(own):
    assert taught(A100) == (A100, ())
    save(measured(context=GIB), own / "contributed")
    given_, (caveat,) = taught(A100)
    assert given_.context_bytes == GIB
    save(measured(context=300 * MIB))
    mine, (caveat,) = taught(A100)
    assert (mine.context_bytes, mine.num_measurements) == (300 * MIB, 1)
    assert caveat.code == "measured-overheads"
    assert "0.29 GiB" in caveat.text
    assert "1 run on this device" in caveat.text


def test_answers_for_the_device_use_what_was_saved_and_say_so(own, toy_model):
    asked = {"gpu": "a100-80gb", "seq_len": 512}
    before = batchplan.estimate("qwen2.5-0.5b", **asked)
    save(measured(context=300 * MIB, libraries=700 * MIB))
    after = batchplan.estimate("qwen2.5-0.5b", **asked)
    assert after.memory.term("CUDA context") == 300 * MIB
    assert after.memory.term("libraries") == 700 * MIB
    changed = {"CUDA context", "libraries"}
    assert all(
        after.memory.term(term.name) == term.num_bytes
        for term in before.memory.terms
        if term.name not in changed
    )
    assert "measured-overheads" in {caveat.code for caveat in after.caveats}
    planned = batchplan.recommend("qwen2.5-0.5b", **asked).plans[0]
    assert planned.memory.term("CUDA context") == 300 * MIB
    other = batchplan.estimate("qwen2.5-0.5b", gpu="h100-sxm", seq_len=512)
    assert "measured-overheads" not in {caveat.code for caveat in other.caveats}
