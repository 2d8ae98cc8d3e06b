"""Run an experiment's worker: start it, hear its events, and end it whatever happens."""

from __future__ import annotations

import queue
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from batchplan.errors import ProbeError, SpecError, TraceError
from batchplan.experiments.subject import Subject
from batchplan.prober.child import Child
from batchplan.prober.launch import PARTS
from batchplan.tracer.environment import library_versions

Progress = Callable[[str], None]
Event = dict[str, Any]

SILENCE_SECONDS = 1800.0
"""Nothing for so long is the end of it: loading a large model from a slow disk takes less."""


@contextmanager
def running(
    subject: Subject,
    task: str,
    asked: dict[str, Any],
    *,
    on_progress: Progress | None = None,
    silence_seconds: float = SILENCE_SECONDS,
) -> Iterator[Iterator[Event]]:
    """Start a worker and yield its events, every rank's; leaving the context ends it.

    ``phase`` goes to ``on_progress`` and is not yielded; events stop once every rank has ended.

    Args:
        subject: the model, and where it runs.
        task: a key of the worker's ``TASKS``.
        asked: what the task needs beside the subject.
        on_progress: told in words what is being done.
        silence_seconds: how long a worker may say nothing.

    Raises:
        SpecError: when the request is wrong, also when only the worker finds it so.
        ProbeError: when there is no torch or no device, or the worker dies or hangs.
    """
    request = subject.request(task, timeout_seconds=silence_seconds) | asked
    try:
        library_versions(subject.python)
    except TraceError as error:
        raise ProbeError(str(error)) from error
    child = Child(
        request,
        python=subject.python,
        environment=subject.environment(),
        num_ranks=subject.num_ranks,
        parts=(*PARTS, "experiments"),
    )
    try:
        yield _events(child, subject.num_ranks, on_progress or (lambda _: None), silence_seconds)
    finally:
        child.close()


def _events(child: Child, num_ranks: int, say: Progress, seconds: float) -> Iterator[Event]:
    ended = 0
    while ended < num_ranks:
        try:
            event = child.events.get(timeout=seconds)
        except queue.Empty:
            raise ProbeError(f"The worker said nothing for {seconds:,.0f} s.") from None
        if event is None:
            code, said = child.wait(), child.last_words().rpartition("\n")[2][:300]
            raise ProbeError(f"The worker ended with code {code}{f': {said}' if said else ''}.")
        match event["event"]:
            case "phase":
                if event["rank"] == 0:
                    say(event["text"])
            case "refused":
                kind = SpecError if event["kind"] == "input" else ProbeError
                raise kind(_refusal(event))
            case _:
                ended += event["event"] == "end"
                yield event


def _refusal(event: Event) -> str:
    if event["kind"] == "out-of-memory":
        return (
            f"Out of memory: {event['text']} Try a smaller --micro-batch, a shorter --seq-len or "
            "--checkpointing full."
        )
    return str(event["text"])
