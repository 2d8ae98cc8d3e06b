"""The finders that are compared: ours, doubling and bisecting, and the real code of two libraries.

Each is a function of an ``Attempt`` and the curve, and returns the micro-batch that it settles on.
The libraries' own functions run; only the training inside them is simulated, and their clearing of
caches, which takes time and changes no count, is left out.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from types import SimpleNamespace
from typing import Any
from unittest.mock import MagicMock, patch

from batchplan.prober.search import find_largest
from batchplan.prober.trial import Outcome, Trial
from benchmarks.probe.curves import CAP, Curve

OUT_OF_MEMORY = "CUDA out of memory. Tried to allocate 2.00 GiB."
"""Begins as torch's own message does, which is what the libraries look for."""


@dataclass(slots=True)
class Attempt:
    """Runs a curve and keeps what was tried."""

    curve: Curve
    tried: list[int] = field(default_factory=list)

    def __call__(self, micro_batch: int) -> Trial:
        """Return the trial, for a finder that reads figures."""
        self.tried.append(micro_batch)
        return self.curve.attempt(micro_batch)

    def train(self, micro_batch: int) -> None:
        """Train, for a finder that knows errors alone; a run that thrashes ends well."""
        if self(micro_batch).outcome is Outcome.OUT_OF_MEMORY:
            raise RuntimeError(OUT_OF_MEMORY)


@dataclass(frozen=True, slots=True, kw_only=True)
class Finder:
    """One way to find the largest micro-batch."""

    name: str
    package: str
    """Whose code it is; empty for ours."""
    find: Callable[[Attempt], int]

    @property
    def version(self) -> str | None:
        """Version of the package, None where it is not installed."""
        try:
            return version(self.package) if self.package else ""
        except PackageNotFoundError:
            return None


def _batchplan(attempt: Attempt) -> int:
    curve = attempt.curve
    return find_largest(
        attempt, predicted=curve.predicted_bytes, usable_bytes=curve.usable_bytes, cap=CAP
    ).max_micro_batch


def _doubling(attempt: Attempt) -> int:
    low, high = 0, 1
    while high <= CAP and attempt(high).outcome is Outcome.FITS:
        low, high = high, 2 * high
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if attempt(middle).outcome is Outcome.FITS else (low, middle)
    return low


def _lightning_power(attempt: Attempt) -> int:
    from lightning.pytorch.tuner import batch_size_scaling as tuner

    return _lightning(attempt, tuner._run_power_scaling)


def _lightning_binsearch(attempt: Attempt) -> int:
    from lightning.pytorch.tuner import batch_size_scaling as tuner

    return _lightning(attempt, tuner._run_binsearch_scaling, margin=0.05)


def _lightning(attempt: Attempt, run: Callable[..., int], **more: float) -> int:
    """Run one mode with the defaults of ``BatchSizeFinder``: from 2, 25 trials at most."""
    from lightning.pytorch.tuner import batch_size_scaling as tuner

    model = SimpleNamespace(batch_size=2, automatic_optimization=True, _trainer=None)
    endless = MagicMock()
    endless._dataset_length.side_effect = NotImplementedError
    loop: Any = MagicMock()
    loop.setup_data.side_effect = lambda: setattr(loop, "_combined_loader", endless)
    loop.run.side_effect = lambda: attempt.train(model.batch_size)
    trainer = MagicMock(lightning_module=model, _active_loop=loop)
    with patch.object(tuner, "garbage_collection_cuda"), patch.object(tuner, "rank_zero_info"):
        return run(trainer, 2, "batch_size", 25, {"loop_state_dict": {}}, **more, max_val=CAP)


def _accelerate(attempt: Attempt) -> int:
    from accelerate.utils import memory

    def train(batch_size: int) -> int:
        attempt.train(batch_size)
        return batch_size

    with patch.object(memory, "clear_device_cache"):
        try:
            return int(memory.find_executable_batch_size(train)())
        except RuntimeError:  # "No executable batch size found, reached zero."
            return 0


FINDERS = (
    Finder(name="batchplan", package="", find=_batchplan),
    Finder(name="doubling, then bisecting", package="", find=_doubling),
    Finder(name="Lightning, `power`", package="lightning", find=_lightning_power),
    Finder(name="Lightning, `binsearch`", package="lightning", find=_lightning_binsearch),
    Finder(name="`find_executable_batch_size`", package="accelerate", find=_accelerate),
)
