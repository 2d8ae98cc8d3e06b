"""What one row of a trainer's policy says, and when it holds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

Value = str | int | float | None
"""A value of a field of ``Recipe`` or ``Batch``; booleans are integers, None leaves it open."""

CHECKPOINT = "checkpoint"
"""Value of a dtype: the one the checkpoint was saved in."""
PEFT_TARGETS = "peft-targets"
"""Value of ``lora_targets``: what peft picks for the architecture where nothing is given."""

AUTOCAST = ("bf16-autocast", "fp16-autocast")
ADAPTERS = ("lora", "qlora")
ZERO = ("zero1", "zero2", "zero3")
FSDP = ("fsdp-grad-op", "fsdp-full", "fsdp-hybrid")


@dataclass(frozen=True, slots=True, kw_only=True)
class Versions:
    """Releases of one package, from ``since`` to before ``before``."""

    package: str
    since: tuple[int, ...] = (0,)
    before: tuple[int, ...] = (10**6,)

    def hold(self, version: tuple[int, ...]) -> bool:
        """Whether a release is one of these."""
        return self.since <= version < self.before


@dataclass(frozen=True, slots=True, kw_only=True)
class Default:
    """One choice a trainer makes by itself."""

    option: str
    """Our name of what is chosen: a field of ``Recipe``, ``micro_batch`` or ``accum_steps``."""
    value: Value
    key: str
    """The trainer's name of it."""
    source: str
    """File, and function or class in it, of the library that decides."""
    versions: tuple[Versions, ...] = ()
    """Releases that do so, all of them at once; empty: every release that we support."""
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Fields of the recipe, or ``several_devices``, and the values under which the row holds."""
    note: str = ""
    """What to tell a user for whom the row changed something; empty where ``key`` says it all."""
    overrides: bool = False
    """The trainer puts this in place of what its config says, and only there."""
    of_a_step: bool = False
    """``accum_steps``: the value counts the sequences of one step over all devices."""

    def holds_for(self, versions: Mapping[str, tuple[int, ...]]) -> bool:
        """Whether the releases make this choice."""
        return all(wanted.hold(versions[wanted.package]) for wanted in self.versions)

    def applies_to(self, state: Mapping[str, object]) -> bool:
        """Whether a recipe meets the row's condition."""
        return all(state.get(name) in allowed for name, allowed in self.when.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Everything a trainer decides when its user says nothing."""

    trainer: str
    package: str
    """The library it is."""
    rows: tuple[Default, ...]


def built_on(rows: tuple[Default, ...], *own: Default) -> tuple[Default, ...]:
    """Return ``rows`` with a trainer's own rows in place of, and after, those they replace.

    An unconditional row replaces the unconditional rows of its option. Conditional rows stay and
    come first, so that the trainer's own have the last word.
    """
    replaced = {row.option for row in own if not row.when}
    kept = [row for row in rows if row.when or row.option not in replaced]
    return (*kept, *own)
