"""Have workers accumulate on a small model of the user's class, and judge what they did."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from batchplan.errors import ProbeError
from batchplan.experiments.running import Progress, running
from batchplan.experiments.subject import Subject
from batchplan.experiments.verify_checks import Cause, Check, Story, causes, judge
from batchplan.prober.trial import Device
from batchplan.sources.token_rows import TokenRow

SUBJECTS = ("reference", "hf-trainer")
"""Loops that users can ask about."""


_START_SECONDS = 300.0
"""For loading torch twice and for the last loop; ranks that wait for each other longer hang."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Experiment:
    """What is accumulated, and how."""

    accum_steps: int = 4
    micro_batch: int = 2
    """Sequences; 2 or more, so that one micro-batch has padding too."""
    full: bool = False
    """Every layer at its width; else two narrow ones."""
    rows: Sequence[TokenRow] = ()
    """Of the user's data; empty draws them."""
    subjects: Sequence[str] = SUBJECTS
    num_ranks: int = 2
    """Of C4: two show whatever more would; 1 leaves it out."""
    max_seconds: float = 300.0

    def asked(self) -> dict[str, Any]:
        """Return it in the worker's words."""
        return {
            "accum_steps": self.accum_steps,
            "micro_batch": self.micro_batch,
            "full": self.full,
            "rows": [
                [list(row.ids), None if row.labels is None else list(row.labels)]
                for row in self.rows
            ],
            "subjects": list(self.subjects),
            "max_seconds": self.max_seconds,
            "layouts": 0,
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What came of it."""

    checks: tuple[Check, ...]
    causes: tuple[Cause, ...]
    model_class: str
    num_parameters: int
    """That train, of the model that was run."""
    seconds: float
    versions: dict[str, str]

    @property
    def ok(self) -> bool:
        """Whether no check failed; one that was not run has neither passed nor failed."""
        return all(check.ok is not False for check in self.checks)


def verify_model(
    subject: Subject, experiment: Experiment, *, on_progress: Progress | None = None
) -> Verified:
    """Return the checks of every loop asked for, on one process and on two.

    Raises:
        SpecError: when the model or the request is wrong.
        ProbeError: when no worker can run, or no check.
    """
    started = time.monotonic()
    story = Story(accum_steps=experiment.accum_steps)
    versions: dict[str, str] = {}
    with running(subject, "verify", experiment.asked(), on_progress=on_progress) as events:
        for event in events:
            story.read(event)
            if event["event"] == "end":
                versions = dict(event["versions"])
    ready = story.ready
    left = experiment.max_seconds - (time.monotonic() - started)
    _with_ranks(subject, replace(experiment, max_seconds=left), story, on_progress)
    checks = judge(story, experiment.subjects)
    if all(check.ok is None for check in checks):
        raise ProbeError(
            f"No check could be run: {checks[0].text.removeprefix('not run: ')}. Try a longer "
            "--max-seconds."
        )
    return Verified(
        checks=checks,
        causes=tuple(causes(story)),
        model_class=ready["model_class"],
        num_parameters=ready["num_parameters"],
        seconds=time.monotonic() - started,
        versions=versions,
    )


def _with_ranks(
    subject: Subject, experiment: Experiment, story: Story, on_progress: Progress | None
) -> None:
    """Run C4 on processes of the CPU; why it cannot run is no reason to lose the rest."""
    if not story.ready["has_lengths"]:
        return
    for is_true, why in (
        (experiment.num_ranks == 1, "one rank was asked for"),
        (experiment.max_seconds <= 0, "no time was left"),
    ):
        if is_true:
            _skip(story, experiment.subjects, why)
            return
    ranks = replace(subject, num_ranks=experiment.num_ranks, device=Device.CPU)
    try:
        with running(
            ranks,
            "verify",
            experiment.asked(),
            on_progress=on_progress,
            silence_seconds=experiment.max_seconds + _START_SECONDS,
        ) as events:
            for event in events:
                if event["rank"] == 0:
                    story.read(event)
    except ProbeError as error:
        _skip(story, experiment.subjects, str(error))


def _skip(story: Story, subjects: Iterable[str], text: str) -> None:
    for subject in subjects:
        story.skipped.setdefault(("ranks", subject), text)


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredLayout:
    """A batch, split in one way, and run."""

    micro_batch: int
    accum_steps: int
    allocated_peak_bytes: int | None
    """Of live tensors on a GPU; None elsewhere."""
    deviation: float
    """Of the gradient, from that of the whole batch at once."""
    config: dict[str, Any]
    """Of the model that was run."""


def measure_layouts(
    subject: Subject,
    experiment: Experiment,
    num_sequences: int,
    *,
    on_progress: Progress | None = None,
) -> tuple[MeasuredLayout, MeasuredLayout]:
    """Return a batch at once, and one sequence at a time.

    Raises:
        SpecError: when the model or the request is wrong.
        ProbeError: when no worker can run.
    """
    asked = experiment.asked() | {"layouts": num_sequences}
    config: dict[str, Any] = {}
    found: list[MeasuredLayout] = []
    with running(subject, "verify", asked, on_progress=on_progress) as events:
        for event in events:
            if event["event"] == "ready":
                config = event["config"]
            if event["event"] == "layout":
                names = ("micro_batch", "accum_steps", "allocated_peak_bytes", "deviation")
                figures = {name: event[name] for name in names}
                found.append(MeasuredLayout(**figures, config=config))
    large, small = found
    return large, small
