"""A rule about a training loop."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

from batchplan.checker.loop.events import Amount
from batchplan.checker.loop.windows import Window
from batchplan.configfile import Finding, Severity


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What a rule has to say about a line."""

    line: int
    text: str
    fix: str = ""
    severity: Severity | None = None
    """Where it is not the rule's usual one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LoopRule:
    """One kind of mistake."""

    code: str
    severity: Severity
    title: str
    """What is wrong, in a few words."""
    look: Callable[[Window], Iterator[Said]]

    def findings(self, window: Window, file: str) -> Iterator[Finding]:
        """Yield what the rule finds in one loop."""
        for said in self.look(window):
            yield Finding(
                code=self.code,
                severity=said.severity or self.severity,
                text=said.text,
                fix=said.fix,
                file=file,
                line=said.line,
            )


def steps_text(amount: Amount | None) -> str:
    """Return K as the file names it, with its value where that is known and not the name."""
    if amount is None:
        return "K"
    value = f"{amount.value:g}" if amount.value is not None else ""
    return f"{amount.text} ({value})" if value and value != amount.text else amount.text


def times(amount: Amount | None) -> str:
    """Return K as a multiple, such as ``8 times``."""
    if amount is not None and amount.value is not None:
        return f"{amount.value:g} times"
    return f"{steps_text(amount)} times"


def once_per_step(window: Window) -> str:
    """Return where in this loop to put what should happen once per optimizer step."""
    step = window.steps[0]
    return f"beside `{step.written}` on line {step.line}"
