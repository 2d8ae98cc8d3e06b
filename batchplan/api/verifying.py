"""``verify``: whether accumulated gradients are those of the large batch, for the user's model."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from os import PathLike
from pathlib import Path
from typing import Any, Unpack

from batchplan.api.checks import option, whole
from batchplan.api.data import own_tokenizer
from batchplan.api.documents import SCHEMA_VERSION, caveats_document, plain
from batchplan.api.fields import SharedFields
from batchplan.api.layouts import Layouts, compare_layouts
from batchplan.api.learning import positive_number
from batchplan.api.profiles import OnProgress
from batchplan.api.request import Request
from batchplan.api.subjects import AUTO, resolve_subject, subject_inputs
from batchplan.errors import SpecError
from batchplan.experiments.subject import Subject
from batchplan.experiments.verify import Experiment, Verified, verify_model
from batchplan.experiments.verify_checks import Check
from batchplan.sources.token_rows import TokenRow, draw_rows
from batchplan.spec import Caveat, ModelInfo, Numerics

DEFAULT_ACCUM_STEPS = 4
DEFAULT_MICRO_BATCH = 2
DEFAULT_MAX_SECONDS = 300.0
MOST_ROWS = 512
"""Of a data set; of every length that the checks need, a few rows are enough."""
_LARGEST = 64
"""K and micro-batch: what holds for a few holds for many, and costs less."""


_FIELDS = (
    *("seq_len", "python", "revision", "trust_remote_code", "offline"),
    *("method", "lora_rank", "lora_targets"),
)
"""Shared inputs that change what is checked."""


@dataclass(frozen=True, slots=True, kw_only=True)
class VerifyAnswer:
    """What the checks found, and what to do about it."""

    inputs: dict[str, Any]
    """Keyword arguments of ``verify`` that check the same again."""
    model: ModelInfo
    subject: Subject
    verified: Verified
    layouts: Layouts | None
    """One batch of 8 against 8 of 1; None where it was not asked for."""
    caveats: tuple[Caveat, ...]

    @property
    def checks(self) -> tuple[Check, ...]:
        """Every check of every loop, memory's last."""
        return (*self.verified.checks, *(self.layouts.checks if self.layouts else ()))

    @property
    def ok(self) -> bool:
        """Whether no check failed; one that was not run has neither passed nor failed."""
        return all(check.ok is not False for check in self.checks)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan verify --json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "verify",
            "inputs": self.inputs,
            "versions": self.verified.versions,
            "model": {
                "id": self.model.id,
                "architecture": self.verified.model_class,
                "source": self.model.source,
                "revision": self.model.revision,
                "num_checked_params": self.verified.num_parameters,
            },
            "device": self.subject.device.value,
            "ok": self.ok,
            "checks": plain(self.checks),
            "causes": plain(self.verified.causes),
            "memory": None if self.layouts is None else self.layouts.to_dict(),
            "seconds": self.verified.seconds,
            "caveats": caveats_document(self.caveats),
        }


def verify(
    model: str,
    data: str | PathLike[str] | None = None,
    *,
    device: str = AUTO,
    accum_steps: int | str = DEFAULT_ACCUM_STEPS,
    micro_batch: int | str = DEFAULT_MICRO_BATCH,
    full: bool = False,
    memory: bool = False,
    max_seconds: float | str = DEFAULT_MAX_SECONDS,
    seed: int | str = 0,
    tokenizer: str | None = None,
    text_column: str | None = None,
    on_progress: OnProgress | None = None,
    **fields: Unpack[SharedFields],
) -> VerifyAnswer:
    """Return whether gradients accumulate to the large batch's, for a model's class and loss.

    Two loops are checked: our own, which is right, so that what fails there is the model's; and
    the Trainer of transformers. In fp32, without dropout, at random weights.

    Args:
        model: Hub id, local folder or config.json, or a catalog name.
        data: rows of token ids or text; None draws tokens.
        device: ``cpu``, ``cuda``, or ``auto``: a free GPU, or else the CPU.
        accum_steps: K, 3 or more: with 2 one mistake looks like another.
        micro_batch: sequences of a micro-batch.
        full: every layer at its width, in place of two narrow ones.
        memory: also compare one batch of 8 with 8 of 1, in memory.
        max_seconds: when no further loop is started.
        seed: decides weights, tokens and rows.
        tokenizer: Hub id or folder for text; None is the model's own.
        text_column: column of text or chat messages.
        on_progress: told in words what is being done.
        **fields: of the shared inputs, those that change what is checked: ``_FIELDS``.

    Raises:
        SpecError: when an input or a row of the data is wrong.
        SourceError: when the model's config or the tokenizer cannot be had.
        ProbeError: when there is no such device, or the model does not run.
    """
    steps = _size("accum_steps", accum_steps, least=3)
    size = _size("micro_batch", micro_batch, least=1)
    seconds = positive_number("max_seconds", max_seconds, "300")
    _refuse_other(fields)
    request, subject = resolve_subject(
        model,
        {**fields, "numerics": Numerics.FP32.value},
        command="verify",
        device=device,
        seed=seed,
    )
    experiment = Experiment(
        accum_steps=steps,
        micro_batch=size,
        full=full,
        rows=_rows(request, subject, data, tokenizer, text_column, on_progress),
        max_seconds=seconds,
    )
    verified = verify_model(subject, experiment, on_progress=on_progress)
    layouts = compare_layouts(request, subject, experiment, on_progress) if memory else None
    return VerifyAnswer(
        inputs=_inputs(request, subject)
        | {
            "data": None if data is None else str(data),
            "accum_steps": steps,
            "micro_batch": size,
            "full": full,
            "memory": memory,
            "max_seconds": seconds,
            "tokenizer": tokenizer,
            "text_column": text_column,
        },
        model=request.model,
        subject=subject,
        verified=verified,
        layouts=layouts,
        caveats=tuple(_caveats(experiment, verified)),
    )


def _inputs(request: Request, subject: Subject) -> dict[str, Any]:
    shared = subject_inputs(request, subject)
    return {name: shared[name] for name in ("model", *_FIELDS, "device", "seed")}


def _refuse_other(fields: SharedFields) -> None:
    """Refuse what would change nothing: checks run in fp32 and on whole parameters."""
    given = [name for name, value in fields.items() if value is not None and name not in _FIELDS]
    if given:
        known = ", ".join(option(name) for name in _FIELDS)
        raise SpecError(f"{option(given[0])} does not go with verify, which takes {known}.")


def _size(name: str, value: object, *, least: int) -> int:
    size = whole(name, value, least=least)
    if size > _LARGEST:
        raise SpecError(
            f"--{name.replace('_', '-')} {size:,} is too large: at most {_LARGEST}. What holds "
            "for a few micro-batches holds for many."
        )
    return size


def _rows(
    request: Request,
    subject: Subject,
    data: str | PathLike[str] | None,
    tokenizer: str | None,
    text_column: str | None,
    on_progress: OnProgress | None,
) -> tuple[TokenRow, ...]:
    if data is None:
        return ()
    drawn = draw_rows(
        Path(data).expanduser(),
        seq_len=request.seq_len,
        seed=subject.seed,
        tokenizer=own_tokenizer(request, tokenizer),
        text_column=text_column,
        on_progress=on_progress,
    )
    rows = tuple(row for row in islice(drawn, MOST_ROWS) if len(row.ids) > 2)
    if not rows:
        raise SpecError(f"{data} has no row of 3 tokens or more.")
    return rows


def _caveats(experiment: Experiment, verified: Verified) -> Iterator[Caveat]:
    if not experiment.full:
        yield Caveat(
            code="verify-small-model",
            text=f"Checked on {verified.model_class} with {verified.num_parameters:,} parameters "
            "that train: one layer of every kind, two at least, two heads, few experts and "
            "tokens. --full keeps them all.",
        )
    yield Caveat(
        code="verify-conditions",
        text="In fp32, at random weights, without dropout: with it, masks differ between any two "
        "runs. A loop of your own is not checked; the mistakes that loops make are listed in "
        "docs/verify.md.",
    )
