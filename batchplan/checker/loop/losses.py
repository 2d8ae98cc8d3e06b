"""What happened to a loss on its way to the backward: divided, summed, averaged, detached."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from batchplan.checker.loop.events import (
    Amount,
    Factor,
    Guards,
    Loss,
    Reduction,
    Role,
    compatible,
)
from batchplan.checker.loop.program import ACCUM_NAME, Program, dotted, tail

OPAQUE = Loss(is_opaque=True)
DETACHED = Loss(is_detached=True, is_opaque=True)

UNCHANGED = {"float", "to", "cuda", "cpu", "half", "double", "squeeze", "view", "reshape", "clone"}
"""Methods of a tensor that leave its value alone."""
DETACHING = {"item", "detach", "tolist", "numpy", "data"}
DIVIDING = {"div", "div_", "divide", "divide_", "true_divide"}
MULTIPLYING = {"mul", "mul_", "multiply", "multiply_"}
PLAIN_FUNCTIONS = {"len", "float", "int", "max", "min", "abs", "round", "get_world_size"}
"""Functions that make plain numbers of plain numbers."""
SCALING_ARGUMENT = re.compile(
    rf"{ACCUM_NAME.pattern}|num_items|normali[sz]|scale|num_tokens|n_tokens|total_tokens", re.I
)
"""Names which, handed to a loss function, suggest that it scales by itself."""


def summed(one: Loss, other: Loss) -> Loss:
    """Return the loss that is the sum of two: divided where either is, multiplied where both."""
    longer, shorter = sorted((one, other), key=lambda loss: -len(loss.factors))
    return Loss(
        factors=tuple(f for f in longer.factors if f.divides or f in shorter.factors),
        reduction=one.reduction if one.reduction is other.reduction else Reduction.UNKNOWN,
        is_opaque=one.is_opaque and other.is_opaque,
        is_detached=one.is_detached and other.is_detached,
        names=one.names | other.names,
    )


def either(losses: Iterable[Loss]) -> Loss:
    """Return what may have happened to a value that came by one of several ways."""
    first, *rest = losses
    for other in rest:
        first = Loss(
            factors=(*first.factors, *(f for f in other.factors if f not in first.factors)),
            reduction=first.reduction if first.reduction is other.reduction else Reduction.UNKNOWN,
            is_opaque=first.is_opaque or other.is_opaque,
            is_detached=first.is_detached or other.is_detached,
            names=first.names | other.names,
        )
    return first


class LossReader:
    """Reads expressions in the light of what the variables before them held."""

    def __init__(
        self,
        program: Program,
        env: Mapping[str, Loss],
        guards: Guards,
        returned: Mapping[ast.Call, Loss | tuple[Loss, ...]],
    ) -> None:
        self.program = program
        self.env = env
        self.guards = guards
        self.returned = returned
        self._readers: dict[type[ast.expr], Callable[..., Loss]] = {
            ast.Name: self._variable,
            ast.Attribute: self._attribute,
            ast.Subscript: lambda node: self.read(node.value),
            ast.BinOp: self._arithmetic,
            ast.Call: self._call,
            ast.IfExp: lambda node: either([self.read(node.body), self.read(node.orelse)]),
            ast.NamedExpr: lambda node: self.read(node.value),
            ast.Constant: lambda _: DETACHED,
        }

    def read(self, node: ast.expr) -> Loss:
        """Return what is known of the value of an expression."""
        reader = self._readers.get(type(node))
        return reader(node) if reader else OPAQUE

    def many(self, node: ast.expr, count: int) -> tuple[Loss, ...]:
        """Return the same for an expression that is unpacked into ``count`` targets."""
        if isinstance(node, ast.Tuple) and len(node.elts) == count:
            return tuple(map(self.read, node.elts))
        known = self.returned.get(node) if isinstance(node, ast.Call) else None
        if isinstance(known, tuple) and len(known) == count:
            return known
        return (self.read(node),) * count

    def scaled(self, loss: Loss, by: ast.expr, *, divides: bool, line: int) -> Loss:
        """Return a loss divided by, or multiplied with, a number on a line."""
        by = self._number(by)
        match by:
            case ast.BinOp(op=ast.Div(), left=ast.Constant(value=1 | 1.0), right=inverse):
                by, divides = inverse, not divides
        factor = Factor(
            amount=self.program.amount(by), divides=divides, line=line, guards=self.guards
        )
        return replace(loss, factors=(*loss.factors, factor))

    def is_number(self, node: ast.expr) -> bool:
        """Whether an expression is made of plain numbers only, as far as the file shows."""
        for part in ast.walk(node):
            if isinstance(part, ast.Call) and dotted(part.func) not in PLAIN_FUNCTIONS:
                return False
            if self.env.get(dotted(part), DETACHED).is_detached is False:
                return False
        return True

    def _number(self, node: ast.expr) -> ast.expr:
        made = self.program.made(node)
        is_inverse = isinstance(made, ast.BinOp) and isinstance(made.op, ast.Div)
        return made if made is not None and is_inverse else node

    def _variable(self, node: ast.expr) -> Loss:
        name = dotted(node)
        known = self.env.get(name, OPAQUE)
        return replace(known, names=known.names | {name})

    def _attribute(self, node: ast.Attribute) -> Loss:
        if dotted(node) in self.env:
            return self._variable(node)
        if node.attr in DETACHING:
            return DETACHED
        whole = self.read(node.value)
        if node.attr == "loss" and whole.reduction is Reduction.UNKNOWN:
            # Outputs of a transformers model; unless told otherwise they hold a mean.
            return replace(whole, reduction=Reduction.MEAN)
        return whole

    def _arithmetic(self, node: ast.BinOp) -> Loss:
        match node.op:
            case ast.Div():
                return self.scaled(self.read(node.left), node.right, divides=True, line=node.lineno)
            case ast.Mult():
                value, by = node.left, node.right
                if self.is_number(value):
                    value, by = by, value
                if not self.is_number(by):
                    return replace(self.read(value), is_opaque=True)
                return self.scaled(self.read(value), by, divides=False, line=node.lineno)
            case ast.Add() | ast.Sub():
                terms = [t for t in (node.left, node.right) if not self.is_number(t)]
                if len(terms) == 2:
                    return summed(self.read(terms[0]), self.read(terms[1]))
                return self.read(terms[0]) if terms else DETACHED
        return OPAQUE

    def _call(self, node: ast.Call) -> Loss:
        known = self.returned.get(node)
        if known is not None:
            return known[0] if isinstance(known, tuple) else known
        name, func = tail(node.func), node.func
        if isinstance(func, ast.Attribute):
            if self.program.role(func.value) is Role.SCALER and name == "scale" and node.args:
                return self.read(node.args[0])
            if name in DETACHING:
                return DETACHED
            value, arguments = func.value, node.args
            if self.program.qualified(value) == "torch" and arguments:
                value, *arguments = arguments
            if name in DIVIDING | MULTIPLYING and arguments:
                divides = name in DIVIDING
                loss = self.read(value)
                return self.scaled(loss, arguments[0], divides=divides, line=node.lineno)
            if name in UNCHANGED:
                return self.read(value)
            if name in ("mean", "sum"):
                return replace(self._of(value), reduction=Reduction(name))
        if dotted(func) in ("float", "int"):
            return DETACHED
        return Loss(reduction=self._reduction(node), is_opaque=self._may_scale(node))

    def _of(self, value: ast.expr) -> Loss:
        """Return a tensor that is about to be reduced: whatever it was, it is a loss now."""
        known = self.read(value)
        return known if known.factors or known.names - {dotted(value)} else Loss()

    def _may_scale(self, node: ast.Call) -> bool:
        words = [part for arg in node.args for part in ast.walk(arg)]
        words += [part for keyword in node.keywords for part in ast.walk(keyword.value)]
        names = [tail(part) for part in words] + [k.arg or "" for k in node.keywords]
        return any(SCALING_ARGUMENT.search(name) for name in names)

    def _reduction(self, node: ast.Call) -> Reduction:
        """Return how a loss function reduces: torch's own take the mean unless told otherwise."""
        if self.program.qualified(node.func).startswith(("torch.nn.functional.", "F.")):
            return self._told(node)
        made = self.program.made(node.func)
        if isinstance(made, ast.Call) and tail(made.func).endswith("Loss"):
            name = self.program.qualified(made.func)
            return self._told(made) if name.startswith(("torch.nn.", "nn.")) else Reduction.UNKNOWN
        return Reduction.UNKNOWN

    def _told(self, call: ast.Call) -> Reduction:
        for keyword in call.keywords:
            if keyword.arg in ("reduction", "size_average", "reduce", None):
                value = keyword.value
                written = value.value if isinstance(value, ast.Constant) else None
                is_known = keyword.arg == "reduction" and written in tuple(Reduction)
                return Reduction(str(written)) if is_known else Reduction.NONE
        return Reduction.MEAN


def divisions(loss: Loss, accum_steps: Amount, guards: Guards = ()) -> list[Factor]:
    """Return the divisions of a loss by K which no multiplication by K takes back.

    Of divisions in branches that exclude each other, or exclude ``guards``, one counts.
    """
    by_accum = [f for f in loss.factors if compatible(f.guards, guards) and _is(f, accum_steps)]
    back = [f for f in loss.factors if not f.divides and f.amount.same(accum_steps)]
    together: list[Factor] = []
    for factor in by_accum:
        if all(compatible(factor.guards, other.guards) for other in together):
            together.append(factor)
    return together[len(back) :]


def _is(factor: Factor, accum_steps: Amount) -> bool:
    if factor.divides:
        return factor.amount.same(accum_steps)
    value, steps = factor.amount.value, accum_steps.value
    return value is not None and steps is not None and value * steps == 1


def may_be_scaled(loss: Loss, accum_steps: Amount, guards: Guards) -> bool:
    """Whether anything that was done to a loss may stand for a division by K."""

    def counts(factor: Factor) -> bool:
        is_plain = factor.amount.value is not None and accum_steps.value is not None
        if factor.divides or not is_plain:
            return True
        return _is(factor, accum_steps)

    return (
        loss.is_opaque
        or loss.reduction in (Reduction.SUM, Reduction.NONE)
        or any(counts(f) for f in loss.factors if compatible(f.guards, guards))
    )
