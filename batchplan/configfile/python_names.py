"""Which names of a Python file stand for one literal, as far as reading can tell."""

from __future__ import annotations

import ast
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

_SCOPES = (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef, ast.Lambda)


@dataclass(slots=True, eq=False)
class Scope:
    """A module, function or class: how often it binds each name, and to what."""

    parent: Scope | None = None
    is_class: bool = False
    bindings: Counter[str] = field(default_factory=Counter)
    expressions: dict[str, ast.expr] = field(default_factory=dict)

    def chain(self) -> Iterator[Scope]:
        """Yield this scope and those around it, from the inside out."""
        scope: Scope | None = self
        while scope is not None:
            yield scope
            scope = scope.parent


@dataclass(slots=True, kw_only=True, eq=False)
class Names:
    """All scopes of a file, and the scope each call and assignment stands in."""

    module: Scope = field(default_factory=Scope)
    nodes: list[tuple[ast.AST, Scope]] = field(default_factory=list)
    """Every node with its scope, outer before inner."""
    changed: set[str] = field(default_factory=set)
    """Names of which an item is assigned or an attribute used, such as ``cfg.update(…)``."""

    def find(self, name: str, scope: Scope) -> tuple[ast.expr, Scope] | None:
        """Return the expression a name stands for, and where that is written.

        None where the name is bound more than once or never, in a function around this one, or
        to something that is changed afterwards.
        """
        for candidate in scope.chain():
            if candidate.is_class and candidate is not scope:
                continue
            if name not in candidate.bindings:
                continue
            expression = candidate.expressions.get(name)
            near = candidate is scope or candidate is self.module
            if candidate.bindings[name] != 1 or expression is None or not near:
                return None
            return None if name in self.changed else (expression, candidate)
        return None


def read_names(tree: ast.Module) -> Names:
    """Return the names of a file. Nothing recurses: an ``elif`` chain is deep."""
    names = Names()
    waiting: list[tuple[ast.AST, Scope]] = [(tree, names.module)]
    while waiting:
        node, scope = waiting.pop()
        names.nodes.append((node, scope))
        for name in _bound_by(node):
            scope.bindings[name] += 1
        _note(node, scope, names)
        if isinstance(node, _SCOPES):
            scope = Scope(parent=scope, is_class=isinstance(node, ast.ClassDef))
        waiting.extend((child, scope) for child in reversed(list(ast.iter_child_nodes(node))))
    return names


def dotted(expression: ast.expr) -> str | None:
    """Return ``a.b.c`` as written; None for anything but names and attributes."""
    parts: list[str] = []
    while isinstance(expression, ast.Attribute):
        parts.append(expression.attr)
        expression = expression.value
    if not isinstance(expression, ast.Name):
        return None
    return ".".join([expression.id, *reversed(parts)])


def _bound_by(node: ast.AST) -> Iterator[str]:
    """Yield the names a node binds by itself."""
    match node:
        case ast.Name(id=name, ctx=ast.Store() | ast.Del()) | ast.arg(arg=name):
            yield name
        case ast.alias(name=name, asname=new_name):
            yield new_name or name.partition(".")[0]
        case ast.MatchAs(name=str(name)) | ast.MatchStar(name=str(name)):
            yield name
        case ast.MatchMapping(rest=str(name)) | ast.ExceptHandler(name=str(name)):
            yield name
        case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
            yield name


def _note(node: ast.AST, scope: Scope, names: Names) -> None:
    """Keep what a node says about the value of a name."""
    match node:
        case ast.Assign(targets=targets, value=value):
            for target in targets:
                if isinstance(target, ast.Name):
                    scope.expressions[target.id] = value
        case ast.AnnAssign(target=ast.Name(id=name), value=ast.expr() as value):
            scope.expressions[name] = value
        case ast.Attribute(value=ast.Name(id=name)):
            names.changed.add(name)
        case ast.Subscript(value=ast.Name(id=name), ctx=ast.Store() | ast.Del()):
            names.changed.add(name)
        case ast.Global(names=reached) | ast.Nonlocal(names=reached):
            # Bound from another scope: as good as bound twice, in all of them.
            for around in scope.chain():
                around.bindings.update(reached * 2)
