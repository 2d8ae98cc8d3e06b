"""Which conditions are true once in K micro-batches."""

from __future__ import annotations

import ast
from collections.abc import Callable, Mapping
from dataclasses import replace

from batchplan.checker.loop.events import Amount, Boundary, Guard, Role
from batchplan.checker.loop.program import Program, dotted, names_in

STEADY_CALLS = {"isinstance", "hasattr", "getattr", "len", "callable", "bool"}
"""Functions that answer the same in every iteration for the same arguments."""

_MAX_DEPTH = 8
_OPPOSITE: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.Lt: ast.GtE,
    ast.LtE: ast.Gt,
    ast.Gt: ast.LtE,
    ast.GtE: ast.Lt,
}


def guard(test: ast.expr, *, holds: bool, program: Program, flags: Mapping[str, ast.expr]) -> Guard:
    """Return a condition as a guard; ``flags`` are names and the conditions they were assigned."""
    reads = names_in(test)
    expanded = reads.union(*(names_in(flags[name]) for name in reads if name in flags))
    return Guard(
        text=ast.unparse(test),
        holds=holds,
        boundary=_Conditions(program, flags).boundary(test, holds=holds),
        reads=expanded,
        calls=any(
            isinstance(node, ast.Call) and dotted(node.func) not in STEADY_CALLS
            for node in ast.walk(test)
        ),
    )


class _Conditions:
    def __init__(self, program: Program, flags: Mapping[str, ast.expr]) -> None:
        self.program = program
        self.flags = flags

    def boundary(self, test: ast.expr, *, holds: bool, depth: int = 0) -> Boundary | None:
        """Return what ``test`` says of the accumulation where it is true (``holds``) or false."""
        if depth > _MAX_DEPTH:
            return None
        readers: dict[type[ast.expr], Callable[..., Boundary | None]] = {
            ast.UnaryOp: self._not,
            ast.BoolOp: self._either,
            ast.Compare: self._compared,
            ast.BinOp: self._remainder,
            ast.Name: self._flag,
            ast.Attribute: self._flag,
            ast.Call: self._asked,
        }
        reader = readers.get(type(test))
        return reader(test, holds=holds, depth=depth) if reader else None

    def _not(self, test: ast.UnaryOp, *, holds: bool, depth: int) -> Boundary | None:
        if not isinstance(test.op, ast.Not):
            return None
        return self.boundary(test.operand, holds=not holds, depth=depth + 1)

    def _either(self, test: ast.BoolOp, *, holds: bool, depth: int) -> Boundary | None:
        found = [self.boundary(part, holds=holds, depth=depth + 1) for part in test.values]
        known = next(filter(None, found), None)
        # "a or b" being true and "a and b" being false leave open which of them it was.
        is_open = isinstance(test.op, ast.Or) is holds
        return replace(known, handles_last=True) if known and is_open else known

    def _compared(self, test: ast.Compare, *, holds: bool, **_: int) -> Boundary | None:
        if len(test.ops) != 1:
            return None
        op = type(test.ops[0]) if holds else _OPPOSITE.get(type(test.ops[0]))
        left, right = test.left, test.comparators[0]
        if op is ast.Eq:
            for side in (left, right):
                if isinstance(side, ast.BinOp) and isinstance(side.op, ast.Mod):
                    return self._modulo(side)
        if op in (ast.Eq, ast.GtE) and dotted(left):
            return Boundary(
                accum_steps=self.program.amount(right),
                counters=frozenset({dotted(left)}),
                is_counter=True,
            )
        return None

    def _remainder(self, test: ast.BinOp, *, holds: bool, **_: int) -> Boundary | None:
        return self._modulo(test) if isinstance(test.op, ast.Mod) and not holds else None

    def _modulo(self, node: ast.BinOp) -> Boundary:
        return Boundary(accum_steps=self.program.amount(node.right), counters=names_in(node.left))

    def _flag(self, test: ast.Name | ast.Attribute, *, holds: bool, depth: int) -> Boundary | None:
        if isinstance(test, ast.Attribute) and test.attr == "sync_gradients":
            return self._managed(test, holds=holds)
        meaning = self.flags.get(dotted(test)) or self.program.made(test)
        return self.boundary(meaning, holds=holds, depth=depth + 1) if meaning else None

    def _asked(self, test: ast.Call, *, holds: bool, depth: int) -> Boundary | None:
        if isinstance(test.func, ast.Attribute):
            if test.func.attr == "is_gradient_accumulation_boundary":
                return self._managed(test.func, holds=holds)
        elif dotted(test.func) == "bool" and test.args:
            return self.boundary(test.args[0], holds=holds, depth=depth + 1)
        return None

    def _managed(self, node: ast.Attribute, *, holds: bool) -> Boundary | None:
        if not holds:
            return None
        role = self.program.role(node.value)
        name = f"{dotted(node.value)}.gradient_accumulation_steps"
        return Boundary(
            accum_steps=Amount(text=name),
            is_managed=role in (Role.ACCELERATOR, Role.ENGINE),
            handles_last=True,
        )
