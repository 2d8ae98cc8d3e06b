"""The arithmetic core stays light: importing it loads nothing that runs models or draws screens."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tomllib

import pytest
from console_blocks import ROOT

HEAVY = frozenset(
    {"torch", "transformers", "accelerate", "peft", "numpy", "huggingface_hub", "typer", "rich"}
)
CORE = (
    *(
        "units",
        "errors",
        "configfile",
        "spec",
        "profile",
        "states",
        "allocator",
        "memory",
        "throughput",
        "learning",
        "sequences",
        "planner",
    ),
    "trainers",
    "checker",
)
OUTSIDE = ("api", "sources", "tracer")
"""May use typed or networked libraries when they are asked, but load none at import."""

IMPORT_ALL = """
import importlib, json, pkgutil, sys
top = importlib.import_module(sys.argv[1])
found = [top.__name__]
for folder in getattr(top, "__path__", []):
    walk = pkgutil.walk_packages([folder], top.__name__ + ".", onerror=None)
    for item in walk:
        if ".worker" in item.name:
            continue
        importlib.import_module(item.name)
        found.append(item.name)
print(json.dumps({"imported": found, "loaded": sorted({n.partition(".")[0] for n in sys.modules})}))
"""


def loaded_by(module: str) -> tuple[list[str], set[str]]:
    """Import a module and all below it in a fresh process; return them and what got loaded."""
    # walk_packages imports a package to look inside; the worker's needs nothing at import.
    done = subprocess.run(
        [sys.executable, "-c", IMPORT_ALL, module],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    answer = json.loads(done.stdout)
    return answer["imported"], set(answer["loaded"])


@pytest.mark.parametrize("name", [*CORE, *OUTSIDE])
def test_a_layer_imports_without_anything_heavy(name):
    imported, loaded = loaded_by(f"batchplan.{name}")
    assert imported
    assert loaded & HEAVY == set()


def test_importing_batchplan_loads_not_even_pydantic():
    done = subprocess.run(
        [sys.executable, "-c", "import batchplan, sys; print(*sys.modules)"],
        capture_output=True,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=True,
    )
    loaded = {name.partition(".")[0] for name in done.stdout.split()}
    assert loaded & {*HEAVY, "pydantic"} == set()


def test_the_check_looks_at_every_module_of_a_package():
    imported, _ = loaded_by("batchplan.memory")
    files = {path.stem for path in (ROOT / "batchplan" / "memory").glob("*.py")} - {"__init__"}
    assert {name.rpartition(".")[2] for name in imported} == {"memory", *files}


def test_the_check_of_what_is_loaded_can_fail():
    _, loaded = loaded_by("batchplan.cli.main")
    assert "typer" in loaded & HEAVY


def contract(name: str) -> dict:
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = declared["tool"]["importlinter"]["contracts"]
    return next(item for item in contracts if item["name"] == name)


def test_contributing_shows_the_layers_that_are_checked():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    table = text.partition("## Layers")[2].partition("\n## ")[0]
    rows = [row for row in table.splitlines() if row.startswith("| `batchplan.")]
    shown = [set(re.findall(r"`(batchplan\.\w+)`", row.split("|")[1])) for row in rows]
    declared = contract("Layers import only downwards")["layers"]
    assert [set(re.findall(r"[\w.]+", layer)) for layer in declared] == shown


def test_the_modules_whose_imports_are_watched_are_those_of_the_contract():
    declared = contract("The arithmetic core stays light")["source_modules"]
    assert {name.removeprefix("batchplan.") for name in declared} == set(CORE)


@pytest.mark.xdist_group("one-process")
def test_tests_of_one_group_share_a_process(request):
    """Else every expensive fixture is made once for each process, and nothing says so."""
    if "PYTEST_XDIST_WORKER" in os.environ:
        assert request.node.nodeid.endswith("@one-process")
