"""The command line as its users meet it: a process with exit codes, stdout and stderr."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PARAMS = ["--params", "7e9", "--gpu", "80GB"]
PLANNED = ["recommend", *PARAMS, "--devices", "8", "--target-tokens", "4M", "--seq-len", "2048"]
MISSED = ["recommend", "--params", "13e9", "--gpu", "40GB", "--devices", "4", "--sharding", "zero2"]
POSIX_ONLY = pytest.mark.skipif(os.name != "posix", reason="signals and pipes as on POSIX")


def environment(**more: str) -> dict[str, str]:
    root = str(Path(__file__).parent.parent)
    return {**os.environ, "PYTHONPATH": root, "COLUMNS": "100", "NO_COLOR": "", **more}


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchplan", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env=environment(**more),
        check=False,
    )


def commands():
    from batchplan.cli.main import app

    return {command.callback.__name__: command.callback for command in app.registered_commands}


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (["estimate", *PARAMS, "--method", "full", "--sharding", "zero3", "--devices", "8"], 0),
        (["estimate", *PARAMS, "--numerics", "fp32"], 3),
        (PLANNED, 0),
        (MISSED, 3),
        (["gpus", "a100"], 0),
        (["models", "qwen2.5"], 0),
        (["runs"], 0),
        (["lr", "--lr", "2e-4", "--from", "32", "--to", "256", "--optimizer", "adamw"], 0),
        (["lr", "--data-tokens", "1T", "--params", "7e9", "--loss", "2"], 0),
        (["--version"], 0),
        ([], 0),
        (["estimate", "no/such-model", "--gpu", "80GB", "--offline"], 5),
    ],
)
def test_the_exit_code_is_the_truth(arguments, code):
    done = run(*arguments)
    assert done.returncode == code, done.stderr
    assert bool(done.stdout) is (code in (0, 3))
    assert "Traceback" not in done.stderr
    assert "\x1b" not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["estimate"], "--gpu is missing"),
        (["estimate", "--gpu", "80GB"], "MODEL"),
        (["recommend", "--gpu", "80GB"], "Name a MODEL, or give --params COUNT"),
        (["estimate", "x", *PARAMS], "not both"),
        (["estimate", *PARAMS, "--seq-len", "-5"], "above zero"),
        (["estimate", *PARAMS, "--seq-len", "0"], "above zero"),
        ([*PLANNED, "-o", "plan.json"], "the config is a .yaml file"),
        ([*PLANNED, "-o", "plan.ds.json"], "the config is a .yaml file"),
        (["estimate", "--params", "7e9", "--gpu", "80"], "no unit"),
        (["estimate", "--params", "7e9", "--gpu", "a100-80g"], "a100-80gb"),
        (["estimate", "--params", "0", "--gpu", "80GB"], "above zero"),
        (["estimate", "--params", "1e30", "--gpu", "80GB"], "absurdly large"),
        (["estimate", *PARAMS, "--devices", "0"], "--devices"),
        (["estimate", *PARAMS, "--devices", "-8"], "--devices"),
        (["estimate", *PARAMS, "--devices", "1..8"], "one number"),
        (["estimate", *PARAMS, "--devices", "auto"], "one number"),
        (["estimate", *PARAMS, "--devices", "3", "--nodes", "2"], "divide"),
        (["estimate", *PARAMS, "--nodes", "0"], "--nodes"),
        (["estimate", *PARAMS, "--nodes", "nan"], "--nodes"),
        (["estimate", *PARAMS, "--seq-len", "nan"], "--seq-len"),
        (["estimate", *PARAMS, "--seq-len", "1e20"], "too large"),
        (["estimate", *PARAMS, "--micro-batch", "0"], "--micro-batch"),
        (["estimate", *PARAMS, "--micro-batch", "1" + "0" * 30], "--micro-batch"),
        (["estimate", *PARAMS, "--micro-batch", "1e12"], "--micro-batch"),
        (["estimate", *PARAMS, "--accum-steps", "1e15"], "--accum-steps"),
        (["estimate", *PARAMS, "--activations", "2"], "no unit"),
        (["estimate", *PARAMS, "--lora-rank", "0"], "--lora-rank"),
        (["estimate", *PARAMS, "--lora-dropout", "nan"], "--lora-dropout"),
        (["estimate", *PARAMS, "--lora-rank", str(10**30)], "--lora-rank"),
        (["estimate", *PARAMS, "--method", "fulll"], "'full', 'lora', 'qlora'"),
        (["estimate", *PARAMS, "--zero", "7"], "0, 1, 2 or 3"),
        (["estimate", *PARAMS, "--zero", "2", "--sharding", "ddp"], "contradicts"),
        (["estimate", *PARAMS, "--trainer", "hf"], "hf-trainer"),
        (["estimate", *PARAMS, "--python", "/no/such/python"], "no such file"),
        (["estimate", *PARAMS, "--no-such-option"], "No such option"),
        (["recommend", *PARAMS, "--devices", "8..1"], "backwards"),
        (["recommend", *PARAMS, "--devices", "1..1e9"], "1,024"),
        (["recommend", *PARAMS, "--target-tokens", "5"], "less than one sequence"),
        (["recommend", *PARAMS, "--target-tokens", "0"], "above zero"),
        (["recommend", *PARAMS, "--target-tokens", "4M", "--target-sequences", "8"], "not both"),
        (["recommend", *PARAMS, "--tolerance", "nan"], "--tolerance"),
        (["recommend", *PARAMS, "--tolerance", "-1%"], "--tolerance"),
        (["recommend", *PARAMS, "--lr-batch", "32"], "--lr"),
        (["recommend", *PARAMS, "--limit", "0"], "--limit"),
        (["lr", "--lr", "nan", "--from", "32", "--to", "64"], "--lr"),
        (["lr", "--lr", "-1", "--from", "32", "--to", "64"], "--lr"),
        (["lr", "--lr", "1e-5", "--from", "0", "--to", "64"], "--from"),
        (["lr", "--lr", "1e-5", "--from", "4M", "--to", "64"], "--seq-len"),
        (["lr", "--lr", "1e-5", "--from", "8", "--to", "64", "--noise-scale", "1M"], "--seq-len"),
        (["lr", "--lr", "1e-5", "--from", "8", "--to", "64", "--data-tokens", "1B"], "--seq-len"),
        (["lr", "--lr", "1e-5", "--to", "64"], "--from missing"),
        (["lr"], "Give --lr, --from and --to"),
        (["lr", "--data-tokens", "1B", "--beta2", "0.95"], "--beta2 needs --lr"),
        (["lr", "--lr", "1e-5", "--from", "8", "--to", "64", "--beta2", "1.5"], "beta2"),
        (["lr", "--data-tokens", "1e30"], "--data-tokens"),
        (["gpus", "no-such-gpu"], "no-such-gpu"),
        (["models", "no-such-model"], "no-such-model"),
        (["no-such-command"], "No such command"),
    ],
)
def test_bad_input_is_one_clear_line_and_exit_2(arguments, words):
    done = run(*arguments)
    assert done.returncode == 2, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert done.stderr.startswith("error: ")
    assert words in done.stderr


@pytest.mark.parametrize("arguments", [PLANNED, MISSED, ["estimate", *PARAMS]])
def test_json_is_one_document_whose_terms_sum_to_the_peak(arguments):
    done = run(*arguments, "--json")
    document = json.loads(done.stdout)
    assert document["schema_version"] == 1
    assert document["command"] == arguments[0]
    memories = [document["memory"]] if "memory" in document else []
    memories += [plan["memory"] for plan in document.get("plans", [])]
    memories += [change["plan"]["memory"] for change in document.get("rescues", [])]
    assert memories
    for memory in memories:
        assert sum(term["bytes"] for term in memory["terms"]) == memory["peak_bytes"]


@pytest.mark.parametrize("arguments", [["gpus"], ["models", "llama"], ["runs", "pythia"]])
def test_the_catalog_is_json_too(arguments):
    document = json.loads(run(*arguments, "--json").stdout)
    assert document["command"] == arguments[0]
    assert len(document[arguments[0]]) > 1


def test_nothing_fits_names_the_closest_miss_its_excess_and_the_ladder():
    done = run(*MISSED)
    assert "Nothing fits" in done.stdout
    assert "Closest: 1 × 1 × 4, zero2" in done.stdout
    assert done.stdout.index("--sharding zero3") < done.stdout.index("--offload optimizer")


def test_the_rows_are_said_to_be_the_best_of_each_layout():
    done = run(*PLANNED)
    searched = json.loads(run(*PLANNED, "--json").stdout)["searched"]
    assert f"({searched} candidates priced; the best of each layout)" in done.stdout
    assert "tried" not in done.stdout


def test_terms_too_small_to_show_are_shown_when_asked_and_always_counted():
    arguments = ["estimate", "--params", "1e12", "--gpu", "80GB", "--activations", "1MB"]
    page, everything = run(*arguments).stdout, run(*arguments, "-v").stdout
    assert "activations saved" not in page
    assert "activations saved" in everything
    assert "activations saved" not in run(*arguments, "--explain").stdout
    sums = [
        next(line.split() for line in text.splitlines() if line.startswith("peak"))
        for text in (page, everything)
    ]
    assert sums[0] == sums[1]
    memory = json.loads(run(*arguments, "--json").stdout)["memory"]
    assert "activations saved" in {term["name"] for term in memory["terms"]}


def test_large_numbers_have_thousands_separators():
    page = run("estimate", "--params", "1e12", "--gpu", "80GB", "--accum-steps", "1024").stdout
    assert "Batch: 1 × 1,024 × 1 " in page
    assert " over the 74.51 GiB" in page
    assert not [word for word in page.split() if word.partition(".")[0].isdigit() and len(word) > 6]


def test_dtypes_given_apart_are_what_the_page_says():
    overrides = ["--weight-dtype", "fp16", "--grad-dtype", "fp32", "--optimizer-dtype", "fp32"]
    page = run("estimate", *PARAMS, *overrides, "--no-master-weights", COLUMNS="200").stdout
    assert "weights fp16, gradients fp32, moments fp32, no master copies" in page
    assert "numerics" not in page
    eight = ["recommend", *PARAMS, "--devices", "8"]
    page = run(*eight, *overrides, "--no-master-weights", COLUMNS="200").stdout
    assert "full, weights fp16, gradients fp32, moments fp32, no master copies" in page
    assert "No --numerics given" not in page
    page = run(*eight, "--weight-dtype", "fp16", COLUMNS="200").stdout
    assert "with fp32 copies" not in page
    assert "fills in the dtypes that were not given (weights fp16, gradients bf16" in page


@pytest.mark.parametrize("columns", ["80", "140"])
def test_no_model_id_is_folded(columns):
    page = run("models", COLUMNS=columns).stdout.splitlines()
    first_words = {line.split(" ")[0] for line in page}
    ids = {row["id"] for row in json.loads(run("models", "--json").stdout)["models"]}
    assert ids <= first_words
    assert all(len(line) <= int(columns) for line in page)
    aliases = {word.strip(",") for line in page for word in line.split()[-3:]}
    assert ("meta-llama/Meta-Llama-3.1-70B-Instruct" in aliases) is (columns == "140")


@pytest.mark.parametrize("columns", ["80", "140"])
@pytest.mark.parametrize("arguments", [PLANNED, [*PLANNED, "--explain"], MISSED, ["runs"]])
def test_pages_keep_to_the_width_and_leave_no_trailing_space(arguments, columns):
    done = run(*arguments, COLUMNS=columns)
    for line in done.stdout.splitlines():
        assert len(line) <= int(columns), line
        assert line == line.rstrip()


def test_a_sequence_beyond_the_model_is_a_warning_not_a_refusal(tmp_path):
    # The model is refused later for another reason, after the warning would have been due.
    from batchplan.api.request import resolve

    request = resolve("qwen2.5-0.5b", {"gpu": "80GB", "seq_len": "1M"})
    assert [caveat.code for caveat in request.caveats] == ["seq-len-beyond-model"]


@pytest.mark.parametrize("name", sorted(commands()))
def test_every_command_has_a_summary_an_example_and_help_on_every_option(name):
    done = run(name, "--help", COLUMNS="200")
    summary, _, rest = (commands()[name].__doc__ or "").partition("\n")
    assert summary.endswith(".")
    assert f"Example: batchplan {name} " in rest
    assert f"Example: batchplan {name} " in done.stdout
    options = [*done.stdout.partition("Options:")[2].splitlines(), ""]
    for line, following in itertools.pairwise(options):
        if line.startswith("  -"):
            is_beside = len(line.strip().split("  ", 1)) == 2
            is_below = following.startswith("    ")
            assert is_beside or is_below, f"{line!r} has no help"


@pytest.mark.parametrize("name", sorted(commands()))
def test_help_keeps_to_80_columns(name):
    from typer.testing import CliRunner

    from batchplan.cli.main import app

    done = CliRunner().invoke(app, [name, "--help"], terminal_width=80, env={"COLUMNS": "80"})
    assert done.exit_code == 0
    assert [line for line in done.stdout.splitlines() if len(line) > 80] == []


@pytest.mark.parametrize("name", ["recommend", "estimate"])
def test_every_option_with_a_value_says_its_default(name):
    from batchplan.cli import main

    del main
    import inspect

    for parameter in inspect.signature(commands()[name]).parameters.values():
        info = parameter.annotation.__metadata__[0]
        is_flag = parameter.annotation.__origin__ is bool
        if parameter.name in ("model", "recipe", "zero", "params", "output") or is_flag:
            continue
        assert "Default:" in info.help or "Required" in info.help, parameter.name


def test_every_recipe_field_is_an_option():
    import inspect

    from batchplan.spec import Recipe

    for name in ("recommend", "estimate"):
        parameters = inspect.signature(commands()[name]).parameters
        assert set(Recipe.model_fields) <= set(parameters)


def test_written_json_is_the_printed_json(tmp_path):
    path = tmp_path / "answer.json"
    done = run("estimate", *PARAMS, "--json", "-o", str(path))
    assert path.read_text() == done.stdout
    assert [entry.name for entry in tmp_path.iterdir()] == ["answer.json"]


@pytest.mark.parametrize("target", ["no/such/folder/x.json", "."])
def test_a_file_that_cannot_be_written_is_exit_2_and_leaves_nothing(tmp_path, target):
    done = run("estimate", *PARAMS, "-o", str(tmp_path / target))
    assert done.returncode == 2
    assert "Cannot write" in done.stderr
    assert done.stderr.count("\n") == 1
    assert list(tmp_path.iterdir()) == []


@POSIX_ONLY
@pytest.mark.parametrize("there", [True, False], ids=["there", "dangling"])
def test_a_link_is_written_through_and_stays_a_link(tmp_path, there):
    (tmp_path / "elsewhere").mkdir()
    target, link = tmp_path / "elsewhere" / "answer.json", tmp_path / "link.json"
    if there:
        target.write_text("old")
    link.symlink_to(target)
    done = run("estimate", *PARAMS, "--json", "-o", str(link))
    assert done.returncode in (0, 3), done.stderr
    assert link.is_symlink()
    assert target.read_text() == done.stdout
    assert sorted(path.name for path in tmp_path.rglob("*.*")) == ["answer.json", "link.json"]


@POSIX_ONLY
@pytest.mark.parametrize("through_a_link", [False, True])
def test_what_is_no_file_is_refused_and_left_as_it_is(tmp_path, through_a_link):
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    output = pipe
    if through_a_link:
        output = tmp_path / "link"
        output.symlink_to(pipe)
    done = run("estimate", *PARAMS, "-o", str(output))
    assert done.returncode == 2
    assert "a device or a pipe" in done.stderr
    assert done.stderr.count("\n") == 1
    assert pipe.is_fifo()


def test_a_link_to_itself_is_refused(tmp_path):
    loop = tmp_path / "loop"
    loop.symlink_to(loop)
    done = run("estimate", *PARAMS, "-o", str(loop))
    assert done.returncode == 2
    assert done.stderr.startswith(f"error: Cannot write {loop}")


def test_what_a_config_names_is_written_through_a_link_too(tmp_path):
    from batchplan.cli.output import write_files

    target, link = tmp_path / "target", tmp_path / "plan.ds.json"
    target.write_text("old")
    link.symlink_to(target)
    write_files([(link, "new")])
    assert link.is_symlink()
    assert target.read_text() == "new"


def test_a_config_without_a_model_is_refused(tmp_path):
    done = run(*PLANNED, "-o", str(tmp_path / "plan.yaml"))
    assert done.returncode == 2
    assert "needs a MODEL" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_written_when_nothing_fits(tmp_path):
    done = run(*MISSED, "-o", str(tmp_path / "plan.yaml"))
    assert done.returncode == 3
    assert "was not written" in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_recipe_file_gives_options_and_the_command_line_wins(tmp_path):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text("sharding: zero3\noptimizer: sgd\nweight-dtype: fp16\n")
    done = run("estimate", *PARAMS, "--recipe", str(recipe), "--optimizer", "lion", "--json")
    inputs = json.loads(done.stdout)["inputs"]
    assert inputs["sharding"] == "zero3"
    assert inputs["weight_dtype"] == "fp16"
    assert inputs["optimizer"] == "lion"


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"shardin: zero3", "Nearest: sharding"),
        (b"sharding: zero9", "--sharding"),
        (b"sharding: [1, 2]", "--sharding"),
        (b"- a\n- b", "name: value"),
        (b"a: b: c", "not YAML"),
        (b"\xff\xfe\x00", "not YAML"),
        (b"x" * 70_000, "64 KiB"),
        (b"!!python/object/apply:os.system ['true']", "not YAML"),
    ],
)
def test_a_bad_recipe_file_is_one_line(tmp_path, content, words):
    recipe = tmp_path / "recipe.yaml"
    recipe.write_bytes(content)
    done = run("estimate", *PARAMS, "--recipe", str(recipe))
    assert done.returncode == 2, done.stderr
    assert done.stderr.count("\n") == 1
    assert words in done.stderr


@POSIX_ONLY
@pytest.mark.parametrize("arguments", [["models"], [*PLANNED, "--json"], ["recommend", "--help"]])
def test_a_closed_pipe_is_quiet(arguments):
    child = subprocess.Popen(
        [sys.executable, "-m", "batchplan", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
    )
    assert child.stdout is not None
    assert child.stderr is not None
    child.stdout.close()
    with child.stderr:
        said = child.stderr.read()
    assert child.wait(60) == 0
    assert said == b""


@POSIX_ONLY
@pytest.mark.parametrize("arguments", [["runs"], [*PLANNED, "--json"]])
def test_a_full_disk_is_told_in_one_line(arguments):
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "batchplan", *arguments],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            env=environment(),
            check=False,
        )
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "No space left" in done.stderr


@pytest.fixture
def slow_python(tmp_path):
    """An interpreter that answers which versions it has and then never finishes a trace."""
    marker = tmp_path / "tracing"
    script = tmp_path / "python"
    script.write_text(
        "#!/bin/sh\n"
        f'if [ "$#" -eq 2 ]; then exec "{sys.executable}" "$@"; fi\n'
        f'echo $$ >> "{marker}"\n'
        "exec sleep 1000\n"
    )
    script.chmod(0o755)
    return script, marker


@POSIX_ONLY
@pytest.mark.parametrize(("name", "code"), [("SIGINT", 130), ("SIGTERM", 143)])
def test_a_trace_that_is_stopped_leaves_one_line_no_child_and_no_file(
    slow_python, tmp_path, name, code
):
    script, marker = slow_python
    pytest.importorskip("transformers")
    output = tmp_path / "plan.yaml"
    child = subprocess.Popen(
        [
            *[sys.executable, "-m", "batchplan", "recommend", "qwen2.5-0.5b", "--gpu", "80GB"],
            *["--python", str(script), "-o", str(output)],
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(BATCHPLAN_CACHE=str(tmp_path / "cache")),
    )
    deadline = time.monotonic() + 120
    while not (marker.exists() and marker.read_text().strip()) and time.monotonic() < deadline:
        assert child.poll() is None, child.communicate()
        time.sleep(0.05)
    child.send_signal(getattr(signal, name))
    answered, said = child.communicate(timeout=120)
    assert child.returncode == code
    assert answered == ""
    assert "Traceback" not in said
    assert said.count("\n") == 1
    assert not output.exists()
    assert not list((tmp_path / "cache").glob("*.json"))
    # What was killed may take a moment to go.
    for tracer in marker.read_text().split():
        while is_there(int(tracer)) and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not is_there(int(tracer))


def is_there(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_bug_is_one_line_and_shows_its_traceback_only_when_asked(monkeypatch, capsys):
    from batchplan.cli import main

    def broken(*_, **__):
        raise ZeroDivisionError("nobody expected this")

    monkeypatch.delenv("BATCHPLAN_DEBUG", raising=False)
    monkeypatch.setattr("batchplan.api.catalog.runs", broken)
    assert main.run(["runs"]) == 1
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert "a bug" in said
    assert "please report" in said
    monkeypatch.setenv("BATCHPLAN_DEBUG", "1")
    assert main.run(["runs"]) == 1
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.slow
def test_the_config_is_written_whole_and_beside_it_what_it_names(tmp_path):
    pytest.importorskip("transformers")
    output = tmp_path / "run.yaml"
    arguments = ["recommend", "qwen2.5-0.5b", "--gpu", "a100-80gb", "--devices", "8"]
    done = run(*arguments, "--seq-len", "1024", "--sharding", "zero2", "-o", str(output))
    assert done.returncode == 0, done.stderr
    names = sorted(entry.name for entry in tmp_path.iterdir())
    assert names == ["run.ds.json", "run.launch.sh", "run.model.yaml", "run.yaml"]
    assert "deepspeed: run.ds.json" in output.read_text()
    assert json.loads((tmp_path / "run.ds.json").read_text())["zero_optimization"]["stage"] == 2


@pytest.mark.slow
@pytest.mark.parametrize("trainer", ["trl", "deepspeed"])
def test_a_folder_is_made_for_the_files_of_a_trainer(tmp_path, trainer):
    pytest.importorskip("transformers")
    arguments = ["recommend", "qwen2.5-0.5b", "--gpu", "a100-80gb", "--seq-len", "1024"]
    done = run(*arguments, "--trainer", trainer, "-o", str(tmp_path / "out"))
    assert done.returncode == 0, done.stderr
    shown = re.search(rf"^Config for {trainer}: (.*)$", done.stdout, re.MULTILINE)
    assert shown, done.stdout
    names = sorted(entry.name for entry in (tmp_path / "out").iterdir())
    assert names == sorted(shown.group(1).split(", "))
    done = run("check", *(str(tmp_path / "out" / name) for name in names))
    assert done.returncode == 0, done.stdout
    assert f": {trainer} (" in " ".join(done.stdout.split())


@pytest.mark.slow
def test_a_sequence_beyond_the_model_warns_on_stderr_and_answers(tmp_path):
    pytest.importorskip("transformers")
    arguments = ["estimate", "pythia-70m", "--gpu", "a100-80gb", "--micro-batch", "1"]
    done = run(*arguments, "--seq-len", "4096")
    assert done.returncode in (0, 3)
    assert done.stderr.count("warning: --seq-len 4,096 is more than the 2,048 positions") == 1
    assert run(*arguments, "--seq-len", "4096", "-q").stderr == ""
