"""What a script does to its model before it trains: calls that checkpoint it, or cast it up."""

from __future__ import annotations

import ast
from collections.abc import Iterable, Iterator
from dataclasses import replace

from batchplan.checker.loop.program import parse, tail
from batchplan.configfile import ConfigFile, Format
from batchplan.spec import Checkpointing, Method
from batchplan.trainers.reading import Read, Reading

_ENABLE, _PREPARE = "gradient_checkpointing_enable", "prepare_model_for_kbit_training"
_KWARGS = "gradient_checkpointing_kwargs"
_ON_PREPARED = ("hf-trainer", "trl", "accelerate", "deepspeed", "lightning")
"""Train the model that the script hands them, and never switch its checkpointing off.

Source: transformers trainer.py, _inner_training_loop only enables it."""


def with_prepared(reading: Reading, files: Iterable[ConfigFile]) -> Reading:
    """Return a reading with what scripts call on the model, whatever the arguments say.

    Calls under a condition are left out: only running the script would tell.

    Source: peft utils/other.py, prepare_model_for_kbit_training; transformers modeling_utils.py,
    gradient_checkpointing_enable.
    """
    if reading.trainer not in _ON_PREPARED:
        return reading
    is_quantised = reading.values.get("method") == Method.QLORA
    found = [
        Read(option=option, value=value, key=name, file=file.name, line=call.lineno)
        for file in files
        if file.format is Format.PYTHON
        for name, call in _calls(file)
        for option, value in _made(name, call, is_quantised=is_quantised)
    ]
    return replace(reading, reads=(*reading.reads, *found))


def _made(name: str, call: ast.Call, *, is_quantised: bool) -> Iterator[tuple[str, str | bool]]:
    given = {word.arg: word.value for word in call.keywords}
    prepares = name == _PREPARE
    if prepares and not is_quantised:
        return
    if prepares:
        yield "frozen_upcast", True
    switch = given.get("use_gradient_checkpointing")
    if switch is None or getattr(switch, "value", None) is True:
        yield "checkpointing", Checkpointing.FULL.value
        reentrant = _reentrant(given.get(_KWARGS))
        if reentrant is not None:
            yield "reentrant", reentrant


def _reentrant(kwargs: ast.expr | None) -> bool | None:
    """Return ``use_reentrant`` of a literal, or None where it is not said."""
    try:
        said = None if kwargs is None else ast.literal_eval(kwargs)
    except ValueError:
        return None
    value = said.get("use_reentrant") if isinstance(said, dict) else None
    return value if isinstance(value, bool) else None


def _calls(file: ConfigFile) -> Iterator[tuple[str, ast.Call]]:
    """Yield the calls of the two functions that nothing but the file's own entry point guards."""
    program = parse(file.text)
    if program is None or not {_ENABLE, _PREPARE} & program.mentions:
        return
    waiting: list[ast.AST] = [program.tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, ast.Call) and tail(node.func) in (_ENABLE, _PREPARE):
            yield tail(node.func), node
        is_entry = isinstance(node, ast.If) and "__name__" in ast.dump(node.test)
        if is_entry or not isinstance(node, ast.If | ast.IfExp | ast.Match):
            waiting += ast.iter_child_nodes(node)
