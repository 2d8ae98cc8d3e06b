"""Commands and their outputs as documents show them, and what the commands really print.

Run as a program with pages as arguments, it writes what is printed now into them. A block that
leaves lines out is only reported: which lines to show is a choice.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
LEFT_OUT = "…"
"""Alone on a line, it stands for any number of lines."""
ANSWERED = (0, 3, 6)
"""Exit codes of a command that worked: fits, does not fit, mistakes found."""


@dataclass(frozen=True)
class Block:
    """One command of a document and the output shown under it."""

    place: str
    command: str
    shown: str

    @property
    def arguments(self) -> list[str]:
        return shlex.split(self.command)

    @property
    def needs_trace(self) -> bool:
        """Whether the command names a model whose code must run."""
        _, name, *rest = [*self.arguments, "", ""]
        return name in ("estimate", "recommend", "trace") and "--params" not in rest


def console_blocks(text: str, name: str) -> list[Block]:
    """Return every command of every fenced console block."""
    found = []
    for fence in re.finditer(r"^```console\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        start = text[: fence.start(1)].count("\n") + 1
        for command in re.finditer(r"^\$ (.*)\n((?:(?!\$ ).*\n)*)", fence[1], re.MULTILINE):
            line = start + fence[1][: command.start()].count("\n")
            found.append(Block(f"{name}:{line}", command[1], command[2]))
    return found


def run(block: Block, folder: Path) -> str:
    """Run a block's command as a user would and return its stdout."""
    program, *arguments = block.arguments
    assert program == "batchplan", f"{block.place}: only batchplan itself is run"
    if not (folder / "docs").exists():
        (folder / "docs").symlink_to(ROOT / "docs")  # with the files that commands name
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "80", "NO_COLOR": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "batchplan", *arguments],
        capture_output=True,
        encoding="utf-8",
        timeout=300,
        cwd=folder,
        env=environment | {"PYTHONIOENCODING": "utf-8"},
        check=False,
    )
    assert done.returncode in ANSWERED, f"{block.place}: exit {done.returncode}: {done.stderr}"
    return done.stdout


def differs(shown: str, printed: str) -> str | None:
    """Return the first shown part that was not printed where it should be, None when all were.

    Trailing spaces do not count, and ``LEFT_OUT`` on a line stands for any lines.
    """
    wanted, got = _lines(shown), _lines(printed)
    parts: list[list[str]] = [[]]
    for line in wanted:
        if line == LEFT_OUT:
            parts.append([])
        else:
            parts[-1].append(line)
    first, last = parts[0], parts[-1]
    if got[: len(first)] != first:
        return _part(first)
    if len(parts) == 1:
        return None if len(got) == len(first) else _part(first)
    at = len(first)
    for part in parts[1:-1]:
        places = range(at, len(got) - len(part) + 1)
        place = next((i for i in places if got[i : i + len(part)] == part), None)
        if place is None:
            return _part(part)
        at = place + len(part)
    if last and (len(got) - len(last) < at or got[-len(last) :] != last):
        return _part(last)
    return None


def _lines(text: str) -> list[str]:
    lines = [line.rstrip() for line in text.splitlines()]
    while lines and not lines[-1]:
        lines.pop()
    return lines


def _part(lines: list[str]) -> str:
    return "\n".join(lines) or "(no further line)"


def refresh(page: Path, folder: Path) -> None:
    """Write into a page what its commands print now."""
    text = page.read_text(encoding="utf-8")
    for block in console_blocks(text, page.name):
        printed = run(block, folder)
        if differs(block.shown, printed) is None:
            continue
        if LEFT_OUT in _lines(block.shown):
            print(f"{block.place}: differs and leaves lines out; now printed:\n{printed}")
            continue
        before = f"$ {block.command}\n{block.shown}"
        after = f"$ {block.command}\n" + "\n".join(_lines(printed)) + "\n"
        text = text.replace(before, after, 1)
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for name in sys.argv[1:]:
        refresh(Path(name), ROOT)
