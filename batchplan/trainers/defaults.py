"""What a trainer does when its user says nothing: its policy, read for the releases in use."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

from batchplan.errors import UnknownNameError
from batchplan.trainers.policies import POLICIES
from batchplan.trainers.policies.rows import CHECKPOINT, PEFT_TARGETS, Default, Value

__all__ = [
    "CHECKPOINT",
    "NEWEST",
    "PEFT_TARGETS",
    "TRAINERS",
    "Default",
    "Settled",
    "Value",
    "assumed_release",
    "check_trainer",
    "release",
    "settle",
    "trainer_defaults",
]

TRAINERS = tuple(POLICIES)
"""Names that ``--trainer`` takes."""

NEWEST = {
    "accelerate": "1.15.0",
    "axolotl": "0.21.0",
    "deepspeed": "0.19.8",
    "lightning": "2.6.6",
    "litgpt": "0.5.13",
    "llamafactory": "0.9.5",
    "ms-swift": "4.6.0",
    "peft": "0.21.2",
    "torch": "2.13.0",
    "torchtitan": "0.3.0",
    "torchtune": "0.6.1",
    "transformers": "5.23.0",
    "trl": "1.16.0",
    "unsloth": "2026.10.9",
}
"""The newest release that was read of each library; taken where an environment lacks it."""

_NAMED_BY_NUMERICS = ("weight_dtype", "grad_dtype", "optimizer_dtype", "master_weights")
"""Dtypes that a user decides by naming numerics."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """What a trainer decides for one recipe."""

    values: dict[str, Value]
    """By our option names; of those that the user decided, what the trainer overrides."""
    rows: dict[str, Default]
    """The row behind each value."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What to tell of the rows that only some recipes meet."""
        return tuple(dict.fromkeys(row.note for row in self.rows.values() if row.note))


def trainer_defaults(trainer: str, versions: str | Mapping[str, str]) -> dict[str, Default]:
    """Return what ``trainer`` does with these releases under any recipe, by our option names.

    Text alone is the version of transformers. A package without a version is taken to be the
    newest that was read.

    >>> trainer_defaults("hf-trainer", "5.23.0")["micro_batch"].value
    8
    >>> trainer_defaults("trl", {"trl": "1.5.0"})["loss"].value
    'standard'

    Raises:
        UnknownNameError: when there is no policy of ``trainer``.
    """
    return {row.option: row for row in _rows(trainer, versions) if not row.when}


def settle(
    trainer: str,
    versions: str | Mapping[str, str],
    *,
    given: Mapping[str, object],
    configured: Mapping[str, object] = MappingProxyType({}),
    several_devices: bool = False,
    resolve: Callable[[Default], Value] = lambda row: row.value,
) -> Settled:
    """Return what ``trainer`` decides where ``given`` and its config say nothing.

    What is ``configured`` are keys of the trainer: unlike given numerics, configured ones leave
    the dtypes to the trainer.

    Conditional rows are read once, from first to last: each sees what was given and what the rows
    before it decided, and the last that applies wins. ``resolve`` turns a row into its value.

    >>> settled = settle("trl", {}, given={"sharding": "fsdp-full"})
    >>> settled.values["numerics"], settled.rows["numerics"].note
    ('bf16-master', "accelerate keeps FSDP's shards in fp32 under bf16 (accelerator.py)")

    Raises:
        UnknownNameError: when there is no policy of ``trainer``.
    """
    rows = list(_rows(trainer, versions))
    state: dict[str, object] = {"several_devices": several_devices, **configured, **given}
    decided = {*given, *configured, *(_NAMED_BY_NUMERICS if "numerics" in given else ())}
    found = Settled(values={}, rows={})
    for row in sorted(rows, key=lambda row: bool(row.when)):
        is_open = row.option in configured if row.overrides else row.option not in decided
        if is_open and row.applies_to(state):
            found.rows[row.option] = row
            found.values[row.option] = state[row.option] = resolve(row)
    return found


def assumed_release(trainer: str, versions: Mapping[str, str]) -> str | None:
    """Return the release that is assumed of the trainer itself; None where it is installed.

    >>> assumed_release("trl", {"transformers": "5.0.0"})
    '1.16.0'
    >>> assumed_release("hf-trainer", {"transformers": "5.0.0"}) is None
    True

    Raises:
        UnknownNameError: when there is no policy of ``trainer``.
    """
    check_trainer(trainer)
    package = POLICIES[trainer].package
    return None if package in versions else NEWEST[package]


def check_trainer(trainer: str) -> None:
    """Refuse a trainer that there is no policy of.

    Raises:
        UnknownNameError: with the names that are known.
    """
    if trainer not in TRAINERS:
        hint = f"--trainer takes {', '.join(TRAINERS)}."
        raise UnknownNameError("trainer", trainer, TRAINERS, hint)


def _rows(trainer: str, versions: str | Mapping[str, str]) -> Iterator[Default]:
    check_trainer(trainer)
    installed = {"transformers": versions} if isinstance(versions, str) else versions
    releases = {name: release(text) for name, text in {**NEWEST, **installed}.items()}
    return (row for row in POLICIES[trainer].rows if row.holds_for(releases))


def release(version: str) -> tuple[int, ...]:
    """Return the numbers that a version begins with; without any, more than every release has.

    >>> release("2.13.0+cpu"), release("main")
    ((2, 13), (100000,))
    """
    numbers = []
    for part in version.split("."):
        if not part.isdigit():
            break
        numbers.append(int(part))
    return tuple(numbers) or (10**5,)
