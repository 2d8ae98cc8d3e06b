"""Answers are quick because nothing heavy is loaded: what is loaded is checked, not the clock."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from clocks import child_seconds
from planning import ask
from strategies import A100, toy_profiles

from batchplan.planner import ProfilePricer, SearchSpace
from batchplan.spec import BatchGoal, Offload

HEAVY = {"torch", "transformers", "accelerate", "peft", "numpy", "huggingface_hub"}


def loaded_by(*arguments: str, **more: str) -> tuple[set[str], float, int]:
    """Return the top-level modules a command imports, its processor time, and its exit code."""
    root = str(Path(__file__).parent.parent)
    before = child_seconds()
    done = subprocess.run(
        [sys.executable, "-X", "importtime", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": root, **more},
        check=False,
    )
    seconds = child_seconds() - before
    names = {
        line.rpartition("|")[2].strip().partition(".")[0]
        for line in done.stderr.splitlines()
        if line.startswith("import time:")
    }
    return names, seconds, done.returncode


def command(*arguments: str, **more: str) -> tuple[set[str], float, int]:
    return loaded_by("-m", "batchplan", *arguments, **more)


def test_this_check_can_fail():
    names, _, _ = loaded_by("-c", "import numpy" if _has("numpy") else "import email.message")
    assert names & {"numpy", "email"}


def _has(name: str) -> bool:
    import importlib.util

    return importlib.util.find_spec(name) is not None


@pytest.mark.parametrize(
    "arguments",
    [
        ["--help"],
        ["recommend", "--help"],
        ["gpus"],
        ["models"],
        ["runs"],
        ["lr", "--lr", "2e-4", "--from", "32", "--to", "64"],
        ["estimate", "--params", "7e9", "--gpu", "80GB"],
        ["recommend", "--params", "7e9", "--gpu", "80GB", "--devices", "8"],
    ],
)
def test_commands_load_nothing_heavy(arguments):
    names, _, code = command(*arguments)
    assert code in (0, 3)
    assert names.isdisjoint(HEAVY), names & HEAVY


@pytest.mark.parametrize(
    "arguments", [["--help"], ["estimate", "--params", "1B", "--gpu", "1GB", "--json"]]
)
def test_rich_is_loaded_for_tables_alone(arguments):
    names, _, _ = command(*arguments)
    assert "rich" not in names


def test_importing_the_package_loads_nothing_of_it():
    names, _, code = loaded_by("-c", "import batchplan; batchplan.__version__")
    assert code == 0
    assert names.isdisjoint(HEAVY | {"pydantic", "typer", "rich", "yaml"})


@pytest.mark.slow
@pytest.mark.parametrize("name", ["estimate", "recommend"])
def test_a_cached_answer_loads_nothing_heavy(name, tmp_path, record_property):
    if not _has("transformers"):
        pytest.skip("a first trace needs transformers")
    arguments = [name, "pythia-70m", "--gpu", "a100-80gb", "--seq-len", "512"]
    _, first, code = command(*arguments, BATCHPLAN_CACHE=str(tmp_path))
    assert code == 0
    assert list(tmp_path.glob("*.json"))
    names, seconds, code = command(*arguments, BATCHPLAN_CACHE=str(tmp_path))
    assert code == 0
    assert names.isdisjoint(HEAVY), names & HEAVY
    record_property("first_seconds", round(first, 2))
    record_property("cached_seconds", round(seconds, 2))
    print(f"{name}: first {first:.2f} s, cached {seconds:.2f} s")
    assert seconds < first


def test_twenty_thousand_candidates_a_second():
    """Processor time, and a sixth of what an idle machine does: a loaded one must pass as well."""
    space = SearchSpace(num_ranks=(8,), seq_len=512, offloads=tuple(Offload))
    pricer, goal = ProfilePricer(profiles=toy_profiles, gpu=A100), BatchGoal(target_tokens=4 << 20)
    began = time.process_time()
    answer = ask(pricer, space, gpu=A100, goal=goal, limit=1)
    seconds = time.process_time() - began
    assert answer.searched > 20_000
    assert answer.searched / seconds > 20_000
