"""Axes of the search given as several values: ``--checkpointing none,selective`` or ``any``."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any

from batchplan.api.checks import option, shown
from batchplan.errors import SpecError
from batchplan.planner.hardware import supported_attentions
from batchplan.spec import Attention, Checkpointing, Gpu, Offload, Sharding

ANY = "any"
AXES: dict[str, type[StrEnum]] = {
    "sharding": Sharding,
    "checkpointing": Checkpointing,
    "offload": Offload,
    "attention": Attention,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """Which values of an axis are searched, where more than one was given."""

    values: Mapping[str, tuple[Any, ...]] = field(default_factory=dict)
    texts: Mapping[str, str] = field(default_factory=dict)
    """As given."""

    def of(self, name: str, gpu: Gpu) -> tuple[Any, ...] | None:
        """Return the values of one axis that the device can run; None when none were listed.

        Raises:
            SpecError: when the device can run none of them.
        """
        listed = self.values.get(name)
        if listed is None or name != "attention":
            return listed
        found = tuple(value for value in listed if value in supported_attentions(gpu))
        if not found:
            raise SpecError(
                f"--attention {self.texts[name]}: {gpu.name} runs none of it, only "
                f"{', '.join(supported_attentions(gpu))}."
            )
        return found


def take_axes(fields: Mapping[str, Any]) -> tuple[Axes, dict[str, Any]]:
    """Return the axes with several values, and the fields without them.

    Raises:
        SpecError: when a value is none of the axis.
    """
    values: dict[str, tuple[Any, ...]] = {}
    texts: dict[str, str] = {}
    rest = dict(fields)
    for name, kind in AXES.items():
        text = rest.get(name)
        if not isinstance(text, str) or isinstance(text, StrEnum):
            continue
        if text != ANY and "," not in text:
            continue
        values[name] = tuple(kind) if text == ANY else _listed(name, kind, text)
        texts[name] = text
        del rest[name]
    return Axes(values=values, texts=texts), rest


def _listed(name: str, kind: type[StrEnum], text: str) -> tuple[StrEnum, ...]:
    found = []
    for word in text.split(","):
        try:
            found.append(kind(word.strip()))
        except ValueError:
            allowed = ", ".join(kind)
            raise SpecError(
                f"{option(name)} {shown(text)}: {shown(word.strip())} is none of {allowed}."
            ) from None
    return tuple(dict.fromkeys(found))
