"""What holds for every sequence of calls, and a second allocator that is slow and plain."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchplan.allocator import (
    Allocation,
    CachingAllocator,
    OutOfMemoryError,
    Recording,
    live_peak,
    replay,
    smallest_card_bytes,
)
from batchplan.units import GIB, KIB, MIB

BORDERS = [512, MIB, 2 * MIB, 9 * MIB, 10 * MIB, 11 * MIB, 20 * MIB, 32 * MIB, 40 * MIB]
SIZES = st.one_of(
    st.sampled_from(BORDERS).flatmap(lambda at: st.sampled_from([at - 1, at, at + 1])),
    st.integers(1, 3 * MIB),
    st.integers(1, 60 * MIB),
)
CALLS = st.lists(st.tuples(st.integers(0, 99), SIZES, st.sampled_from([0, 0, 0, 1])), max_size=50)
CAPACITIES = st.one_of(st.none(), st.integers(1, 400 * MIB))
ALL_OPTIONS = [
    {},
    {"expandable_segments": True},
    {"max_split_bytes": 21 * MIB},
    {"max_split_bytes": 33 * MIB},
    {"expandable_segments": True, "max_split_bytes": 33 * MIB},
]
OPTIONS = st.sampled_from(ALL_OPTIONS)


class PlainAllocator:
    """The same rules with only what is in use written down; what is free is found by looking.

    A segment is a range of addresses, the blocks in use and the pages that are mapped. A segment
    from cudaMalloc is one page of its own size.
    """

    def __init__(self, *, capacity_bytes=None, expandable_segments=False, max_split_bytes=None):
        self.capacity = float("inf") if capacity_bytes is None else capacity_bytes
        self.expandable = expandable_segments
        self.limit = float("inf") if max_split_bytes is None else max_split_bytes
        self.segments = []
        self.next_address = -(-0x7F0000000000 // (20 * MIB)) * 20 * MIB
        self.retries = 0

    def reserved(self):
        return sum(len(s["pages"]) * s["page"] for s in self.segments)

    def allocated(self):
        return sum(sum(s["used"].values()) for s in self.segments)

    def layout(self):
        rows = []
        for segment in self.segments:
            for low, high in runs(segment["pages"], segment["page"]):
                rows.append(sorted((a, n) for a, n in segment["used"].items() if low <= a < high))
        return rows

    def malloc(self, num_bytes, stream):
        size = (num_bytes + 511) // 512 * 512
        small = size <= MIB
        found = self.find(self.pool(small, stream), size)
        if found is None:
            found = self.get(size, small, stream)
        if found is None and self.release_oversize(self.pool(small, stream), size):
            found = self.get(size, small, stream)
        if found is None:
            self.release_all()
            self.retries += 1
            found = self.get(size, small, stream)
        if found is None:
            return None
        segment, address, room = found
        if small or self.expandable:
            keeps = size
        else:
            keeps = size if room - size > MIB and size < self.limit else room
        segment["used"][address] = keeps
        return address

    def pool(self, small, stream):
        return [s for s in self.segments if (s["small"], s["stream"]) == (small, stream)]

    def free(self, address):
        (segment,) = [s for s in self.segments if address in s["used"]]
        del segment["used"][address]

    def find(self, pool, size):
        gaps = sorted(
            (high - low, low, index)
            for index, segment in enumerate(pool)
            for low, high in free_gaps(segment)
        )
        fits = [gap for gap in gaps if gap[0] >= size]
        if not fits:
            return None
        best = fits[0]
        if self.expandable:
            for other in fits[1:]:
                if self.can_become(pool, other) >= self.can_become(pool, best):
                    break
                best = other
        if size < self.limit <= best[0]:
            return None
        if size >= self.limit and best[0] >= size + 20 * MIB:
            return None
        return pool[best[2]], best[1], best[0]

    def can_become(self, pool, gap):
        room, low, index = gap
        behind = [h - a for a, h in unmapped_runs(pool[index]) if a == low + room]
        return room + sum(behind)

    def get(self, size, small, stream):
        if self.expandable:
            return self.grow(size, small, stream)
        num_bytes = 2 * MIB if small else 20 * MIB
        if size >= 10 * MIB:
            num_bytes = (size + 2 * MIB - 1) // (2 * MIB) * 2 * MIB
        if self.reserved() + num_bytes > self.capacity:
            return None
        segment = self.open(num_bytes, num_bytes, small, stream)
        segment["pages"].add(segment["start"])
        return segment, segment["start"], num_bytes

    def open(self, length, page, small, stream):
        segment = {
            "start": self.next_address,
            "length": length,
            "page": page,
            "small": small,
            "stream": stream,
            "used": {},
            "pages": set(),
        }
        self.next_address += (length + 20 * MIB - 1) // (20 * MIB) * 20 * MIB
        self.segments.append(segment)
        return segment

    def grow(self, size, small, stream):
        place = None
        for segment in self.pool(small, stream):
            for low, _ in unmapped_runs(segment):
                starts = [a for a, high in free_gaps(segment) if high == low]
                start = starts[0] if starts else low
                ends = [a for a in segment["used"] if a > start]
                end = min([*ends, segment["start"] + segment["length"]])
                if end - start >= size and place is None:
                    place = segment, start
        if place is None:
            page = 2 * MIB if small else 20 * MIB
            segment = self.open(2**24 * page, page, small, stream)
            place = segment, segment["start"]
        segment, start = place
        page = segment["page"]
        first = start // page * page
        wanted = {a for a in range(first, start + size, page) if a not in segment["pages"]}
        for low, high in runs(wanted, page):
            if self.reserved() + high - low > self.capacity:
                return None
            segment["pages"].update(range(low, high, page))
        return segment, start, size

    def release_oversize(self, pool, size):
        if self.limit == float("inf") or self.expandable:
            return False
        wanted = max(size, self.limit)
        free = sorted((s["length"], s["start"]) for s in pool if not s["used"])
        enough = [length for length in free if length[0] >= wanted]
        if enough:
            self.drop(enough[0][1])
            return True
        released = 0
        while free and free[-1][0] >= self.limit and released < wanted:
            released += free[-1][0]
            self.drop(free.pop()[1])
        return released >= wanted

    def drop(self, start):
        self.segments = [s for s in self.segments if s["start"] != start]

    def release_all(self):
        for segment in list(self.segments):
            before = len(segment["pages"])
            page = segment["page"]
            for low, high in free_gaps(segment):
                if self.expandable or high - low == segment["length"]:
                    whole = {a for a in segment["pages"] if low <= a and a + page <= high}
                    segment["pages"] -= whole
            if before and not segment["pages"]:
                self.drop(segment["start"])


def runs(pages, page):
    """Return (start, end) of every row of pages without a hole."""
    found = []
    for address in sorted(pages):
        if found and found[-1][1] == address:
            found[-1] = (found[-1][0], address + page)
        else:
            found.append((address, address + page))
    return found


def unmapped_runs(segment):
    ends = [segment["start"]]
    for low, high in runs(segment["pages"], segment["page"]):
        ends += [low, high]
    ends.append(segment["start"] + segment["length"])
    return [(a, b) for a, b in zip(ends[::2], ends[1::2], strict=True) if a < b]


def free_gaps(segment):
    """Return (start, end) of everything mapped between the blocks in use."""
    gaps = []
    for low, high in runs(segment["pages"], segment["page"]):
        at = low
        for address, size in sorted(segment["used"].items()):
            if low <= address < high:
                gaps.append((at, address))
                at = address + size
        gaps.append((at, high))
    return [(a, b) for a, b in gaps if a < b]


def follow(calls, allocator, *, after_each=lambda live: None):
    """Make the calls; a request that finds no room is passed over. Return the live blocks."""
    live = []
    for draw, size, stream in calls:
        if draw < 45 and live:
            allocator.free(live.pop(draw % len(live)))
        else:
            try:
                live.append(allocator.malloc(size, stream))
            except OutOfMemoryError:
                continue
        after_each(live)
    return live


def to_recording(calls) -> Recording:
    allocations: list[Allocation] = []
    events: list[int] = []
    live: list[int] = []
    for draw, size, stream in calls:
        if draw < 45 and live:
            events.append(~live.pop(draw % len(live)))
        else:
            live.append(len(allocations))
            events.append(len(allocations))
            allocations.append(
                Allocation(num_bytes=size, stream=stream, kind="k", module=str(draw), op="o")
            )
    return Recording(allocations=tuple(allocations), events=events)


RECORDINGS = CALLS.map(to_recording)


def compare(calls, capacity, options):
    """Make the calls on both allocators and compare all that can be seen after each."""
    ours = CachingAllocator(capacity_bytes=capacity, **options)
    plain = PlainAllocator(capacity_bytes=capacity, **options)
    live = []
    for draw, size, stream in calls:
        if draw < 45 and live:
            block = live.pop(draw % len(live))
            plain.free(block.address)
            ours.free(block)
        else:
            address = plain.malloc(size, stream)
            if address is None:
                with pytest.raises(OutOfMemoryError):
                    ours.malloc(size, stream)
            else:
                live.append(ours.malloc(size, stream))
                assert live[-1].address == address
        assert ours.allocated_bytes == plain.allocated()
        assert ours.reserved_bytes == plain.reserved()
        assert ours.num_retries == plain.retries
        assert [
            [(b.address, b.size) for b in segment.blocks if b.allocated]
            for segment in ours.segments()
        ] == plain.layout()
    return ours.num_retries


@given(CALLS, OPTIONS, CAPACITIES)
def test_a_plain_allocator_does_the_same(calls, options, capacity):
    compare(calls, capacity, options)


@pytest.mark.parametrize("options", ALL_OPTIONS, ids=str)
def test_a_plain_allocator_does_the_same_when_memory_is_short(options):
    retries = 0
    for seed in range(40):
        draw = random.Random(seed)
        largest = draw.choice([3, 15, 60]) * MIB
        calls = [
            (
                draw.randrange(100),
                draw.randrange(1, draw.choice([MIB, largest, largest])),
                draw.choice([0, 0, 0, 1]),
            )
            for _ in range(100)
        ]
        retries += compare(calls, draw.randrange(4 * largest), options)
    assert retries > 100


@given(CALLS, OPTIONS, CAPACITIES)
def test_blocks_tile_their_segments_and_free_ones_are_joined(calls, options, capacity):
    allocator = CachingAllocator(capacity_bytes=capacity, **options)

    def check(live):
        segments = list(allocator.segments())
        assert sum(segment.num_bytes for segment in segments) == allocator.reserved_bytes
        assert sum(block.size for block in live) == allocator.allocated_bytes
        assert allocator.allocated_bytes <= allocator.reserved_bytes
        assert allocator.reserved_bytes <= allocator.reserved_peak_bytes
        assert capacity is None or allocator.reserved_peak_bytes <= capacity
        for before, after in pairwise(segments):
            assert before.address + before.num_bytes <= after.address
        for segment in segments:
            assert segment.num_bytes % (2 * MIB) == 0
            for before, after in pairwise(segment.blocks):
                assert before.address + before.size == after.address
                assert before.allocated or after.allocated
        held = {id(b) for segment in segments for b in segment.blocks if b.allocated}
        assert held == set(map(id, live))

    follow(calls, allocator, after_each=check)


@given(CALLS, OPTIONS, CAPACITIES)
def test_when_all_is_freed_every_segment_is_one_free_block(calls, options, capacity):
    allocator = CachingAllocator(capacity_bytes=capacity, **options)
    for block in follow(calls, allocator):
        allocator.free(block)
    assert allocator.allocated_bytes == 0
    for segment in allocator.segments():
        assert [block.allocated for block in segment.blocks] == [False]


@given(CALLS, OPTIONS)
def test_a_block_wastes_at_most_what_its_pool_allows(calls, options):
    allocator = CachingAllocator(**options)
    for block in follow(calls, allocator):
        wasted = block.size - block.requested_size
        if block.pool.is_small or "expandable_segments" in options:
            assert wasted < 512
        elif "max_split_bytes" in options:
            assert wasted < 20 * MIB + 512
        else:
            assert wasted < MIB + 512


@given(CALLS)
def test_without_a_limit_expandable_segments_waste_less_than_a_page_while_nothing_is_freed(calls):
    allocator = CachingAllocator(expandable_segments=True)
    pools = {(size <= MIB, stream) for _, size, stream in calls}
    for _, size, stream in calls:
        allocator.malloc(size, stream)
    assert allocator.reserved_bytes - allocator.allocated_bytes < 20 * MIB * max(len(pools), 1)


@given(RECORDINGS, st.booleans(), st.integers(0, 100 * MIB))
def test_with_room_enough_a_limit_changes_nothing(step, expandable, more):
    free = replay(step, expandable_segments=expandable)
    room = free.reserved_peak_bytes + more
    assert replay(step, capacity_bytes=room, expandable_segments=expandable) == free
    assert (free.num_retries, free.ran_out_at) == (0, None)


@given(RECORDINGS, st.booleans())
def test_peaks_are_in_order(step, expandable):
    played = replay(step, expandable_segments=expandable)
    live = live_peak(step).num_bytes
    assert live <= played.allocated_peak_bytes <= played.reserved_at_allocated_peak_bytes
    assert played.reserved_at_allocated_peak_bytes <= played.reserved_peak_bytes
    if expandable:
        assert played.allocated_peak_bytes == live


@given(RECORDINGS, st.booleans())
def test_the_smallest_card_runs_and_lies_between_the_peaks(step, expandable):
    options = {"expandable_segments": expandable}
    card = smallest_card_bytes(step, **options)
    lowest, highest = live_peak(step).num_bytes, replay(step, **options).reserved_peak_bytes
    assert lowest <= card <= highest
    assert card % (2 * MIB) == 0
    assert replay(step, capacity_bytes=card, **options).ran_out_at is None
    if card and highest - lowest < GIB:
        less = replay(step, capacity_bytes=card - 2 * MIB, **options)
        assert less.ran_out_at is not None


@given(RECORDINGS, st.booleans(), st.integers(1, 400 * MIB))
def test_a_replay_that_runs_would_run_the_same_with_what_it_reserved(step, expandable, capacity):
    options = {"expandable_segments": expandable}
    played = replay(step, capacity_bytes=capacity, **options)
    if played.ran_out_at is None:
        again = replay(step, capacity_bytes=played.reserved_peak_bytes, **options)
        assert again == played


@given(RECORDINGS, st.lists(st.text(max_size=5), max_size=3))
def test_a_recording_survives_plain_data(step, phases):
    marked = Recording(
        allocations=step.allocations,
        events=step.events,
        marks=tuple((min(at, len(step.events)), name) for at, name in enumerate(phases)),
    )
    assert Recording.from_dict(marked.to_dict()) == marked


@given(RECORDINGS)
def test_what_is_alive_at_the_peak_adds_up_to_it(step):
    peak = live_peak(step)
    assert sum(peak.by_kind().values()) == peak.num_bytes
    assert sum(peak.by_module().values()) == peak.num_bytes
    assert list(peak.by_module().values()) == sorted(peak.by_module().values(), reverse=True)


def test_a_plain_allocator_can_differ():
    """The comparison above would see one block in another place."""
    ours, plain = CachingAllocator(), PlainAllocator()
    assert ours.malloc(KIB).address == plain.malloc(KIB, 0)
    plain.free(next(iter(plain.segments[0]["used"])))
    assert ours.malloc(KIB).address != plain.malloc(KIB, 0)
