"""Bytes, counts and times: parsed and printed at the edge, plain numbers inside.

1 GiB = 2**30 bytes and 1 GB = 10**9 bytes. Memory always needs its unit from the user, because a
bare ``80`` could mean bytes, GB or GiB. Counts (tokens, parameters) take the decimal suffixes
k, M, B and T and nothing else.
"""

from __future__ import annotations

import re
from decimal import Decimal, InvalidOperation

from batchplan.errors import SpecError

KIB, MIB, GIB = 2**10, 2**20, 2**30
KB, MB, GB = 10**3, 10**6, 10**9

_BYTE_UNITS = {
    "B": 1,
    "KB": KB,
    "MB": MB,
    "GB": GB,
    "TB": 10**12,
    "KIB": KIB,
    "MIB": MIB,
    "GIB": GIB,
    "TIB": 2**40,
}
_COUNT_SUFFIXES = {"": 1, "k": 10**3, "m": 10**6, "b": 10**9, "g": 10**9, "t": 10**12}
_NUMBER_AND_UNIT = re.compile(
    r"\s*([0-9][0-9_,]*(?:\.[0-9]+)?(?:[eE][+]?[0-9]{1,3})?)\s*([A-Za-z]*)\s*"
)
_LARGEST = 10**24


def parse_bytes(text: str) -> int:
    """Return the bytes meant by ``24GiB`` or ``80 GB``; a number without a unit is refused.

    >>> parse_bytes("24GiB"), parse_bytes("24 GB")
    (25769803776, 24000000000)

    Raises:
        SpecError: when the text is no number with a known memory unit, or is not above zero.
    """
    number, unit = _split(text, "a memory size such as 24GiB or 80GB")
    if not unit:
        raise SpecError(f"{text!r} has no unit. Write {text}GiB (2**30 bytes) or {text}GB (10**9).")
    factor = _BYTE_UNITS.get(unit.upper())
    if factor is None:
        raise SpecError(
            f"{text!r} has the unknown unit {unit!r}. Use B, KB, MB, GB, KiB, MiB or GiB."
        )
    return _whole(number * factor, text)


def parse_count(text: str) -> int:
    """Return the whole number meant by ``4M``, ``1_000``, ``7e9`` or ``2.5k`` (decimal suffixes).

    >>> parse_count("4M"), parse_count("7e9"), parse_count("0.5M")
    (4000000, 7000000000, 500000)

    Raises:
        SpecError: when the text is no such number, is not whole, or is not above zero.
    """
    number, unit = _split(text, "a count such as 4096, 1M or 7e9")
    factor = _COUNT_SUFFIXES.get(unit.lower())
    if factor is None:
        raise SpecError(
            f"{text!r} has the unknown suffix {unit!r}. Use k, M, B or T (powers of 1000)."
        )
    return _whole(number * factor, text)


def parse_percent(text: str) -> float:
    """Return the fraction meant by ``2%`` or ``0.02``.

    >>> parse_percent("2%"), parse_percent("0.05")
    (0.02, 0.05)

    Raises:
        SpecError: when the text is no number between 0 and 1 (or 0% and 100%).
    """
    stripped = text.strip()
    try:
        fraction = float(stripped[:-1]) / 100 if stripped.endswith("%") else float(stripped)
    except ValueError:
        raise SpecError(f"{text!r} is not a fraction. Write 2% or 0.02.") from None
    if not 0 <= fraction < 1:
        raise SpecError(f"{text!r} is out of range: a fraction lies between 0% and 100%.")
    return fraction


def format_bytes(num_bytes: int) -> str:
    """Return bytes as GiB with two decimals, or MiB below a tenth of a GiB.

    >>> format_bytes(25769803776), format_bytes(-5 * 2**20), format_bytes(2**41)
    ('24.00 GiB', '-5.0 MiB', '2,048.00 GiB')
    """
    if abs(num_bytes) >= GIB // 10:
        return f"{num_bytes / GIB:,.2f} GiB"
    return f"{num_bytes / MIB:.1f} MiB"


def format_count(count: int) -> str:
    """Return a count short enough for a table, with a decimal suffix.

    >>> format_count(7615616512), format_count(4096), format_count(1015808)
    ('7.62B', '4,096', '1.02M')
    """
    for threshold, suffix in ((10**12, "T"), (10**9, "B"), (10**6, "M")):
        if count >= threshold:
            return f"{count / threshold:.2f}{suffix}"
    return f"{count:,}"


def format_beta(value: float) -> str:
    """Return a decay rate to four digits, or to as many as keep it below 1.

    >>> format_beta(0.98461), format_beta(0.9999962)
    ('0.9846', '0.999996')
    """
    texts = (f"{value:.{digits}g}" for digits in range(4, 17))
    return next((text for text in texts if float(text) < 1), "1")


def format_seconds(seconds: float) -> str:
    """Return a duration with a unit that suits it.

    >>> format_seconds(0.0421), format_seconds(5.31), format_seconds(7384)
    ('42 ms', '5.3 s', '2.1 h')
    """
    if seconds < 1:
        return f"{seconds * 1e3:.0f} ms"
    if seconds < 120:
        return f"{seconds:.1f} s"
    if seconds < 7200:
        return f"{seconds / 60:.1f} min"
    if seconds < 172_800:
        return f"{seconds / 3600:.1f} h"
    return f"{seconds / 86_400:.1f} days"


def _split(text: str, wanted: str) -> tuple[Decimal, str]:
    match = _NUMBER_AND_UNIT.fullmatch(text)
    if match is None:
        raise SpecError(f"{text!r} is not {wanted}.")
    digits, unit = match.groups()
    try:
        return Decimal(re.sub(r"[_,]", "", digits)), unit
    except InvalidOperation:
        raise SpecError(f"{text!r} is not {wanted}.") from None


def _whole(value: Decimal, text: str) -> int:
    if value <= 0:
        raise SpecError(f"{text!r} must be above zero.")
    if value > _LARGEST:
        raise SpecError(f"{text!r} is absurdly large.")
    if value != value.to_integral_value():
        raise SpecError(f"{text!r} is not a whole number.")
    return int(value)
