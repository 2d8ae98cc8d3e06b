"""What a loop keeps longer, or sends more often, than it needs to."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.checker.loop.events import Event, Kind, Role
from batchplan.checker.loop.rules.rule import LoopRule, Said, times
from batchplan.checker.loop.windows import Window
from batchplan.configfile import Severity

KNOWS_SYNC = {"no_sync", "no_backward_sync", "set_requires_gradient_sync"} | {
    "require_backward_grad_sync",
    "set_is_last_backward",
}


def graph_kept(window: Window) -> Iterator[Said]:
    """Look for losses whose graphs pile up."""
    carried = frozenset[str]().union(*(b.loss.names for b in window.backwards if b.loss))
    for keep in window.of(Kind.KEEP):
        names = keep.loss.names & carried if keep.loss is not None else frozenset()
        if names and keep.target not in carried | window.loop.fresh:
            name = min(names)
            yield Said(
                line=keep.line,
                text=f"`{keep.written}` keeps the graph of every iteration alive: memory grows "
                "with each.",
                fix=f"Write {name}.item(), or {name}.detach() to spare the synchronisation.",
            )
    yield from _retained(window)


def _retained(window: Window) -> Iterator[Said]:
    backwards = [b for b in window.backwards if b.retains_graph]
    if len(window.backwards) == 1 and backwards and "grad" not in _functions(window):
        yield Said(
            line=backwards[0].line,
            text="retain_graph=True keeps all activations until the next iteration has made its "
            "own: nearly twice the memory, and no second backward in this loop uses them.",
            fix="Take retain_graph=True out; a hidden state that is carried on wants .detach().",
        )


def _functions(window: Window) -> set[str]:
    """Return the last names of what the file calls on ``autograd``."""
    names = (window.program.qualified(call.func) for call in window.program.calls)
    return {name.rsplit(".", 1)[-1] for name in names if "autograd" in name}


def no_sync(window: Window) -> Iterator[Said]:
    """Look for gradients that are reduced at every micro-batch."""
    if not window.accumulates or KNOWS_SYNC & window.program.mentions:
        return
    first = window.backwards[0]
    if not (Role.WRAPPED in window.program.roles.values() or _has_fabric_ranks(window, first)):
        return
    with_what = (
        "fabric.no_backward_sync(model, enabled=...)"
        if first.role is Role.FABRIC
        else "model.no_sync()"
    )
    yield Said(
        line=first.line,
        text="Gradients are reduced over the ranks at every micro-batch, "
        f"{times(window.accum_steps)} per step; once would do.",
        fix=f"Run all but the last micro-batch of a step under {with_what}; with FSDP that keeps "
        "unsharded gradients, which may cost more memory than it is worth.",
    )


def _has_fabric_ranks(window: Window, backward: Event) -> bool:
    if backward.role is not Role.FABRIC:
        return False
    return any(
        keyword.arg == "devices" and (window.program.amount(keyword.value).value or 1) > 1
        for call in window.program.made_by("Fabric")
        for keyword in call.keywords
    )


MEMORY_RULES = (
    LoopRule(
        code="graph-kept-alive",
        severity=Severity.WARNING,
        title="graphs kept alive",
        look=graph_kept,
    ),
    LoopRule(
        code="no-sync-missing",
        severity=Severity.NOTE,
        title="gradients reduced at every micro-batch",
        look=no_sync,
    ),
)
