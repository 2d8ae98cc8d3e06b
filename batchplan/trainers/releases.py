"""Releases of a package that a config is for, as pip writes them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from operator import eq, ge, lt
from typing import Any

from batchplan.spec import Recipe
from batchplan.trainers.defaults import release
from batchplan.trainers.policies.rows import Value

_COMPARE: Mapping[str, Callable[[Any, Any], bool]] = {">=": ge, "==": eq, "<": lt}


@dataclass(frozen=True, slots=True, kw_only=True)
class Needs:
    """A package that a run must find installed."""

    package: str
    releases: str = ""
    """As pip writes them; empty: any."""
    when: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Fields of the recipe and the values under which it is needed; empty: always."""

    def applies_to(self, recipe: Recipe) -> bool:
        """Whether a run of the recipe needs it."""
        return all(getattr(recipe, name) in values for name, values in self.when.items())

    def holds(self, versions: Mapping[str, str]) -> bool:
        """Whether what is installed will do; what is not installed yet can be."""
        installed = versions.get(self.package)
        return installed is None or covers(self.releases, installed)

    @property
    def words(self) -> str:
        """As it stands after ``pip install``, in quotes where a shell needs them."""
        words = f"{self.package}{self.releases}"
        return words if words.replace("-", "").isalnum() else f"'{words}'"


def needed(needs: Iterable[Needs], recipe: Recipe) -> tuple[Needs, ...]:
    """Return what a run of the recipe needs, one of each package.

    Of two for one package the later asks for more.
    """
    return tuple({one.package: one for one in needs if one.applies_to(recipe)}.values())


def covers(releases: str, version: str) -> bool:
    """Whether a version is one of the releases.

    >>> covers(">=0.5.11,<0.6", "0.5.13"), covers(">=5.10", "4.57.1"), covers("==0.6.1", "0.6.1")
    (True, False, True)
    """
    installed = release(version)
    for bound in filter(None, releases.split(",")):
        sign = bound[:2] if bound[:2] in _COMPARE else bound[:1]
        if not _COMPARE[sign](installed, release(bound.removeprefix(sign))):
            return False
    return True
