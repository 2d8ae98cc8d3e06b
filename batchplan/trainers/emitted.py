"""What a trainer's writer takes and gives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from batchplan.planner.plan import Plan
from batchplan.spec import Gpu, ModelInfo
from batchplan.units import format_beta


@dataclass(frozen=True, slots=True, kw_only=True)
class EmittedFile:
    """One file of a trainer's configuration."""

    name: str
    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """A plan and what it is about: all a writer may use."""

    plan: Plan
    model: ModelInfo
    gpu: Gpu
    stem: str = "plan"
    """File name without suffix; files beside it start with it."""
    epoch_steps: int | None = None
    """Optimizer steps of one epoch; None leaves the length to the trainer."""
    epochs: float = 1
    """Passes over the data that are wanted, where the steps of one are known."""

    @property
    def several_devices(self) -> bool:
        """Whether more than one device trains."""
        return self.plan.batch.num_ranks > 1

    def options(self) -> dict[str, Any]:
        """Return what was planned by our option names: fields of the recipe, and ``BESIDE_RECIPE``.

        The learning rate has four significant digits: more would claim what the rule cannot.
        Options without a value are left out.
        """
        plan, batch = self.plan, self.plan.batch
        rate = plan.learning_rate
        found = {
            **plan.recipe.model_dump(mode="json"),
            "model": self.model.id,
            "seq_len": batch.seq_len,
            "micro_batch": batch.micro_batch,
            "accum_steps": batch.accum_steps,
            "global_batch": batch.global_batch_size,
            "num_ranks": batch.num_ranks,
            "num_nodes": plan.num_nodes,
            "ranks_per_node": batch.num_ranks // plan.num_nodes,
            "learning_rate": float(f"{rate.value:.4g}"),
            "rule": rate.rule,
            "schedule": "cosine",
            "warmup_steps": None if rate.warmup_steps is None else int(rate.warmup_steps),
            "beta2": self._beta2(),
            "epochs": self._epochs(),
        }
        return {name: value for name, value in found.items() if value is not None}

    def _beta2(self) -> float | None:
        """Return the advised beta2; torch refuses 1, which tiny batches may come to."""
        beta2 = self.plan.learning_rate.beta2
        if beta2 is None or beta2 >= 1:
            return None
        written = float(format_beta(beta2))
        return written if written < 1 else None

    def _epochs(self) -> float | int | None:
        if self.epoch_steps is None:
            return None
        return int(self.epochs) if self.epochs == int(self.epochs) else self.epochs
