"""Facts of a whole Python file: what its names are assigned, and what its objects are."""

from __future__ import annotations

import ast
import operator
import re
import warnings
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from batchplan.checker.loop.events import Amount, Role

FunctionNode = ast.FunctionDef | ast.AsyncFunctionDef

CONSTRUCTORS = {
    "Accelerator": Role.ACCELERATOR,
    "Fabric": Role.FABRIC,
    "GradScaler": Role.SCALER,
    "ShardedGradScaler": Role.SCALER,
    "DistributedDataParallel": Role.WRAPPED,
    "DDP": Role.WRAPPED,
    "FullyShardedDataParallel": Role.WRAPPED,
    "FSDP": Role.WRAPPED,
    "fully_shard": Role.WRAPPED,
    "DataLoader": Role.LOADER,
}
"""What a call of this name makes."""

INITIALIZE_RETURNS = (Role.ENGINE, Role.OPTIMIZER, Role.LOADER, Role.SCHEDULER)
"""What ``deepspeed.initialize`` returns, in order (deepspeed 0.19, ``__init__.py``)."""

USUAL_NAMES = (
    (re.compile(r"noise|sampl"), Role.OTHER),  # diffusion has schedulers of noise
    (re.compile(r"sched"), Role.SCHEDULER),
    (re.compile(r"optim|^opt(_|$|\d)|_opt$"), Role.OPTIMIZER),
    (re.compile(r"scaler$"), Role.SCALER),
    (re.compile(r"^accelerator$"), Role.ACCELERATOR),
    (re.compile(r"^fabric$"), Role.FABRIC),
    (re.compile(r"engine$"), Role.ENGINE),
)
"""What an object of this name is where the file does not show how it was made; first match."""

ACCUM_NAME = re.compile(r"accum|^ga_?steps$|^gas$|micro_?(batches|steps)|num_micro|n_micro", re.I)
"""Names people give to the number of micro-batches per step."""

_ARITHMETIC = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Div: operator.truediv,
}
_TRANSPARENT = {"float", "int"}
_MAX_ALIASES = 5


def dotted(node: ast.AST | None) -> str:
    """Return ``a.b.c`` for a chain of names, and nothing for any other expression."""
    parts: list[str] = []
    while isinstance(node, ast.Attribute):
        parts.append(node.attr)
        node = node.value
    return ".".join([node.id, *reversed(parts)]) if isinstance(node, ast.Name) else ""


def tail(node: ast.AST | None) -> str:
    """Return the last name of ``a.b.c`` or of ``f(x).c``."""
    if isinstance(node, ast.Attribute):
        return node.attr
    return node.id if isinstance(node, ast.Name) else ""


def root(node: ast.AST | None) -> str:
    """Return ``a`` of ``a.b[0].c``."""
    while isinstance(node, ast.Attribute | ast.Subscript):
        node = node.value
    return node.id if isinstance(node, ast.Name) else ""


def names_in(node: ast.AST) -> frozenset[str]:
    """Return every name and dotted name that an expression mentions."""
    return frozenset(filter(None, (dotted(part) for part in ast.walk(node))))


def is_accum_name(text: str) -> bool:
    """Whether ``args.accum_steps`` and the like."""
    return bool(ACCUM_NAME.search(text.rsplit(".", 1)[-1]))


@dataclass(frozen=True, kw_only=True)
class Program:
    """A parsed file."""

    tree: ast.Module
    text: str
    functions: Mapping[str, FunctionNode]
    methods: Mapping[str, Mapping[str, FunctionNode]]
    """Of each class by its name."""
    assigned: Mapping[str, ast.expr]
    """Dotted names that are assigned once in the whole file, and what."""
    parameters: frozenset[str]
    """Names of the parameters of all functions."""
    changing: frozenset[str]
    """Dotted names on ``self`` that something but ``__init__`` assigns."""
    roles: Mapping[str, Role]
    imports: Mapping[str, str]
    mentions: frozenset[str]
    """Every name and attribute of the file, without what they belong to."""
    calls: tuple[ast.Call, ...]

    def qualified(self, node: ast.AST | None) -> str:
        """Return a dotted name with the file's imports spelt out."""
        name = dotted(node)
        head, dot, rest = name.partition(".")
        return self.imports.get(head, head) + dot + rest

    def role(self, node: ast.AST) -> Role:
        """Return what an object is, by how it was made or else by its name."""
        name = dotted(node)
        if name in self.roles:
            return self.roles[name]
        last = (tail(node) or root(node)).lower()
        role = next((role for known, role in USUAL_NAMES if known.search(last)), Role.OTHER)
        return Role.OTHER if role is Role.ENGINE and "deepspeed" not in self.text else role

    def made_by(self, *names: str) -> Iterator[ast.Call]:
        """Yield the calls of anything with one of these last names."""
        return (call for call in self.calls if tail(call.func) in names)

    def made(self, node: ast.AST) -> ast.expr | None:
        """Return the expression that a name was assigned, if only one ever was."""
        return self.assigned.get(dotted(node))

    def amount(self, node: ast.expr) -> Amount:
        """Return a number with its value, where the file alone says it."""
        while isinstance(node, ast.Call) and dotted(node.func) in _TRANSPARENT and node.args:
            node = node.args[0]
        origin = self._origin(node)
        return Amount(
            text=ast.unparse(node),
            value=self._folded(origin),
            line=origin.lineno,
            origin=ast.unparse(origin),
        )

    def _origin(self, node: ast.expr) -> ast.expr:
        for _ in range(_MAX_ALIASES):
            name = dotted(node)
            if name in self.parameters or name not in self.assigned:
                break
            node = self.assigned[name]
        return node

    def _folded(self, node: ast.expr, depth: int = 8) -> float | None:
        match node:
            case ast.Constant(value=int() | float() as value) if not isinstance(value, bool):
                return value
            case ast.BinOp(left=left, op=op, right=right) if depth and type(op) in _ARITHMETIC:
                one = self._folded(self._origin(left), depth - 1)
                other = self._folded(self._origin(right), depth - 1)
                if one is None or other is None:
                    return None
                try:
                    return float(_ARITHMETIC[type(op)](one, other))
                except (ArithmeticError, ValueError):
                    return None
        return None


def parse(text: str) -> Program | None:
    """Return the facts of a file, or None for one that is no Python or nested too deep to read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of invalid escapes, which are the author's affair
            tree = ast.parse(text)
        return _collect(tree, text)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return None


def _collect(tree: ast.Module, text: str) -> Program:
    nodes = list(ast.walk(tree))
    functions = {n.name: n for n in nodes if isinstance(n, FunctionNode)}
    classes = [n for n in nodes if isinstance(n, ast.ClassDef)]
    methods = {c.name: {f.name: f for f in c.body if isinstance(f, FunctionNode)} for c in classes}
    for name in {name for of_class in methods.values() for name in of_class}:
        functions.pop(name, None)
    imports = dict(_imports(nodes))
    pairs = list(_assignments(nodes))
    counts = Counter(name for name, _ in pairs)
    assigned = {name: value for name, value in pairs if value is not None and counts[name] == 1}
    arguments = [n for n in nodes if isinstance(n, ast.arg)]
    outside = [
        node
        for of_class in methods.values()
        for name, function in of_class.items()
        if name != "__init__"
        for node in ast.walk(function)
    ]
    program = Program(
        tree=tree,
        text=text,
        functions=functions,
        methods=methods,
        assigned=assigned,
        parameters=frozenset(n.arg for n in arguments),
        changing=frozenset(name for name, _ in _assignments(outside) if name.startswith("self.")),
        roles={},
        imports=imports,
        mentions=frozenset(tail(n) for n in nodes if isinstance(n, ast.Name | ast.Attribute))
        | frozenset(imports),
        calls=tuple(n for n in nodes if isinstance(n, ast.Call)),
    )
    roles = dict(_roles(program, nodes))
    return Program(**{**vars(program), "roles": roles})


def _imports(nodes: list[ast.AST]) -> Iterator[tuple[str, str]]:
    for node in nodes:
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.asname:
                    yield name.asname, name.name
        elif isinstance(node, ast.ImportFrom) and node.module:
            for name in node.names:
                yield name.asname or name.name, f"{node.module}.{name.name}"


def _assignments(nodes: list[ast.AST]) -> Iterator[tuple[str, ast.expr | None]]:
    """Yield each name that is assigned, and what; None where it is no plain assignment."""
    for node in nodes:
        match node:
            case ast.Assign(targets=[target], value=value) if dotted(target):
                yield dotted(target), value
            case ast.AnnAssign(target=target, value=ast.expr() as value):
                yield dotted(target), value
            case ast.NamedExpr(target=target, value=value):
                yield target.id, value
            case ast.Assign(targets=targets):
                yield from ((name, None) for target in targets for name in _stored(target))
            case ast.AugAssign(target=target) | ast.For(target=target):
                yield from ((name, None) for name in _stored(target))


def _stored(target: ast.expr) -> Iterator[str]:
    for node in ast.walk(target):
        if isinstance(node, ast.Name | ast.Attribute) and isinstance(node.ctx, ast.Store):
            yield dotted(node)


def _roles(program: Program, nodes: list[ast.AST]) -> Iterator[tuple[str, Role]]:
    for node in nodes:
        match node:
            case ast.Assign(targets=[ast.Tuple(elts=targets)], value=ast.Call(func=func)):
                if program.qualified(func) == "deepspeed.initialize":
                    yield from zip(map(dotted, targets), INITIALIZE_RETURNS, strict=False)
            case ast.Assign(targets=[target], value=ast.Call(func=func)) if dotted(target):
                role = constructed(program, func)
                if role is not None:
                    yield dotted(target), role


def constructed(program: Program, func: ast.expr) -> Role | None:
    """Return what a call of ``func`` makes, or None."""
    name, last = program.qualified(func), tail(func)
    imported = name.rsplit(".", 1)[-1]
    if imported in CONSTRUCTORS or last in CONSTRUCTORS:
        return CONSTRUCTORS.get(imported) or CONSTRUCTORS[last]
    if "lr_scheduler" in name or (last.startswith("get_") and "schedule" in last):
        return Role.SCHEDULER
    is_class = imported[:1].isupper()
    if is_class and (".optim." in f".{name}" or "Adam" in imported or imported == "Adafactor"):
        return Role.OPTIMIZER
    return None
