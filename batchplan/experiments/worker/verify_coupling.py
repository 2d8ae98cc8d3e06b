"""Why examples of a batch act on each other: found by what happens, then called by name."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn

from .model import base_of
from .verify_examples import Batch, Examples
from .verify_gradients import combined, compared, gradient

TOLERANCE = 1e-5
"""Relative distance of fp32 gradients that only the order of sums makes."""
_SAME = 1e-6
"""Relative change of an activation that is none: kernels sum in other orders."""
_COEFFICIENTS = ("aux_loss_coef", "z_loss_coef", "aux_loss_alpha", "aux_loss_weight")
_SHOWN = 4
"""Modules that are named; of more, the number is told."""


def causes(model: nn.Module, examples: Examples, halves: list[Batch]) -> Iterator[dict[str, Any]]:
    """Yield what couples the examples of a batch, the strongest evidence there is for each.

    A suspect is proven by taking it out: then the batch's gradient has to be the mean of its
    halves'. What no suspect explains is looked for in the activations.

    Args:
        model: in training mode.
        examples: that the batches were drawn from.
        halves: two batches of sequences of one length.
    """
    deviation = _excess(model, examples, halves)
    if deviation <= TOLERANCE:
        return
    random = _randomness(model, examples.together(halves))
    if random is not None:
        yield random  # and nothing else can be told apart from it
        return
    with contextlib.ExitStack() as without:
        for kind, take_out in _SUSPECTS:
            if deviation <= TOLERANCE:
                return
            names = take_out(model, without)
            if not names:
                continue
            left = _excess(model, examples, halves)
            if left < deviation / 2:
                yield {"kind": kind, "names": _few(names), "deviation": deviation, "left": left}
            deviation = left
        if deviation > TOLERANCE:
            where = _first_coupled(model, examples, halves)
            kind = "loss" if where is None else "forward"
            names = [] if where is None else [where]
            yield {"kind": kind, "names": names, "deviation": deviation, "left": None}


def _excess(model: nn.Module, examples: Examples, halves: list[Batch]) -> float:
    """Return how far the batch's gradient is from its halves', weighted by their targets."""
    whole = gradient(model, examples.together(halves))
    parts = [gradient(model, half) for half in halves]
    counts = [examples.targets(half) for half in halves]
    shares = [count / sum(counts) for count in counts]
    return compared(combined(parts, shares), whole)["deviation"]


def _randomness(model: nn.Module, batch: Batch) -> dict[str, Any] | None:
    """Return how far one batch's gradient is from itself, and what draws; None when it is not."""
    once, again = gradient(model, batch), gradient(model, batch)
    deviation = compared(once, again)["deviation"]
    if deviation <= TOLERANCE:
        return None
    where = _first_changed(_activations(model, batch), _activations(model, batch))
    names = [] if where is None else [where]
    return {"kind": "randomness", "names": names, "deviation": deviation, "left": None}


def _freeze_statistics(model: nn.Module, undo: contextlib.ExitStack) -> list[str]:
    """Have batch normalisations use their running statistics; return which there are."""
    found = []
    for name, module in model.named_modules():
        known = isinstance(module, nn.modules.batchnorm._BatchNorm)
        if (known or "BatchNorm" in type(module).__name__) and module.training:
            module.eval()
            undo.callback(module.train)
            found.append(f"{name} ({type(module).__name__})")
    return found


def _drop_auxiliary_losses(model: nn.Module, undo: contextlib.ExitStack) -> list[str]:
    """Set coefficients of auxiliary losses to 0; return which were not."""
    config = base_of(model).config
    holders = [config, *([config.get_text_config()] if hasattr(config, "get_text_config") else [])]
    found: list[str] = []
    for holder in (*model.modules(), *holders):
        for name, value in list(vars(holder).items()):
            if name.endswith(_COEFFICIENTS) and isinstance(value, float) and value:
                setattr(holder, name, 0.0)
                undo.callback(setattr, holder, name, value)
                found.append(f"{name} = {value:g}")
    return list(dict.fromkeys(found))


_SUSPECTS = (
    ("batch-statistics", _freeze_statistics),
    ("auxiliary-loss", _drop_auxiliary_losses),
)


def _first_coupled(model: nn.Module, examples: Examples, halves: list[Batch]) -> Any:
    """Return the first module whose output for one half changes with the other half.

    None where none does: then it is the loss that couples them.
    """
    kept, changed = halves
    other = examples.equal(1)[0]
    with_one = _activations(model, examples.together([kept, changed]))
    with_other = _activations(model, examples.together([kept, other]))
    num_rows, num_kept = len(kept["labels"]) + len(changed["labels"]), len(kept["labels"])
    return _first_changed(
        *(
            [(name, *(_of_first(each, num_kept, num_rows) for each in io)) for name, *io in calls]
            for calls in (with_one, with_other)
        )
    )


def _first_changed(calls: list[Any], others: list[Any]) -> Any:
    """Return the first module that makes something else of the same; None where none does."""
    for (name, given, made), (_, other_given, other_made) in zip(calls, others):
        if any(tensor is None for tensor in (given, made, other_given, other_made)):
            continue
        if not _differ(given, other_given) and _differ(made, other_made):
            return name
    return None


def _activations(model: nn.Module, batch: Batch) -> list[Any]:
    """Return (name, first input, first output) of every module's call, in order of their end."""
    seen: list[Any] = []

    def watch(name: str) -> Any:
        def hook(module: nn.Module, given: Any, named: Any, made: Any) -> None:
            tensors = [_first_tensor((given, named)), _first_tensor(made)]
            seen.append((f"{name} ({type(module).__name__})", *tensors))

        return hook

    hooks = [
        module.register_forward_hook(watch(name), with_kwargs=True)
        for name, module in model.named_modules()
        if name
    ]
    try:
        with torch.no_grad():
            model(**batch)
    finally:
        for hook in hooks:
            hook.remove()
    return seen


def _first_tensor(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.detach().clone() if value.is_floating_point() else None
    parts = value.values() if isinstance(value, dict) else value
    if not isinstance(parts, (list, tuple, type({}.values()))):
        return None
    return next((t for t in map(_first_tensor, parts) if t is not None), None)


def _of_first(tensor: Any, kept: int, rows: int) -> Any:
    """Return the part of the first ``kept`` of ``rows`` examples, if the tensor has such parts."""
    if tensor is None or not tensor.ndim or tensor.shape[0] % rows:
        return None
    return tensor[: tensor.shape[0] // rows * kept]


def _differ(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.shape != b.shape:
        return True
    return float((a - b).abs().max()) > _SAME * max(float(a.abs().max()), 1e-30)


def _few(names: list[str]) -> list[str]:
    shown = names[:_SHOWN]
    return shown + ([f"{len(names) - _SHOWN} more"] if len(names) > _SHOWN else [])
