"""Loops that accumulate, each recorded at the one place that counts: the optimizer's step.

The learning rate is 0, so that every window is taken at the same parameters and can be compared.
"""

from __future__ import annotations

import contextlib
import inspect
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Callable

import torch
from torch import nn

from .model import base_of, trained
from .verify_examples import Batch, Examples, loss_of
from .verify_gradients import flattened


@dataclass
class Task:
    """What a loop is given: one rank's micro-batches, in order, and how to make steps of them."""

    model: nn.Module
    examples: Examples
    micro_batches: list[Batch]
    """Of all ranks; every ``num_ranks``-th is a rank's, as samplers deal them out."""
    accum_steps: int
    max_norm: float = 0.0
    """0 does not clip."""
    rank: int = 0
    num_ranks: int = 1

    @property
    def own(self) -> list[Batch]:
        """Micro-batches of this rank."""
        return self.micro_batches[self.rank :: self.num_ranks]

    @property
    def windows(self) -> list[list[Batch]]:
        """This rank's micro-batches of every step; the last window may be short."""
        own, steps = self.own, self.accum_steps
        return [own[start : start + steps] for start in range(0, len(own), steps)]


@dataclass
class Record:
    """What a loop did."""

    gradients: list[torch.Tensor] = field(default_factory=list)
    """As the optimizer got them, one a step."""
    optimizer_steps: int = 0
    scheduler_steps: int = 0
    clips: int = 0
    """Calls that clip to a finite norm."""


Subject = Callable[[Task], Record]


class _Optimizer(torch.optim.SGD):
    """Keeps what it is given, and changes nothing."""

    def __init__(self, model: nn.Module, record: Record) -> None:
        super().__init__(trained(model), lr=0.0)
        self._record, self._trained = record, trained(model)

    def step(self, closure: Any = None) -> None:
        self._record.optimizer_steps += 1
        self._record.gradients.append(flattened(self._trained))


class _Scheduler(torch.optim.lr_scheduler.LambdaLR):
    """Counts its steps."""

    def __init__(self, optimizer: torch.optim.Optimizer, record: Record) -> None:
        self._record = record
        super().__init__(optimizer, lambda step: 1.0)
        record.scheduler_steps = 0  # torch takes one itself, to start

    def step(self, *arguments: Any, **named: Any) -> None:
        self._record.scheduler_steps += 1
        super().step(*arguments, **named)


@contextlib.contextmanager
def _counted_clips(record: Record) -> Iterator[None]:
    """Count calls of torch's ``clip_grad_norm_``, whoever makes them."""
    original = torch.nn.utils.clip_grad_norm_

    def counted(parameters: Any, max_norm: float, *arguments: Any, **named: Any) -> Any:
        record.clips += max_norm != float("inf")
        return original(parameters, max_norm, *arguments, **named)

    torch.nn.utils.clip_grad_norm_ = counted
    try:
        yield
    finally:
        torch.nn.utils.clip_grad_norm_ = original


class Loop:
    """The loop as it should be: summed token losses over the target tokens of the whole window.

    Methods are the places where loops go wrong; ``faults`` overrides them one by one.
    """

    def __init__(self, task: Task) -> None:
        self.task = task
        self.record = Record()
        self.optimizer = _Optimizer(task.model, self.record)
        self.scheduler = _Scheduler(self.optimizer, self.record)
        self.model = task.model
        if task.num_ranks > 1:
            # One parameter without a gradient, as an expert that no token went to, would else keep
            # its bucket from being reduced.
            self.model = nn.parallel.DistributedDataParallel(
                task.model, find_unused_parameters=True
            )

    def run(self) -> Record:
        """Go through all micro-batches once."""
        with _counted_clips(self.record):
            for window in self.task.windows:
                shares = self.shares([self.task.examples.targets(batch) for batch in window])
                for position, batch in enumerate(window, start=1):
                    waits = self.task.num_ranks > 1 and position < len(window)
                    with self.model.no_sync() if waits else contextlib.nullcontext():
                        (loss_of(self.model, batch) * shares[position - 1]).backward()
                    self.after_backward()
                self.before_step()
                self.optimizer.step()
                self.after_step()
        self.task.model.zero_grad(set_to_none=True)
        return self.record

    def shares(self, targets: list[int]) -> list[float]:
        """Return what the mean loss of every micro-batch is multiplied with."""
        # DDP averages gradients over ranks, which the number of ranks undoes.
        total = self.over_ranks(sum(targets))
        return [count * self.task.num_ranks / total for count in targets]

    def over_ranks(self, count: int) -> int:
        """Return the sum of every rank's ``count``."""
        if self.task.num_ranks == 1:
            return count
        total = torch.tensor(count)
        torch.distributed.all_reduce(total)
        return int(total)

    def after_backward(self) -> None:
        """Do nothing between micro-batches."""

    def before_step(self) -> None:
        """Clip once, the whole window's gradient."""
        if self.task.max_norm:
            self.clip()

    def after_step(self) -> None:
        """Step the scheduler and empty the buffers."""
        self.scheduler.step()
        self.optimizer.zero_grad()

    def clip(self) -> None:
        """Clip the gradient in the buffers."""
        torch.nn.utils.clip_grad_norm_(trained(self.task.model), self.task.max_norm)


def hf_trainer(task: Task) -> Record:
    """Run transformers' own Trainer on the same micro-batches, in the same order."""
    import transformers

    record = Record()
    optimizer = _Optimizer(task.model, record)
    # Its sampler takes rows one after another, and its collator pads them: as ours does.
    rows = [row for batch in task.micro_batches for row in task.examples.rows(batch)]

    class InOrder(transformers.Trainer):
        """The Trainer without shuffling."""

        def _get_train_sampler(self, *arguments: Any, **named: Any) -> Any:
            return torch.utils.data.SequentialSampler(rows)

    with tempfile.TemporaryDirectory() as folder, _counted_clips(record):
        arguments = transformers.TrainingArguments(
            output_dir=folder,
            per_device_train_batch_size=len(rows) // len(task.micro_batches),
            gradient_accumulation_steps=task.accum_steps,
            num_train_epochs=1,
            max_grad_norm=task.max_norm,
            learning_rate=0.0,
            use_cpu=next(task.model.parameters()).device.type == "cpu",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            logging_strategy="no",
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        # Several GPUs that one process sees would share every micro-batch (DataParallel).
        arguments._n_gpu = min(arguments.n_gpu, 1)
        trainer = InOrder(
            model=task.model,
            args=arguments,
            data_collator=task.examples.collate,
            train_dataset=_Rows(rows),
            optimizers=(optimizer, _Scheduler(optimizer, record)),
        )
        trainer.train()
    task.model.zero_grad(set_to_none=True)
    return record


def ignores_count(model: nn.Module, batch: Batch) -> bool:
    """Return whether the model's class claims to divide by a count that its loss never uses.

    Source: transformers 5.23, ``Trainer.__init__``, step 6: without ``accepts_loss_kwargs`` it is
    any ``**kwargs`` that counts as the claim; ``training_step`` then does not divide by K.
    """
    base = base_of(model)
    parameters = inspect.signature(base.forward).parameters.values()
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)
    if not getattr(base, "accepts_loss_kwargs", takes_any):
        return False
    with torch.no_grad():
        few, many = (loss_of(model, {**batch, "num_items_in_batch": n}) for n in (1, 1 << 20))
    return bool(torch.equal(few, many))


class _Rows(torch.utils.data.Dataset):
    """A list, as a dataset."""

    def __init__(self, rows: list[Batch]) -> None:
        self._rows = rows

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, position: int) -> Batch:
        return self._rows[position]


SUBJECTS: dict[str, Subject] = {
    "reference": lambda task: Loop(task).run(),
    "hf-trainer": hf_trainer,
}
"""What users can ask about, by name."""
