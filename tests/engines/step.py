"""The bytes one real optimizer step allocates at its highest, on CPU tensors."""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class Counter(TorchDispatchMode):
    """Adds up storages that operations make, until they die."""

    def __init__(self, known: list[torch.Tensor]) -> None:
        super().__init__()
        # Kept, or what an engine lets go of would leave its address to something new.
        self._known = [t.untyped_storage() for t in known]
        self.seen = {storage._cdata for storage in self._known}
        self.live = self.peak = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                self._count(tensor.untyped_storage())
        self.peak = max(self.peak, self.live)
        return out

    def _count(self, storage: torch.UntypedStorage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key in self.seen or not size:
            return
        self.seen.add(key)
        self.live += size
        weakref.finalize(storage, self._free, key, size)

    def _free(self, key: int, size: int) -> None:
        self.seen.discard(key)
        self.live -= size


def peak_of_step(
    optimizer: str, shapes: list[tuple[int, ...]], *, foreach: bool, is_16bit: bool
) -> int:
    """Return the most bytes a second step holds besides weights, gradients and states."""
    dtype = torch.bfloat16 if is_16bit else torch.float32
    parameters = [torch.nn.Parameter(torch.randn(shape).to(dtype)) for shape in shapes]
    for parameter in parameters:
        parameter.grad = torch.randn_like(parameter)
    made = _make(optimizer, parameters, foreach=foreach)
    made.step()
    kept = [
        value
        for state in made.state.values()
        for value in state.values()
        if isinstance(value, torch.Tensor)
    ]
    with Counter([*parameters, *(p.grad for p in parameters), *kept]) as counter:
        made.step()
    return counter.peak


def _make(name: str, parameters: list[torch.nn.Parameter], *, foreach: bool) -> Any:
    if name == "adafactor":
        from transformers import Adafactor

        return Adafactor(parameters, lr=1e-3, scale_parameter=False, relative_step=False)
    if name == "muon":
        return torch.optim.Muon(parameters, lr=1e-3)
    if name == "sgd-momentum":
        return torch.optim.SGD(parameters, lr=1e-3, momentum=0.9, foreach=foreach)
    return torch.optim.AdamW(parameters, lr=1e-3, foreach=foreach)
