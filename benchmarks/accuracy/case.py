"""What a source's mapping hands over: keyword arguments of ``estimate``, or why there are none."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any


class NotScoredError(Exception):
    """A row that ``estimate`` cannot be asked about; the message is the reason, shown as it is."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row as a question to ``batchplan.estimate``."""

    model: str
    """Catalog name or path of a config."""
    fields: Mapping[str, Any]
    """Keyword arguments of ``estimate``, without ``model`` and ``python``."""
    environment: str | None = None
    """Name in ``environments.ENVIRONMENTS`` of the versions measured with; None: not to be had."""
    needs_environment: bool = False
    """Whether the model's code is in that environment alone, and never traced without it."""
    has_step: bool = True
    """Whether the measurement covers the optimizer step."""
    gpu_is_known: bool = True
    """Whether the row names its device; otherwise whether it fits is not asked."""
    also_in_use: int | None = None
    """A driver-level figure of the same run, from the row's notes."""
    context_bytes: int | None = None
    """What the driver showed before anything was allocated, as the same source measured it: a
    driver-level figure less this is compared with what is reserved."""
    assumptions: tuple[str, ...] = field(default=())
    """What the row leaves open and the mapping took from the source's documented defaults."""
