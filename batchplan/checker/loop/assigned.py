"""What a loop assigns over and over."""

from __future__ import annotations

import ast

from batchplan.checker.loop.program import dotted, names_in, tail

_FETCHING = {"next", "get_batch"}


def assigned_in(
    loop: ast.AST,
) -> tuple[frozenset[str], frozenset[str], frozenset[str], bool]:
    """Return what a loop assigns, sets to 0, makes afresh, and whether it fetches a batch."""
    stored, zeroed, fresh, fetches = set(), set(), set(), False
    for node in ast.walk(loop):
        match node:
            case ast.Name(ctx=ast.Store()) | ast.Attribute(ctx=ast.Store()):
                stored.add(dotted(node))
            case ast.Assign(targets=[target], value=value):
                if isinstance(value, ast.Constant) and value.value == 0:
                    zeroed.add(dotted(target))
                if dotted(target) not in names_in(value):
                    fresh.add(dotted(target))
            case ast.Call(func=func) if tail(func) in _FETCHING:
                fetches = True
    return frozenset(stored), frozenset(zeroed), frozenset(fresh), fetches
