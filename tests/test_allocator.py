"""The model of torch's allocator against cases worked by hand from its rules."""

from __future__ import annotations

import random
import re
import time

import pytest
from console_blocks import ROOT

from batchplan.allocator import (
    Allocation,
    CachingAllocator,
    OutOfMemoryError,
    Recording,
    live_peak,
    replay,
    sizes,
    smallest_card_bytes,
)
from batchplan.errors import TraceError
from batchplan.units import GIB, KIB, MIB


def one(num_bytes: int, kind: str = "activations", module: str = "", stream: int = 0) -> Allocation:
    return Allocation(num_bytes=num_bytes, kind=kind, module=module, op="mm", stream=stream)


def recording(requests: list[int], events: list[int], **more) -> Recording:
    return Recording(allocations=tuple(map(one, requests)), events=events, **more)


def layout(allocator: CachingAllocator) -> list[list[tuple[int, bool]]]:
    """Return (size, in use) of every block of every segment."""
    return [[(b.size, b.allocated) for b in segment.blocks] for segment in allocator.segments()]


def test_the_page_gives_the_constants_that_are_used():
    page = (ROOT / "docs" / "allocator.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)` \| `(\w+)` \| (\d+) (B|MiB) \|", page, re.MULTILINE)
    given = {ours: int(number) * {"B": 1, "MiB": MIB}[unit] for ours, _, number, unit in rows}
    assert given == {
        name: value for name, value in vars(sizes).items() if name.isupper() and name != "MIB"
    }


# Segments and splits


@pytest.mark.parametrize(
    ("num_bytes", "block", "segment"),
    [
        (1, 512, 2 * MIB),
        (513, 1024, 2 * MIB),
        (MIB, MIB, 2 * MIB),
        (MIB + 1, MIB + 512, 20 * MIB),
        (10 * MIB - 512, 10 * MIB - 512, 20 * MIB),
        # 10 MiB is a multiple of 2 MiB: nothing remains.
        (10 * MIB, 10 * MIB, 10 * MIB),
        # 12 MiB less 10.5 MiB is above 1 MiB and is cut off.
        (10 * MIB + 512 * KIB, 10 * MIB + 512 * KIB, 12 * MIB),
        # 1 MiB remains, not more: the block keeps it.
        (11 * MIB, 12 * MIB, 12 * MIB),
        (11 * MIB - 512, 11 * MIB - 512, 12 * MIB),
        (19 * MIB, 20 * MIB, 20 * MIB),
    ],
)
def test_a_first_request_makes_this_block_in_this_segment(num_bytes, block, segment):
    allocator = CachingAllocator()
    made = allocator.malloc(num_bytes)
    assert (made.size, made.requested_size) == (block, num_bytes)
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (block, segment)
    rest = [(segment - block, False)] if segment > block else []
    assert layout(allocator) == [[(block, True), *rest]]


def test_small_blocks_share_a_segment_and_large_ones_never_use_it():
    allocator = CachingAllocator()
    for _ in range(3):
        allocator.malloc(512 * KIB)
    allocator.malloc(MIB + 512)
    assert layout(allocator) == [
        [(512 * KIB, True)] * 3 + [(512 * KIB, False)],
        [(MIB + 512, True), (19 * MIB - 512, False)],
    ]


def test_512_bytes_are_worth_a_block_of_their_own():
    allocator = CachingAllocator()
    first, _ = allocator.malloc(KIB), allocator.malloc(MIB)
    allocator.free(first)
    allocator.malloc(512)
    assert layout(allocator) == [[(512, True), (512, False), (MIB, True), (MIB - KIB, False)]]


def test_the_smallest_block_that_is_large_enough_is_used_and_then_the_lowest():
    allocator = CachingAllocator()
    # One segment each, so that none can join another.
    blocks = [allocator.malloc(size * MIB) for size in (30, 26, 28, 26)]
    addresses = [block.address for block in blocks]
    for block in blocks:
        allocator.free(block)
    assert allocator.malloc(25 * MIB).address == addresses[1]
    assert allocator.malloc(25 * MIB).address == addresses[3]
    assert allocator.malloc(25 * MIB).address == addresses[2]
    assert allocator.malloc(29 * MIB).address == addresses[0]
    assert allocator.reserved_bytes == 110 * MIB


def test_free_neighbours_join_on_both_sides():
    allocator = CachingAllocator()
    a, b, c = (allocator.malloc(4 * MIB) for _ in range(3))
    allocator.free(a)
    allocator.free(c)
    assert layout(allocator) == [[(4 * MIB, False), (4 * MIB, True), (12 * MIB, False)]]
    allocator.free(b)
    assert layout(allocator) == [[(20 * MIB, False)]]
    assert (allocator.allocated_bytes, allocator.reserved_bytes) == (0, 20 * MIB)


def test_streams_do_not_share_memory():
    allocator = CachingAllocator()
    allocator.free(allocator.malloc(30 * MIB, 0))
    allocator.malloc(30 * MIB, 7)
    assert allocator.reserved_bytes == 60 * MIB
    assert [segment.stream for segment in allocator.segments()] == [0, 7]


# Out of room


def test_whole_free_segments_go_back_when_the_driver_has_no_room():
    allocator = CachingAllocator(capacity_bytes=100 * MIB)
    kept, freed = allocator.malloc(30 * MIB), allocator.malloc(40 * MIB)
    small = allocator.malloc(KIB)
    allocator.free(freed)
    allocator.free(small)
    assert (allocator.reserved_bytes, allocator.num_retries) == (72 * MIB, 0)
    allocator.malloc(60 * MIB)
    assert kept.allocated
    assert (allocator.reserved_bytes, allocator.num_retries) == (90 * MIB, 1)
    assert allocator.reserved_peak_bytes == 90 * MIB


def test_a_segment_in_part_in_use_does_not_go_back():
    allocator = CachingAllocator(capacity_bytes=60 * MIB)
    whole = allocator.malloc(40 * MIB)
    allocator.free(whole)
    allocator.malloc(4 * MIB)  # cut from the 40 MiB, whose other 36 MiB are now stuck
    with pytest.raises(OutOfMemoryError) as caught:
        allocator.malloc(38 * MIB)
    error = caught.value
    assert (error.num_bytes, error.allocated_bytes) == (38 * MIB, 4 * MIB)
    assert (error.reserved_bytes, error.capacity_bytes) == (40 * MIB, 60 * MIB)
    assert allocator.num_retries == 1


# max_split_size


def test_an_oversize_block_is_never_split_and_serves_only_what_is_nearly_as_large():
    allocator = CachingAllocator(max_split_bytes=32 * MIB)
    allocator.free(allocator.malloc(64 * MIB))
    # Below the limit: not from an oversize block.
    allocator.malloc(16 * MIB)
    assert allocator.reserved_bytes == 80 * MIB
    # 64 MiB is 20 MiB or more above 44 MiB, and less above 46 MiB, which takes all of it.
    allocator.malloc(44 * MIB)
    assert allocator.reserved_bytes == 124 * MIB
    assert allocator.malloc(46 * MIB).size == 64 * MIB
    assert allocator.reserved_bytes == 124 * MIB


def test_a_block_of_just_the_limit_is_oversize():
    allocator = CachingAllocator(max_split_bytes=32 * MIB)
    allocator.free(allocator.malloc(32 * MIB))
    allocator.malloc(30 * MIB)
    assert layout(allocator) == [[(32 * MIB, False)], [(30 * MIB, True)]]


def test_oversize_blocks_that_just_suffice_go_back():
    allocator = CachingAllocator(max_split_bytes=32 * MIB, capacity_bytes=80 * MIB)
    for block in [allocator.malloc(size * MIB) for size in (34, 36)]:
        allocator.free(block)
    allocator.malloc(70 * MIB)
    assert (allocator.reserved_bytes, allocator.num_retries) == (70 * MIB, 0)


def test_one_oversize_block_goes_back_before_everything_does():
    allocator = CachingAllocator(max_split_bytes=32 * MIB, capacity_bytes=130 * MIB)
    blocks = [allocator.malloc(size * MIB) for size in (90, 34)]
    for block in blocks:
        allocator.free(block)
    allocator.malloc(60 * MIB)  # releases the 90 MiB alone
    assert (allocator.reserved_bytes, allocator.num_retries) == (94 * MIB, 0)


def test_several_oversize_blocks_go_back_the_largest_first():
    allocator = CachingAllocator(max_split_bytes=32 * MIB, capacity_bytes=150 * MIB)
    for block in [allocator.malloc(size * MIB) for size in (34, 50, 40)]:
        allocator.free(block)
    allocator.malloc(80 * MIB)
    assert (allocator.reserved_bytes, allocator.num_retries) == (114 * MIB, 0)
    assert layout(allocator) == [[(34 * MIB, False)], [(80 * MIB, True)]]


@pytest.mark.parametrize("max_split_bytes", [20 * MIB, 21 * MIB + 1])
def test_a_split_limit_that_torch_refuses_is_refused(max_split_bytes):
    with pytest.raises(TraceError, match="whole MiB"):
        CachingAllocator(max_split_bytes=max_split_bytes)


# Expandable segments


def test_an_expandable_segment_grows_by_pages_behind_its_free_end():
    allocator = CachingAllocator(expandable_segments=True)
    allocator.malloc(30 * MIB)
    assert layout(allocator) == [[(30 * MIB, True), (10 * MIB, False)]]
    # The free 10 MiB at the end are used, and one page mapped for the other 5.
    allocator.malloc(15 * MIB)
    assert layout(allocator) == [[(30 * MIB, True), (15 * MIB, True), (15 * MIB, False)]]
    allocator.malloc(KIB)
    assert layout(allocator)[1:] == [[(KIB, True), (2 * MIB - KIB, False)]]
    assert allocator.reserved_bytes == 62 * MIB


def test_only_pages_that_are_free_as_a_whole_go_back():
    allocator = CachingAllocator(expandable_segments=True, capacity_bytes=100 * MIB)
    _, middle, _ = (allocator.malloc(size * MIB) for size in (30, 40, 10))
    assert allocator.reserved_bytes == 80 * MIB
    allocator.free(middle)
    # Free are 30 to 70 MiB, but of pages only the one from 40 to 60: 60 stay, and 50 need 60.
    with pytest.raises(OutOfMemoryError) as caught:
        allocator.malloc(50 * MIB, stream=1)
    assert (caught.value.reserved_bytes, allocator.num_retries) == (60 * MIB, 1)
    assert allocator.reserved_peak_bytes == 80 * MIB


def test_addresses_whose_pages_went_back_are_mapped_again():
    allocator = CachingAllocator(expandable_segments=True, capacity_bytes=120 * MIB)
    a, b, c = (allocator.malloc(size * MIB) for size in (30, 40, 10))
    allocator.free(b)
    other = allocator.malloc(60 * MIB, stream=1)
    assert (allocator.reserved_bytes, allocator.num_retries) == (120 * MIB, 1)
    assert layout(allocator) == [
        [(30 * MIB, True), (10 * MIB, False)],
        [(10 * MIB, False), (10 * MIB, True)],
        [(60 * MIB, True)],
    ]
    allocator.free(other)
    # The hole is mapped again: 10 + 20 + 10 MiB in a row, for which other pages must go.
    assert allocator.malloc(40 * MIB).address == a.address + 30 * MIB
    assert allocator.reserved_bytes == 80 * MIB
    assert allocator.num_retries == 2
    assert c.allocated


def test_expandable_keeps_the_block_that_can_grow_for_last():
    allocator = CachingAllocator(expandable_segments=True)
    a, _ = allocator.malloc(19 * MIB), allocator.malloc(15 * MIB)
    allocator.free(a)
    # Free are 19 MiB in the middle and 6 MiB at the end. The end is the better fit, but counts
    # with all the addresses behind it.
    assert allocator.malloc(5 * MIB).address == a.address
    assert layout(allocator) == [
        [(5 * MIB, True), (14 * MIB, False), (15 * MIB, True), (6 * MIB, False)]
    ]


def test_expandable_takes_the_lowest_of_equal_holes():
    allocator = CachingAllocator(expandable_segments=True)
    blocks = [allocator.malloc(5 * MIB) for _ in range(5)]
    allocator.free(blocks[3])
    allocator.free(blocks[1])
    assert allocator.malloc(4 * MIB).address == blocks[1].address


def test_all_of_an_expandable_segment_can_go_back():
    allocator = CachingAllocator(expandable_segments=True, capacity_bytes=40 * MIB)
    allocator.free(allocator.malloc(35 * MIB))
    allocator.malloc(35 * MIB, stream=1)
    assert [segment.stream for segment in allocator.segments()] == [1]
    assert allocator.reserved_bytes == 40 * MIB


# Misuse


def test_a_block_cannot_be_freed_twice_nor_be_empty():
    allocator = CachingAllocator()
    block = allocator.malloc(1)
    allocator.free(block)
    with pytest.raises(TraceError, match="second time"):
        allocator.free(block)
    with pytest.raises(TraceError, match="0 bytes"):
        allocator.malloc(0)


# Recordings


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([2], "Event 0: allocation 2 is unknown: there are 2"),
        ([~2], "Event 0: allocation 2 is unknown"),
        ([0, ~0, 0], "Event 2: allocation 0 is made a second time"),
        ([0, ~1], "Event 1: allocation 1 is freed before it is made"),
        ([0, ~0, ~0], "Event 2: allocation 0 is freed a second time"),
    ],
)
def test_events_that_cannot_be_are_refused(events, message):
    with pytest.raises(TraceError, match=message):
        recording([1, 2], events)


@pytest.mark.parametrize("marks", [((-1, "a"),), ((2, "a"),), ((1, "a"), (0, "b"))])
def test_marks_out_of_order_are_refused(marks):
    with pytest.raises(TraceError, match="out of order"):
        recording([1], [0], marks=marks)


def test_sizes_below_zero_are_refused():
    with pytest.raises(TraceError, match=r"Allocation 0 \(mm\) has -1 bytes"):
        recording([-1], [])


def test_a_phase_lasts_until_the_next_mark():
    step = recording([1], [0, ~0], marks=((1, "forward 1"), (2, "end")))
    assert [step.phase_at(position) for position in range(3)] == ["", "forward 1", "end"]


@pytest.mark.parametrize(
    "damage",
    [
        {"schema_version": 0},
        {"names": []},
        {"allocations": {}},
        {"events": [5]},
        {"events": None},
        {"marks": [[0]]},
        {"allocations": {"num_bytes": [1], "stream": [], "kind": [], "module": [], "op": []}},
    ],
)
def test_damaged_data_is_refused(damage):
    data = recording([1], [0], marks=((0, "forward 1"),)).to_dict()
    assert Recording.from_dict(data).to_dict() == data
    with pytest.raises(TraceError):
        Recording.from_dict({**data, **damage})


def test_the_live_peak_names_what_is_alive_there():
    step = Recording(
        allocations=(
            one(1000, "weights", "layers.0"),
            one(3000, "activations", "layers.0"),
            one(2000, "activations", "layers.1"),
            one(100, "workspace", "layers.1"),
        ),
        events=(0, 1, ~1, 2, 3, ~2),
        marks=((0, "forward 1"), (2, "backward 1")),
    )
    peak = live_peak(step)
    # 1024 + 3072 at event 1; 1024 + 2048 + 512 at event 4.
    assert (peak.num_bytes, peak.position, peak.phase) == (4096, 1, "forward 1")
    assert peak.by_kind() == {"activations": 3072, "weights": 1024}
    assert peak.by_module() == {"layers.0": 4096}
    assert [large.num_bytes for large in peak.largest(1)] == [3000]


# Replays


def test_an_empty_recording_takes_nothing():
    for step in (recording([], []), recording([0, 0], [0, 1, ~0])):
        assert live_peak(step).num_bytes == 0
        assert live_peak(step).allocations == ()
        assert replay(step).reserved_peak_bytes == 0
        assert smallest_card_bytes(step) == 0


def test_a_replay_counts_what_the_allocator_counts():
    # 11 MiB are a block of 12; once it is free, 4 MiB are cut from it and 8 stay.
    step = recording([11 * MIB, 4 * MIB, 30 * MIB], [0, ~0, 1, 2, ~2])
    assert live_peak(step).num_bytes == 34 * MIB
    played = replay(step)
    assert (played.allocated_peak_bytes, played.allocated_peak_at) == (34 * MIB, 3)
    assert played.reserved_at_allocated_peak_bytes == played.reserved_peak_bytes == 42 * MIB
    assert (played.num_retries, played.ran_out_at) == (0, None)
    short = replay(step, capacity_bytes=40 * MIB)
    assert (short.ran_out_at, short.num_retries) == (3, 1)


def test_of_equal_peaks_the_first_is_named():
    step = recording([KIB, KIB], [0, ~0, 1])
    assert live_peak(step).position == replay(step).allocated_peak_at == 0


def test_the_smallest_card_is_where_free_segments_go_back_in_time():
    # Without a limit 40 + 50 MiB; with 50 the first goes back before the second is made.
    step = recording([40 * MIB, 50 * MIB], [0, ~0, 1, ~1])
    assert replay(step).reserved_peak_bytes == 90 * MIB
    assert smallest_card_bytes(step) == 50 * MIB
    assert replay(step, capacity_bytes=50 * MIB).num_retries == 1


def training_step(num_events: int, seed: int = 0) -> Recording:
    """Return a step like that of a model: weights stay, activations are freed in reverse."""
    draw = random.Random(seed)
    requests: list[int] = []
    events: list[int] = []
    saved: list[int] = []

    def make(num_bytes: int) -> int:
        requests.append(num_bytes)
        events.append(len(requests) - 1)
        return events[-1]

    for _ in range(200):
        make(draw.choice([4 * KIB, 8 * MIB, 33 * MIB]))
    while len(events) < num_events:
        while len(saved) < min(2000, num_events // 4):
            saved.append(make(draw.randrange(1, 2 * MIB) * draw.choice([1, 8])))
            events.append(~make(draw.randrange(1, 16 * MIB)))
        while saved:
            events.append(~make(draw.randrange(1, 32 * MIB)))
            events.append(~saved.pop())
    return recording(requests, events)


@pytest.mark.parametrize("expandable", [False, True])
def test_a_hundred_thousand_events_are_quick(expandable):
    step = training_step(100_000)
    began = time.process_time()
    played = replay(step, expandable_segments=expandable)
    assert time.process_time() - began < 2
    assert played.ran_out_at is None
    assert played.reserved_peak_bytes > GIB


@pytest.mark.parametrize("expandable", [False, True])
def test_the_smallest_card_of_a_training_step_runs_and_a_little_less_does_not(expandable):
    step = training_step(3000)
    card = smallest_card_bytes(step, expandable_segments=expandable)
    options = {"expandable_segments": expandable}
    assert live_peak(step).num_bytes <= card <= replay(step, **options).reserved_peak_bytes
    assert card % (2 * MIB) == 0
    assert replay(step, capacity_bytes=card, **options).ran_out_at is None
    less = replay(step, capacity_bytes=card - 64 * MIB, **options)
    assert less.ran_out_at is not None
