"""Bad input, told in one clear line: which field, which value, what is allowed."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from pydantic import ValidationError

from batchplan.errors import SpecError
from batchplan.spec import Spec
from batchplan.units import parse_bytes, parse_count

_Spec = TypeVar("_Spec", bound=Spec)


def checked(kind: type[_Spec], values: Mapping[str, Any]) -> _Spec:
    """Build a spec, leaving out what is None.

    Raises:
        SpecError: naming the first wrong field, its value and what is allowed.
    """
    try:
        return kind(**{name: value for name, value in values.items() if value is not None})
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=True)[0]
        name = ".".join(str(part) for part in first["loc"])
        raise SpecError(
            f"{option(name)} {shown(first['input'])}: {_reason(first['msg'])}."
        ) from None


def option(name: str) -> str:
    """Return the command-line spelling of a field.

    >>> option("lora_rank")
    '--lora-rank'
    """
    return "--" + name.replace("_", "-")


def shown(value: object) -> str:
    """Return a value short enough for one line."""
    text = repr(getattr(value, "value", value))
    return text if len(text) <= 60 else f"{text[:57]}..."


def whole(name: str, value: object, *, least: int = 1) -> int:
    """Return a whole number given as a number or as text such as ``4k``.

    Raises:
        SpecError: when it is none, or is below ``least``.
    """
    if isinstance(value, str):
        number = _parsed(name, value, parse_count, least=least)
    elif isinstance(value, int) and not isinstance(value, bool):
        number = value
    elif isinstance(value, float) and value.is_integer():
        number = int(value)
    else:
        raise SpecError(f"{option(name)} {shown(value)} is not a whole number.")
    if number < least:
        raise SpecError(f"{option(name)} {shown(value)} is too small: at least {least}.")
    return number


def num_bytes(name: str, value: object) -> int:
    """Return bytes given as a whole number or as text with a unit.

    Raises:
        SpecError: when it is neither.
    """
    if isinstance(value, str):
        return _parsed(name, value, parse_bytes, least=0)
    return whole(name, value, least=0)


def _parsed(name: str, text: str, parse: Callable[[str], int], *, least: int) -> int:
    if re.match(r"\s*-\s*[0-9]", text):
        expected = "above zero" if least else "0 or more"
        raise SpecError(f"{option(name)}: {shown(text)} must be {expected}.")
    try:
        return parse(text)
    except SpecError as error:
        raise SpecError(f"{option(name)}: {error}") from None


def _reason(message: str) -> str:
    message = message.removeprefix("Input ").replace("should be", "must be").replace("'", "")
    return message.replace("greater than or equal to", "at least").replace(
        "less than or equal to", "at most"
    )
