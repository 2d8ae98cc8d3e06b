"""What ``--fix`` makes of the files of one run."""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from batchplan.api.check_findings import finding_document
from batchplan.configfile import Change, ConfigFile, Finding, apply, parse
from batchplan.errors import SpecError

if TYPE_CHECKING:
    from batchplan.api.check_answer import CheckAnswer

_MOST_ROUNDS = 5
"""Of mending; two mistakes that hide each other need two."""
_ORDER = tuple(Change)


@dataclass(frozen=True, slots=True, kw_only=True)
class Fixed:
    """Files of a run with their mistakes mended."""

    texts: Mapping[str, str]
    """By name, of every file that was to be mended: the trainer's own first."""
    findings: tuple[Finding, ...]
    """What was mended."""
    after: CheckAnswer
    """What a check of the mended files says."""

    @property
    def text(self) -> str:
        """The trainer's own file."""
        return next(iter(self.texts.values()))

    @property
    def left(self) -> tuple[Finding, ...]:
        """What is still found in the mended files, and in the others."""
        return self.after.findings

    def written_to(self, output: Path, *, is_folder: bool) -> dict[str, Path]:
        """Return the path of each mended file by its name.

        In a folder they lie to one another as they did, so that what names another still does.
        """
        if not is_folder:
            return dict.fromkeys(self.texts, output)
        paths = {name: os.path.abspath(name) for name in self.texts}  # noqa: PTH100 (keeps links)
        root = os.path.commonpath([os.path.dirname(path) for path in paths.values()])  # noqa: PTH120
        return {name: output / os.path.relpath(path, root) for name, path in paths.items()}

    def to_dict(self, names: Mapping[str, str] | None = None) -> dict[str, Any]:
        """Return what was mended and what is left, for ``batchplan check --fix --json``.

        Lines of what is left are of the mended files, which ``names`` gives their new names.
        """
        names = names or {}
        left = [replace(one, file=names.get(one.file, one.file)) for one in self.left]
        return {
            "mended": [finding_document(one) for one in self.findings],
            "left": [finding_document(one) for one in left],
        }


def fixed(answer: CheckAnswer, names: Collection[str]) -> Fixed:
    """Return files with the edits made that findings propose for them.

    A mistake may only show when another is mended, so that is done until none is left that
    can be: each round mends what the last one could not see.
    """
    found: list[Finding] = []
    for _ in range(_MOST_ROUNDS + 1):
        more, again = _mended(answer, names)
        if not more:
            break
        found, answer = [*found, *more], again
    texts = {file.name: file.text for file in answer.files if file.name in names}
    return Fixed(texts=texts, findings=tuple(found), after=answer)


def _mended(answer: CheckAnswer, names: Collection[str]) -> tuple[list[Finding], CheckAnswer]:
    """Return what one round mended, and what a check says then.

    Values are set before keys are renamed or removed, because an edit names a key as it was.
    """
    files = {file.name: file for file in answer.files}
    mended = []
    for one in sorted(answer.findings, key=_changes):
        if one.edits and one.file in names:
            try:
                files[one.file] = _edited(files[one.file], one)
            except SpecError:  # the layout ties it to other values: left for a person
                continue
            mended.append(one)
    if all(files[file.name].text == file.text for file in answer.files):
        return [], answer
    places = list(files)
    mended.sort(key=lambda one: (places.index(one.file), one.line or 0))
    return mended, answer.asked_of(tuple(files.values()))


def _edited(file: ConfigFile, finding: Finding) -> ConfigFile:
    return parse(file.name, apply(file, finding.edits).encode(), format=file.format)


def _changes(finding: Finding) -> list[int]:
    return [_ORDER.index(edit.change) for edit in finding.edits]
