"""A whole optimizer step of the whole model: who allocates what, when, and when it is freed."""

from __future__ import annotations

import bisect
import gc
from dataclasses import dataclass, field
from typing import Any

import torch

from .built import Built, WorkerError
from .optimizers import make_optimizer
from .quantised import packed_bytes
from .recorder import Recorder
from .step import autocast, outputs_in_fp32


@dataclass
class _Whereabouts:
    """Which module runs: forward hooks say; in backward, the order of autograd's nodes does."""

    current: list[str] = field(default_factory=lambda: [""])
    made_at: list[int] = field(default_factory=list)
    made_in: list[str] = field(default_factory=list)

    def enter(self, name: str) -> None:
        self.current.append(name)
        self._note()

    def leave(self) -> None:
        self.current.pop()
        self._note()

    def _note(self) -> None:
        self.made_at.append(torch.autograd._get_sequence_nr())
        self.made_in.append(self.current[-1])

    def now(self) -> str:
        """Return the dotted path of the module whose forward or backward runs."""
        if len(self.current) > 1:
            return self.current[-1]
        node = torch._C._current_autograd_node()
        if node is None:
            return ""
        at = bisect.bisect_right(self.made_at, node._sequence_nr()) - 1
        return self.made_in[at] if at >= 0 else ""


class _WholeRecorder(Recorder):
    """Also notes the op and the module of every allocation."""

    def __init__(self, where: _Whereabouts, ignore: list[torch.Tensor]) -> None:
        super().__init__(ignore)
        self.where = where
        self.modules: list[str] = []
        self.ops: list[str] = []

    def allocated(self, address: int, num_bytes: int, func: Any) -> None:
        """Note the allocation and who made it."""
        super().allocated(address, num_bytes, func)
        self.modules.append(self.where.now())
        self.ops.append(func.__name__ if func is not None else "")


def record(built: Built, request: dict[str, Any]) -> dict[str, Any]:
    """Run K micro-batches and two optimizer steps; return the log in sections.

    The sections are what a training run repeats: ``start`` (weights and buffers), ``fetch``
    (inputs), each micro-batch, ``first update`` (which makes the moments), ``update``,
    ``end of step``, when gradients are dropped, and ``drop`` (inputs). Which of them follow each
    other, and how often, is for the reader.
    """
    where = _Whereabouts()
    model = built.model
    packed = {
        weight: [torch.empty(num_bytes, dtype=torch.uint8) for num_bytes in sizes]
        for weight, sizes in packed_bytes(model, double_quant=request["double_quant"]).items()
    }
    recorder = _WholeRecorder(where, [p for p in model.parameters() if id(p) in packed])
    kinds: dict[int, str] = {}
    parameters = [p for p in model.parameters() if p.requires_grad]
    handles = _follow(model, where)
    sections: dict[str, tuple[int, int]] = {}
    phases: list[tuple[int, str]] = []

    def section(name: str, run: Any) -> None:
        start = len(recorder.log)
        run()
        sections[name] = (start, len(recorder.log))

    def start() -> None:
        for name, parameter in model.named_parameters():
            kind = "weights" if parameter.requires_grad else "frozen weights"
            tensors = packed.get(id(parameter), [parameter])
            for tensor in tensors:
                where.enter(name.rpartition(".")[0])
                _hold(recorder, kinds, tensor, kind)
                where.leave()
        for buffer in model.buffers():
            _hold(recorder, kinds, buffer, "model buffers")

    batch = (request["micro_batch"], request["seq_len"])
    inputs: dict[str, Any] = {}

    def fetch() -> None:
        for name in ("input_ids", "attention_mask", "labels"):
            inputs[name] = torch.zeros(batch, dtype=torch.long)
            _hold(recorder, kinds, inputs[name], "input batch")

    def micro_batch() -> None:
        phases.append((len(recorder.log), "forward"))
        with autocast(request):
            fed = {name: inputs[name] for name in ("input_ids", "labels")}
            loss = outputs_in_fp32(request, model(**fed)).loss
            if loss is None:
                raise WorkerError(f"{type(model).__name__} returns no loss.")
        phases.append((len(recorder.log), "backward"))
        loss.backward()
        del loss
        for parameter in parameters:
            if parameter.grad is not None:
                made = recorder.event_of.get(parameter.grad.untyped_storage()._cdata)
                if made is not None:
                    kinds[made] = "gradients"

    optimizer = make_optimizer(request, parameters)

    def update() -> None:
        phases.append((len(recorder.log), "optimizer step"))
        first = len(recorder.sizes)
        optimizer.step()
        for event in recorder.event_of.values():
            if event >= first:
                kinds[event] = "optimizer states"

    def drop_gradients() -> None:
        phases.append((len(recorder.log), "end of step"))
        optimizer.zero_grad(set_to_none=True)

    gc.collect()
    gc.disable()
    try:
        with recorder:
            section("start", start)
            section("fetch", fetch)
            micro_batches = [
                f"micro-batch {number + 1}" for number in range(request["accum_steps"])
            ]
            for name in micro_batches:
                section(name, micro_batch)
            section("first update", update)
            section("update", update)
            section("end of step", drop_gradients)
            section("drop", inputs.clear)
    finally:
        gc.enable()
        for handle in handles:
            handle.remove()
    return {"micro_batches": micro_batches, **_columns(recorder, kinds, sections, phases)}


def _hold(recorder: Recorder, kinds: dict[int, str], tensor: torch.Tensor, kind: str) -> None:
    recorder.register(tensor)
    kinds.setdefault(recorder.event_of[tensor.untyped_storage()._cdata], kind)


def _follow(model: torch.nn.Module, where: _Whereabouts) -> list[Any]:
    handles = []
    for name, module in model.named_modules():

        def before(module: Any, args: Any, name: str = name) -> None:
            where.enter(name)

        def after(module: Any, args: Any, output: Any) -> None:
            where.leave()

        handles.append(module.register_forward_pre_hook(before, prepend=True))
        handles.append(module.register_forward_hook(after, always_call=True))
    return handles


def _columns(
    recorder: _WholeRecorder,
    kinds: dict[int, str],
    sections: dict[str, tuple[int, int]],
    phases: list[tuple[int, str]],
) -> dict[str, Any]:
    names: dict[str, int] = {}

    def interned(texts: list[str]) -> list[int]:
        return [names.setdefault(text, len(names)) for text in texts]

    count = len(recorder.sizes)
    modules, ops = interned(recorder.modules), interned(recorder.ops)
    kind = interned([kinds.get(event, "activations") for event in range(count)])
    return {
        "num_bytes": recorder.sizes,
        "module": modules,
        "op": ops,
        "kind": kind,
        "names": list(names),
        "log": recorder.log,
        "sections": {name: list(span) for name, span in sections.items()},
        "phases": [list(phase) for phase in phases],
    }
