"""Is the accumulated gradient that of the large batch? Measurements alone; the parent judges.

Every loop is given the same micro-batches at the same parameters. What its optimizer got is
compared with the gradient of the window in one batch, and taken apart into the micro-batches'.
"""

from __future__ import annotations

import copy
import time
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from batchplan.prober.worker.failures import one_line

from .faults import FAULTS
from .model import base_of, trained
from .subjects import SUBJECTS, Loop, Record, Task, ignores_count
from .verify_coupling import causes
from .verify_examples import Batch, Examples
from .verify_gradients import Parts, combined, compared, gradient, norm
from .verify_model import make

EQUAL, UNEQUAL, CLIP, RANKS = "equal", "unequal", "clip", "ranks"
CLIP_SHARE = 0.5
"""Of the smallest micro-batch's gradient: whoever clips one of them is seen."""


def run(request: dict[str, Any], place: Any) -> None:
    """Run all subjects that were asked for, one event a window."""
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    if not request["full"]:
        torch.set_num_threads(1)  # small kernels gain little from more, and lose much when shared
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = False
    place.tell("phase", text="building the model")
    model = make(request, place.device)
    examples = Examples(model, request, place.device)
    parameters = trained(model)
    place.tell(
        "ready",
        model_class=type(base_of(model)).__name__,
        config=examples.config.to_dict(),
        num_parameters=sum(parameter.numel() for parameter in parameters),
        has_lengths=examples.has_lengths,
    )
    bench = Bench(model, examples, request, place)
    if place.num_ranks > 1:
        bench.measure(RANKS, examples.unequal(request["accum_steps"] * place.num_ranks))
        # What rank 0 tells is longer than a pipe takes in one piece: nobody speaks meanwhile.
        torch.distributed.barrier()
    elif request["layouts"]:
        bench.compare_layouts()
    else:
        bench.measure_all()


@dataclass
class Reference:
    """Windows of micro-batches, and the gradients they are compared with."""

    micro_batches: list[Batch]
    windows: list[list[int]]
    """Positions of every step's micro-batches, all ranks'."""
    targets: list[int]
    parts: Parts
    """Gradient of every micro-batch's own mean loss."""
    wholes: list[torch.Tensor]
    """Gradient of every window in one batch."""

    def summed(self, window: int) -> torch.Tensor:
        """Return what the parts of a window should add up to."""
        positions = self.windows[window]
        total = sum(self.targets[at] for at in positions)
        weights = [self.targets[at] / total for at in positions]
        return combined([self.parts[at] for at in positions], weights)


class _Metered(Loop):
    """The right loop, and on a GPU its peak of live tensors until the step."""

    allocated_peak_bytes: int | None = None

    def __init__(self, task: Task) -> None:
        super().__init__(task)
        self._on_gpu = trained(task.model)[0].device.type == "cuda"
        if self._on_gpu:
            torch.cuda.empty_cache()
            torch.cuda.reset_peak_memory_stats()

    def before_step(self) -> None:
        if self._on_gpu:
            self.allocated_peak_bytes = torch.cuda.max_memory_allocated()


class Bench:
    """Runs subjects on one model and tells what they did."""

    def __init__(
        self, model: nn.Module, examples: Examples, request: dict[str, Any], place: Any
    ) -> None:
        self._model, self._examples = model, examples
        self._place, self._accum_steps = place, request["accum_steps"]
        self._request = request
        self._deadline = time.monotonic() + request["max_seconds"]
        self._unclipped: dict[str, list[torch.Tensor]] = {}
        self._subjects = {name: {**SUBJECTS, **FAULTS}[name] for name in request["subjects"]}

    def measure_all(self) -> None:
        """Measure what one process can."""
        steps = self._accum_steps
        self._tell_causes(self.measure(EQUAL, self._examples.equal(3 * steps - 1)))
        batches = self._examples.unequal(2 * steps)
        unequal = self.measure(UNEQUAL, batches)
        self._tell_buffer(unequal)
        smallest = min(
            norm(unequal.parts[at]) * unequal.targets[at] / sum(unequal.targets[i] for i in window)
            for window in unequal.windows
            for at in window
        )
        records = self._run(CLIP, batches, CLIP_SHARE * smallest)
        for subject in self._unclipped.keys() & records.keys():
            record = records[subject]
            # Against its own gradient, so that clipping alone is what is judged. The scale is not:
            # torch sums norms in fp32.
            wholes = [
                whole * (norm(clipped) / (norm(whole) or 1.0))
                for clipped, whole in zip(record.gradients, self._unclipped[subject])
            ]
            expected = replace(unequal, wholes=wholes)
            self._tell(CLIP, subject, record, expected, CLIP_SHARE * smallest)

    def measure(self, name: str, batches: list[Batch]) -> Any:
        """Have every subject go through ``batches``, and return what they are compared with."""
        place = self._place
        records = self._run(name, batches)
        if place.rank:
            return None
        place.tell("phase", text=f"the same in one batch: {name}")
        reference = self._reference(batches)
        for window, whole in enumerate(reference.wholes):
            additivity = compared(reference.summed(window), whole)
            place.tell("additivity", run=name, window=window, **additivity)
        for subject, record in records.items():
            self._tell(name, subject, record, reference)
        self._unclipped = {subject: record.gradients for subject, record in records.items()}
        return reference

    def _run(self, name: str, batches: list[Batch], max_norm: float = 0.0) -> dict[str, Record]:
        """Have every subject go through ``batches``; say which cannot, and why."""
        place = self._place
        records = {}
        for subject in self._subjects:
            place.tell("phase", text=f"{subject}: {name}")
            # Ranks go on, or stop, together.
            if place.sum(torch.tensor(float(time.monotonic() > self._deadline))):
                place.tell("skipped", run=name, subject=subject, text="no time was left")
                continue
            task = Task(
                # A copy: whoever trains a model wraps it, and hooks stay behind.
                model=copy.deepcopy(self._model),
                examples=self._examples,
                micro_batches=batches,
                accum_steps=self._accum_steps,
                max_norm=max_norm,
                rank=place.rank,
                num_ranks=place.num_ranks,
            )
            try:
                records[subject] = self._subjects[subject](task)
            except Exception as error:
                place.tell("skipped", run=name, subject=subject, text=one_line(error))
        return records

    def _reference(self, batches: list[Batch]) -> Reference:
        size = self._accum_steps * self._place.num_ranks
        windows = [
            list(range(start, min(start + size, len(batches))))
            for start in range(0, len(batches), size)
        ]
        return Reference(
            micro_batches=batches,
            windows=windows,
            targets=[self._examples.targets(batch) for batch in batches],
            parts=Parts([gradient(self._model, batch) for batch in batches]),
            wholes=[
                gradient(self._model, self._examples.together([batches[at] for at in window]))
                for window in windows
            ],
        )

    def _tell(
        self, name: str, subject: str, record: Record, reference: Reference, max_norm: float = 0.0
    ) -> None:
        about = {"run": name, "subject": subject}
        self._place.tell(
            "counts",
            **about,
            optimizer_steps=record.optimizer_steps,
            scheduler_steps=record.scheduler_steps,
            clips=record.clips,
            num_windows=len(reference.windows),
            num_micro_batches=len(reference.micro_batches) // self._place.num_ranks,
        )
        if len(record.gradients) != len(reference.windows):
            return
        for window, found in enumerate(record.gradients):
            positions = reference.windows[window]
            past = [at for earlier in reference.windows[:window] for at in earlier]
            weights, residual = reference.parts.weights_in(found, past + positions)
            expected = reference.wholes[window]
            self._place.tell(
                "window",
                **about,
                window=window,
                targets=[reference.targets[at] for at in positions],
                num_rows=sum(len(reference.micro_batches[at]["labels"]) for at in positions),
                ranks=[at % self._place.num_ranks for at in positions],
                weights=weights[len(past) :],
                earlier_weights=weights[: len(past)],
                residual=residual,
                norm=norm(found),
                max_norm=max_norm,
                **compared(found, expected),
            )

    def _tell_causes(self, reference: Reference) -> None:
        if time.monotonic() > self._deadline:
            return
        self._place.tell("phase", text="what couples examples")
        for cause in causes(self._model, self._examples, reference.micro_batches[:2]):
            self._place.tell("cause", **cause)
        if ignores_count(self._model, reference.micro_batches[0]):
            names = [type(base_of(self._model)).__name__]
            away = float(self._accum_steps - 1)
            self._place.tell("cause", kind="ignores-count", names=names, deviation=away, left=None)

    def _tell_buffer(self, reference: Reference) -> None:
        """Tell how far a sum in bf16 is from the same sum in fp32."""
        if time.monotonic() > self._deadline:
            return
        first = reference.windows[0]
        total = sum(reference.targets[at] for at in first)
        buffer = torch.zeros_like(reference.wholes[0], dtype=torch.bfloat16)
        for at in first:
            share = reference.parts[at] * (reference.targets[at] / total)
            buffer += share.to(torch.bfloat16)
        self._place.tell("buffer", **compared(buffer.float(), reference.summed(0)))

    def compare_layouts(self) -> None:
        """Run the same examples as one batch and one by one, and tell what each took."""
        rows = self._request["layouts"]
        singles = [self._examples.of_length(self._request["seq_len"]) for _ in range(rows)]
        layouts = {(rows, 1): [self._examples.together(singles)], (1, rows): singles}
        gradients = []
        for (micro_batch, accum_steps), batches in layouts.items():
            task = Task(
                model=self._model,
                examples=self._examples,
                micro_batches=batches,
                accum_steps=accum_steps,
            )
            loop = _Metered(task)
            gradients += [gradient.cpu() for gradient in loop.run().gradients]
            self._place.tell(
                "layout",
                micro_batch=micro_batch,
                accum_steps=accum_steps,
                allocated_peak_bytes=loop.allocated_peak_bytes,
                **compared(gradients[-1], gradients[0]),
            )
