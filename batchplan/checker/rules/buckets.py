"""DeepSpeed's bucket sizes, where they are none of those that memory is counted with."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from batchplan.checker.roles import DEEPSPEED
from batchplan.checker.rule import Remark, Rule, at
from batchplan.checker.subject import Subject
from batchplan.configfile import ConfigFile, Severity
from batchplan.spec import Recipe, ZeroBuckets
from batchplan.states.zero import MAX_LIVE_PARAMS, prefetch_elements, reduce_bucket_elements
from batchplan.units import MIB, format_bytes

_BLOCK = "zero_optimization"
_REDUCE, _OVERLAP = "reduce_bucket_size", "overlap_comm"
_COUNTED: dict[str, tuple[Callable[[Recipe, int], int], int, tuple[int, ...]]] = {
    _REDUCE: (reduce_bucket_elements, 2, (2, 3)),
    "stage3_prefetch_bucket_size": (prefetch_elements, 1, (3,)),
    "stage3_max_live_parameters": (lambda _recipe, _width: MAX_LIVE_PARAMS, 1, (3,)),
}
"""What memory takes for each; how often it is alive at once, a bucket with the copy that is being
reduced; and the stages that hold it in the backward."""
_BYTES = 2
"""Of an element in 16 bits."""
_WORTH_TELLING = 64 * MIB
"""A choice."""


def _sizes(subject: Subject) -> Iterator[Remark]:
    """Memory knows DeepSpeed's own sizes and those of "auto", not any other.

    Source: deepspeed runtime/zero/config.py, DeepSpeedZeroConfig; stage_1_and_2.py, stage3.py.
    """
    recipe = Recipe(zero_buckets=ZeroBuckets.DEFAULT)
    for file in subject.of_role(DEEPSPEED):
        stage = file.get(_BLOCK, "stage")
        for key, (size, alive, stages) in _COUNTED.items():
            said = file.get(_BLOCK, key)
            if stage not in stages or not _is_number(said):
                continue
            counted = size(recipe, 0)
            off = int((said - counted) * alive * _BYTES)
            if abs(off) >= _WORTH_TELLING:
                yield _told(
                    file,
                    key,
                    f"{key} is {int(said):,}, and memory is counted with {counted:,} elements: "
                    f"it takes up to {format_bytes(abs(off))} {'more' if off > 0 else 'less'}",
                    is_more=off > 0,
                )
        yield from _second_bucket(file, stage, recipe)


def _second_bucket(file: ConfigFile, stage: object, recipe: Recipe) -> Iterator[Remark]:
    """Below stage 3, reducing beside the backward takes a second bucket.

    Source: deepspeed stage_1_and_2.py, setup_buckets; zero/config.py, overlap_comm_valid.
    """
    if file.get(_BLOCK, _OVERLAP) is not True or stage not in (1, 2):
        return
    bucket = file.get(_BLOCK, _REDUCE, default=reduce_bucket_elements(recipe, 0))
    if _is_number(bucket) and bucket * _BYTES >= _WORTH_TELLING:
        yield _told(
            file,
            _OVERLAP,
            f"overlap_comm takes a second bucket of {int(bucket):,} elements below stage 3, which "
            f"memory is not counted with: {format_bytes(int(bucket * _BYTES))} more",
            is_more=True,
        )


def _told(file: ConfigFile, key: str, text: str, *, is_more: bool) -> Remark:
    return at(
        file,
        (_BLOCK, key),
        f"{text} in 16 bits.",
        fix="Leave it out, or leave that much memory free."
        if is_more
        else "Leave it; what is told of memory is on the safe side.",
        severity=Severity.WARNING if is_more else None,
    )


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 < value < 2**63


RULES = (
    Rule(
        code="buckets-not-counted",
        severity=Severity.NOTE,
        title="DeepSpeed buckets of another size than memory is counted with",
        source="deepspeed runtime/zero/config.py, DeepSpeedZeroConfig; stage_1_and_2.py",
        look=_sizes,
    ),
)
