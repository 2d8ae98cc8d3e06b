"""A helper of the same file, told in the names of the place that calls it."""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from batchplan.checker.loop.program import FunctionNode, tail

NO_GRAPH = {"no_grad", "inference_mode"}
"""Contexts and decorators under which nothing is kept for a backward pass."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Inlined:
    """What a call makes of a helper."""

    body: list[ast.stmt]
    """In the caller's names."""
    own: Mapping[str, ast.expr]
    """Parameters that the helper assigns to, and so are names of its own, with what is given."""


def inlined(call: ast.Call, helper: FunctionNode) -> Inlined:
    """Return the body of a helper with the caller's expressions in place of its parameters."""
    stored = {n.id for n in ast.walk(helper) if isinstance(n, ast.Name) and _is_store(n)}
    given = dict(_arguments(call, helper))
    renaming = _Renaming({name: value for name, value in given.items() if name not in stored})
    return Inlined(
        body=[renaming.visit(copy.deepcopy(statement)) for statement in helper.body],
        own={name: value for name, value in given.items() if name in stored},
    )


def num_statements(helper: FunctionNode) -> int:
    """Return how many statements are read when it is called."""
    return sum(isinstance(node, ast.stmt) for node in ast.walk(helper))


def makes_no_graph(helper: FunctionNode) -> bool:
    """Whether it is decorated with ``torch.no_grad`` or its like, called or not."""
    return any(
        tail(part) in NO_GRAPH
        for decorator in helper.decorator_list
        for part in ast.walk(decorator)
    )


class _Renaming(ast.NodeTransformer):
    """Puts the caller's expressions in the place of a helper's parameters."""

    def __init__(self, given: Mapping[str, ast.expr]) -> None:
        self.given = given

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.given.get(node.id, node)


def _is_store(node: ast.Name) -> bool:
    return not isinstance(node.ctx, ast.Load)


def _arguments(call: ast.Call, helper: FunctionNode) -> Iterator[tuple[str, ast.expr]]:
    """Yield the parameters of a helper with what a call gives for them."""
    parameters = [p.arg for p in (*helper.args.posonlyargs, *helper.args.args)]
    if isinstance(call.func, ast.Attribute):
        parameters = parameters[1:]
    defaults = helper.args.defaults
    if defaults:
        yield from zip(parameters[-len(defaults) :], defaults, strict=False)
    for parameter, default in zip(helper.args.kwonlyargs, helper.args.kw_defaults, strict=True):
        if default is not None:
            yield parameter.arg, default
    if not any(isinstance(a, ast.Starred) for a in call.args):
        yield from zip(parameters, call.args, strict=False)
    for keyword in call.keywords:
        if keyword.arg:
            yield keyword.arg, keyword.value
