"""The noise scale during a run of transformers' Trainer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from batchplan.callbacks.meter import BLOCK, NoiseMeter
from batchplan.errors import SpecError
from batchplan.learning.noise import NoiseScale

IGNORED = -100
"""Label of a token that is no target."""
FILE = "noise.jsonl"
FEWEST_BLOCKS = 4
"""Below this an interval over blocks would be no more than noise itself."""


class NoiseScaleCallback(TrainerCallback):
    """Measures the noise scale of the micro-batches that a step accumulates, K >= 2.

    Every log gets ``noise_scale_tokens`` with ``_low`` and ``_high`` over the last windows (for
    callbacks that come after this one, and in ``state.log_history``), and every window goes to
    ``noise.jsonl`` in the output folder. Gradients are read before they are clipped.

    Left out: several processes, DeepSpeed, FSDP and fp16's scaled loss; they are refused.
    """

    def __init__(self, *, skip_steps: int = 0, last: int = 100) -> None:
        """Measure from an optimizer step on.

        Args:
            skip_steps: leave out so many, such as those of the warm-up.
            last: windows that a value is made of: the noise scale grows as training goes on.
        """
        self._skip_steps, self._last = skip_steps, last
        self._meter: NoiseMeter | None = None
        self._hook: Any = None
        self._tokens = self._sequences = 0
        self._num_items: float | None = None

    def on_train_begin(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Watch the model's parameters and its inputs.

        Raises:
            SpecError: where gradients cannot be had one micro-batch at a time.
        """
        for is_true, text in (
            (
                args.gradient_accumulation_steps < 2,
                "The noise scale needs two gradients a step: gradient_accumulation_steps 2 or "
                "more.",
            ),
            (
                args.world_size > 1 or args.n_gpu > 1,
                "NoiseScaleCallback measures one process on one device; `batchplan noise "
                "--devices` measures several.",
            ),
            (
                bool(args.deepspeed or args.fsdp),
                "DeepSpeed and FSDP keep no whole gradients; measure with `batchplan noise`.",
            ),
            (args.fp16, "fp16 scales the loss, and gradients with it: use bf16."),
        ):
            if is_true:
                raise SpecError(text)
        model = given["model"]
        self._meter = NoiseMeter(model.parameters(), last=self._last)
        self._hook = model.register_forward_pre_hook(self._count, with_kwargs=True)

    def on_substep_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Close a micro-batch."""
        self._close_micro()

    def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Close the last micro-batch, and with it the window."""
        assert self._meter is not None
        self._close_micro()
        is_wanted = state.global_step >= self._skip_steps
        window = self._meter.window(num_items=self._num_items, keep=is_wanted)
        if window is None:
            return
        line = {
            "step": state.global_step + 1,
            "num_micro_batches": window.num_micro_batches,
            "num_sequences": window.num_sequences,
            "num_tokens": window.num_tokens,
            "squared_tokens": window.squared_tokens,
            "sum_of_squares": window.sum_of_squares,
            "square_of_mean": window.square_of_mean,
        }
        with Path(args.output_dir, FILE).open("a", encoding="utf-8") as file:
            file.write(json.dumps(line) + "\n")

    def on_log(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Add the noise scale in target tokens to what is logged."""
        values = self.values()
        given["logs"].update(values)
        if state.log_history:
            state.log_history[-1].update(values)

    def on_train_end(self, args: Any, state: Any, control: Any, **given: Any) -> None:
        """Take the hooks away; ``result`` still answers."""
        if self._meter is not None:
            self._meter.close()
            self._hook.remove()

    def values(self) -> dict[str, float]:
        """Return what a log gets; nothing while there are too few windows."""
        if self._meter is None or len(self._meter.windows) < FEWEST_BLOCKS * BLOCK:
            return {}
        tokens = self.result().tokens
        found = {"noise_scale_tokens_low": tokens.low}
        if tokens.value is not None and tokens.is_bounded:
            found |= {"noise_scale_tokens": tokens.value, "noise_scale_tokens_high": tokens.high}
        return found

    def result(self) -> NoiseScale:
        """Return the noise scale over the last windows.

        Raises:
            SpecError: when there are too few.
        """
        if self._meter is None:
            raise SpecError("Nothing was measured yet: the training has not begun.")
        return self._meter.result()

    def _count(self, model: Any, arguments: Any, given: dict[str, Any]) -> None:
        """Count the targets of a micro-batch, and note what its loss will be divided by.

        A model that takes no ``num_items_in_batch`` averages each micro-batch by itself: it is
        measured as if all had as many targets.

        Raises:
            SpecError: when there are no labels to count.
        """
        if not model.training:
            return
        labels = given.get("labels")
        if labels is None:
            raise SpecError("NoiseScaleCallback counts labels, and the model gets none.")
        # One label an example, as in classification, is no row of which the first is left out.
        targets = labels[..., 1:] if labels.ndim > 1 else labels
        self._tokens += int((targets != IGNORED).sum())
        self._sequences += len(labels)
        items = given.get("num_items_in_batch")
        self._num_items = None if items is None else float(items)

    def _close_micro(self) -> None:
        assert self._meter is not None
        self._meter.micro(num_tokens=self._tokens, num_sequences=self._sequences)
        self._tokens = self._sequences = 0
