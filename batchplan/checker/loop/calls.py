"""What a single call means in a training loop."""

from __future__ import annotations

import ast
import re
from collections.abc import Callable
from dataclasses import replace

from batchplan.checker.loop.events import Event, Kind, Role
from batchplan.checker.loop.losses import DIVIDING, MULTIPLYING, OPAQUE, LossReader
from batchplan.checker.loop.program import Program, dotted, tail

CLIPPING = {"clip_grad_norm_", "clip_grad_value_", "clip_grad_norm", "clip_gradients"}
HANDS_BACKWARD = {Role.ACCELERATOR, Role.FABRIC, Role.ENGINE}
"""Objects whose ``backward`` takes the loss as its argument."""
HARMLESS = {"print", "len", "isinstance", "prepare", "setup", "setup_optimizers", "scale_loss"}
"""Calls that take an optimizer and do nothing to gradients."""
SCALES_GRADIENTS = re.compile(
    r"(?<!un)scale_grad|(div|average|normali[sz]e)_grad|_foreach_(div|mul)"
)
"""Functions of other files whose name says that they multiply or divide gradients."""


class CallReader:
    """Reads calls at one place of a program."""

    def __init__(self, program: Program, losses: LossReader) -> None:
        self.program = program
        self.losses = losses
        self._readers: dict[str, Callable[[ast.Call, ast.expr], Event | None]] = {
            "backward": self._backward,
            "step": self._step,
            "optimizer_step": self._step_of_xla,
            "zero_grad": self._zero_grad,
            "zero_": self._zero_tensor,
            "unscale_": self._unscale,
            "unscale_gradients": self._unscale,
            **dict.fromkeys(CLIPPING, self._clip),
            **dict.fromkeys(DIVIDING | MULTIPLYING, self._scale_gradients),
        }

    def event(self, call: ast.Call) -> Event | None:
        """Return what a call does, or None where it does nothing that matters."""
        reader = self._readers.get(tail(call.func))
        if reader is not None:
            owner = call.func.value if isinstance(call.func, ast.Attribute) else call.func
            return reader(call, owner)
        if SCALES_GRADIENTS.search(tail(call.func)):
            return self._made(Kind.SCALE_GRADS, call, target=call.func)
        if tail(call.func) in HARMLESS:
            return None
        taken = next((a for a in call.args if self._is_optimizer(a)), None)
        return None if taken is None else self._made(Kind.HIDDEN, call, target=taken)

    def _is_optimizer(self, node: ast.expr) -> bool:
        return bool(dotted(node)) and self.program.role(node) is Role.OPTIMIZER

    def _backward(self, call: ast.Call, owner: ast.expr) -> Event | None:
        role = self.program.role(owner)
        if role in HANDS_BACKWARD or dotted(owner).endswith("autograd"):
            if not call.args:
                return None
            passed, loss = call.args[0], self.losses.read(call.args[0])
        else:
            if dotted(owner) in ("self", "super"):
                return None
            scales = bool(call.args) or any(k.arg == "gradient" for k in call.keywords)
            passed, loss = owner, OPAQUE if scales else self.losses.read(owner)
        by = self._scaled_by(owner, role)
        if by is Role.SCALER and isinstance(owner, ast.Call) and owner.args:
            passed = owner.args[0]
        made = self._made(Kind.BACKWARD, call, target=owner, role=by)
        retains = any(
            k.arg == "retain_graph" and isinstance(k.value, ast.Constant) and k.value.value is True
            for k in call.keywords
        )
        return replace(made, loss=loss, passed=ast.unparse(passed), retains_graph=retains)

    def _scaled_by(self, owner: ast.expr, role: Role) -> Role:
        """Return the scaler's role for ``scaler.scale(loss).backward()``."""
        if isinstance(owner, ast.Call) and isinstance(owner.func, ast.Attribute):
            inner = self.program.role(owner.func.value)
            if inner is Role.SCALER and owner.func.attr == "scale":
                return inner
        return role

    def _step(self, call: ast.Call, owner: ast.expr) -> Event | None:
        role = self.program.role(owner)
        if role is Role.SCALER and call.args:
            return self._made(Kind.STEP, call, target=call.args[0], role=role)
        if role is Role.SCHEDULER and not call.args and not call.keywords:
            return self._made(Kind.SCHEDULE, call, target=owner, role=role)
        if role in (Role.OPTIMIZER, Role.ENGINE):
            kind = Kind.CLOSURE if call.args or call.keywords else Kind.STEP
            return self._made(kind, call, target=owner, role=role)
        return None

    def _step_of_xla(self, call: ast.Call, _: ast.expr) -> Event | None:
        if not call.args or not self._is_optimizer(call.args[0]):
            return None
        return self._made(Kind.STEP, call, target=call.args[0], role=Role.OPTIMIZER)

    def _zero_grad(self, call: ast.Call, owner: ast.expr) -> Event:
        return self._made(Kind.ZERO_GRAD, call, target=owner, role=self.program.role(owner))

    def _zero_tensor(self, call: ast.Call, owner: ast.expr) -> Event | None:
        return self._made(Kind.ZERO_GRAD, call, target=owner) if tail(owner) == "grad" else None

    def _unscale(self, call: ast.Call, owner: ast.expr) -> Event:
        return self._made(Kind.UNSCALE, call, target=owner)

    def _clip(self, call: ast.Call, owner: ast.expr) -> Event:
        return self._made(Kind.CLIP, call, target=owner, role=self.program.role(owner))

    def _scale_gradients(self, call: ast.Call, owner: ast.expr) -> Event | None:
        if tail(owner) != "grad":
            return None
        return self._made(Kind.SCALE_GRADS, call, target=owner)

    def _made(
        self, kind: Kind, call: ast.Call, *, target: ast.expr, role: Role = Role.OTHER
    ) -> Event:
        return Event(
            kind=kind,
            line=call.lineno,
            target=ast.unparse(target),
            role=role,
            written=ast.unparse(call),
        )
