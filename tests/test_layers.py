"""The arithmetic core stays light: importing it loads nothing that runs models or draws screens."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest
from console_blocks import ROOT

HEAVY = frozenset(
    {"torch", "transformers", "accelerate", "peft", "numpy", "huggingface_hub", "typer", "rich"}
)
CORE = (
    *("units", "errors", "spec", "profile", "memory", "throughput", "learning", "planner"),
    "trainers",
)
OUTSIDE = ("api", "sources", "trace")
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
