"""From syntax to events: reads a function body, helpers of the same file included, in order."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace

from batchplan.checker.loop.assigned import assigned_in
from batchplan.checker.loop.calls import CallReader
from batchplan.checker.loop.conditions import guard
from batchplan.checker.loop.events import (
    Event,
    Guard,
    Guards,
    Iteration,
    Kind,
    Loop,
    Loss,
    Role,
)
from batchplan.checker.loop.inlining import NO_GRAPH, inlined, makes_no_graph, num_statements
from batchplan.checker.loop.losses import LossReader, either, summed
from batchplan.checker.loop.program import FunctionNode, Program, dotted, root, tail

MAX_STATEMENTS = 10_000
"""Statements read in one file, helpers counted at every call; beyond that nothing is said."""

_COUNTED = {"enumerate", "tqdm", "trange", "track", "iter", "list"}
_HALF = {"torch.float16", "torch.half"}

Children = list[Event | Loop]


class TooLong(Exception):  # noqa: N818 - no error of the user: we stop reading
    """The file has more statements than are worth reading."""


def read(program: Program) -> Iterator[Loop]:
    """Yield the body of the module and of each function as a tree of loops and events.

    Raises:
        TooLong: beyond ``MAX_STATEMENTS``.
    """
    budget = [MAX_STATEMENTS]
    yield Reader(program, budget, {}).body(program.tree.body)
    for function in program.functions.values():
        yield Reader(program, budget, {}).body(function.body)
    for methods in program.methods.values():
        for function in methods.values():
            yield Reader(program, budget, methods).body(function.body)


class Reader:
    """Reads statements one after the other, keeping what each variable holds."""

    def __init__(
        self,
        program: Program,
        budget: list[int],
        methods: Mapping[str, FunctionNode],
        *,
        depth: int = 0,
    ) -> None:
        self.program = program
        self.methods = methods
        self.depth = depth
        self.guards: Guards = ()
        self.env: dict[str, Loss] = {}
        self.flags: dict[str, ast.expr] = {}
        self.returned: dict[ast.Call, Loss | tuple[Loss, ...]] = {}
        self.returns: list[tuple[Loss, ...]] = []
        self.budget = budget
        self.without_graph = 0

    def body(self, statements: list[ast.stmt]) -> Loop:
        """Return a function's body."""
        return Loop(line=0, is_loop=False, children=tuple(self.block(statements)))

    def block(self, statements: list[ast.stmt]) -> Children:
        """Return what a list of statements does."""
        found: Children = []
        outside = self.guards
        for statement in statements:
            self.budget[0] -= 1
            if self.budget[0] < 0:
                raise TooLong
            reader = getattr(self, f"_{type(statement).__name__.lower()}", self._simple)
            found += reader(statement)
            self.guards += self._after(statement)
        self.guards = outside
        return found

    @property
    def losses(self) -> LossReader:
        """A reader of expressions at this place."""
        return LossReader(self.program, self.env, self.guards, self.returned)

    # Statements that hold others

    def _functiondef(self, _: ast.stmt) -> Children:
        return []  # read on its own, and where it is called

    _asyncfunctiondef = _classdef = _functiondef

    def _if(self, node: ast.If) -> Children:
        found = self._expression(node.test)
        ways = []
        before = dict(self.env)
        for holds, statements in ((True, node.body), (False, node.orelse)):
            self.env = dict(before)
            with self._under(self._guard(node.test, holds=holds)):
                found += self.block(statements)
            ways.append(self.env)
        self.env = _merged(*ways)
        return found

    def _after(self, node: ast.stmt) -> Guards:
        """Return the condition for coming past an ``if`` that goes on to the next iteration."""
        if not isinstance(node, ast.If):
            return ()
        if node.body and isinstance(node.body[-1], ast.Continue):
            return (self._guard(node.test, holds=False),)
        if node.orelse and isinstance(node.orelse[-1], ast.Continue):
            return (self._guard(node.test, holds=True),)
        return ()

    def _for(self, node: ast.For | ast.AsyncFor) -> Children:
        return [
            *self._expression(node.iter),
            self._loop(node, self._iteration(node)),
            *self.block(node.orelse),
        ]

    _asyncfor = _for

    def _while(self, node: ast.While) -> Children:
        return [self._loop(node, Iteration()), *self.block(node.orelse)]

    def _loop(self, node: ast.For | ast.AsyncFor | ast.While, iteration: Iteration) -> Loop:
        stored, zeroed, fresh, fetches = assigned_in(node)
        return Loop(
            line=node.lineno,
            children=tuple(self.block(node.body)),
            iteration=iteration,
            assigned=stored,
            zeroed=zeroed,
            fresh=fresh,
            fetches=fetches,
        )

    def _iteration(self, node: ast.For | ast.AsyncFor) -> Iteration:
        iterated, index = node.iter, ""
        while isinstance(iterated, ast.Call) and tail(iterated.func) in _COUNTED and iterated.args:
            if tail(iterated.func) == "enumerate" and isinstance(node.target, ast.Tuple):
                index = dotted(node.target.elts[0])
            iterated = iterated.args[0]
        if isinstance(iterated, ast.Call) and tail(iterated.func) == "range":
            arguments = iterated.args
            count = self.program.amount(arguments[0]) if len(arguments) == 1 else None
            return Iteration(index=dotted(node.target), count=count)
        return Iteration(index=index, loader=dotted(iterated))

    def _with(self, node: ast.With | ast.AsyncWith) -> Children:
        found: Children = []
        freed = 0
        for item in node.items:
            found += self._context(item)
            freed += tail(getattr(item.context_expr, "func", None)) in NO_GRAPH
        self.without_graph += freed
        found += self.block(node.body)
        self.without_graph -= freed
        return found

    _asyncwith = _with

    def _context(self, item: ast.withitem) -> Children:
        made = self.program.made(item.context_expr) or item.context_expr
        if not isinstance(made, ast.Call):
            return self._expression(item.context_expr)
        name = tail(made.func)
        if name == "scale_loss" and made.args and item.optional_vars is not None:
            self.env[dotted(item.optional_vars)] = self.losses.read(made.args[0])  # of apex
        if name == "accumulate" and isinstance(made.func, ast.Attribute):
            role = self.program.role(made.func.value)
            target = dotted(made.func.value)
            return [self._event(Kind.ACCUMULATE, item.context_expr, target=target, role=role)]
        if name == "autocast" and self._is_half(made):
            return [self._event(Kind.AUTOCAST_FP16, item.context_expr)]
        return self._expression(item.context_expr)

    def _is_half(self, call: ast.Call) -> bool:
        """Whether an autocast surely computes in float16."""
        given = {k.arg: k.value for k in call.keywords}
        if None in given or "enabled" in given:
            return False
        dtype: ast.expr | None = given.get("dtype")
        if dtype is not None:
            return self.program.qualified(self.program.made(dtype) or dtype) in _HALF
        name = self.program.qualified(call.func)
        device = call.args[0] if call.args else given.get("device_type")
        if name.endswith("cuda.amp.autocast"):
            return not call.args
        return (
            name.startswith("torch.")
            and len(call.args) < 2
            and isinstance(device, ast.Constant)
            and device.value == "cuda"
        )

    def _try(self, node: ast.Try) -> Children:
        # What an exception leads to is no part of a step.
        return [*self.block(node.body), *self.block(node.orelse), *self.block(node.finalbody)]

    _trystar = _try

    def _match(self, node: ast.Match) -> Children:
        found = self._expression(node.subject)
        for case in node.cases:
            text = f"match {ast.unparse(node.subject)}: {ast.unparse(case.pattern)}"
            with self._under(Guard(text=text, holds=True, calls=True)):
                found += self.block(case.body)
        return found

    # Statements that hold expressions

    def _simple(self, node: ast.stmt) -> Children:
        return [
            event
            for part in ast.iter_child_nodes(node)
            if isinstance(part, ast.expr)
            for event in self._expression(part)
        ]

    def _return(self, node: ast.Return) -> Children:
        found = self._simple(node)
        if node.value is not None:
            count = len(node.value.elts) if isinstance(node.value, ast.Tuple) else 1
            self.returns.append(self.losses.many(node.value, count))
        return found

    def _assign(self, node: ast.Assign) -> Children:
        found = self._expression(node.value)
        for target in node.targets:
            found += self._gradients(node, target, node.value, sets=True)
            if isinstance(target, ast.Tuple):
                values = self.losses.many(node.value, len(target.elts))
                for element, value in zip(target.elts, values, strict=True):
                    self._set(element, value)
            else:
                value = self.losses.read(node.value)
                if isinstance(node.value, ast.BinOp) and _adds_to(target, node.value):
                    found += self._kept(node, dotted(target), self.losses.read(node.value.right))
                self._set(target, value)
                self.flags[dotted(target)] = node.value
        return found

    def _annassign(self, node: ast.AnnAssign) -> Children:
        if node.value is None:
            return []
        self._set(node.target, self.losses.read(node.value))
        self.flags[dotted(node.target)] = node.value
        return self._expression(node.value)

    def _augassign(self, node: ast.AugAssign) -> Children:
        found = self._expression(node.value)
        found += self._gradients(node, node.target, node.value, sets=False)
        losses, name = self.losses, dotted(node.target)
        if isinstance(node.op, ast.Div | ast.Mult):
            divides, value = isinstance(node.op, ast.Div), losses.read(node.target)
            value = losses.scaled(value, node.value, divides=divides, line=node.lineno)
            self._set(node.target, value)
        elif isinstance(node.op, ast.Add) and not losses.is_number(node.value):
            value = losses.read(node.value)
            found += self._kept(node, name, value)
            self._set(node.target, summed(self.env[name], value) if name in self.env else value)
        return found

    def _set(self, target: ast.expr, value: Loss) -> None:
        if dotted(target):
            self.env[dotted(target)] = value

    def _gradients(
        self, node: ast.stmt, target: ast.expr, value: ast.expr, *, sets: bool
    ) -> Children:
        """Return what happens to ``p.grad``, if that is what is assigned."""
        if not (isinstance(target, ast.Attribute) and target.attr == "grad"):
            return []
        clears = sets and isinstance(value, ast.Constant) and value.value is None
        kind = Kind.ZERO_GRAD if clears else Kind.SCALE_GRADS
        return [self._event(kind, node, target=dotted(target))]

    def _kept(self, node: ast.AST, name: str, value: Loss) -> Children:
        if self.without_graph or value.is_detached or not value.names:
            return []
        return [self._event(Kind.KEEP, node, target=name, loss=value)]

    # Expressions

    def _expression(self, node: ast.expr) -> Children:
        """Return what the calls in an expression do, arguments before the call."""
        if isinstance(node, ast.Lambda):
            return []
        found: Children = []
        for part in ast.iter_child_nodes(node):
            if isinstance(part, ast.expr):
                found += self._expression(part)
            elif isinstance(part, ast.keyword):
                found += self._expression(part.value)
            elif isinstance(part, ast.comprehension):
                found += self._expression(part.iter)
        if isinstance(node, ast.Call):
            helper = self._helper(node)
            if helper is not None:
                if self.depth:
                    return [*found, self._event(Kind.HIDDEN, node)]
                return found + self._inlined(node, helper)
            event = CallReader(self.program, self.losses).event(node)
            if event is not None:
                found.append(replace(event, guards=self.guards))
            elif tail(node.func) == "append" and len(node.args) == 1:
                found += self._kept(node, root(node.func), self.losses.read(node.args[0]))
        return found

    def _event(
        self,
        kind: Kind,
        node: ast.AST,
        *,
        target: str = "",
        role: Role = Role.OTHER,
        loss: Loss | None = None,
    ) -> Event:
        return Event(
            kind=kind,
            line=getattr(node, "lineno", 0),
            target=target,
            role=role,
            guards=self.guards,
            loss=loss,
            written=ast.unparse(node),
        )

    def _guard(self, test: ast.expr, *, holds: bool) -> Guard:
        return guard(test, holds=holds, program=self.program, flags=self.flags)

    @contextmanager
    def _under(self, condition: Guard) -> Iterator[None]:
        outside = self.guards
        self.guards = (*outside, condition)
        yield
        self.guards = outside

    # Helpers of the same file

    def _helper(self, call: ast.Call) -> FunctionNode | None:
        if isinstance(call.func, ast.Name):
            return self.program.functions.get(call.func.id)
        if isinstance(call.func, ast.Attribute) and dotted(call.func.value) == "self":
            return self.methods.get(call.func.attr)
        return None

    def _inlined(self, call: ast.Call, helper: FunctionNode) -> Children:
        """Return what a helper does, told in the caller's names."""
        self.budget[0] -= num_statements(helper)
        if self.budget[0] < 0:
            raise TooLong
        told = inlined(call, helper)
        inner = Reader(self.program, self.budget, self.methods, depth=self.depth + 1)
        inner.guards = self.guards
        inner.without_graph = self.without_graph + makes_no_graph(helper)
        inner.env, inner.flags = dict(self.env), dict(self.flags)
        inner.env |= {name: self.losses.read(value) for name, value in told.own.items()}
        found = inner.block(told.body)
        counts = {len(values) for values in inner.returns}
        if len(counts) == 1:
            values = tuple(map(either, zip(*inner.returns, strict=True)))
            self.returned[call] = values if len(values) > 1 else values[0]
        return found


def _adds_to(target: ast.expr, value: ast.BinOp) -> bool:
    """Whether it is ``total = total + ...``."""
    return isinstance(value.op, ast.Add) and dotted(value.left) == dotted(target) != ""


def _merged(one: Mapping[str, Loss], other: Mapping[str, Loss]) -> dict[str, Loss]:
    """Return what variables hold after one or the other branch."""
    merged = {**one, **other}
    for name in one.keys() & other.keys():
        if one[name] is not other[name]:
            merged[name] = either([one[name], other[name]])
    return merged
