"""The run that a config stands for: what it says, and what the trainer does where it is silent."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from batchplan.spec import Recipe
from batchplan.trainers.defaults import Default, Settled, Value
from batchplan.trainers.policies.rows import AUTOCAST
from batchplan.trainers.reading import Reading
from batchplan.trainers.realise import as_configured


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run: every option with its value, and the split of a step."""

    values: Mapping[str, Any]
    """By our option names: what the files say over what the trainer does by itself."""
    configured: Mapping[str, Value]
    """What the files say."""
    settled: Settled
    """What the trainer does where they are silent, row by row."""
    micro_batch: int
    accum_steps: int
    """At least 1; ``asked_global`` says what the file wanted where that cannot be split."""
    num_ranks: int
    num_nodes: int | None
    seq_len: int | None
    """None where neither the files nor the trainer say."""
    seq_len_source: str = ""
    """Where the length was taken from, when it is the trainer's own."""
    asked_global: int | None = None
    """Sequences a step that the files ask for; None where they ask for passes."""

    @property
    def global_batch_size(self) -> int:
        """Sequences of one optimizer step over all ranks."""
        return self.micro_batch * self.accum_steps * self.num_ranks

    @property
    def max_steps(self) -> int | None:
        """Optimizer steps; None where the epochs decide, which ``-1`` says too."""
        return _positive(self.values.get("max_steps"))

    @property
    def recipe_values(self) -> dict[str, Any]:
        """The fields of ``Recipe`` that are decided."""
        return {
            name: value
            for name, value in self.values.items()
            if name in Recipe.model_fields and value is not None
        }


@dataclass(frozen=True, slots=True, kw_only=True)
class Length:
    """The sequence length a trainer takes by itself."""

    seq_len: int
    source: str


SEQ_LENS = {
    "trl": Length(seq_len=1024, source="trl trainer/sft_config.py, SFTConfig.max_length"),
    "axolotl": Length(
        seq_len=512, source="axolotl utils/schemas/config.py, AxolotlInputConfig.sequence_len"
    ),
    "llamafactory": Length(
        seq_len=2048, source="llamafactory hparams/data_args.py, DataArguments.cutoff_len"
    ),
    "torchtitan": Length(
        seq_len=2048, source="torchtitan config/configs.py, TrainingConfig.seq_len"
    ),
}
"""The others go by the model or by the data."""


def reconstruct(
    reading: Reading,
    *,
    versions: Mapping[str, str],
    num_ranks: int | None = None,
    num_nodes: int | None = None,
    seq_len: int | None = None,
    resolve: Callable[[Default], Value] = lambda row: row.value,
) -> Run:
    """Return the run that the files of a trainer stand for.

    Args:
        reading: what they say.
        versions: releases by package; the newest that was read of those that lack.
        num_ranks: devices over all nodes; None is what the files say, or 1.
        num_nodes: None is what the files say.
        seq_len: tokens a sequence; None is what the files say, or the trainer's own.
        resolve: turns a row of the trainer's policy into its value.

    Raises:
        UnknownNameError: when there is no policy of the trainer.
    """
    said = {name: _number(name, value) for name, value in reading.values.items()}
    ranks = num_ranks or _positive(said.get("num_ranks")) or 1
    # None is something to say of a dtype: that it follows from the numerics.
    configured = {name: value for name, value in said.items() if value is not _NO_NUMBER}

    def as_run(said: Mapping[str, Value]) -> tuple[dict[str, Any], Settled]:
        return as_configured(
            reading.trainer,
            said,
            versions=versions,
            several_devices=ranks > 1,
            resolve=resolve,
        )

    values, settled = as_run(configured)
    numerics = reading.of("numerics")
    if numerics is not None and numerics.key.split(".")[-1] in _CASTS:
        values |= _as_loaded(values, configured, lambda said: as_run(said)[0])
    micro, passes = _split(reading.trainer, configured, settled, ranks)
    length = SEQ_LENS.get(reading.trainer)
    found_length = seq_len or _positive(said.get("seq_len"))
    return Run(
        values={**values, "micro_batch": micro, "accum_steps": passes},
        configured=configured,
        settled=settled,
        micro_batch=micro,
        accum_steps=passes,
        num_ranks=ranks,
        num_nodes=num_nodes or _positive(said.get("num_nodes")),
        seq_len=found_length or (length.seq_len if length else None),
        seq_len_source="" if found_length or length is None else length.source,
        asked_global=_positive(configured.get("global_batch")),
    )


def _split(
    trainer: str, configured: Mapping[str, Value], settled: Settled, ranks: int
) -> tuple[int, int]:
    """Return micro-batch and passes, as the trainer works them out: any two give the third."""
    micro = _positive(configured.get("micro_batch"))
    passes = _positive(configured.get("accum_steps"))
    whole = _positive(configured.get("global_batch"))
    row = settled.rows.get("accum_steps")
    if whole is None and passes is None and row is not None and row.of_a_step:
        whole = _positive(row.value)
    if whole is not None and micro is None and (passes or trainer in _ONE_PASS):
        passes = passes or 1
        return max(1, whole // ranks // passes), passes
    micro = micro or _positive(settled.values.get("micro_batch")) or 1
    if whole is None or passes is not None:
        return micro, passes or _positive(settled.values.get("accum_steps")) or 1
    if trainer in _ROUNDED_UP:
        return micro, -(-whole // (micro * ranks))
    return micro, max(1, whole // ranks // micro)


_ONE_PASS = ("deepspeed",)
"""Take one pass where only the global batch is known.

Source: deepspeed runtime/config.py, _set_batch_related_parameters."""
_ROUNDED_UP = ("ms-swift",)
"""Round passes up where the others floor. Source: swift trainers/arguments.py, __post_init__."""


_CASTS = ("bf16", "fp16", "mixed_precision")
"""Keys that switch autocast on and say nothing of the dtype that weights load in."""


def _as_loaded(
    values: Mapping[str, Any],
    configured: Mapping[str, Value],
    as_run: Callable[[Mapping[str, Value]], Mapping[str, Any]],
) -> dict[str, Value]:
    """Return the dtypes under autocast of weights that load as the trainer loads by itself.

    Gradients and moments of a fully trained model have the dtype of its weights.
    """
    if values.get("numerics") not in AUTOCAST:
        return {}
    if "weight_dtype" in configured or values.get("weight_dtype") is not None:
        return {}
    alone = {name: value for name, value in configured.items() if name != "numerics"}
    loaded = as_run(alone).get("numerics")
    if loaded not in ("bf16", "fp16"):
        return {}
    names = ("weight_dtype", "grad_dtype", "optimizer_dtype")
    return dict.fromkeys(names if values.get("method") == "full" else names[:1], loaded)


def _positive(value: object) -> int | None:
    """Return a whole number above zero, or None: ``-1`` and ``auto`` leave it open."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value >= 1 else None


def _number(name: str, value: Value) -> Any:
    """Return what is meant where a number must be, also by text; ``_NO_NUMBER`` if none is."""
    if name not in _NUMBERS:
        return value
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return _NO_NUMBER
    try:
        number = float(value)
    except (ValueError, OverflowError):
        return _NO_NUMBER
    if not math.isfinite(number):
        return _NO_NUMBER
    if isinstance(value, int):
        return value
    return int(number) if number.is_integer() and name not in _FRACTIONS else number


_NO_NUMBER = object()
_FRACTIONS = ("learning_rate", "beta2", "lora_dropout", "warmup_ratio")
_NUMBERS = (
    *("seq_len", "micro_batch", "accum_steps", "global_batch", "num_ranks", "num_nodes"),
    *("learning_rate", "beta2", "warmup_steps", "warmup_ratio", "max_steps", "epochs"),
    *("lora_rank", "lora_dropout", "fsdp_version"),
)
