"""What ``probe`` answers, and its JSON document."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchplan.api.documents import (
    SCHEMA_VERSION,
    batch_document,
    caveats_document,
    device_document,
    memory_document,
    model_document,
    plain,
)
from batchplan.api.recipes import numerics_words
from batchplan.memory import Estimate
from batchplan.prober.comparison import Compared, compare, steady_seconds
from batchplan.prober.expectation import Intent
from batchplan.prober.politeness import State
from batchplan.prober.search import Found
from batchplan.prober.trial import Trial
from batchplan.spec import Batch, Caveat, Gpu, ModelInfo, Recipe

_SETTLED = ("tight-fit", "allocator-at-limit")
"""Caveats of an estimate about whether it fits."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ProbeAnswer:
    """What really fits, and how far the estimate was off."""

    inputs: dict[str, Any]
    """Keyword arguments of ``probe`` that ask the same again."""
    model: ModelInfo
    num_params: int
    num_trainable_params: int
    recipe: Recipe
    batch: Batch
    """With the largest micro-batch that fits; without one, what was tried first."""
    gpu: Gpu
    """Its usable bytes are what the probe was allowed."""
    state: State
    """The device before the first trial."""
    intent: Intent
    found: Found | None
    """None when nothing was tried (``dry_run``)."""
    predicted: Estimate
    """The bill of ``batch``."""
    left_out_bytes: int
    """Of it, what a rank that trains alone does not have."""
    predicted_seconds: float | None
    """Of an optimizer step of ``batch``; None where the device's rates are not known."""
    versions: dict[str, str]
    """Packages that ran the model's code for the estimate."""
    saved_to: Path | None
    caveats: tuple[Caveat, ...]

    @property
    def fits(self) -> bool:
        """Whether micro-batch 1 fits; as predicted when nothing was tried."""
        if self.found is None:
            return self.intent.predicted_micro_batch > 0
        return self.found.max_micro_batch > 0

    @property
    def failed(self) -> str:
        """Why nothing is known about memory; empty when something is."""
        return "" if self.fits or self.found is None or self.found.is_proven else self.found.proof

    @property
    def comparison(self) -> tuple[Compared, ...]:
        """Predicted and measured figures of the largest micro-batch that fits."""
        best = None if self.found is None else self.found.best
        return (
            ()
            if best is None
            else compare(self.predicted, best, left_out_bytes=self.left_out_bytes)
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan probe --json``."""
        state = self.state
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "probe",
            "inputs": self.inputs,
            "versions": self.versions,
            "model": model_document(self.model, self.num_params, self.num_trainable_params),
            "device": device_document(self.gpu)
            | {
                "total_bytes": state.total_bytes,
                "free_bytes": state.free_bytes,
                "reserve_bytes": state.reserve_bytes,
                "drives_display": state.drives_display,
                "processes": [
                    {"pid": each.pid, "bytes": each.num_bytes} for each in state.processes
                ],
            },
            "batch": batch_document(self.batch),
            "numerics": numerics_words(self.recipe),
            "fits": self.fits,
            "intent": plain(self.intent) | {"seconds": self.intent.seconds},
            "measurement": None if self.found is None else self._measurement(self.found),
            "caveats": caveats_document((*self.caveats, *self._notes())),
        }

    def _notes(self) -> Iterator[Caveat]:
        """Yield what the estimate has to say, but for doubts that the trials have settled."""
        for caveat in self.predicted.caveats:
            if self.found is None or caveat.code not in _SETTLED:
                yield caveat

    def _measurement(self, found: Found) -> dict[str, Any]:
        best = found.best
        seconds = None if best is None else steady_seconds(best)
        last = found.trials[-1] if found.trials else None
        return {
            "device": "" if last is None else last.device_name,
            "max_micro_batch": found.max_micro_batch,
            "proof": found.proof,
            "num_trials": len(found.trials),
            "seconds": sum(trial.seconds for trial in found.trials),
            "trials": [_trial_document(trial) for trial in found.trials],
            "predicted": {
                "max_micro_batch": self.intent.predicted_micro_batch,
                "memory": memory_document(self.predicted),
            },
            "comparison": [
                {
                    "name": each.name,
                    "predicted_bytes": each.predicted_bytes,
                    "measured_bytes": each.measured_bytes,
                    "deviation": each.deviation,
                }
                for each in self.comparison
            ],
            "tokens_per_second": {
                "predicted": self._rate(self.predicted_seconds) if best else None,
                "measured": self._rate(seconds),
            },
            "versions": dict(best.versions if best else ()),
            "saved_to": None if self.saved_to is None else str(self.saved_to),
        }

    def _rate(self, step_seconds: float | None) -> float | None:
        return self.batch.global_batch_tokens / step_seconds if step_seconds else None


def _trial_document(trial: Trial) -> dict[str, Any]:
    return {
        "micro_batch": trial.micro_batch,
        "outcome": trial.outcome.value,
        "allocated_peak_bytes": trial.allocated_peak_bytes,
        "reserved_peak_bytes": trial.reserved_peak_bytes,
        "in_use_peak_bytes": trial.in_use_peak_bytes,
        "step_seconds": list(trial.step_seconds),
        "seconds": trial.seconds,
        "text": trial.text,
        "ranks": plain(trial.ranks),
    }
