"""Measure the noise of a model's gradients: feed windows, hear their sums, stop when it is enough.

The parameters stay as they are, so windows of rows that are drawn once each are independent, and
the interval needs no blocks.
"""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from enum import StrEnum
from itertools import islice
from pathlib import Path
from typing import Any

from batchplan.errors import ProbeError
from batchplan.experiments.running import Progress, running
from batchplan.experiments.subject import Subject
from batchplan.experiments.worker import window_file
from batchplan.learning.noise import NoiseScale, Watch, Window, noise_scale
from batchplan.sources.token_rows import TokenRow
from batchplan.units import format_count, format_seconds

AHEAD = 4
"""Windows that lie ready, so that no rank waits for the tokenizer."""


class Stop(StrEnum):
    """Why a measurement ended."""

    PRECISE = "precise"
    SECONDS = "max-seconds"
    TOKENS = "max-tokens"
    DATA = "data"


_TOO_FEW = {
    Stop.SECONDS: "give more --max-seconds",
    Stop.TOKENS: "give more --max-tokens",
    Stop.DATA: "a window takes {rows:,} rows with a token that counts, and the data has no more; "
    "give more data",
}
"""What to try, by what ended a measurement before it had two windows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """When it is enough."""

    precision: float = 0.3
    """Half the interval over the estimate."""
    max_seconds: float = 600.0
    """Of measuring, loading left out."""
    max_tokens: int | None = None
    """Read by the model, padding left out."""


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredNoise:
    """What came of it."""

    windows: tuple[Window, ...]
    stopped: Stop
    seconds: float
    num_read_tokens: int
    """Of all windows, whether they count in the loss or not."""
    device_name: str
    num_trained: int
    """Parameters that train, tied ones once."""
    has_dropout: bool
    versions: dict[str, str]

    @property
    def row_tokens(self) -> float:
        """Tokens of a row, on average."""
        return self.num_read_tokens / sum(window.num_sequences for window in self.windows)


def measure_noise(
    subject: Subject,
    rows: Iterable[TokenRow],
    *,
    micro_batch: int,
    window: int,
    budget: Budget,
    on_progress: Progress | None = None,
) -> MeasuredNoise:
    """Return the sums of windows of micro-batches, taken until the budget is spent.

    Args:
        subject: the model, and where it runs.
        rows: in the order in which they were drawn.
        micro_batch: sequences of one gradient.
        window: micro-batches of a window, over all ranks.
        budget: when to stop.
        on_progress: told in words how far it is.

    Raises:
        SpecError: when the request is wrong.
        ProbeError: when nothing can be run, or fewer than two windows came of it.
    """
    say = on_progress or (lambda _: None)
    with tempfile.TemporaryDirectory(prefix="batchplan-noise-") as folder:
        feed = _Feed(Path(folder), rows, micro_batch, window, budget.max_tokens)
        with running(subject, "noise", {"folder": folder}, on_progress=say) as events:
            feed.go_on(AHEAD)
            about: dict[str, Any] = {}
            windows: list[Window] = []
            watch, started = Watch(budget.precision), time.monotonic()
            stopped = None
            for event in events:
                match event.pop("event"):
                    case "ready" if event.pop("rank") == 0:
                        about, started = event, time.monotonic()
                    case "window":
                        event.pop("rank")
                        windows.append(Window(**event))
                        feed.go_on(1)
                        spent = time.monotonic() - started
                        say(_so_far(windows, spent, budget))
                        if watch.is_enough(windows):
                            stopped = Stop.PRECISE
                            break
                        if spent >= budget.max_seconds:
                            stopped = Stop.SECONDS
                            break
            seconds = time.monotonic() - started
    stopped = stopped or feed.ended
    if len(windows) < 2:
        raise ProbeError(
            f"Two windows are needed, and there were {len(windows)} after "
            f"{format_seconds(seconds)}: "
            f"{_TOO_FEW[stopped].format(rows=micro_batch * window)}, or a smaller --window."
        )
    return MeasuredNoise(
        windows=tuple(windows),
        stopped=stopped,
        seconds=seconds,
        num_read_tokens=sum(feed.read_tokens[: len(windows)]),
        device_name=about["device_name"],
        num_trained=about["num_parameters"],
        has_dropout=about["has_dropout"],
        versions=dict(about["versions"]),
    )


class _Feed:
    """Writes windows for the worker, a few ahead; a last ``null`` says that there are no more."""

    def __init__(
        self,
        folder: Path,
        rows: Iterable[TokenRow],
        micro_batch: int,
        window: int,
        max_tokens: int | None,
    ) -> None:
        self._folder = folder
        self._windows = _windows(iter(rows), micro_batch, window)
        self._max_tokens = max_tokens
        self._is_over = False
        self.ended = Stop.DATA
        """Why there are no more, once there are none."""
        self.read_tokens: list[int] = []
        """Of every window that was written."""

    def go_on(self, count: int) -> None:
        """Write so many more windows, and delete what has been read."""
        for _ in range(count):
            if self._is_over:
                return
            content = next(self._windows, None)
            number = len(self.read_tokens)
            if content is not None:
                tokens = sum(len(row.ids) for rows in content for row in rows)
                if self._max_tokens is not None and sum(self.read_tokens) + tokens > (
                    self._max_tokens
                ):
                    content, self.ended = None, Stop.TOKENS
                else:
                    self.read_tokens.append(tokens)
            self._is_over = content is None
            self._write(number, content)

    def _write(self, number: int, content: list[list[TokenRow]] | None) -> None:
        window_file(self._folder, number - AHEAD - 1).unlink(missing_ok=True)
        plain = None if content is None else [[_plain(row) for row in rows] for rows in content]
        path = window_file(self._folder, number)
        partial = path.with_suffix(".partial")
        partial.write_text(json.dumps(plain), encoding="utf-8")
        partial.replace(path)


def _plain(row: TokenRow) -> tuple[list[int], list[int] | None]:
    return list(row.ids), None if row.labels is None else list(row.labels)


def _windows(
    rows: Iterator[TokenRow], micro_batch: int, window: int
) -> Iterator[list[list[TokenRow]]]:
    """Yield whole windows."""
    while True:
        held = list(islice(rows, micro_batch * window))
        if len(held) < micro_batch * window:
            return
        yield [held[at : at + micro_batch] for at in range(0, len(held), micro_batch)]


def _so_far(windows: list[Window], spent: float, budget: Budget) -> str:
    time_spent = f"{format_seconds(spent)} of {format_seconds(budget.max_seconds)}"
    return f"window {len(windows)}, {time_spent}: {_estimate(windows)}"


def _estimate(windows: list[Window]) -> str:
    if len(windows) < 2:
        return "no estimate yet"
    found: NoiseScale = noise_scale(windows)
    tokens = found.tokens
    if tokens.value is None or not tokens.is_bounded:
        return f"noise scale above {format_count(round(tokens.low))} tokens"
    return f"noise scale {format_count(round(tokens.value))} tokens ± {tokens.relative_width:.0%}"
