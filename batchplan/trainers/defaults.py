"""What a trainer does when its user says nothing, as rows with versions and source."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from batchplan.errors import UnknownNameError

CHECKPOINT = "checkpoint"
"""Value of a ``numerics`` row: the dtype the checkpoint was saved in."""

_ARGUMENTS = "https://huggingface.co/docs/transformers/main_classes/trainer"
_LOADING = "https://huggingface.co/docs/transformers/main_classes/model"
_ACCUMULATION = "https://huggingface.co/docs/accelerate/concept_guides/gradient_synchronization"
_DDP = "https://docs.pytorch.org/docs/stable/generated/torch.nn.parallel.DistributedDataParallel"


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """One choice a trainer makes by itself."""

    trainer: str
    option: str
    """Our name of what is chosen."""
    value: str | int | bool
    key: str
    """The trainer's name of it."""
    source: str
    since: tuple[int, ...] = (0,)
    """First version of transformers that does so."""
    before: tuple[int, ...] = (10**6,)
    """First version of transformers that no longer does."""

    def holds_for(self, version: tuple[int, ...]) -> bool:
        """Whether a release of transformers makes this choice."""
        return self.since <= version < self.before


def _hf(option: str, *, value: str | int | bool, key: str, source: str = _ARGUMENTS) -> Default:
    return Default(trainer="hf-trainer", option=option, value=value, key=key, source=source)


_ROWS = (
    _hf("micro_batch", value=8, key="per_device_train_batch_size"),
    _hf("accum_steps", value=1, key="gradient_accumulation_steps"),
    _hf("method", value="full", key="Trainer(model=...)"),
    _hf("optimizer", value="adamw", key="optim"),
    Default(
        trainer="hf-trainer",
        option="optimizer_impl",
        value="fused",
        key="optim: adamw_torch_fused",
        source=_ARGUMENTS,
        since=(5,),
    ),
    Default(
        trainer="hf-trainer",
        option="optimizer_impl",
        value="foreach",  # the late 4.x releases already took fused where torch >= 2.8
        key="optim: adamw_torch",
        source=_ARGUMENTS,
        before=(5,),
    ),
    Default(
        trainer="hf-trainer",
        option="numerics",
        value=CHECKPOINT,
        key='from_pretrained(dtype="auto")',
        source=_LOADING,
        since=(5,),
    ),
    Default(
        trainer="hf-trainer",
        option="numerics",
        value="fp32",
        key="from_pretrained(torch_dtype=None)",
        source=_LOADING,
        before=(5,),
    ),
    _hf("checkpointing", value="none", key="gradient_checkpointing"),
    _hf("attention", value="sdpa", key="from_pretrained(attn_implementation=...)", source=_LOADING),
    _hf("loss", value="standard", key="use_liger_kernel"),
    _hf("sharding", value="ddp", key="fsdp, deepspeed"),
    _hf("offload", value="none", key="fsdp_config, deepspeed"),
    _hf("sync_each_batch", value=False, key="accelerator_config", source=_ACCUMULATION),
    _hf("bucket_view", value=False, key="gradient_as_bucket_view", source=_DDP),
)

TRAINERS = tuple(dict.fromkeys(row.trainer for row in _ROWS))
"""Names that ``--trainer`` takes."""


def trainer_defaults(trainer: str, transformers_version: str) -> dict[str, Default]:
    """Return what ``trainer`` does with this release of transformers, by our option names.

    >>> trainer_defaults("hf-trainer", "5.23.0")["micro_batch"].value
    8
    >>> trainer_defaults("hf-trainer", "4.57.1")["numerics"].value
    'fp32'

    Raises:
        UnknownNameError: when no row is about ``trainer``.
    """
    check_trainer(trainer)
    version = _release(transformers_version.split("."))
    rows = (row for row in _ROWS if row.trainer == trainer and row.holds_for(version))
    return {row.option: row for row in rows}


def check_trainer(trainer: str) -> None:
    """Refuse a trainer that no row is about.

    Raises:
        UnknownNameError: with the names that are known.
    """
    if trainer not in TRAINERS:
        hint = f"--trainer takes {', '.join(TRAINERS)}."
        raise UnknownNameError("trainer", trainer, TRAINERS, hint)


def _release(parts: Iterable[str]) -> tuple[int, ...]:
    numbers = []
    for part in parts:
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers) or (10**5,)
