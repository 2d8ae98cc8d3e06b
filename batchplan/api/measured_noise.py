"""A noise scale that was measured before: read from its file, and held against a plan."""

from __future__ import annotations

import math
from collections.abc import Iterator
from os import PathLike
from pathlib import Path
from typing import Any

from batchplan.api.documents import plain
from batchplan.api.request import Request
from batchplan.errors import SpecError
from batchplan.experiments.noise_file import Estimate, NoiseRecord, digest, read_noise
from batchplan.learning.noise import Ratio, batch_cost
from batchplan.spec import Batch, Caveat, Method
from batchplan.units import format_count

_MUCH_LONGER = 2.0
"""Times the measured sequences, from which it matters what fills a row: a choice."""


def given_noise(path: str | PathLike[str] | None) -> NoiseRecord | None:
    """Return what a file of ``batchplan noise`` holds, None without one.

    Raises:
        SpecError: when it is none.
    """
    return None if path is None else read_noise(Path(path).expanduser())


def bounded_noise(path: str | PathLike[str]) -> NoiseRecord:
    """Return a noise scale that has a value.

    Raises:
        SpecError: when the file is none of ours, or has only a bound.
    """
    record = read_noise(Path(path).expanduser())
    if record.tokens.value is None:
        known = f", only that it is above {record.tokens.low:,.0f} tokens"
        raise SpecError(
            f"{path} has no noise scale{known if record.tokens.low else ''}. Measure again with a "
            "larger --window."
        )
    return record


def noise_document(
    record: NoiseRecord | None, batch: Batch | None, fill: float
) -> dict[str, Any] | None:
    """Return the measured noise scale, and what the best plan's batch costs against it.

    ``fill`` is the share of the batch's tokens that is data and not padding.
    """
    if record is None:
        return None
    tokens = None if batch is None else batch.global_batch_tokens * fill
    return {
        "model": record.model_id,
        "data": record.data,
        "created": record.created.isoformat(),
        "weights": record.weights,
        "level": record.level,
        "num_windows": record.num_windows,
        "sequences": record.sequences.model_dump(),
        "tokens": record.tokens.model_dump(),
        "best": None if tokens is None else plain(batch_cost(tokens, _ratio(record.tokens))),
    }


def noise_caveats(
    record: NoiseRecord | None, request: Request, *, counted_tokens: int | None
) -> Iterator[Caveat]:
    """Yield what makes a measurement doubtful for this plan.

    ``counted_tokens`` is what plans count for a sequence, None where a data set says what fills it.
    """
    if record is None:
        return
    name = request.model.id.rstrip("/").rpartition("/")[2]
    if record.model_id.rpartition("/")[2] != name:
        yield Caveat(
            code="noise-other-model",
            text=f"The noise scale was measured on {record.model_id}, not on {request.model.id}.",
        )
    elif request.config and record.config_sha256 != digest(request.config):
        yield Caveat(
            code="noise-other-config",
            text=f"The noise scale was measured on {record.model_id} with another config, on "
            f"{record.created:%Y-%m-%d}: measure again if more than names in it changed.",
        )
    method = request.given.get("method", Method.FULL)
    if (record.recipe.method is Method.FULL) is not (method == Method.FULL):
        yield Caveat(
            code="noise-other-method",
            text=f"The noise scale was measured with method {record.recipe.method}: that of other "
            "parameters is another one.",
        )
    if not record.weights:
        yield Caveat(
            code="noise-random-weights",
            text="The noise scale was measured at random weights: it says nothing about a trained "
            "model.",
        )
    if counted_tokens is not None and counted_tokens > _MUCH_LONGER * record.row_tokens:
        yield Caveat(
            code="noise-other-lengths",
            text=f"The noise scale was measured on sequences of {record.row_tokens:,.0f} tokens on "
            f"average, and plans count {counted_tokens:,}: that is right where such sequences are "
            "packed. Where they are padded, --dataset counts what is data.",
        )
    if record.tokens.value is None:
        low = format_count(round(record.tokens.low))
        known = f"only a bound is known, {low} tokens" if record.tokens.low else "nothing is known"
        yield Caveat(
            code="noise-bound-only",
            text=f"Of the noise scale {known}: the learning rate is left as it is.",
        )
    yield Caveat(
        code="noise-not-critical-batch",
        text="A noise scale is not the critical batch (Merrill et al. 2025, arXiv 2505.23971), and "
        "it grows as training lowers the loss.",
    )


def _ratio(estimate: Estimate) -> Ratio:
    high = math.inf if estimate.high is None else estimate.high
    return Ratio(value=estimate.value, low=estimate.low, high=high)
