"""``--devices``: exactly N, a range, or the fewest that fit."""

from __future__ import annotations

from batchplan.api.checks import shown, whole
from batchplan.errors import SpecError
from batchplan.spec import MAX_RANKS

AUTO = "auto"
_LARGEST_AUTO = 1024


def exact_devices(devices: object, nodes: int | None) -> int:
    """Return the one device count meant.

    Raises:
        SpecError: when it is a range or ``auto``, or does not divide over the nodes.
    """
    counts = device_counts(devices, nodes)
    if len(counts) > 1 or devices == AUTO:
        raise SpecError(f"--devices {shown(devices)}: estimate takes one number, such as 8.")
    return counts[0]


def device_counts(devices: object, nodes: int | None) -> tuple[int, ...]:
    """Return every device count to search, fewest first.

    ``auto`` gives powers of two (times the nodes) up to 1,024; a range gives every count in it
    that divides over the nodes. ``nodes`` of None follow from each count, so that all divide.

    >>> device_counts("1..4", 1), device_counts(8, 2)
    ((1, 2, 3, 4), (8,))

    Raises:
        SpecError: when it is none of the three forms, or nothing in it divides over the nodes.
    """
    nodes = nodes or 1
    if devices == AUTO:
        counts = tuple(nodes << k for k in range(11) if nodes << k <= max(_LARGEST_AUTO, nodes))
    elif isinstance(devices, str) and ".." in devices:
        counts = _range(devices, nodes)
    else:
        counts = (whole("devices", devices),)
        if counts[0] % nodes:
            raise SpecError(
                f"{counts[0]} devices do not divide over {nodes} nodes. "
                "--devices is the total over all nodes."
            )
    if counts and counts[-1] > MAX_RANKS:
        raise SpecError(f"--devices {shown(devices)}: at most {MAX_RANKS:,}.")
    if not counts:
        raise SpecError(f"--devices {shown(devices)}: no count divides over {nodes} nodes.")
    return counts


def _range(text: str, nodes: int) -> tuple[int, ...]:
    low_text, _, high_text = text.partition("..")
    low, high = whole("devices", low_text), whole("devices", high_text)
    if low > high:
        raise SpecError(f"--devices {text!r}: the range runs backwards. Write {high}..{low}.")
    if high > _LARGEST_AUTO:
        raise SpecError(f"--devices {text!r}: a range reaches {_LARGEST_AUTO:,} at most.")
    return tuple(count for count in range(low, high + 1) if count % nodes == 0)
