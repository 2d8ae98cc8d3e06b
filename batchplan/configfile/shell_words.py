"""A shell script as commands of words, each with its place; nothing is expanded or run.

Leaves out: what a substitution would yield, functions, arrays, ``case`` patterns.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

from batchplan.configfile.source import Source

_BETWEEN = re.compile(r"(?:[ \t]|\\\r?\n)+")
_COMMENT = re.compile(r"#[^\r\n]*")
_END = re.compile(r"\r?\n|\r|[;&|()]+")
_HEREDOC = re.compile(r"<<-?[ \t]*(['\"]?)(\w+)\1")
_REDIRECT = re.compile(r"(?:[0-9]*|&)(?:<<<|>>|>&|<&|>|<)[0-9-]*")
_PLAIN = re.compile(r"[^\s'\"\\$`;&|()<>]+")
_SINGLE = re.compile(r"'([^']*)'")
_DOUBLE = re.compile(r'"([^"\\]*(?:\\.[^"\\]*)*)"', re.DOTALL)
_ESCAPE = re.compile(r"\\(.)", re.DOTALL)
_IN_DOUBLE = re.compile(r'\\(["\\$`])|\\\r?\n')
_SUBSTITUTED = re.compile(r"(?<!\\)[$`]")
_VARIABLE = re.compile(r"\$(?:\w+|[@*#?$!-])?|`[^`]*`")
_PART_OF_BRACKETS = re.compile(r"[^(){}'\"\\]+|\\.|'[^']*'|\"[^\"\\]*(?:\\.[^\"\\]*)*\"", re.DOTALL)
_CLOSING = {"(": ")", "{": "}"}


@dataclass(frozen=True, slots=True)
class Word:
    """One word of a command."""

    text: str
    """Without its quotes."""
    start: int
    end: int
    is_quoted: bool
    is_known: bool
    """False where running the script would put something else in its place."""


def read_commands(source: Source) -> list[list[Word]]:
    """Return the simple commands of a script, in order.

    Raises:
        SpecError: when a quote or bracket is never closed.
    """
    commands: list[list[Word]] = [[]]
    for word in _Scanner(source).words():
        if word is None:
            commands.append([])
        else:
            source.count(1, word.start)
            commands[-1].append(word)
    return [command for command in commands if command]


class _Scanner:
    """One pass over the text."""

    def __init__(self, source: Source) -> None:
        self.source = source
        self.text = source.text
        self.offset = 0
        self.heredocs: list[str] = []

    def words(self) -> Iterator[Word | None]:
        """Yield words, and None where a command ends."""
        while self.offset < len(self.text):
            if self._skip(_BETWEEN) or self._skip(_COMMENT):
                continue
            heredoc = _HEREDOC.match(self.text, self.offset)
            if heredoc and not self.text.startswith("<<<", self.offset):
                self.heredocs.append(heredoc[2])
                self.offset = heredoc.end()
            elif _REDIRECT.match(self.text, self.offset):
                self._skip(_REDIRECT)
                self._skip(_BETWEEN)
                if not _END.match(self.text, self.offset):
                    self._word()
            elif ending := self._skip(_END):
                if ending[-1] in "\r\n":
                    self._skip_heredocs()
                yield None
            else:
                yield self._word()

    def _skip(self, pattern: re.Pattern[str]) -> str | None:
        found = pattern.match(self.text, self.offset)
        if found is None or not found[0]:
            return None
        self.offset = found.end()
        return found[0]

    def _skip_heredocs(self) -> None:
        for name in self.heredocs:
            closing = re.compile(rf"^\t*{re.escape(name)}\r?$", re.MULTILINE)
            found = closing.search(self.text, self.offset)
            self.offset = found.end() if found else len(self.text)
        self.heredocs.clear()

    def _word(self) -> Word:
        start = self.offset
        parts: list[str] = []
        is_quoted, is_known = False, True
        while self.offset < len(self.text):
            begin = self.offset
            if plain := self._skip(_PLAIN):
                parts.append(plain)
            elif single := _SINGLE.match(self.text, begin):
                self.offset, is_quoted = single.end(), True
                parts.append(single[1])
            elif double := _DOUBLE.match(self.text, begin):
                self.offset, is_quoted = double.end(), True
                is_known = is_known and not _SUBSTITUTED.search(double[1])
                parts.append(_IN_DOUBLE.sub(lambda found: found[1] or "", double[1]))
            elif self.text[begin] == "\\" and not _BETWEEN.match(self.text, begin):
                escape = _ESCAPE.match(self.text, begin)
                self.offset, is_quoted = escape.end() if escape else begin + 1, True
                parts.append(escape[1] if escape else "")
            elif self.text[begin] in "$`":
                self._substitution()
                is_known = False
                parts.append(self.text[begin : self.offset])
            elif self.text[begin] in "'\"":
                raise self.source.refusal("a quote is never closed. Close it.", begin)
            else:
                break
        return Word("".join(parts), start, self.offset, is_quoted, is_known)

    def _substitution(self) -> None:
        """Step over ``$name``, ``${…}``, ``$(…)`` or `` `…` ``."""
        start = self.offset
        opening = self.text[start + 1 : start + 2]
        if opening not in _CLOSING:
            if not self._skip(_VARIABLE):
                raise self.source.refusal("a backquote is never closed. Close it.", start)
            return
        self.offset = start + 1
        open_brackets: list[str] = []
        while self.offset < len(self.text):
            if self._skip(_PART_OF_BRACKETS):
                continue
            sign = self.text[self.offset]
            self.offset += 1
            if sign in _CLOSING:
                open_brackets.append(_CLOSING[sign])
            elif sign == open_brackets[-1]:
                open_brackets.pop()
            if not open_brackets:
                return
        raise self.source.refusal("a '$' bracket is never closed. Close it.", start)
