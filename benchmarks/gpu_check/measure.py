"""One case: the estimate, then one trial with the micro-batch that it says fits."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from batchplan.api.probe_inputs import ask
from batchplan.api.profiles import Profiles
from batchplan.prober.comparison import Compared, compare, steady_seconds
from batchplan.prober.runner import Trials
from batchplan.prober.trial import Outcome
from benchmarks.gpu_check.grid import Case

TOO_LARGE = "too large"
"""The estimate lets no micro-batch fit."""
REFUSED = "refused"
"""It cannot be tried here: a package is missing, or a kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What came of a case."""

    case: Case
    micro_batch: int
    """0 when nothing was run."""
    outcome: str
    """Of the trial, ``TOO_LARGE`` or ``REFUSED``."""
    text: str = ""
    device: str = ""
    versions: tuple[tuple[str, str], ...] = ()
    compared: tuple[Compared, ...] = ()
    predicted_step_seconds: float | None = None
    measured_step_seconds: float | None = None
    seconds: float = 0.0
    """Of the trial, start-up included."""


def measure(
    case: Case,
    *,
    device: str,
    memory_limit: str | None,
    timeout: float,
    on_progress: Callable[[str], None] | None = None,
) -> Measured:
    """Estimate a case and train it for two steps.

    The micro-batch is the largest whose 95 % bound fits, up to the case's own; what is measured so
    is a run that fits, not the boundary (that is ``batchplan probe``'s question).

    Raises:
        ProbeError: when there is no such device, or others use it.
    """
    asked = ask(
        case.model,
        case.inputs,
        device=device,
        memory_limit=memory_limit,
        max_micro_batch=case.max_micro_batch,
        timeout=timeout,
    )
    expected = asked.expect(Profiles(asked.request, on_progress))
    usable_bytes, most = asked.request.gpu.usable_bytes, asked.cap
    error = expected.bill(max(1, expected.largest(usable_bytes, most))).in_use_error
    micro_batch = expected.largest(error.within(usable_bytes), most)
    if not micro_batch:
        return Measured(case=case, micro_batch=0, outcome=TOO_LARGE)
    with Trials(asked.job, on_progress=on_progress) as attempt:
        trial = attempt(micro_batch)
    found = Measured(
        case=case,
        micro_batch=micro_batch,
        outcome=trial.outcome.value,
        text=trial.text,
        device=trial.device_name,
        versions=trial.versions,
        seconds=trial.seconds,
    )
    if trial.outcome is not Outcome.FITS:
        return found
    return replace(
        found,
        compared=compare(expected.bill(micro_batch), trial),
        predicted_step_seconds=expected.step_seconds(micro_batch),
        measured_step_seconds=steady_seconds(trial),
    )
