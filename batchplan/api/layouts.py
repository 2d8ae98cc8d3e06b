"""One batch of 8 against 8 micro-batches of 1: the same gradient, and the memory it saves."""

from __future__ import annotations

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchplan.api.documents import plain
from batchplan.api.estimating import estimate
from batchplan.api.profiles import OnProgress
from batchplan.api.request import Request
from batchplan.api.tracing import trace
from batchplan.experiments.subject import Subject
from batchplan.experiments.verify import Experiment, MeasuredLayout, measure_layouts
from batchplan.experiments.verify_checks import REFERENCE, Check
from batchplan.learning.accumulation import GRADIENT_TOLERANCE
from batchplan.prober.trial import Device
from batchplan.units import format_bytes

SEQUENCES = 8
_ROOMY = "1000GiB"
"""A device on which every layout fits: only the difference matters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """What one split of the same batch takes."""

    micro_batch: int
    accum_steps: int
    measured_bytes: int
    """Peak of live tensors: of real ones on a GPU, else of the model's code on fake ones."""
    estimated_bytes: int
    """The same by ``estimate``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Layouts:
    """Both splits, and what is checked of them."""

    source: str
    """Where ``measured_bytes`` come from."""
    seq_len: int
    large: Layout
    small: Layout
    checks: tuple[Check, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return it as the ``memory`` of ``verify``'s document."""
        return {
            "source": self.source,
            "seq_len": self.seq_len,
            "layouts": plain([self.large, self.small]),
            "measured_saving_bytes": self.large.measured_bytes - self.small.measured_bytes,
            "estimated_saving_bytes": self.large.estimated_bytes - self.small.estimated_bytes,
        }


def compare_layouts(
    request: Request, subject: Subject, experiment: Experiment, on_progress: OnProgress | None
) -> Layouts:
    """Return what accumulating 8 sequences one by one saves against one batch of them.

    On a GPU real steps of the model that was checked are measured; elsewhere its whole self is
    traced. Gradients are always real.

    Raises:
        SpecError: when the recipe cannot be traced.
        TraceError: when the model's code cannot be.
        ProbeError: when no worker can run.
    """
    found = measure_layouts(subject, experiment, SEQUENCES, on_progress=on_progress)
    on_gpu = subject.device is Device.CUDA
    with tempfile.TemporaryDirectory(prefix="batchplan-verify-") as folder:
        model = request.model_text or ""
        if on_gpu:
            model = folder
            config = json.dumps(found[0].config)
            (Path(folder) / "config.json").write_text(config, encoding="utf-8")
        large, small = (
            _layout(model, request, subject, each, on_progress=on_progress) for each in found
        )
    source = (
        f"real steps of the checked model on {subject.device}"
        if on_gpu
        else "the whole model's code, traced on fake tensors"
    )
    return Layouts(
        source=source,
        seq_len=subject.seq_len,
        large=large,
        small=small,
        checks=(_same_gradient(found[-1]), _saving(large, small)),
    )


def _layout(
    model: str,
    request: Request,
    subject: Subject,
    found: MeasuredLayout,
    *,
    on_progress: OnProgress | None,
) -> Layout:
    recipe = subject.recipe
    asked: dict[str, Any] = {
        "gpu": _ROOMY,
        "seq_len": subject.seq_len,
        "micro_batch": found.micro_batch,
        "accum_steps": found.accum_steps,
        "method": recipe.method.value,
        "lora_rank": recipe.lora_rank,
        "lora_targets": recipe.lora_targets,
        "numerics": recipe.numerics.value,
        # As the loop that was measured has it: no states, so gradients and activations alone.
        "optimizer": "sgd",
        "python": request.python,
        "offline": request.offline,
        "revision": request.revision,
        "trust_remote_code": request.trust_remote_code,
        "on_progress": on_progress,
    }
    measured = found.allocated_peak_bytes
    if measured is None:
        measured = trace(model, **asked).memory.allocated_peak_bytes
    return Layout(
        micro_batch=found.micro_batch,
        accum_steps=found.accum_steps,
        measured_bytes=measured,
        estimated_bytes=estimate(model, **asked).memory.allocated_peak_bytes,
    )


def _same_gradient(found: MeasuredLayout) -> Check:
    ok = found.deviation <= GRADIENT_TOLERANCE
    return Check(
        code="M1",
        subject=REFERENCE,
        ok=ok,
        deviation=found.deviation,
        limit=GRADIENT_TOLERANCE,
        text=f"1×{SEQUENCES} and {SEQUENCES}×1: {'the same' if ok else 'another'} gradient",
    )


SAVING_TOLERANCE = 0.1
"""Relative, of a saving: both peaks of the estimate may be off by its error (docs/accuracy.md)."""


def _saving(large: Layout, small: Layout) -> Check:
    measured = large.measured_bytes - small.measured_bytes
    stated = large.estimated_bytes - small.estimated_bytes
    deviation = abs(measured / stated - 1) if stated > 0 else 1.0
    return Check(
        code="M2",
        subject="memory",
        ok=deviation <= SAVING_TOLERANCE,
        deviation=deviation,
        limit=SAVING_TOLERANCE,
        text=f"accumulating saves {format_bytes(measured)}; the estimate says "
        f"{format_bytes(stated)}",
    )
