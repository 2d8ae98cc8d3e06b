"""README and docs say what is true: every command shown is run, every name and link exists."""

from __future__ import annotations

import doctest
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from console_blocks import ROOT, Block, console_blocks, differs, run

README = (ROOT / "README.md").read_text(encoding="utf-8")
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
BLOCKS = [
    block for page in PAGES for block in console_blocks(page.read_text(encoding="utf-8"), page.name)
]


def page_name(page: Path) -> str:
    return str(page.relative_to(ROOT))


def one_line(pattern: str) -> str:
    found = re.findall(pattern, README, re.MULTILINE)
    assert len(found) == 1, f"README has {len(found)} lines like {pattern}"
    return found[0]


@pytest.mark.parametrize(
    "block",
    [
        pytest.param(block, marks=pytest.mark.slow if block.needs_trace else (), id=block.place)
        for block in BLOCKS
    ],
)
def test_a_command_prints_what_the_page_shows(block: Block, tmp_path: Path):
    printed = run(block, tmp_path)
    missing = differs(block.shown, printed)
    assert missing is None, f"$ {block.command}\nnot printed:\n{missing}\nprinted:\n{printed}"


@pytest.mark.parametrize(
    ("shown", "printed", "is_same"),
    [
        ("a\nb\n", "a  \nb\n\n", True),
        ("a\n", "a\nb\n", False),
        ("a\nb\n", "a\n", False),
        ("a\n…\nd\n", "a\nb\nc\nd\n", True),
        ("a\n…\nd\n", "a\nb\nd\nc\n", False),
        ("…\nb\nc\n…\n", "a\nb\nc\nd\n", True),
        ("…\nc\nb\n…\n", "a\nb\nc\nd\n", False),
        ("a\n…\na\n", "a\n", False),
        ("…\n", "", True),
    ],
)
def test_the_comparison_of_outputs_can_fail(shown, printed, is_same):
    assert (differs(shown, printed) is None) is is_same


def test_blocks_are_found_with_their_commands_and_lines():
    text = "x\n```console\n$ batchplan gpus\na\nb\n$ batchplan lr\nc\n```\n"
    first, second = console_blocks(text, "page")
    assert first == Block("page:3", "batchplan gpus", "a\nb\n")
    assert second == Block("page:6", "batchplan lr", "c\n")


def test_the_python_examples_give_what_they_show():
    parser = doctest.DocTestParser()
    # A fence is no output: doctest would take the closing one for a line of it.
    text = README.replace("```", "")
    runner = doctest.DocTestRunner()
    runner.run(parser.get_doctest(text, {}, "README.md", "README.md", 0))
    tried, failed = runner.summarize(verbose=False).attempted, runner.failures
    assert tried > 1
    assert failed == 0


def test_one_line_installs_and_runs_the_main_job_which_is_the_first_example():
    line = one_line(r"^pip install .* && batchplan .*$")
    install, _, command = line.partition(" && ")
    assert install == "pip install -c constraints.txt ."
    assert command == console_blocks(README, "README.md")[0].command


def test_one_line_installs_and_passes_the_tests_with_what_the_project_declares():
    line = one_line(r"^pip install .* && scripts/check$")
    constraints, extra = re.fullmatch(
        r"pip install -c (\S+) -e '\.\[(\w+)\]' && scripts/check", line
    ).groups()
    assert (ROOT / constraints).is_file()
    assert (ROOT / "scripts" / "check").stat().st_mode & 0o100
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert extra in declared["project"]["optional-dependencies"]


def test_ci_runs_the_line_of_the_readme():
    script = (ROOT / ".ci" / "run").read_text(encoding="utf-8")
    (extraction,) = re.findall(r"^line=\$\(.*\)$", script, re.MULTILINE)
    found = subprocess.run(
        ["bash", "-c", f'{extraction}; printf %s "$line"'],
        capture_output=True,
        text=True,
        cwd=ROOT,
        check=True,
    ).stdout
    assert found == one_line(r"^pip install .* && scripts/check$")
    assert 'eval "$line"' in script
    assert "pip install -" not in script


def test_constraints_pin_each_requirement_once_and_name_torch_without_a_local_version():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    wanted = [*declared["dependencies"], *declared["optional-dependencies"]["dev"]]
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = dict(line.split("==") for line in lines if line and not line.startswith("#"))
    names = [normal(name) for name in pins]
    assert len(names) == len(set(names))
    assert {normal(re.match(r"[\w.-]+", item)[0]) for item in wanted} <= set(names)
    assert not [version for version in pins.values() if "+" in version]
    assert "batchplan" not in names


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def test_the_catalog_is_as_large_as_the_readme_says():
    from batchplan.sources import list_models, load_gpus, load_runs

    text = " ".join(README.split())
    said = re.search(r"(\d+) GPUs, (\d+) models and (\d+) published training runs", text)
    assert [int(n) for n in said.groups()] == [
        len(load_gpus()),
        len(list_models()),
        len(load_runs()),
    ]


def commands():
    from batchplan.cli.main import app

    return {item.callback.__name__: item.callback for item in app.registered_commands}


def option_names() -> set[str]:
    import typer

    from batchplan.cli.main import app

    root = typer.main.get_command(app)
    found = {"--help", "--version"}
    for command in root.commands.values():
        for parameter in command.params:
            found.update(parameter.opts, parameter.secondary_opts)
    return found


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_a_page_names_only_commands_and_options_that_exist(page: Path):
    text = page.read_text(encoding="utf-8")
    code = re.findall(r"`([^`\n]+)`", text) + [
        block.command for block in console_blocks(text, page.name)
    ]
    ours = [piece for piece in code if piece.startswith(("batchplan ", "--"))]
    named = {m for piece in ours for m in re.findall(r"^batchplan ([a-z]\w*)", piece)}
    assert named <= {*commands(), "estimate", "recommend"}
    options = {m for piece in ours for m in re.findall(r"(?<!\S)--[a-z][a-z0-9-]*", piece)}
    assert options <= option_names()


def test_the_readme_shows_every_command():
    assert not [name for name in commands() if f"batchplan {name}" not in README]


def test_the_readme_lists_every_exit_code_that_can_be_met():
    from batchplan import errors
    from batchplan.cli import main

    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    raised = {errors.SpecError, errors.NoPlanError, errors.SourceError, errors.TraceError}
    assert listed >= {0, main.BUG, main.INTERRUPTED, *(error.exit_code for error in raised)}


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_link_of_a_page_leads_somewhere(page: Path):
    text = page.read_text(encoding="utf-8")
    targets = re.findall(r"\]\(([^)\s]+)\)", text)
    local = [target.partition("#")[0] for target in targets if "://" not in target]
    assert not [target for target in local if not (page.parent / target).exists()]


@pytest.mark.parametrize("page", PAGES, ids=page_name)
def test_every_file_of_the_package_that_a_page_names_exists(page: Path):
    text = page.read_text(encoding="utf-8")
    named = re.findall(r"`((?:batchplan|tests|scripts|profiles|docs)/[\w./-]*\w)`", text)
    assert not [name for name in named if not (ROOT / name).exists()]
