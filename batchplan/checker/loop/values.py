"""The batch and learning rate that a training script says by itself."""

from __future__ import annotations

import ast
from collections.abc import Iterator

from batchplan.checker.loop.events import Amount, Kind, Role
from batchplan.checker.loop.program import Program, constructed, tail
from batchplan.checker.loop.windows import Window, accelerator_steps, engine_steps

Value = tuple[float | int | str, int]
"""What, and on which line."""


def stated_values(program: Program, found: list[Window]) -> dict[str, Value]:
    """Return ``accum_steps``, ``micro_batch``, ``learning_rate`` and ``optimizer``.

    Only what the file alone settles: no arguments of functions or of the command line, and
    nothing that two places answer differently.
    """
    optimizers = [c for c in program.calls if constructed(program, c.func) is Role.OPTIMIZER]
    answers: dict[str, list[Value]] = {
        "accum_steps": _numbers(_accum_steps(program, found)),
        "micro_batch": _numbers(_given(program, _loaders(program, found), "batch_size", at=1)),
        "learning_rate": _numbers(_given(program, optimizers, "lr", at=1)),
        "optimizer": [(tail(call.func), call.lineno) for call in optimizers],
    }
    return {name: values[0] for name, values in answers.items() if len({v for v, _ in values}) == 1}


def _accum_steps(program: Program, found: list[Window]) -> Iterator[Amount]:
    for window in found:
        if window.accumulates and window.accum_steps is not None:
            yield window.accum_steps
        elif window.of(Kind.ACCUMULATE):
            yield accelerator_steps(program) or Amount(text="?")
        elif any(step.role is Role.ENGINE for step in window.steps):
            yield engine_steps(program) or Amount(text="?")


def _loaders(program: Program, found: list[Window]) -> list[ast.Call]:
    """Return the loaders that training loops iterate, or else the only one there is."""
    iterated = [program.assigned.get(window.loop.iteration.loader) for window in found]
    calls = [call for call in iterated if isinstance(call, ast.Call) and _is_loader(program, call)]
    return calls or [call for call in program.calls if _is_loader(program, call)]


def _is_loader(program: Program, call: ast.Call) -> bool:
    return constructed(program, call.func) is Role.LOADER


def _given(program: Program, calls: list[ast.Call], name: str, *, at: int) -> Iterator[Amount]:
    """Yield an argument of each call, given by name or by position."""
    for call in calls:
        values = [keyword.value for keyword in call.keywords if keyword.arg == name]
        values += call.args[at : at + 1]
        yield program.amount(values[0]) if values else Amount(text="?")


def _numbers(amounts: Iterator[Amount]) -> list[Value]:
    """Return the values, or none where one of them is not known."""
    every = list(amounts)
    values = [(amount.value, amount.line) for amount in every if amount.value is not None]
    return list(values) if len(values) == len(every) else []
