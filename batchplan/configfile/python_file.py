"""Calls and their literal arguments in a Python file, found by reading; nothing is executed.

Values are literals, arithmetic on numbers, names bound once to one of these, ``dict(a=1)``, and
``torch`` dtypes as the words ``torch.bfloat16``; everything else is ``UNKNOWN``. A call that is
the value of a keyword is a mapping of its keywords there, and is listed by itself as well. The
second call of one name is ``name#2``. Arguments that ``**`` brings are listed when it is applied
to a literal; otherwise there is a key ``**`` of unknown value.

Leaves out: names that another module defines, control flow (a name bound once counts wherever
that is written), values that a function call would compute.
"""

from __future__ import annotations

import ast
import bisect
import operator
import re
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import accumulate
from typing import Any

from batchplan.configfile.limits import MAX_DEPTH, MAX_DIGITS, MAX_TOKENS
from batchplan.configfile.located import UNKNOWN, Span
from batchplan.configfile.python_names import Names, Scope, dotted, read_names
from batchplan.configfile.source import Source
from batchplan.configfile.tree import Item, Node, mapping, sequence

_TOKEN = re.compile(r"\w+|[^\w\s]")
DTYPE = re.compile(r"torch\.(?:b?float\w*|u?int\w+|half|double|bool|long)")
"""What PyTorch calls its dtypes, as code writes it."""
_ENVIRONMENT = ("os.environ", "environ")
_SETTERS = tuple(f"{name}.setdefault" for name in _ENVIRONMENT)
_MOST_BITS = 3 * MAX_DIGITS
_LARGEST_EXPONENT = 64
_ARITHMETIC: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: lambda base, exponent: base**exponent if abs(exponent) <= _LARGEST_EXPONENT else None,
}
_SIGNS: dict[type[ast.unaryop], Callable[[Any], Any]] = {
    ast.USub: operator.neg,
    ast.UAdd: operator.pos,
}
_LISTS: dict[type[ast.expr], Callable[[Any], Any]] = {
    ast.List: list,
    ast.Tuple: tuple,
}


def read_python(source: Source) -> Node:
    """Return the calls and environment variables of a Python file as one mapping.

    Raises:
        SpecError: when it is no Python, or is beyond the limits.
    """
    tree = _parse(source)
    reader = _Reader(source, read_names(tree))
    return mapping(reader.groups(), source.span(0, len(source.text)))


def _parse(source: Source) -> ast.Module:
    tokens = sum(1 for _ in _TOKEN.finditer(source.text))
    if tokens > MAX_TOKENS:
        raise source.refusal(
            f"has {tokens:,} words and signs, more than {MAX_TOKENS:,}. Give the training script.",
            0,
        )
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # an invalid escape is its author's affair
            return ast.parse(source.text)
    except SyntaxError as error:
        line = min(max(error.lineno or 1, 1), len(source.line_starts))
        problem = error.msg.partition(";")[0]  # behind it stands advice to programmers
        raise source.refusal(
            f"not valid Python: {problem}.", source.line_starts[line - 1]
        ) from None
    except (RecursionError, MemoryError):
        raise source.refusal(
            "an expression is nested too deeply for Python itself. Split it.", 0
        ) from None


class _Reader:
    """Finds the calls and evaluates their arguments."""

    def __init__(self, source: Source, names: Names) -> None:
        self.source = source
        self.names = names
        self.columns: dict[int, list[int]] = {}
        self.resolved: dict[int, Node | None] = {}
        """Value of each expression that a name stands for; None while it is being evaluated."""

    def groups(self) -> list[Item]:
        """Return every call that tells something, and the environment, in the order of the text."""
        calls: list[tuple[str, Item]] = []
        environment: list[Item] = []
        for node, scope in self.names.nodes:
            match node:
                case ast.Call():
                    calls.extend(self._listed(node, scope))
                    environment.extend(self._default_set(node, scope))
                case ast.Assign(targets=[ast.Subscript() as target], value=value):
                    environment.extend(self._variable(target, value, scope))
        calls.sort(key=lambda named: named[1].start)
        seen: Counter[str] = Counter()
        items = []
        for name, item in calls:
            seen[name] += 1
            items.append(item if seen[name] == 1 else replace(item, name=f"{name}#{seen[name]}"))
        if environment:
            environment.sort(key=lambda item: item.start)
            start, end = environment[0].start, max(item.end for item in environment)
            group = mapping(environment, self.source.span(start, end))
            items.append(Item(name=_ENVIRONMENT[0], key=None, node=group, end=end))
        return sorted(items, key=lambda item: item.start)

    def evaluate(self, expression: ast.expr, scope: Scope, depth: int = 0) -> Node:
        """Return the value of an expression, ``UNKNOWN`` where reading does not tell."""
        written = self._span(expression)
        self.source.count(1, written.start)
        unknown = Node(value=UNKNOWN, written=written)
        if depth > MAX_DEPTH:
            return unknown
        match expression:
            case ast.Constant(value=value):
                return unknown if _is_huge(value) else Node(value=value, written=written)
            case ast.Name(id=name):
                return self._named(name, written, scope) or unknown
            case ast.UnaryOp(op=sign, operand=operand) if type(sign) in _SIGNS:
                numbers = [self.evaluate(operand, scope, depth + 1).value]
                return Node(value=_computed(_SIGNS[type(sign)], *numbers), written=written)
            case ast.BinOp(left=left, op=sign, right=right) if type(sign) in _ARITHMETIC:
                numbers = [self.evaluate(side, scope, depth + 1).value for side in (left, right)]
                return Node(value=_computed(_ARITHMETIC[type(sign)], *numbers), written=written)
            case ast.List(elts=elements) | ast.Tuple(elts=elements):
                nodes = [self.evaluate(element, scope, depth + 1) for element in elements]
                return sequence(nodes, written, kind=_LISTS[type(expression)])
            case ast.Dict():
                return self._dict(expression, scope, depth) or unknown
            case ast.Call(keywords=keywords) if keywords or dotted(expression.func) == "dict":
                return self._keyword_mapping(expression, scope, depth) or unknown
            case ast.Attribute() if DTYPE.fullmatch(name := dotted(expression) or ""):
                return Node(value=name, written=written)
        return unknown

    def _listed(self, call: ast.Call, scope: Scope) -> Iterator[tuple[str, Item]]:
        """Yield a call under its name, unless all its arguments are of unknown value."""
        name = dotted(call.func)
        if name is None or name in _SETTERS:
            return
        items: list[Item] = []
        for position, argument in enumerate(call.args):
            if isinstance(argument, ast.Starred):
                break
            node = self.evaluate(argument, scope)
            items.append(Item(name=position, key=None, node=node, end=node.written.end))
        tells = not call.args or any(item.node.value is not UNKNOWN for item in items)
        if call.keywords or tells:
            items.extend(self._keywords(call, scope, 0))
            node = mapping(items, self._span(call), body=self._inside(call))
            yield name, Item(name=name, key=self._span(call.func), node=node, end=node.written.end)

    def _keywords(self, call: ast.Call, scope: Scope, depth: int) -> Iterator[Item]:
        for keyword in call.keywords:
            node = self.evaluate(keyword.value, scope, depth + 1)
            whole = self._span(keyword)
            if keyword.arg is not None:
                key = self.source.span(whole.start, whole.start + len(keyword.arg))
                yield Item(name=keyword.arg, key=key, node=node, end=whole.end)
            elif node.is_mapping and _is_plain(keyword.value):
                yield from (replace(item, borrowed=True) for item in node.items)
            else:
                unknown = Node(value=UNKNOWN, written=whole)
                yield Item(name="**", key=None, node=unknown, end=whole.end)

    def _keyword_mapping(self, call: ast.Call, scope: Scope, depth: int) -> Node | None:
        if call.args and dotted(call.func) == "dict":
            return None
        items = self._keywords(call, scope, depth)
        return mapping(items, self._span(call), body=self._inside(call))

    def _dict(self, literal: ast.Dict, scope: Scope, depth: int) -> Node | None:
        items: list[Item] = []
        for key, value in zip(literal.keys, literal.values, strict=True):
            node = self.evaluate(value, scope, depth + 1)
            if key is None:
                if not node.is_mapping or not _is_plain(value):
                    return None
                items.extend(replace(item, borrowed=True) for item in node.items)
                continue
            name = self.evaluate(key, scope, depth + 1)
            if not isinstance(name.value, str | int):
                return None
            items.append(Item(name=name.value, key=name.written, node=node, end=node.written.end))
        written = self._span(literal)
        body = self.source.span(written.start + 1, written.end - 1)
        return mapping(items, written, body=body)

    def _named(self, name: str, written: Span, scope: Scope) -> Node | None:
        found = self.names.find(name, scope)
        if found is None or not _is_plain(found[0]):
            return None
        expression = found[0]
        if id(expression) not in self.resolved:
            self.resolved[id(expression)] = None
            self.resolved[id(expression)] = self.evaluate(*found)
        node = self.resolved[id(expression)]
        if node is None:
            return None
        self.source.count(node.size, written.start)
        return replace(node, written=written)

    def _default_set(self, call: ast.Call, scope: Scope) -> Iterator[Item]:
        if dotted(call.func) in _SETTERS and len(call.args) == 2:
            yield from self._assigned(call.args[0], call.args[1], scope)

    def _variable(self, target: ast.Subscript, value: ast.expr, scope: Scope) -> Iterator[Item]:
        if dotted(target.value) in _ENVIRONMENT:
            yield from self._assigned(target.slice, value, scope)

    def _assigned(self, key: ast.expr, value: ast.expr, scope: Scope) -> Iterator[Item]:
        name, node = self.evaluate(key, scope), self.evaluate(value, scope)
        if isinstance(name.value, str):
            yield Item(name=name.value, key=name.written, node=node, end=node.written.end)

    def _inside(self, call: ast.Call) -> Span:
        opening = self.source.text.index("(", self._span(call.func).end)
        return self.source.span(opening + 1, self._span(call).end - 1)

    def _span(self, node: ast.expr | ast.keyword) -> Span:
        end_line, end_column = node.end_lineno, node.end_col_offset
        assert end_line is not None
        assert end_column is not None
        start = self._offset(node.lineno, node.col_offset)
        return self.source.span(start, self._offset(end_line, end_column))

    def _offset(self, line: int, column: int) -> int:
        """Return the offset of a column, which ``ast`` counts in bytes of UTF-8."""
        start = self.source.line_starts[line - 1]
        if self.source.text.isascii():
            return start + column
        if line not in self.columns:
            end = [*self.source.line_starts, len(self.source.text)][line]
            characters = self.source.text[start:end]
            widths = (len(character.encode()) for character in characters)
            self.columns[line] = list(accumulate(widths, initial=0))
        return start + bisect.bisect_left(self.columns[line], column)


def _is_plain(expression: ast.expr) -> bool:
    """Whether an expression is worth following: anything but a call, ``dict(…)`` excepted."""
    return not isinstance(expression, ast.Call) or dotted(expression.func) == "dict"


def _is_huge(value: object) -> bool:
    return isinstance(value, int) and value.bit_length() > _MOST_BITS


def _computed(operation: Callable[..., Any], *numbers: Any) -> Any:
    """Return the outcome for plain numbers, ``UNKNOWN`` for all else."""
    if not all(type(number) in (int, float) for number in numbers):
        return UNKNOWN
    try:
        outcome = operation(*numbers)
    except ArithmeticError:
        return UNKNOWN
    return UNKNOWN if type(outcome) not in (int, float) or _is_huge(outcome) else outcome
