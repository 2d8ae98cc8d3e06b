"""What is fed to the worker and when it is enough, with a made-up worker in its place."""

from __future__ import annotations

import json
import random
from array import array
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from batchplan.errors import ProbeError
from batchplan.experiments import noise
from batchplan.experiments.noise import AHEAD, Budget, MeasuredNoise, Stop, measure_noise
from batchplan.experiments.subject import Subject
from batchplan.experiments.worker import window_file
from batchplan.sources.token_rows import TokenRow
from batchplan.spec import Recipe

SUBJECT = Subject(config={}, model_ref="", recipe=Recipe(numerics="fp32"), seq_len=8)


def rows(count: int) -> list[TokenRow]:
    return [TokenRow(array("i", [number, 0, 0]), None) for number in range(count)]


class Worker:
    """Reads windows as the real one does; its gradients are one number, 1 plus noise."""

    def __init__(self, spread: float) -> None:
        self.rng, self.spread = random.Random(0), spread
        self.seen: list[int] = []
        self.most_files = 0

    @contextmanager
    def running(self, subject: Any, task: str, asked: dict[str, Any], **_: Any) -> Iterator[Any]:
        assert task == "noise"
        yield self.events(Path(asked["folder"]))

    def events(self, folder: Path) -> Iterator[dict[str, Any]]:
        about = {"device_name": "CPU", "num_parameters": 1, "has_dropout": False, "versions": []}
        for rank in (0, 1):
            yield {"event": "ready", "rank": rank, **about}
        for number in range(10_000):
            self.most_files = max(self.most_files, len(list(folder.iterdir())))
            window = json.loads(window_file(folder, number).read_text())
            if window is None:
                break
            self.seen += [ids[0] for micro in window for ids, _ in micro]
            gradients = [1 + self.rng.gauss(0, self.spread) for _ in window]
            count = 2 * len(window)
            yield {
                "event": "window",
                "rank": 0,
                "num_micro_batches": len(window),
                "num_sequences": len(window),
                "num_tokens": count,
                "squared_tokens": 4 * len(window),
                "sum_of_squares": 4 * sum(g * g for g in gradients),
                "square_of_mean": (sum(gradients) / len(gradients)) ** 2,
                "loss": 1.0,
            }
        for rank in (0, 1):
            yield {"event": "end", "rank": rank}


@pytest.fixture
def measured(monkeypatch: pytest.MonkeyPatch) -> Any:
    def run(count: int, *, spread: float = 1.0, **budget: Any) -> tuple[MeasuredNoise, Worker]:
        worker = Worker(spread)
        monkeypatch.setattr(noise, "running", worker.running)
        found = measure_noise(
            SUBJECT, rows(count), micro_batch=1, window=4, budget=Budget(**budget)
        )
        return found, worker

    return run


def test_it_stops_when_it_is_precise_and_not_before_twenty_windows(measured):
    found, _ = measured(4000, spread=0.2, precision=5.0)
    assert (found.stopped, len(found.windows)) == (Stop.PRECISE, 20)
    later, _ = measured(4000, spread=0.2, precision=0.15)
    assert later.stopped is Stop.PRECISE
    assert len(later.windows) > 20


def test_it_stops_with_the_data_each_row_seen_once_and_a_short_window_left_out(measured):
    found, worker = measured(43, precision=0.01)
    assert (found.stopped, len(found.windows)) == (Stop.DATA, 10)
    assert worker.seen == list(range(40))
    assert found.row_tokens == 3


def test_it_stops_before_it_would_read_more_tokens_than_allowed(measured):
    found, worker = measured(400, precision=0.01, max_tokens=59)
    assert (found.stopped, len(found.windows)) == (Stop.TOKENS, 4)  # 12 tokens a window
    assert found.num_read_tokens == 48
    assert len(worker.seen) == 16


def test_it_stops_when_the_time_is_spent(measured, monkeypatch):
    clock = iter(range(0, 10_000, 10))
    monkeypatch.setattr(noise.time, "monotonic", lambda: float(next(clock)))
    found, _ = measured(4000, precision=0.01, max_seconds=50)
    assert found.stopped is Stop.SECONDS
    assert len(found.windows) == 5


def test_one_window_is_no_measurement(measured):
    with pytest.raises(ProbeError, match=r"there were 1 after .*: give more --max-tokens"):
        measured(400, max_tokens=15)


def test_data_that_is_spent_too_soon_is_no_matter_of_time(measured):
    with pytest.raises(ProbeError, match=r"there were 1 after .*: a window takes 4 rows with a "):
        measured(7)


def test_few_windows_lie_on_the_disk_at_a_time(measured):
    _, worker = measured(400, precision=0.01)
    assert worker.most_files <= AHEAD + 1
