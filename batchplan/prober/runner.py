"""Try micro-batches in child processes: start them, listen, and end them whatever happens."""

from __future__ import annotations

import queue
import re
import signal
import time
from collections.abc import Callable, Iterable
from dataclasses import fields, replace
from itertools import pairwise
from types import TracebackType
from typing import Any

from batchplan.errors import ProbeError, SpecError, TraceError
from batchplan.prober.child import Child
from batchplan.prober.launch import environment
from batchplan.prober.request import probe_request
from batchplan.prober.trial import Device, Job, Outcome, RankPeaks, Trial
from batchplan.tracer.environment import library_versions

Progress = Callable[[str], None]

START_SECONDS = 300.0
"""For loading torch and building the model; a trial's own timeout starts after it."""
_STOPPED = "stopped"
"""How a rank ended because another one failed: ``worker/ranks.py``."""
_FIGURES = [field.name for field in fields(RankPeaks) if field.name != "rank"]


def run_trial(job: Job, micro_batch: int, *, on_progress: Progress | None = None) -> Trial:
    """Really train ``job`` at one micro-batch and return what came of it.

    Out of memory, a crash and a timeout are outcomes. On a CPU the limit is for what is allocated
    above the imported libraries. See ``Trials`` for several in a row.

    Raises:
        SpecError: when the job itself is wrong.
        ProbeError: when nothing can be tried at all: no torch, no device, a library missing.
    """
    with Trials(job, on_progress=on_progress) as attempt:
        return attempt(micro_batch)


class Trials:
    """Trials of one job; on a CPU they share a worker that has loaded everything already.

    Use it as a context: no process and no file is left when it ends, and Ctrl-C ends it too.
    """

    def __init__(self, job: Job, *, on_progress: Progress | None = None) -> None:
        self._job = job
        self._request = probe_request(job)
        self._on_progress = on_progress or _say_nothing
        self._worker: Child | None = None
        try:
            library_versions(job.python)
        except TraceError as error:
            raise ProbeError(str(error)) from error

    def __enter__(self) -> Trials:
        """Return the callable that tries a micro-batch."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """End the worker."""
        self._end()

    def at_limit(self, memory_limit_bytes: int) -> Callable[[int], Trial]:
        """Return trials of the same job under another limit, by the same worker.

        Raises:
            SpecError: when there can be no such limit.
        """
        probe_request(replace(self._job, memory_limit_bytes=memory_limit_bytes))
        return lambda micro_batch: self._try(micro_batch, memory_limit_bytes)

    def __call__(self, micro_batch: int) -> Trial:
        """Try ``micro_batch``; see ``run_trial``.

        Raises:
            SpecError: when the job itself is wrong.
            ProbeError: when nothing can be tried at all.
        """
        return self._try(micro_batch, self._job.memory_limit_bytes)

    def _try(self, micro_batch: int, limit_bytes: int | None) -> Trial:
        if micro_batch < 1:
            raise SpecError(f"A micro-batch is 1 sequence or more, not {micro_batch}.")
        started = time.monotonic()
        story = _Story(self._job, micro_batch)
        try:
            asked = {"micro_batch": micro_batch, "memory_limit_bytes": limit_bytes}
            worker = self._worker = self._worker or Child(
                self._request | asked,
                python=self._job.python,
                environment=environment(self._job),
                num_ranks=self._job.num_ranks,
            )
            self._follow(worker, story, asked)
        except BaseException:
            self._end()
            raise
        if not story.worker_goes_on:
            self._end()
        return story.trial(time.monotonic() - started)

    def _follow(self, worker: Child, story: _Story, asked: dict[str, Any]) -> None:
        deadline = time.monotonic() + START_SECONDS + self._job.timeout_seconds
        if worker.is_ready:
            deadline = self._ask(worker, asked)
        while not story.is_over:
            try:
                event = worker.events.get(timeout=max(0.0, deadline - time.monotonic()))
            except queue.Empty:
                worker.kill()
                story.timed_out()
                return
            if event is None:
                story.ended(worker.wait(), worker.last_words())
                return
            if event["event"] == "ready":
                worker.is_ready = True
                deadline = self._ask(worker, asked)
                continue
            if event["event"] == "phase":
                self._on_progress(f"micro-batch {story.micro_batch}: {event['text']}")
            story.read(event)

    def _ask(self, worker: Child, asked: dict[str, Any]) -> float:
        """Have a micro-batch tried; return when that has to be over."""
        worker.write(asked)
        return time.monotonic() + self._job.timeout_seconds

    def _end(self) -> None:
        if self._worker is not None:
            self._worker.close()
            self._worker = None


class _Story:
    """What the ranks have told about one trial."""

    def __init__(self, job: Job, micro_batch: int) -> None:
        self.micro_batch = micro_batch
        self._job = job
        self._forks = job.device is Device.CPU and job.num_ranks == 1
        self.worker_goes_on = self._forks
        """Whether the worker can be asked for another trial."""
        self._device: dict[str, Any] = {}
        self._peaks: dict[int, dict[str, Any]] = {}
        self._retries: dict[int, list[int]] = {}
        self._seconds: list[float] = []
        self._ends: dict[int, dict[str, Any]] = {}
        self._notes: list[str] = []
        self._phase = "starting"
        self._outcome: Outcome | None = None
        self._text = ""

    @property
    def is_over(self) -> bool:
        """Whether the outcome is known."""
        return self._outcome is not None

    def read(self, event: dict[str, Any]) -> None:
        """Take in one event.

        Raises:
            SpecError: when the worker finds the request wrong.
            ProbeError: when it cannot try anything.
        """
        kind, rank = event["event"], int(event["rank"])
        if "allocated_peak_bytes" in event:
            self._peaks[rank] = {name: event[name] for name in _FIGURES}
        match kind:
            case "phase":
                self._phase = event["text"]
            case "device":
                self._device = event
            case "placed":
                self._notes += [note for note in event["notes"] if note not in self._notes]
            case "step":
                self._retries.setdefault(rank, []).append(event["num_retries"])
                if rank == 0:
                    self._seconds.append(event["seconds"])
            case "refused":
                self._refused(event)
            case "end":
                self._ends[rank] = event
                # A fork on the CPU says this before it exits, and a worker after it.
                if len(self._ends) == self._job.num_ranks and not self._forks:
                    self._conclude()
            case "exit":
                if self._ends:
                    self._conclude()
                else:
                    self._killed(event["code"], "")

    def ended(self, code: int, said: str) -> None:
        """Take in that the worker is gone."""
        self.worker_goes_on = False
        if len(self._ends) == self._job.num_ranks:
            self._conclude()
        else:
            # torchrun ends with 1 whatever its ranks end with, and says which.
            killed = self._job.num_ranks > 1 and re.search(r"exitcode\s*: -9\b", said)
            self._killed(-signal.SIGKILL if killed else code, said)

    def timed_out(self) -> None:
        """Take in that it took too long."""
        self.worker_goes_on = False
        self._outcome = Outcome.TIMED_OUT
        self._text = f"no end after {self._job.timeout_seconds:g} s ({self._phase})"

    def trial(self, seconds: float) -> Trial:
        """Return all of it."""
        assert self._outcome is not None
        return Trial(
            micro_batch=self.micro_batch,
            outcome=self._outcome,
            ranks=tuple(
                RankPeaks(rank=rank, **figures) for rank, figures in sorted(self._peaks.items())
            ),
            step_seconds=tuple(self._seconds),
            seconds=seconds,
            versions=tuple((name, version) for name, version in self._device.get("versions", ())),
            device_name=self._device.get("device_name", ""),
            total_bytes=self._device.get("total_bytes"),
            text=self._text,
            notes=tuple(self._notes),
        )

    def _refused(self, event: dict[str, Any]) -> None:
        match event["kind"]:
            case "input":
                raise SpecError(event["text"])
            case "crash":
                self.worker_goes_on = False
                self._outcome, self._text = Outcome.CRASHED, event["text"]
            case _:
                raise ProbeError(event["text"])

    def _conclude(self) -> None:
        failures = [
            end for end in self._ends.values() if end["outcome"] not in (Outcome.FITS, _STOPPED)
        ]
        failures.sort(key=lambda end: (end["outcome"] != Outcome.OUT_OF_MEMORY, end["rank"]))
        if failures:
            first = failures[0]
            where = f"rank {first['rank']}: " if self._job.num_ranks > 1 else ""
            self._outcome, self._text = Outcome(first["outcome"]), where + first["text"]
        elif any(_thrashes(counts) for counts in self._retries.values()):
            self._outcome = Outcome.THRASHES
            self._text = "the allocator gave cached memory back in consecutive steps"
        else:
            self._outcome = Outcome.FITS

    def _killed(self, code: int, said: str) -> None:
        on_cpu = self._job.device is Device.CPU
        if code == -signal.SIGKILL:
            # The kernel kills what takes the host's last memory, and says so to nobody.
            self._outcome = Outcome.OUT_OF_MEMORY if on_cpu else Outcome.CRASHED
            self._text = f"killed by the host during {self._phase}: out of host memory?"
            return
        said = said.rpartition("\n")[2][:300]
        if on_cpu and "bad_alloc" in said:
            self._outcome, self._text = Outcome.OUT_OF_MEMORY, said
            return
        how = f"killed by {_signal_name(-code)}" if code < 0 else f"exit code {code}"
        self._outcome = Outcome.CRASHED
        self._text = f"{how} during {self._phase}" + (f": {said}" if said else "")


def _say_nothing(text: str) -> None:
    del text


def _thrashes(counts: Iterable[int]) -> bool:
    """Whether the counter of retries rose in two consecutive steps."""
    totals = [0, *counts]
    rose = [after > before for before, after in pairwise(totals)]
    return any(first and second for first, second in pairwise(rose))


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"
