"""What ``check`` answers, and its document."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from batchplan.api.check_findings import finding_document
from batchplan.api.check_fix import Fixed, fixed
from batchplan.api.documents import (
    SCHEMA_VERSION,
    caveats_document,
    device_document,
    memory_document,
    plain,
    recipe_document,
)
from batchplan.api.estimating import EstimateAnswer
from batchplan.api.recipes import numerics_words
from batchplan.checker import Run
from batchplan.configfile import ConfigFile, Finding, Severity
from batchplan.errors import CheckError
from batchplan.spec import Caveat, Gpu, Recipe
from batchplan.trainers.defaults import Default
from batchplan.trainers.policies import POLICIES
from batchplan.trainers.reading import Reading
from batchplan.trainers.realise import matters

_TOLD = (
    *("micro_batch", "accum_steps", "method", "lora_rank", "lora_targets", "lora_dropout"),
    "numerics",
    *("optimizer", "optimizer_impl", "sharding", "checkpointing", "attention", "loss"),
)
"""Options that are told where no file says them; others only where they come with a note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Asked:
    """What the user says beside the files."""

    trainer: str | None = None
    gpu: str | None = None
    devices: int | None = None
    nodes: int | None = None
    model: str | None = None
    seq_len: int | None = None
    python: Path | None = None
    revision: str | None = None
    trust_remote_code: bool = False
    offline: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckAnswer:
    """What the files of one run say, do and get wrong."""

    asked: Asked
    files: tuple[ConfigFile, ...]
    """The trainer's own first, then what it names."""
    given: tuple[str, ...]
    """Names of the files as the user gave them."""
    roles: Mapping[str, str]
    trainer: str
    supports: str
    """Releases whose keys are known, as pip writes them."""
    release: str | None
    """The release that is assumed where the trainer is not installed."""
    reading: Reading
    model: str | None
    """As it can be found from here; None where nobody names it."""
    run: Run
    recipe: Recipe | None
    """None where the values go together in no recipe that memory is known for."""
    estimate: EstimateAnswer | None
    """None without a GPU or a model."""
    gpu: Gpu | None
    findings: tuple[Finding, ...]
    """The worst first."""
    caveats: tuple[Caveat, ...]
    asked_of: Callable[[tuple[ConfigFile, ...]], CheckAnswer] = field(repr=False, compare=False)
    """Asks the same of other files."""

    @property
    def has_errors(self) -> bool:
        """Whether any finding is an error."""
        return any(one.severity is Severity.ERROR for one in self.findings)

    @property
    def exit_code(self) -> int:
        """What the command line exits with."""
        return CheckError.exit_code if self.has_errors else 0

    @property
    def defaults(self) -> tuple[Default, ...]:
        """The choices of the trainer that matter here, because no file says anything else."""
        rows = self.run.settled.rows
        names = dict.fromkeys((*_TOLD, *(name for name, row in rows.items() if row.note)))
        # Of the three numbers of a step, any two decide the third.
        split = "accum_steps" if "global_batch" in self.run.configured else None
        return tuple(
            rows[name]
            for name in names
            if name in rows
            and name != split
            and (self.recipe is None or matters(name, self.recipe))
        )

    def fix(self, *, every_file: bool = False) -> Fixed:
        """Return the trainer's own file, or every file of the run, as findings propose to edit it.

        A mistake that only a person can decide stays.
        """
        files = self.files if every_file else self.files[:1]
        return fixed(self, [file.name for file in files])

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan check --json``."""
        run = self.run
        tokens = None if run.seq_len is None else run.global_batch_size * run.seq_len
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "check",
            "inputs": {"configs": list(self.given), **plain(_fields(self.asked))},
            "trainer": {
                "name": self.trainer,
                "package": POLICIES[self.trainer].package,
                "supports": self.supports,
                "assumed_release": self.release,
            },
            "files": [
                {"name": file.name, "role": self.roles[file.name], "format": file.format.value}
                for file in self.files
            ],
            "model": self.model,
            "batch": {
                "micro_batch": run.micro_batch,
                "accum_steps": run.accum_steps,
                "num_ranks": run.num_ranks,
                "seq_len": run.seq_len,
                "global_batch_size": run.global_batch_size,
                "global_batch_tokens": tokens,
            },
            "max_steps": run.max_steps,
            "learning_rate": run.values.get("learning_rate"),
            "recipe": None if self.recipe is None else recipe_document(self.recipe),
            "numerics": None if self.recipe is None else numerics_words(self.recipe),
            "defaults": [
                {
                    "option": row.option,
                    "value": run.values.get(row.option),
                    "key": row.key,
                    "source": row.source,
                    "note": row.note,
                }
                for row in self.defaults
            ],
            "memory": None if self.estimate is None else memory_document(self.estimate.memory),
            "device": None if self.gpu is None else device_document(self.gpu),
            "fits": None if self.estimate is None else self.estimate.fits,
            "headroom_bytes": None if self.estimate is None else self.estimate.headroom_bytes,
            "findings": [finding_document(one) for one in self.findings],
            "caveats": caveats_document(self.caveats),
        }


def _fields(asked: Asked) -> dict[str, Any]:
    found = {name: getattr(asked, name) for name in Asked.__slots__}
    return {**found, "python": None if asked.python is None else str(asked.python)}
