"""The checks C1 to C7: what was measured, judged, and mistakes called by their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from batchplan.learning.accumulation import (
    COSINE_TOLERANCE,
    GRADIENT_TOLERANCE,
    TEXTS,
    WEIGHT_TOLERANCE,
    Fault,
    Window,
    buffer_error_limit,
    correct_weights,
    name_clip_fault,
    name_count_fault,
    name_fault,
)

REFERENCE = "reference"
"""The subject that is our own loop: where it fails, it is the model that does not accumulate."""
Event = dict[str, Any]
_MORE = 1.5
"""Times the model's own deviation: the loop then adds to it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """One check of one loop."""

    code: str
    subject: str
    ok: bool | None
    """None where it was not run: ``text`` says why."""
    deviation: float | None
    """Relative, of the worst window; of C7, steps too many over the right number."""
    limit: float | None
    """Of ``deviation``, to pass."""
    text: str
    fault: Fault | None = None
    """The mistake, where the figures give one away."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cause:
    """Something of the model or its loss for which accumulation cannot be exact."""

    kind: str
    names: tuple[str, ...]
    """Modules, or settings with their value."""
    deviation: float
    """Relative distance of the large batch's gradient from the accumulated one."""
    left: float | None
    """The same without it; None where it cannot be taken out."""
    text: str
    fix: str


# What each kind is, and what to do. Batch statistics: Ioffe & Szegedy 2015 (arXiv 1502.03167) and
# Wu & He 2018 (1803.08494); load balancing: Fedus et al. 2021 (2101.03961), eq. 4, a product of two
# averages over the batch, and Wang et al. 2024 (2408.15664) without it; negatives: Gao et al. 2021
# (2101.06983).
CAUSES: dict[str, tuple[str, str]] = {
    "batch-statistics": (
        "normalises by the mean and variance of its micro-batch",
        "use GroupNorm, LayerNorm or RMSNorm, or train with frozen statistics (eval mode); else "
        "the micro-batch, and not K, decides what is learnt",
    ),
    "auxiliary-loss": (
        "is a product of averages over the micro-batch and does not add up",
        "balance experts without a loss (a bias on the router), or set the coefficient to 0; else "
        "balance is asked of every micro-batch, so keep it large",
    ),
    "randomness": (
        "the model draws at random, so that one batch has another gradient each time",
        "switch it off and check again: only dropout that is a module, or a setting with drop or "
        "jitter in its name, is off here. In training it is no mistake, as large batches draw too",
    ),
    "loss": (
        "the loss of an example depends on the others of its batch, as with in-batch negatives",
        "cache embeddings of the whole window and backpropagate in two passes (GradCache), or make "
        "the micro-batch as large as the loss needs; K adds no negatives",
    ),
    "forward": (
        "mixes the examples of a batch",
        "replace it by something that treats every example alone; as it is, it sees a micro-batch "
        "whatever K is",
    ),
    "ignores-count": (
        "takes num_items_in_batch, which tells the Trainer not to divide by K, and ignores it",
        "give the Trainer a compute_loss_func that divides the summed loss by num_items_in_batch; "
        "or set accepts_loss_kwargs = False on the model, which divides by K and leaves a mean of "
        "means",
    ),
    "loss-weighting": (
        "the loss is no mean over target tokens: the large batch weighs examples otherwise",
        "divide a summed token loss by the target tokens of the whole window",
    ),
}


@dataclass(slots=True)
class Story:
    """Everything that workers told."""

    accum_steps: int
    windows: dict[tuple[str, str], list[Event]] = field(default_factory=lambda: defaultdict(list))
    """By run and subject."""
    counts: dict[tuple[str, str], Event] = field(default_factory=dict)
    skipped: dict[tuple[str, str], str] = field(default_factory=dict)
    additivity: dict[str, list[Event]] = field(default_factory=lambda: defaultdict(list))
    """By run: the large batch against its own micro-batches, without any loop."""
    causes: list[Event] = field(default_factory=list)
    buffer: Event | None = None
    ready: Event = field(default_factory=dict)

    def read(self, event: Event) -> None:
        """Take in one event."""
        match event["event"]:
            case "ready":
                self.ready = event
            case "window":
                self.windows[event["run"], event["subject"]].append(event)
            case "counts":
                self.counts[event["run"], event["subject"]] = event
            case "skipped":
                self.skipped[event["run"], event["subject"]] = event["text"]
            case "additivity":
                self.additivity[event["run"]].append(event)
            case "cause":
                self.causes.append(event)
            case "buffer":
                self.buffer = event


def judge(story: Story, subjects: Iterable[str]) -> tuple[Check, ...]:
    """Return every check of every subject, by code."""
    names = tuple(subjects)
    return tuple(
        rule(story, code, subject)
        for code, rule in _RULES.items()
        for subject in (names if code != "C5" else (REFERENCE,))
    )


def causes(story: Story) -> Iterator[Cause]:
    """Yield what keeps accumulation from being exact."""
    for event in story.causes:
        yield _cause(event["kind"], tuple(event["names"]), event["deviation"], event["left"])
    worst = {
        run: max((event["deviation"] for event in events), default=0.0)
        for run, events in story.additivity.items()
    }
    unequal = worst.get("unequal", 0.0)
    if unequal > GRADIENT_TOLERANCE >= worst.get("equal", 0.0):
        yield _cause("loss-weighting", (), unequal, None)


def _cause(kind: str, names: tuple[str, ...], deviation: float, left: float | None) -> Cause:
    text, fix = CAUSES[kind]
    subject = ", ".join(names)
    return Cause(
        kind=kind,
        names=names,
        deviation=deviation,
        left=left,
        text=f"{subject}: {text}" if subject else text,
        fix=fix,
    )


def _gradients(
    run: str, passes: str, *, chosen: Callable[[Story, Event], bool] = lambda *_: True
) -> Callable[[Story, str, str], Check]:
    """Return the rule that gradients of ``run``, in the windows ``chosen``, are right."""

    def rule(story: Story, code: str, subject: str) -> Check:
        if (missing := _not_run(story, code, subject, run)) is not None:
            return missing
        events = [event for event in story.windows[run, subject] if chosen(story, event)]
        if not events:
            return _miscounted(story, code, subject, run)
        worst = max(events, key=lambda event: event["deviation"])
        ok = all(
            event["deviation"] <= GRADIENT_TOLERANCE
            and event["cosine"] >= 1 - COSINE_TOLERANCE
            and _has_norm(event)
            for event in events
        )
        faults = (_named(story, event) for event in events)
        fault = None if ok else next((fault for fault in faults if fault is not None), None)
        return Check(
            code=code,
            subject=subject,
            ok=ok,
            deviation=worst["deviation"],
            limit=GRADIENT_TOLERANCE,
            text=passes if ok else _why(story, run, worst, fault),
            fault=fault,
        )

    return rule


def _has_norm(event: Event) -> bool:
    """Whether a gradient that was to be clipped has the norm it should have."""
    wanted = event["max_norm"]
    return not wanted or abs(event["norm"] / wanted - 1) <= WEIGHT_TOLERANCE


def _named(story: Story, event: Event) -> Fault | None:
    if event["residual"] > GRADIENT_TOLERANCE:
        return None  # no sum of the micro-batches' gradients, so its weights mean nothing
    window = _window(story, event)
    if not event["max_norm"]:
        return name_fault(window)
    counts = story.counts[event["run"], event["subject"]]
    unclipped = story.windows["unequal", event["subject"]][event["window"]]
    return name_clip_fault(
        window,
        _window(story, unclipped),
        clips=-(-counts["clips"] // counts["num_windows"]),
        norm=event["norm"],
        max_norm=event["max_norm"],
    )


def _window(story: Story, event: Event) -> Window:
    num_ranks = max(event["ranks"]) + 1
    return Window(
        targets=tuple(event["targets"]),
        weights=tuple(event["weights"]),
        accum_steps=story.accum_steps,
        num_rows=event["num_rows"],
        num_ranks=num_ranks,
        ranks=tuple(event["ranks"]) if num_ranks > 1 else (),
        earlier_weights=tuple(event["earlier_weights"]),
    )


def _why(story: Story, run: str, event: Event, fault: Fault | None) -> str:
    # A clipped gradient was compared at its own length.
    size = event["norm"] / event["max_norm"] if event["max_norm"] else event["ratio"]
    ratio = f"its norm is {size:.4g} times the right one"
    if fault is not None:
        return f"{TEXTS[fault]} ({ratio})"
    model = max((each["deviation"] for each in story.additivity[run]), default=0.0)
    if model > GRADIENT_TOLERANCE:
        more = f"; this loop makes it {_percent(event['deviation'])}"
        return (
            f"the model's own gradients do not add up to the large batch's: {_percent(model)} "
            f"away, whatever the loop does{more if event['deviation'] > _MORE * model else ''}"
        )
    if event["residual"] > GRADIENT_TOLERANCE:
        # Label smoothing is another loss; so is a compute_loss that weighs tokens in its own way.
        why = (
            "values were clipped, and not the norm"
            if event["max_norm"]
            else "the loss were another"
        )
        return (
            f"{ratio}; {_percent(event['residual'])} of it is no sum of the model's gradients of "
            f"its micro-batches, as if {why}"
        )
    if event["max_norm"] and event["deviation"] <= GRADIENT_TOLERANCE:
        return f"clipped once, but to another norm than was asked for: {ratio}"
    found, right = (
        ", ".join(f"{weight:.3g}" for weight in weights)
        for weights in (event["weights"], correct_weights(event["targets"]))
    )
    return (
        f"{ratio}; micro-batches weigh {found} where {right} is right: no mistake that has a name"
    )


def _buffer(story: Story, code: str, subject: str) -> Check:
    limit = buffer_error_limit(story.accum_steps)
    if story.buffer is None:
        return _missing(code, subject, "no time was left", limit)
    deviation = story.buffer["deviation"]
    ok = deviation <= limit
    text = (
        f"a bf16 buffer rounds {story.accum_steps} sums as expected"
        if ok
        else "a bf16 buffer loses more than its rounding explains, as micro-batches cancel; "
        "accumulate in fp32"
    )
    return Check(code=code, subject=subject, ok=ok, deviation=deviation, limit=limit, text=text)


def _counts(story: Story, code: str, subject: str) -> Check:
    if (missing := _not_run(story, code, subject, "equal")) is not None:
        return missing
    return _miscounted(story, code, subject, "equal")


def _percent(share: float) -> str:
    """Return a share that failed, which is never 0.

    >>> _percent(0.42), _percent(0.000081)
    ('42.0%', '0.008%')
    """
    return f"{share:.1%}" if share >= 0.001 else f"{100 * share:.1g}%"


def _miscounted(story: Story, code: str, subject: str, run: str) -> Check:
    counts = story.counts[run, subject]
    windows, micro_batches = counts["num_windows"], counts["num_micro_batches"]
    steps = {name: counts[f"{name}_steps"] for name in ("optimizer", "scheduler")}
    fault = name_count_fault(
        optimizer_steps=steps["optimizer"],
        scheduler_steps=steps["scheduler"],
        num_windows=windows,
        num_micro_batches=micro_batches,
        accum_steps=story.accum_steps,
    )
    ok = set(steps.values()) == {windows}
    said = (
        f"{micro_batches} micro-batches at K = {story.accum_steps}: {steps['optimizer']} optimizer "
        f"and {steps['scheduler']} scheduler steps"
    )
    wrong = "" if ok else f" instead of {windows}" + (f"; {TEXTS[fault]}" if fault else "")
    return Check(
        code=code,
        subject=subject,
        ok=ok,
        deviation=max(abs(count / windows - 1) for count in steps.values()),
        limit=0.0,
        text=said + wrong,
        fault=fault,
    )


def _not_run(story: Story, code: str, subject: str, run: str) -> Check | None:
    if run in ("unequal", "ranks") and not story.ready.get("has_lengths", True):
        text = "every example has one target, so none can be unequal"
    else:
        text = story.skipped.get((run, subject), "")
        if not text and (run, subject) not in story.counts:
            text = "nothing was measured"
    return _missing(code, subject, text) if text else None


def _missing(code: str, subject: str, text: str, limit: float = GRADIENT_TOLERANCE) -> Check:
    return Check(
        code=code, subject=subject, ok=None, deviation=None, limit=limit, text=f"not run: {text}"
    )


def _is_short(story: Story, event: Event) -> bool:
    return len(event["targets"]) < story.accum_steps


_RULES: dict[str, Callable[[Story, str, str], Check]] = {
    "C1": _gradients(
        "equal",
        "equal lengths: the gradient of the large batch",
        chosen=lambda story, event: not _is_short(story, event),
    ),
    "C2": _gradients("unequal", "very unequal lengths: the gradient of the large batch"),
    "C3": _gradients("equal", "a last window of K - 1: the large batch's", chosen=_is_short),
    "C4": _gradients("ranks", "two ranks with unequal tokens: one process's gradient"),
    "C5": _buffer,
    "C6": _gradients("clip", "clipped once a window, as a whole"),
    "C7": _counts,
}
