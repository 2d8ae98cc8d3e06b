"""One forward and backward of the cut model at one (b, s), split into intervals per stage."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch

from .built import DTYPES, Built, WorkerError
from .recorder import Recorder, rounded
from .script import Entry, write_scripts


@dataclass
class Interval:
    """What happened between two marks."""

    stage: str
    """``glue:N`` before the N-th stack (0 is the embedding), or ``layer:STACK:POSITION``."""
    delta: int
    """Live activation bytes at the end less those at the start."""
    activations: list[int]
    """Live activation bytes above the start, after every allocation."""
    new_grads: list[int]
    """Elements of gradients made so far in this interval, after every allocation."""
    in_flight: list[int]
    """Elements of gradients made and not yet added to ``.grad``, after every allocation."""
    grads_made: int
    """Elements of gradients that this interval made."""
    released: int = 0
    """Bytes that a forward interval made and that leaving autocast freed: its cast weights."""
    left: int = 0
    """Bytes that the last layer's backward leaves beyond what others of its kind do."""
    script: list[Entry] = field(default_factory=list)
    """What was made and freed, in order."""


@dataclass
class Step:
    """The intervals of one micro-batch, forward and backward, in time order."""

    forward: list[Interval]
    backward: list[Interval]
    sizes: list[int]
    """Bytes asked for, by event."""

    def highest(self) -> int:
        """Return the peak of live activation bytes over the whole micro-batch."""
        live = top = 0
        for intervals in (self.forward, self.backward):
            for interval in intervals:
                top = max([top, *(live + value for value in interval.activations)])
                live += interval.delta
            live -= sum(interval.released for interval in intervals)
        return top


class _Marks:
    """Where in the event log each stage starts and ends."""

    def __init__(self, recorder: Recorder) -> None:
        self.recorder = recorder
        self.in_backward = False
        self.forward: list[tuple[str, int, int]] = []
        self.backward: list[tuple[str, int, int]] = []
        self.in_log: list[int] = []
        """Position in the recorder's log of every mark, forward then backward."""

    def mark(self, stage: str) -> None:
        """End the interval ``stage`` here."""
        marks = self.backward if self.in_backward else self.forward
        marks.append((stage, len(self.recorder.live_after), self.recorder.live_bytes))
        self.in_log.append(len(self.recorder.log))


def run_step(
    built: Built, tensors: list[torch.Tensor], request: dict[str, Any], b: int, s: int
) -> Step:
    """Run one micro-batch of ``b`` sequences of ``s`` tokens and return its intervals.

    ``tensors`` are the fake weights and buffers, which do not count as activations.
    """
    model = built.model
    ids = torch.zeros(b, s, dtype=torch.long)
    inputs = {"input_ids": ids, "labels": torch.zeros(b, s, dtype=torch.long)}
    parameters = [p for p in model.parameters() if p.requires_grad]
    grad_events: dict[int, tuple[int, int]] = {}
    accumulated_at: dict[int, int] = {}
    recorder = Recorder([*tensors, *inputs.values()])
    marks = _Marks(recorder)

    def accumulated(parameter: torch.Tensor) -> None:
        if parameter.grad is None:  # an undefined gradient: the parameter had no part in the loss
            return
        built.trained.add(id(parameter))
        made = recorder.event_of.get(parameter.grad.untyped_storage()._cdata)
        if made is not None:
            grad_events[made] = (parameter.numel(), len(recorder.live_after))
            accumulated_at[len(recorder.log)] = made

    handles = [p.register_post_accumulate_grad_hook(accumulated) for p in parameters]
    handles += _hook_layers(built, marks)
    gc.collect()
    gc.disable()
    try:
        with recorder:
            with autocast(request):
                loss = outputs_in_fp32(request, model(**inputs)).loss
                if loss is None:
                    raise WorkerError(f"{type(model).__name__} returns no loss.")
                marks.mark(f"glue:{len(built.stacks)}")
                at_loss = recorder.live_storages()
            released = {
                event: num_bytes
                for event, num_bytes in at_loss.items()
                if event not in recorder.live_storages()
            }
            marks.in_backward = True
            loss.backward()
            marks.mark("glue:0")
        sizes = {
            recorder.event_of[p.grad.untyped_storage()._cdata]: p.grad.untyped_storage().nbytes()
            for p in parameters
            if p.grad is not None and p.grad.untyped_storage()._cdata in recorder.event_of
        }
        del loss
    finally:
        gc.enable()
        for handle in handles:
            handle.remove()
        for parameter in parameters:
            parameter.grad = None
    step = _split(recorder.live_after, marks, grad_events, sizes, released)
    step.sizes = recorder.sizes
    write_scripts(step, recorder.log, marks.in_log, accumulated_at, released)
    return step


def _hook_layers(built: Built, marks: _Marks) -> list[Any]:
    """Mark the ends of layers: forward by module hooks, backward by hooks on their outputs.

    In forward, ``layer:K:I`` ends when the layer returns, so that what its caller drops
    afterwards counts to the next one, alike for all. In backward the gradient of a layer's output
    is the start of its backward and the end of the one before. Inside a reentrant checkpoint that
    output has no gradient; then it is the one that the next module is given.
    """
    handles = []
    waiting: list[str] = []

    def mark_at_gradient(tensor: Any, ended: str) -> bool:
        if tensor is None or not tensor.requires_grad:
            return False
        tensor.register_hook(lambda grad: marks.mark(ended))
        return True

    def next_module(module: Any, args: Any) -> None:
        if waiting and not marks.in_backward and mark_at_gradient(_first_tensor(args), waiting[0]):
            waiting.clear()

    for k, stack in enumerate(built.stacks):
        last = len(stack.kept) - 1

        def before(module: Any, args: Any, kwargs: Any, k: int = k) -> None:
            if marks.in_backward:
                return
            marks.mark(f"glue:{k}")
            mark_at_gradient(_first_tensor([*args, *kwargs.values()]), f"layer:{k}:0")

        handles.append(
            stack.module[0].register_forward_pre_hook(before, with_kwargs=True, prepend=True)
        )
        for i, layer in enumerate(stack.module):

            def after(
                module: Any, args: Any, output: Any, k: int = k, i: int = i, last: int = last
            ) -> None:
                if marks.in_backward:
                    return
                marks.mark(f"layer:{k}:{i}")
                out = _first_tensor(output if isinstance(output, (tuple, list)) else [output])
                ended = f"layer:{k}:{i + 1}" if i < last else f"glue:{k + 1}"
                if not mark_at_gradient(out, ended) and not torch.is_grad_enabled():
                    waiting.append(ended)

            handles.append(layer.register_forward_hook(after))
    handles.append(torch.nn.modules.module.register_module_forward_pre_hook(next_module))
    return handles


def _first_tensor(values: Any) -> Any:
    for value in values:
        if isinstance(value, torch.Tensor) and value.is_floating_point():
            return value
    return None


def outputs_in_fp32(request: dict[str, Any], outputs: Any) -> Any:
    """Copy floating-point outputs to fp32, as accelerate does around an autocast forward.

    Source: accelerate utils/operations.py, convert_to_fp32.
    """
    if not request["fp32_outputs"]:
        return outputs
    for name, value in outputs.items():
        if isinstance(value, torch.Tensor) and value.dtype in (torch.float16, torch.bfloat16):
            outputs[name] = value.float()
    return outputs


@contextlib.contextmanager
def autocast(request: dict[str, Any]) -> Iterator[None]:
    """Run what is inside under the recipe's autocast, if it has one."""
    name = request["autocast_dtype"]
    if name is None:
        yield
        return
    with torch.autocast("cpu", dtype=DTYPES[name]):
        yield


def _split(
    live_after: list[int],
    marks: _Marks,
    grad_events: dict[int, tuple[int, int]],
    sizes: dict[int, int],
    released: dict[int, int],
) -> Step:
    """Cut the event log at the marks and take final gradients out of the activations."""
    events = len(live_after)
    grads_live = [0] * (events + 1)
    in_flight = [0] * (events + 1)
    made_at = [0] * (events + 1)
    _, backward_start, _ = marks.forward[-1]
    for made, (elements, accumulated) in grad_events.items():
        # A kernel may make a gradient in forward (fused losses): it is kept like an activation
        # until backward hands it on.
        event = max(made, backward_start)
        made_at[event] += elements
        grads_live[event] += rounded(sizes.get(made, 0))
        for at in range(event, max(accumulated, event + 1)):
            in_flight[at] += elements
    for event in range(1, events):
        grads_live[event] += grads_live[event - 1]

    def grads_before(event: int) -> int:
        return grads_live[event - 1] if event else 0

    def cut(found: list[tuple[str, int, int]], start: int, start_live: int) -> list[Interval]:
        intervals = []
        for stage, end, end_live in found:
            base = start_live - grads_before(start)
            new = 0
            new_grads = []
            for event in range(start, end):
                new += made_at[event]
                new_grads.append(new)
            intervals.append(
                Interval(
                    stage=stage,
                    delta=end_live - grads_before(end) - base,
                    activations=[live_after[e] - grads_live[e] - base for e in range(start, end)],
                    new_grads=new_grads,
                    in_flight=in_flight[start:end],
                    grads_made=new,
                    released=sum(n for event, n in released.items() if start <= event < end),
                )
            )
            start, start_live = end, end_live
        return intervals

    forward = cut(marks.forward, 0, 0)
    _, start, live_at_loss = marks.forward[-1]
    start_live = live_at_loss - sum(released.values())
    released = {}
    return Step(forward=forward, backward=cut(marks.backward, start, start_live), sizes=[])
