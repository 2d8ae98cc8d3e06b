"""Training loops written by hand, read and never run.

``events`` is what a loop does in neutral terms; ``reader`` makes them of the syntax, ``windows``
finds the micro-batches of a step in them, and ``rules`` has one function per mistake.
What is not understood is not spoken of: closures, several optimizers in one loop, helpers of
helpers, and conditions that only running the file would tell.
"""

from __future__ import annotations

from batchplan.checker.loop.program import Program, parse
from batchplan.checker.loop.reader import TooLong, read
from batchplan.checker.loop.rules import LOOP_RULES
from batchplan.checker.loop.values import Value, stated_values
from batchplan.checker.loop.windows import Window, windows
from batchplan.configfile import ConfigFile, Finding

__all__ = ["LOOP_RULES", "find_loop_mistakes", "values_in_loop"]


def find_loop_mistakes(file: ConfigFile) -> tuple[Finding, ...]:
    """Return what is wrong with the training loops of a Python file, in the order of its lines.

    Nothing for a file that is no Python, has no such loop, or is too long to read.
    """
    _, found = _windows(file)
    mistakes = {
        (finding.line, finding.code): finding
        for window in found
        for rule in LOOP_RULES
        for finding in rule.findings(window, file.name)
    }
    return tuple(mistakes[key] for key in sorted(mistakes, key=lambda key: (key[0] or 0, key[1])))


def values_in_loop(file: ConfigFile) -> dict[str, Value]:
    """Return the batch and learning rate that a Python file states, each with its line.

    Keys, where known: ``accum_steps``, ``micro_batch`` (sequences), ``learning_rate`` and
    ``optimizer`` (the class).
    """
    program, found = _windows(file)
    return stated_values(program, found) if program is not None else {}


def _windows(file: ConfigFile) -> tuple[Program | None, list[Window]]:
    program = parse(file.text)
    if program is None or "backward" not in program.mentions:
        return program, []
    try:
        return program, [w for body in read(program) for w in windows(program, body)]
    except (TooLong, RecursionError):
        return program, []
