"""What every adapter shares: reading questions, writing answers, and words for what is refused."""

from __future__ import annotations

import contextlib
import json
import sys
from collections.abc import Callable
from typing import Any

GIB = 2**30


class OutOfScopeError(Exception):
    """The tool has no way to ask this."""


def serve(ask: Callable[[dict[str, Any]], float]) -> None:
    """Answer every question; what a tool prints itself goes to standard error."""
    answers: list[dict[str, Any]] = []
    with contextlib.redirect_stdout(sys.stderr):
        for question in json.load(sys.stdin):
            try:
                answers.append({"bytes": int(ask(question))})
            except OutOfScopeError as reason:
                answers.append({"reason": str(reason)})
            except Exception as error:
                answers.append({"reason": f"{type(error).__name__}: {error}"[:200]})
    json.dump(answers, sys.stdout)


def one_device(question: dict[str, Any]) -> None:
    """Refuse several devices."""
    if question["devices"] > 1:
        raise OutOfScopeError("several devices")


def full_only(question: dict[str, Any]) -> None:
    """Refuse adapters."""
    if question["method"] != "full":
        raise OutOfScopeError(question["method"])


def choose(table: dict[str, Any], word: str, what: str) -> Any:
    """Return what the tool calls a word, or refuse it."""
    if word not in table:
        raise OutOfScopeError(f"{what} {word}")
    return table[word]
