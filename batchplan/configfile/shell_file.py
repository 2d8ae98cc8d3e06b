"""The environment and the launch command of a shell script, found by reading it.

The launch command is the last command that starts a known launcher with flags. Words before the
launcher (``nohup``, ``srun --ntasks 2``) are left out. Values are read as YAML scalars unless
they are quoted; a flag with no value is True. ``$X`` and other substitutions are ``UNKNOWN``.

Leaves out: what ``set --``, arrays and functions would add to the command.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from pathlib import PurePosixPath

from batchplan.configfile.located import UNKNOWN, Span
from batchplan.configfile.shell_words import Word, read_commands
from batchplan.configfile.source import Source
from batchplan.configfile.tree import Item, Node, mapping, sequence
from batchplan.configfile.yaml_file import plain_scalar

_WRAPPERS = frozenset({"accelerate", "deepspeed", "python", "python3", "torchrun", "tune", "uv"})
"""Launchers with flags of their own before the script, whose flags follow it."""
_LAUNCHERS = _WRAPPERS | frozenset(
    {"axolotl", "fabric", "lightning", "litgpt", "llamafactory-cli", "megatron", "swift", "trl"}
)
# Flags of torchrun (torch 2.13, distributed/run.py) and accelerate launch (1.15) that take no
# value: the script stands right behind them. A script named *.py needs no such table.
_SWITCHES = frozenset(
    {
        "--standalone", "--no-python", "--no_python", "--run-path", "--run_path",
        "--multi-gpu", "--multi_gpu", "--cpu", "--use-deepspeed", "--use_deepspeed",
        "--use-fsdp", "--use_fsdp", "--same-network", "--same_network",
        "--quiet", "--debug", "-q", "-u",
    }
)  # fmt: skip
MODULE_FLAGS = frozenset({"-m", "--module"})
LAUNCHER_MODULES = ("torch.distributed.", "accelerate.")
_EXPORTS = frozenset({"export", "declare", "typeset", "readonly"})
_ASSIGNMENT = re.compile(r"([A-Za-z_]\w*)=")
_FLAG = re.compile(r"--?[A-Za-z][^\s=]*")


def read_shell(source: Source) -> Node:
    """Return the environment, words and flags of a launch script.

    Raises:
        SpecError: when a quote is never closed, or there is neither command nor assignment.
    """
    commands = read_commands(source)
    launch = max(enumerate(commands), key=_rank, default=(0, []))[1]
    at = _launcher_position(launch)
    environment = [
        item
        for command in commands
        for item in (
            _assigned(source, launch[:at]) if command is launch else _alone(source, command)
        )
    ]
    split = _Command(source)
    for word in launch[at:]:
        split.add(word)
    split.end_flag()
    if not environment and not split.program:
        raise source.refusal("holds no command. Give the script that starts the training.", 0)
    groups = {
        "env": mapping(environment, _extent(source, environment)),
        "program": sequence(split.program, _extent(source, split.program)),
        "flags": mapping(split.flags, _extent(source, split.flags)),
    }
    items = [
        Item(name=name, key=None, node=node, end=node.written.end) for name, node in groups.items()
    ]
    return mapping(items, source.span(0, len(source.text)))


def _rank(numbered: tuple[int, Sequence[Word]]) -> tuple[bool, bool, int]:
    """Order commands by how much they look like the launch; the last of equals counts."""
    number, command = numbered
    has_flags = any(_FLAG.match(word.text) for word in command)
    is_launcher = any(_program_name(word) in _LAUNCHERS for word in command)
    return (is_launcher, has_flags, number)


def _program_name(word: Word) -> str:
    return PurePosixPath(word.text).name


def _launcher_position(command: Sequence[Word]) -> int:
    """Return the position of the launcher; without one, of the first word that assigns nothing."""
    for position, word in enumerate(command):
        if _program_name(word) in _LAUNCHERS:
            return position
    words = (at for at, word in enumerate(command) if not _ASSIGNMENT.match(word.text))
    return next(words, len(command))


def _alone(source: Source, command: Sequence[Word]) -> Iterator[Item]:
    """Yield what an export sets, or a command of nothing but assignments."""
    if command[0].text in _EXPORTS:
        yield from _assigned(source, command[1:])
    elif all(_ASSIGNMENT.match(source.text, word.start) for word in command):
        yield from _assigned(source, command)


def _assigned(source: Source, words: Sequence[Word]) -> Iterator[Item]:
    for word in words:
        match = _ASSIGNMENT.match(source.text, word.start)
        if match:
            node = _value(source, word, match.end())
            key = source.span(word.start, match.end(1))
            yield Item(name=match[1], key=key, node=node, end=word.end)


class _Command:
    """Sorts the words of the launch command into program and flags."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.program: list[Node] = []
        self.flags: list[Item] = []
        self.is_past_script = False
        """Whether flags now belong to the trainer, and may take several values."""
        self.flag: Word | None = None
        self.values: list[Node] = []

    def add(self, word: Word) -> None:
        """Take the next word."""
        name = _FLAG.match(self.source.text, word.start)
        if name and word.text not in MODULE_FLAGS:
            self.end_flag()
            if name.end() < word.end:
                node = _value(self.source, word, name.end() + 1)
                self._keep(name[0], name.end(), node, word)
            else:
                self.flag = word
        elif self._is_value(word):
            self.values.append(_value(self.source, word, word.start))
        else:
            self.end_flag()
            self._add_program(word)

    def end_flag(self) -> None:
        """Keep the flag whose values were being collected."""
        if self.flag is None:
            return
        word, values = self.flag, self.values
        end = values[-1].written.end if values else word.end
        written = self.source.span(values[0].written.start if values else end, end)
        if len(values) > 1:
            node = sequence(values, written)
        else:
            node = Node(value=values[0].value if values else True, written=written)
        self._keep(word.text, word.end, node, word)
        self.flag, self.values = None, []

    def _keep(self, name: str, key_end: int, node: Node, word: Word) -> None:
        key = self.source.span(word.start, key_end)
        self.flags.append(Item(name=name, key=key, node=node, end=max(node.written.end, word.end)))

    def _is_value(self, word: Word) -> bool:
        if self.flag is None or self.flag.text in _SWITCHES:
            return False
        if not self.is_past_script:
            return not self.values and not word.text.endswith(".py")
        return not self.values or "=" not in word.text

    def _add_program(self, word: Word) -> None:
        self.program.append(_value(self.source, word, word.start))
        text = word.text
        if len(self.program) == 1:
            self.is_past_script = _program_name(word) not in _WRAPPERS
        elif self.program[-2].value in MODULE_FLAGS:
            self.is_past_script = not text.startswith(LAUNCHER_MODULES)
        elif text.endswith(".py"):
            self.is_past_script = True


def _value(source: Source, word: Word, start: int) -> Node:
    """Return the value of a word from ``start`` on."""
    written = source.span(start, word.end)
    if not word.is_known or source.text.startswith("(", word.end):
        return Node(value=UNKNOWN, written=written)
    text = word.text[start - word.start :]
    return Node(value=text if word.is_quoted else plain_scalar(text), written=written)


def _extent(source: Source, parts: Sequence[Item | Node]) -> Span:
    nodes = [part.node if isinstance(part, Item) else part for part in parts]
    starts = [part.start if isinstance(part, Item) else part.written.start for part in parts]
    return source.span(min(starts, default=0), max((node.written.end for node in nodes), default=0))
