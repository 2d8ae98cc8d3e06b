"""The built wheel, installed into an empty environment, does the whole job without the checkout."""

from __future__ import annotations

import ast
import email
import json
import os
import re
import subprocess
import sys
import sysconfig
import tarfile
import zipfile
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from console_blocks import ROOT

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("wheel")]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(folder)]
    done = subprocess.run([*command, str(ROOT)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    (found,) = folder.glob("*.whl")
    return found


@pytest.fixture(scope="module")
def installed(wheel, tmp_path_factory) -> Path:
    """The bin folder of an environment that holds the wheel, and sees our dependencies."""
    folder = tmp_path_factory.mktemp("env")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    pip = [sys.executable, "-m", "pip", "--python", str(python), "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", str(wheel)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    (site,) = folder.glob("lib/python*/site-packages")
    ours = dict.fromkeys(sysconfig.get_path(name) for name in ("purelib", "platlib"))
    # A path file inside a folder that a path file adds is not read, so an editable install of the
    # checkout in our own environment stays out.
    (site / "dependencies.pth").write_text("\n".join(ours) + "\n", encoding="utf-8")
    return folder / "bin"


def run(installed: Path, folder: Path, *command: str) -> str:
    environment = {name: v for name, v in os.environ.items() if not name.startswith("PYTHON")}
    program, *arguments = command
    done = subprocess.run(
        [str(installed / program), *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        cwd=folder,
        env=environment,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def names_in(wheel: Path) -> set[str]:
    return set(zipfile.ZipFile(wheel).namelist())


def metadata_of(wheel: Path) -> email.message.Message:
    (name,) = (name for name in names_in(wheel) if name.endswith(".dist-info/METADATA"))
    return email.message_from_bytes(zipfile.ZipFile(wheel).read(name))


def test_the_wheel_holds_the_package_the_catalog_and_the_licence_and_nothing_else(wheel):
    names = names_in(wheel)
    files = {
        str(path.relative_to(ROOT))
        for folder in ("batchplan", "profiles")
        for path in (ROOT / folder).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    wanted = {re.sub("^profiles/", "batchplan/_profiles/", name) for name in files}
    inside = {name for name in names if ".dist-info/" not in name}
    assert inside == wanted
    assert "batchplan/_profiles/gpus/gpus.csv" in inside
    assert "batchplan/py.typed" in inside
    assert [name for name in names if name.endswith(".dist-info/licenses/LICENSE")]


def test_the_source_distribution_holds_what_its_readme_links_and_its_own_check_needs(tmp_path):
    command = [sys.executable, "-m", "build", "--sdist", "--no-isolation", "--outdir"]
    subprocess.run([*command, str(tmp_path), str(ROOT)], capture_output=True, check=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as packed:
        names = {name.partition("/")[2] for name in packed.getnames()}
    targets = re.findall(r"\]\(([^)\s#]+)", (ROOT / "README.md").read_text(encoding="utf-8"))
    linked = {name for name in targets if "://" not in name and not name.endswith("/")}
    needed = {".ci/run", "scripts/check", "constraints.txt", "tests/test_wheel.py"}
    assert linked | needed <= names
    assert not [name for name in names if "__pycache__" in name]


def test_the_metadata_says_what_a_user_looks_for(wheel):
    import batchplan

    metadata = metadata_of(wheel)
    assert metadata["Version"] == batchplan.__version__
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["License-File"] == "LICENSE"
    assert metadata["Requires-Python"] == ">=3.11"
    assert metadata.get_payload().lstrip().startswith("# batchplan")


def imported_names() -> Iterator[str]:
    """Yield the top-level name of everything that the package imports."""
    for path in (ROOT / "batchplan").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                yield from (alias.name.partition(".")[0] for alias in node.names)
            elif isinstance(node, ast.ImportFrom) and not node.level and node.module:
                yield node.module.partition(".")[0]


def test_the_metadata_requires_everything_that_the_package_imports(wheel):
    requirements = metadata_of(wheel).get_all("Requires-Dist")
    # What an extra brings is imported where it is needed, and its absence is told.
    runtime = [item for item in requirements if not re.search("extra == .dev", item)]
    required = {normal(re.match(r"[\w.-]+", item)[0]) for item in runtime}
    third_party = {
        name
        for name in imported_names()
        if name not in sys.stdlib_module_names and name not in ("batchplan", "batchplan_worker")
    }
    assert third_party >= {"torch", "transformers", "pydantic", "yaml"}
    providers = packages_distributions()
    missing = {
        name
        for name in third_party
        if not {normal(dist) for dist in providers.get(name, [name])} & required
    }
    assert missing == set()


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_installed_wheel_is_what_runs_and_not_the_checkout(installed, tmp_path):
    code = "import batchplan; print(batchplan.__file__)"
    place = Path(run(installed, tmp_path, "python", "-c", code).strip())
    assert place.is_relative_to(installed.parent)
    assert not place.is_relative_to(ROOT)


def test_the_installed_wheel_answers_from_its_own_catalog(installed, tmp_path):
    assert "a100-80gb" in run(installed, tmp_path, "batchplan", "gpus")
    assert "Qwen/Qwen2.5-7B" in run(installed, tmp_path, "batchplan", "models", "qwen2.5")
    states = ["--params", "7e9", "--gpu", "80GB", "--numerics", "bf16", "--json"]
    document = json.loads(run(installed, tmp_path, "batchplan", "estimate", *states))
    assert document["memory"]["peak_bytes"] == 8 * 7_000_000_000


def test_the_installed_wheel_traces_a_model_and_plans_it(installed, tmp_path, monkeypatch):
    monkeypatch.setenv("BATCHPLAN_CACHE", str(tmp_path / "cache"))
    document = json.loads(
        run(
            *(installed, tmp_path, "batchplan", "recommend", "qwen2.5-0.5b", "--gpu", "a100-80gb"),
            *("--seq-len", "512", "--target-tokens", "64k", "--checkpointing", "full", "--json"),
        )
    )
    assert document["plans"][0]["fits"]
    assert document["versions"].keys() >= {"torch", "transformers"}
    assert list((tmp_path / "cache").glob("*.json"))
