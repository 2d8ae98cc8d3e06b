"""A measured noise scale as a file: what ran, what was found, and how sure it is."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Final, Literal

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PositiveFloat,
    PositiveInt,
    ValidationError,
    model_validator,
)

from batchplan.errors import SpecError
from batchplan.prober.places import data_dir
from batchplan.prober.saving import write_new
from batchplan.prober.trial import Device
from batchplan.spec import Recipe

SCHEMA_VERSION: Final = 1
KIND: Final = "noise-scale"
MOST_BYTES = 2**20
"""A larger file is none of ours."""
_ROUNDING = 1e-9
"""Of bounds that are equal: where all windows are alike, both are the estimate."""
_Bound = Annotated[float, Field(ge=0, allow_inf_nan=False)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid")


class Estimate(_Part):
    """The noise scale in one unit."""

    value: PositiveFloat | None
    """None where only a bound is known."""
    low: _Bound
    high: PositiveFloat | None
    """None where there is no upper bound."""

    @model_validator(mode="after")
    def _is_in_order(self) -> Estimate:
        """Refuse bounds that no interval has: Fieller's always holds its estimate."""
        ends = [end for end in (self.low, self.value, self.high) if end is not None]
        if any(one > other * (1 + _ROUNDING) for one, other in pairwise(ends)):
            raise ValueError("low, value and high are not in order")
        return self


class NoiseRecord(_Part):
    """One measurement, complete enough to be used without the model."""

    kind: Literal["noise-scale"] = KIND
    schema_version: Literal[1] = SCHEMA_VERSION
    created: datetime
    batchplan: str
    """Our version."""
    device: str
    kind_of_device: Device
    versions: dict[str, str]
    """Packages in the environment that ran the model."""
    model_id: str
    config_sha256: str
    """Of the model's ``config.json``: ``digest``."""
    weights: bool
    """Whether the published weights were loaded; random ones tell of the start of training."""
    data: str
    """Name of the data set's file."""
    seed: int
    recipe: Recipe
    seq_len: PositiveInt
    """Where rows were cut."""
    micro_batch: PositiveInt
    window: PositiveInt
    """Micro-batches."""
    num_windows: PositiveInt
    level: Annotated[float, Field(gt=0, lt=1)]
    """Share of intervals that hold the true value."""
    sequences: Estimate
    tokens: Estimate
    """Of the data: sequences times their mean tokens."""
    row_tokens: PositiveFloat
    """Mean tokens of a sequence."""
    noise: float
    """tr Sigma of one target token's gradient."""
    signal: float
    """``|G|^2``; may be negative."""
    dimensions: float | None
    loss: float
    stopped: str


def digest(config: Mapping[str, Any]) -> str:
    """Return what tells one model's ``config.json`` from another, whatever the order of its keys.

    >>> digest({"a": 1, "b": 2}) == digest({"b": 2, "a": 1}) != digest({"a": 1})
    True
    """
    text = json.dumps(config, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def noise_dir() -> Path:
    """Return where measured noise scales are kept, beside the probes' measurements."""
    return data_dir().with_name("noise")


def save_noise(record: NoiseRecord) -> Path:
    """Write one new file in the user's data folder and return its path.

    Raises:
        ProbeError: when it cannot be written.
    """
    names = (record.model_id, record.data)
    return write_new(noise_dir(), names, noise_text(record), created=record.created)


def noise_text(record: NoiseRecord) -> str:
    """Return the text of a file."""
    return record.model_dump_json(indent=2) + "\n"


def read_noise(path: Path) -> NoiseRecord:
    """Return what ``batchplan noise`` wrote.

    Raises:
        SpecError: when it cannot be read, or is something else.
    """
    try:
        size = path.stat().st_size
        if size > MOST_BYTES:
            raise SpecError(f"{path} is none of noise's files: {size:,} bytes are too many.")
        return NoiseRecord.model_validate_json(path.read_bytes())
    except OSError as error:
        raise SpecError(f"Cannot read {path}: {error.strerror or error}.") from None
    except ValidationError as error:
        first: Any = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        reason = f"{place}: {first['msg']}" if place else str(first["msg"])
        raise SpecError(
            f"{path} is none of noise's files ({reason}). Write one: batchplan noise MODEL DATA "
            "-o FILE."
        ) from None
