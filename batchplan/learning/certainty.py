"""How sure a rule or a constant is: who read it, and where."""

from __future__ import annotations

from enum import StrEnum


class Certainty(StrEnum):
    """How a formula and its constants were come by."""

    READ = "read at the source"
    ABSTRACT = "claim read in the abstract, formula from memory"
    SECONDARY = "read in a text about it"
    MEMORY = "from memory of the paper, not re-read"
