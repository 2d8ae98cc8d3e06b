"""What the tools answered, summarised beside ours on the same rows."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.accuracy.statistics import Summary, average, summarise
from benchmarks.peers.questions import Question
from benchmarks.peers.tools import Tool

RESULTS_FILE = Path(__file__).with_name("results.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Answers:
    """One tool beside ours; averages are per source, then over sources."""

    name: str
    version: str
    says: str
    sources: tuple[str, ...]
    tool: Summary | None
    """None where it answered nothing."""
    ours: Summary | None
    refusals: dict[str, int]
    """Rows that it could not be asked about, by reason."""

    @staticmethod
    def dump(found: Iterable[Answers]) -> str:
        """Return the text of the results file."""
        return json.dumps([asdict(one) for one in found], indent=2) + "\n"

    @staticmethod
    def load(path: Path = RESULTS_FILE) -> tuple[Answers, ...]:
        """Return what the results file holds; nothing when there is none."""
        if not path.is_file():
            return ()
        return tuple(
            Answers(
                **item
                | {"sources": tuple(item["sources"])}
                | {name: Summary(**item[name]) if item[name] else None for name in ("tool", "ours")}
            )
            for item in json.loads(path.read_text(encoding="utf-8"))
        )


def summary_of(tool: Tool, asked: Sequence[Question], answers: Sequence[dict[str, Any]]) -> Answers:
    """Return a tool's errors and ours on the rows that it answered."""
    pairs = [
        (one, answer["bytes"] / one.measured - 1)
        for one, answer in zip(asked, answers, strict=True)
        if "bytes" in answer
    ]
    sources = tuple(dict.fromkeys(one.source for one, _ in pairs))
    name, _, version = tool.requirements[0].partition("==")
    return Answers(
        name=tool.name,
        version=f"{name} {version}",
        says=tool.says,
        sources=sources,
        tool=average(
            summarise(error for one, error in pairs if one.source == source) for source in sources
        ),
        ours=average(
            summarise(one.our_error for one, _ in pairs if one.source == source)
            for source in sources
        ),
        refusals=dict(Counter(answer["reason"] for answer in answers if "reason" in answer)),
    )
