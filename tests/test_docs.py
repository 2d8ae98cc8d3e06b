"""The pages of docs/ against the program: the worked example, the tables and the JSON fields."""

from __future__ import annotations

import math
import re
import shlex
from collections.abc import Iterator
from functools import cache
from typing import Any

import pytest
from console_blocks import ROOT

import batchplan
from batchplan.spec import Numerics, Recipe
from batchplan.states.numerics import BYTES_PER_ELEMENT, resolve_dtypes
from batchplan.states.sharding import RULES
from batchplan.units import GIB

MEMORY = (ROOT / "docs" / "memory-model.md").read_text(encoding="utf-8")
JSON = (ROOT / "docs" / "json.md").read_text(encoding="utf-8")
OPEN_NAMES = ("versions", "change")
"""Objects whose keys are packages or options, not fields."""


def table(page: str, *header: str) -> list[list[str]]:
    """Return the rows of the one table whose header starts with these cells."""
    found = []
    lines = page.splitlines()
    for at, line in enumerate(lines):
        if line.startswith("|") and cells(line)[: len(header)] == list(header):
            rows = []
            for row in lines[at + 2 :]:
                if not row.startswith("|"):
                    break
                rows.append(cells(row))
            found.append(rows)
    assert len(found) == 1, f"{len(found)} tables start with {header}"
    return found[0]


def cells(line: str) -> list[str]:
    return [cell.strip() for cell in line.strip().strip("|").split("|")]


def number(text: str) -> int:
    return int(text.replace(",", ""))


def computed(arithmetic: str) -> int:
    """Return the value of products and one division of whole numbers."""
    over, _, under = arithmetic.partition("÷")
    product = math.prod(number(factor) for factor in over.split("×"))
    return -(-product // number(under)) if under else product


@cache
def worked(column: str) -> Any:
    """Return the answer to the command that the page gives for a column."""
    (command,) = re.findall(rf"^- \*\*{column}\*\*: `(.*)`$", MEMORY, re.MULTILINE)
    program, name, model, *rest = shlex.split(command)
    assert (program, name) == ("batchplan", "estimate")
    flags, values = rest[::2], rest[1::2]
    given = {
        flag.removeprefix("--").replace("-", "_"): v for flag, v in zip(flags, values, strict=True)
    }
    return batchplan.estimate(model, **given)


@pytest.mark.slow
@pytest.mark.parametrize(("place", "column"), [(1, "A"), (2, "B"), (3, "C")])
def test_the_worked_example_is_what_the_program_answers(place, column):
    answer = worked(column)
    rows = {row[0]: row[place] for row in table(MEMORY, "GiB", "A", "B", "C")}
    assert rows.pop("highest in") == answer.memory.peak_phase
    assert rows.pop("fits in 79.15 GiB") == ("yes" if answer.fits else "no")
    assert f"{answer.gpu.usable_bytes / GIB:.2f}" == "79.15"
    shown = {name: float(value or 0) for name, value in rows.items()}
    assert shown.pop("**peak**") == round(answer.memory.peak_bytes / GIB, 2)
    real = {term.name: round(term.num_bytes / GIB, 2) for term in answer.memory.terms}
    assert {name: value for name, value in real.items() if value} == {
        name: value for name, value in shown.items() if value
    }


@pytest.mark.slow
def test_the_bytes_by_hand_are_the_bytes_of_the_bill():
    rows = table(MEMORY, "column", "term", "arithmetic", "bytes")
    for column, term, arithmetic, num_bytes in rows:
        assert computed(arithmetic) == number(num_bytes)
        assert worked(column).memory.term(term) == number(num_bytes), (column, term)
    assert worked("A").num_params == 8_030_261_248


@pytest.mark.slow
def test_what_the_prose_of_the_example_says_holds():
    one, several, sharded = (worked(column).memory for column in "ABC")
    assert one.peak_phase.startswith("backward: layer 0")
    assert several.peak_phase == sharded.peak_phase == "backward: head and loss"
    at_loss = next(
        moment.num_bytes
        for moment in one.timeline
        if (moment.phase, moment.stage) == ("backward", "head and loss")
    )
    later = [m.num_bytes for m in several.timeline if m.stage == "head and loss"][-1]
    fetched = several.term("input batch") - one.term("input batch")
    assert later - at_loss - fetched == several.term("gradients")
    for answer in (several, sharded):
        assert answer.term("activations saved") >= 2_147_483_648


def test_every_product_on_the_page_is_right():
    found = re.findall(r"([\d,]+(?: × [\d,]+)+) = ([\d,]+)", MEMORY)
    assert found
    for arithmetic, result in found:
        assert computed(arithmetic) == number(result), arithmetic


@pytest.mark.slow
def test_the_table_of_terms_names_the_terms_of_the_bill_in_its_order():
    named = [row[0] for row in table(MEMORY, "term", "what it is")]
    answer = worked("A").memory
    assert named == [term.name for term in answer.terms]
    tensors = sum(term.num_bytes for term in answer.terms[:14])
    assert tensors == answer.allocated_peak_bytes
    played = answer.reserved_peak_bytes - answer.allocated_peak_bytes
    assert answer.term("allocator reserve") == played > 0
    assert answer.in_use_error.percent < 10


def test_the_table_of_numerics_is_what_the_program_takes():
    rows = {row[0]: [int(cell) for cell in row[1:5]] for row in table(MEMORY, "numerics")}
    assert list(rows) == [name.value for name in Numerics]
    for name, row in rows.items():
        dtypes = resolve_dtypes(Recipe(numerics=name))
        assert row == [
            BYTES_PER_ELEMENT[dtypes.weights],
            BYTES_PER_ELEMENT[dtypes.gradients],
            2 * BYTES_PER_ELEMENT[dtypes.optimizer],
            4 if dtypes.has_master else 0,
        ], name


def test_the_table_of_sharding_is_what_the_program_takes():
    rows = {row[0]: row[1:] for row in table(MEMORY, "`--sharding`")}
    assert list(rows) == [sharding.value for sharding in RULES]
    for sharding, rule in RULES.items():
        splits = [rule.optimizer, rule.gradients, rule.weights]
        over = "ranks of one node" if rule.within_node else "all ranks"
        expected = ["split" if split else "whole" for split in splits]
        assert rows[sharding.value] == [*expected, over if any(splits) else ""]


def field_names(value: Any) -> Iterator[str]:
    """Yield the name of every field of a document."""
    if isinstance(value, dict):
        for name, item in value.items():
            yield name
            if name not in OPEN_NAMES:
                yield from field_names(item)
    elif isinstance(value, list):
        for item in value:
            yield from field_names(item)


def unmentioned(document: Any) -> set[str]:
    mentioned = {name for piece in re.findall(r"`([^`]+)`", JSON) for name in piece.split()}
    return set(field_names(document)) - mentioned


STATES = {"params": "13e9", "gpu": "40GB", "devices": 4}


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(lambda: batchplan.estimate(**STATES), id="estimate"),
        pytest.param(lambda: batchplan.recommend(**STATES, sharding="zero2"), id="nothing-fits"),
        pytest.param(
            lambda: batchplan.recommend(
                params="7e9", gpu="80GB", devices=8, target_tokens="4M", epoch_tokens="1B"
            ),
            id="states-fit",
        ),
        pytest.param(
            lambda: batchplan.learning_rate(lr="2e-4", from_batch="32", to_batch="256"), id="lr"
        ),
        pytest.param(
            lambda: batchplan.recommend(
                "qwen2.5-0.5b",
                gpu="a100-80gb",
                devices=2,
                seq_len=1024,
                target_tokens="1M",
                epoch_tokens="1B",
                lr="1e-5",
            ),
            id="model",
            marks=pytest.mark.slow,
        ),
    ],
)
def test_every_field_of_a_document_is_explained(answer):
    assert unmentioned(answer().to_dict()) - {"from_batch", "to_batch", "query"} == set()


def test_a_field_that_is_not_explained_is_found():
    assert unmentioned({"model": {"id": 1, "surprise": 2}, "versions": {"any": "1"}}) == {
        "surprise"
    }
