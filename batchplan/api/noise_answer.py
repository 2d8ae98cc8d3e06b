"""The answer of ``noise``: a measured noise scale, and what it says of a target."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchplan.api.documents import SCHEMA_VERSION, caveats_document, plain
from batchplan.api.recipes import numerics_words
from batchplan.experiments.noise import MeasuredNoise
from batchplan.experiments.noise_file import NoiseRecord, noise_text
from batchplan.experiments.subject import Subject
from batchplan.learning.noise import (
    LEVEL,
    NoiseScale,
    Ratio,
    batch_cost,
    running_estimates,
)
from batchplan.sources.token_rows import DrawnRows
from batchplan.spec import Caveat, ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class NoiseAnswer:
    """A measured noise scale, and what it says of a target."""

    inputs: dict[str, Any]
    """Keyword arguments of ``noise`` that measure the same again."""
    model: ModelInfo
    subject: Subject
    rows: DrawnRows
    measured: MeasuredNoise
    found: NoiseScale
    target_tokens: int | None
    record: NoiseRecord
    """What a file of it holds."""
    saved_to: Path | None
    caveats: tuple[Caveat, ...]

    @property
    def tokens(self) -> Ratio:
        """The noise scale in tokens of the data, as ``--target-tokens`` counts them."""
        return self.found.sequences.times(self.measured.row_tokens)

    def file_text(self) -> str:
        """Return the text of a file that ``recommend`` and ``learning_rate`` take."""
        return noise_text(self.record)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan noise --json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "noise",
            "inputs": self.inputs,
            "versions": self.measured.versions,
            "model": {
                "id": self.model.id,
                "architecture": self.model.architecture,
                "num_trained_params": self.measured.num_trained,
                "source": self.model.source,
                "revision": self.model.revision,
            },
            "device": {
                "name": self.measured.device_name,
                "kind": self.subject.device.value,
                "num_ranks": self.subject.num_ranks,
            },
            "numerics": numerics_words(self.subject.recipe),
            "data": {
                "source": self.rows.source,
                "num_rows": self.rows.num_rows,
                "num_left_out": self.rows.num_left_out,
                "targets": self.rows.targets,
                "row_tokens": self.measured.row_tokens,
            },
            "noise_scale": self._noise_scale(),
            "saved_to": None if self.saved_to is None else str(self.saved_to),
            "caveats": caveats_document(self.caveats),
        }

    def _noise_scale(self) -> dict[str, Any]:
        found, measured = self.found, self.measured
        ratio = found.tokens
        upcoming = found.next()
        per_window = found.num_tokens / found.num_windows
        share = measured.row_tokens / found.tokens_per_sequence
        target = self.target_tokens
        return {
            **{name: known(each) for name, each in self._units().items()},
            "interval": {"level": LEVEL}
            | {
                name: {"low": each.low, "high": each.high if each.is_bounded else None}
                for name, each in self._units().items()
            },
            "bounded": ratio.is_bounded,
            "informed": ratio.is_informed,
            "relative_half_width": ratio.relative_width if ratio.is_bounded else None,
            "noise": found.noise,
            "signal": found.signal,
            "dimensions": found.dimensions,
            "loss": found.loss,
            "tokens_per_sequence": found.tokens_per_sequence,
            "num_windows": found.num_windows,
            "num_micro_batches": found.num_micro_batches,
            "num_sequences": sum(window.num_sequences for window in measured.windows),
            "num_tokens": found.num_tokens,
            "stopped": measured.stopped.value,
            "seconds": measured.seconds,
            "next": None
            if upcoming is None
            else {
                "num_windows": upcoming.num_windows,
                "window_tokens": round(upcoming.window_tokens * share),
                "window": round(
                    upcoming.window_tokens
                    / per_window
                    * found.num_micro_batches
                    / found.num_windows
                ),
            },
            "target": None if target is None else plain(batch_cost(target, self.tokens)),
            "running": [
                {
                    "num_windows": count,
                    "tokens": known(each.times(share)),
                    "low": each.low * share,
                    "high": each.high * share if each.is_bounded else None,
                }
                for count, each in running_estimates(measured.windows)
            ],
            "windows": [
                {
                    "noise": window.noise,
                    "signal": window.signal,
                    "num_tokens": window.num_tokens,
                    "loss": window.loss,
                }
                for window in measured.windows
            ],
        }

    def _units(self) -> dict[str, Ratio]:
        return {
            "sequences": self.found.sequences,
            "tokens": self.tokens,
            "target_tokens": self.found.tokens,
        }


def known(ratio: Ratio) -> float | None:
    """Return the estimate; beside a bound alone it would say more than is known."""
    return ratio.value if ratio.is_bounded else None
