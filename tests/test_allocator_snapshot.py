"""Snapshots against what reads them: torch's own ``torch.cuda._memory_viz``."""

from __future__ import annotations

import base64
import json
import pickle
import pickletools
import re

import pytest

from batchplan.allocator import Allocation, Recording, replay, snapshot, write_snapshot
from batchplan.units import MIB

READ_BY_THE_PAGE = {
    *(
        "PROTO",
        "FRAME",
        "STOP",
        "MARK",
        "MEMOIZE",
        "BINPUT",
        "LONG_BINPUT",
        "BINGET",
        "LONG_BINGET",
    ),
    *("EMPTY_DICT", "SETITEM", "SETITEMS", "EMPTY_LIST", "APPEND", "APPENDS"),
    *("EMPTY_TUPLE", "TUPLE", "TUPLE1", "TUPLE2", "TUPLE3", "BINUNICODE", "SHORT_BINUNICODE"),
    *("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "NONE", "NEWTRUE", "NEWFALSE"),
}
"""What Python writes for dicts, lists, tuples, texts and numbers in protocol 4, and no more."""
STEP = Recording(
    allocations=(
        Allocation(num_bytes=30 * MIB, kind="weights", module="model.layers.0", op="build"),
        Allocation(num_bytes=1000, kind="activations", module="model.layers.0.norm", op="mul"),
        Allocation(num_bytes=45 * MIB, kind="activations", module="model.layers.0.mlp", op="mm"),
        Allocation(num_bytes=50 * MIB, kind="gradients", module="model.layers.0", op="mm"),
        Allocation(num_bytes=0, kind="workspace", module="model", op="empty"),
        Allocation(num_bytes=MIB, stream=1, kind="workspace", module="model", op="all_reduce"),
    ),
    events=(0, 1, 2, 4, ~2, ~4, 3, 5),
    marks=((0, "build"), (1, "forward 1"), (4, "backward 1")),
)
OPTIONS = [
    {"expandable_segments": expandable, "capacity_bytes": capacity}
    for expandable in (False, True)
    for capacity in (None, 104 * MIB, 90 * MIB)
]


@pytest.fixture(params=OPTIONS, ids=str)
def options(request):
    return request.param


def total(data, field):
    return sum(segment[field] for segment in data["segments"])


def test_the_trace_is_the_recording_in_the_words_of_torch():
    actions = [
        (entry["action"], entry.get("size"), entry["user_metadata"], entry["category"])
        for entry in snapshot(STEP, capacity_bytes=84 * MIB)["device_traces"][0]
    ]
    assert actions == [
        ("segment_alloc", 30 * MIB, "build", "weights"),
        ("alloc", 30 * MIB, "build", "weights"),
        ("segment_alloc", 2 * MIB, "forward 1", "activations"),
        ("alloc", 1000, "forward 1", "activations"),
        ("segment_alloc", 46 * MIB, "forward 1", "activations"),
        ("alloc", 45 * MIB, "forward 1", "activations"),
        ("free_requested", 45 * MIB, "backward 1", "activations"),
        ("free_completed", 45 * MIB, "backward 1", "activations"),
        ("segment_free", 46 * MIB, "backward 1", "gradients"),
        ("segment_alloc", 50 * MIB, "backward 1", "gradients"),
        ("alloc", 50 * MIB, "backward 1", "gradients"),
        ("segment_alloc", 2 * MIB, "backward 1", "workspace"),
        ("alloc", MIB, "backward 1", "workspace"),
    ]


def test_where_memory_runs_out_the_trace_ends():
    *_, last = snapshot(STEP, capacity_bytes=80 * MIB)["device_traces"][0]
    assert (last["action"], last["size"], last["device_free"]) == ("oom", 50 * MIB, 48 * MIB)


def test_the_segments_add_up_to_what_the_replay_counts(options):
    data = snapshot(STEP, **options)
    played = replay(STEP, **options)
    assert total(data, "total_size") <= played.reserved_peak_bytes
    held = 0
    for entry in data["device_traces"][0]:
        if entry["action"] in ("segment_alloc", "segment_map"):
            held += entry["size"]
        elif entry["action"] in ("segment_free", "segment_unmap"):
            held -= entry["size"]
    assert held == total(data, "total_size")
    assert (data["device_traces"][0][-1]["action"] == "oom") == (played.ran_out_at is not None)
    for segment in data["segments"]:
        address = segment["address"]
        for block in segment["blocks"]:
            assert block["address"] == address
            address += block["size"]
        assert address == segment["address"] + segment["total_size"]


def test_torch_reads_it(options):
    viz = pytest.importorskip("torch.cuda._memory_viz")
    data = snapshot(STEP, **options)
    assert f"segments: {len(data['segments'])}\n" in viz.segsum(data)
    assert "model.layers.0:0:build" in viz.memory(data, format_flamegraph=str)
    assert "seg_" in viz.segments(data, format_flamegraph=str)
    assert viz.trace(data).startswith("Device 0 -")
    for page in (viz.trace_plot(data), viz.trace_plot(data, plot_segments=True)):
        (found,) = re.findall(r"const local_files = (.*)", page)
        (file,) = json.loads(found)
        assert pickle.loads(base64.b64decode(file["base64"])) == data
    assert "Allocator State History" in viz.segment_plot(data)
    left = viz.filter_alloc_free_pairs(data)["device_traces"][0]
    assert not any(entry["action"].startswith("free") for entry in left)


def test_the_file_holds_the_snapshot_in_codes_that_the_page_reads(tmp_path, options):
    path = tmp_path / "step.pickle"
    write_snapshot(path, STEP, **options)
    assert pickle.loads(path.read_bytes()) == snapshot(STEP, **options)
    assert {code.name for code, _, _ in pickletools.genops(path.read_bytes())} <= READ_BY_THE_PAGE
    assert list(tmp_path.iterdir()) == [path]


def test_a_write_that_fails_leaves_the_earlier_file_and_nothing_else(tmp_path, monkeypatch):
    path = tmp_path / "step.pickle"
    path.write_bytes(b"earlier")

    def fail(data, stream, protocol):
        stream.write(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(pickle, "dump", fail)
    with pytest.raises(OSError, match="No space"):
        write_snapshot(path, STEP)
    assert path.read_bytes() == b"earlier"
    assert list(tmp_path.iterdir()) == [path]
