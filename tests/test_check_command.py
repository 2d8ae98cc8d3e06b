"""``batchplan check`` as a process: exit codes, JSON, SARIF, what is written, bad input."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from check_cases import HF
from console_blocks import ROOT

from batchplan.cli import main

WRONG = HF.replace("learning_rate: 2.0e-05", "learning_rate: 2e-5  # peak").replace(
    "@@", "fp16: true"
)
RIGHT = HF.replace("@@", "weight_decay: 0.1")


def process(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run it as a user does."""
    return subprocess.run(
        [sys.executable, "-m", "batchplan", "check", *arguments, "--offline"],
        capture_output=True,
        text=True,
        timeout=60,
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )


@pytest.fixture
def run(tmp_path, monkeypatch, capfd):
    """Run it in this process, which is faster: the exit code, stdout and stderr."""

    def run_here(*arguments: str) -> tuple[int, str, str]:
        monkeypatch.chdir(tmp_path)
        code = main.run(["check", *arguments, "--offline"])
        return (code, *capfd.readouterr())

    return run_here


@pytest.fixture
def wrong(tmp_path):
    (tmp_path / "run.yaml").write_text(WRONG)
    return tmp_path


def test_a_config_with_errors_ends_with_6_and_tells_line_and_fix(wrong):
    done = process("run.yaml", "--devices", "8", folder=wrong)
    assert (done.returncode, done.stderr) == (6, "")
    assert "run.yaml: hf-trainer" in done.stdout
    assert "2 × 8 × 8 (micro-batch × K × devices) = 128 sequences" in done.stdout
    assert "Findings: 2 errors" in done.stdout
    assert "run.yaml:5: error string-learning-rate" in done.stdout
    assert "run.yaml:8: error bf16-and-fp16" in done.stdout
    assert "Fix: Write 2.0e-05." in done.stdout


def test_a_correct_config_ends_with_0(tmp_path):
    (tmp_path / "run.yaml").write_text(RIGHT)
    done = process("run.yaml", folder=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert "Findings\nNone." in done.stdout


def test_json_is_exactly_one_document(wrong, run):
    code, out, err = run("run.yaml", "--json")
    document = json.loads(out)
    assert (code, err) == (6, "")
    assert (document["schema_version"], document["command"]) == (1, "check")
    assert {one["code"] for one in document["findings"]} == {
        "string-learning-rate",
        "bf16-and-fp16",
    }
    assert document["batch"]["global_batch_size"] == 16


def test_a_fix_writes_a_copy_and_leaves_the_file(wrong, run):
    code, out, _ = run("run.yaml", "--fix", "-o", "fixed.yaml")
    assert code == 0
    assert (wrong / "run.yaml").read_text() == WRONG
    mended = (wrong / "fixed.yaml").read_text()
    assert mended == WRONG.replace("2e-5", "2.0e-05").replace("fp16: true", "fp16: false")
    assert "Wrote fixed.yaml" in out
    assert run("fixed.yaml")[0] == 0


def test_a_fix_may_take_the_place_of_the_file_that_is_named(wrong, run):
    assert run("run.yaml", "--fix", "-o", "run.yaml")[0] == 0
    assert "learning_rate: 2.0e-05  # peak" in (wrong / "run.yaml").read_text()


def test_what_a_fix_cannot_mend_still_ends_with_6(wrong, run):
    (wrong / "run.yaml").write_text(WRONG + "adam_beta2: 1.0\n")
    code, out, _ = run("run.yaml", "--fix", "-o", "fixed.yaml", "--json")
    fixed = json.loads(out)["fixed"]
    assert code == 6
    (left,) = fixed["left"]
    assert left["code"] == "beta2-out-of-range"
    lines = (wrong / left["file"]).read_text().splitlines()
    assert (left["file"], lines[left["line"] - 1]) == ("fixed.yaml", "adam_beta2: 1.0")
    assert {one["code"] for one in fixed["mended"]} == {"string-learning-rate", "bf16-and-fp16"}


def test_sarif_has_what_code_scanning_requires(wrong, run):
    code, out, _ = run("run.yaml", "--sarif")
    assert code == 6
    log = json.loads(out)
    # SARIF 2.1.0, sections 3.13 to 3.30: what a log, a tool, a rule and a result must have.
    assert (log["version"], log["$schema"].rsplit("/", 1)[-1]) == ("2.1.0", "sarif-2.1.0.json")
    (only,) = log["runs"]
    driver = only["tool"]["driver"]
    assert driver["name"] == "batchplan"
    ids = [rule["id"] for rule in driver["rules"]]
    assert len(set(ids)) == len(ids)
    for rule in driver["rules"]:
        assert rule["shortDescription"]["text"]
        assert rule["help"]["text"]
        assert rule["defaultConfiguration"]["level"] in ("error", "warning", "note")
    assert len(only["results"]) == 2
    for result in only["results"]:
        assert ids[result["ruleIndex"]] == result["ruleId"]
        assert result["level"] in ("error", "warning", "note", "none")
        assert result["message"]["text"]
        (place,) = result["locations"]
        location = place["physicalLocation"]
        assert location["artifactLocation"]["uri"] == "run.yaml"
        assert location["region"]["startLine"] >= 1
    lines = {one["ruleId"]: one["locations"][0] for one in only["results"]}
    region = lines["bf16-and-fp16"]["physicalLocation"]["region"]
    assert WRONG.splitlines()[region["startLine"] - 1] == "fp16: true"


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("none.yaml", None, "none.yaml"),
        ("binary.yaml", bytes(range(256)) * 8, "binary.yaml"),
        ("broken.yaml", b"a: [1, 2\nb: }", "broken.yaml"),
        ("strange.yaml", b"colour: blue\n", "Cannot tell which trainer"),
        ("big.yaml", b"a: 1\n" * 4_000_000, "big.yaml"),
        ("loop.yaml", b"a: &a [*a]\n", "loop.yaml"),
    ],
    ids=["missing", "binary", "broken", "strange", "big", "loop"],
)
def test_bad_input_is_one_clear_line_and_fast(name, content, words, tmp_path, run):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    began = time.process_time()
    code, out, err = run(name)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert words in err
    assert time.process_time() - began < 2


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--trainer", "nobody"), "Unknown trainer 'nobody'"),
        (("--gpu", "a100-79gb"), "a100-80gb"),
        (("--fix",), "--fix and -o FILE go together"),
        (("-o", "x.yaml"), "--fix and -o FILE go together"),
        (("--json", "--sarif"), "one of them"),
        (("--devices", "0"), "--devices"),
        (("--fix", "-o", "nowhere/x.yaml"), "there is no folder"),
    ],
)
def test_bad_options_are_one_clear_line(options, words, tmp_path, run):
    (tmp_path / "run.yaml").write_text(RIGHT)
    code, out, err = run("run.yaml", *options)
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert words in err


def test_a_script_is_read_and_never_run(tmp_path, run):
    (tmp_path / "run.yaml").write_text(RIGHT)
    (tmp_path / "train.py").write_text(
        "from pathlib import Path\nPath('ran').write_text('yes')\nraise SystemExit(3)\n"
    )
    assert run("run.yaml", "train.py")[0] == 0
    assert not (tmp_path / "ran").exists()


SET = {
    "run.yaml": WRONG.replace("# the end", "deepspeed: configs/ds.json  # ZeRO\n# the end"),
    "configs/ds.json": """\
{
  "train_micro_batch_size_per_gpu": 2,
  "train_batch_size": 64,
  "gradient_accumulation_steps": 8,
  "zero_optimization": {"stage": "2"}
}
""",
}


def test_a_fix_into_a_folder_mends_every_file_of_the_run(tmp_path, run):
    (tmp_path / "configs").mkdir()
    for name, text in SET.items():
        (tmp_path / name).write_text(text)
    asked = ("--devices", "8")
    assert run("run.yaml", *asked)[0] == 6
    code, out, err = run("run.yaml", *asked, "--fix", "-o", "mended/", "--json")
    fixed = json.loads(out)["fixed"]
    assert (code, err, fixed["left"]) == (0, "", [])
    assert fixed["files"] == [f"mended/{name}" for name in SET]
    for name, text in SET.items():
        assert (tmp_path / name).read_text() == text
    mended = (tmp_path / "mended" / "configs" / "ds.json").read_text()
    wanted = SET["configs/ds.json"].replace(": 64", ": 128").replace('"2"', "2")
    assert mended == wanted
    assert run("mended/run.yaml", *asked)[0] == 0
    again = run("mended/run.yaml", *asked, "--fix", "-o", "mended", "--json")
    assert json.loads(again[1])["fixed"]["mended"] == []
    assert (tmp_path / "mended" / "configs" / "ds.json").read_text() == wanted


def test_a_fix_into_a_file_leaves_the_other_files(tmp_path, run):
    (tmp_path / "configs").mkdir()
    for name, text in SET.items():
        (tmp_path / name).write_text(text)
    code, out, _ = run("run.yaml", "--devices", "8", "--fix", "-o", "one.yaml")
    assert code == 6
    assert "configs/ds.json:3: deepspeed-triple-mismatch" in out
    assert (tmp_path / "configs" / "ds.json").read_text() == SET["configs/ds.json"]


def test_a_loop_of_links_is_one_clear_line(tmp_path, run):
    (tmp_path / "a.yaml").symlink_to("b.yaml")
    (tmp_path / "b.yaml").symlink_to("a.yaml")
    code, out, err = run("a.yaml")
    assert (code, out, len(err.splitlines())) == (2, "", 1)
    assert "a.yaml: cannot be read" in err
    (tmp_path / "run.yaml").write_text(RIGHT + "deepspeed: a.yaml\n")
    assert run("run.yaml")[0] == 6


def test_steps_that_are_left_to_the_epochs_are_no_number_of_steps(tmp_path, run):
    (tmp_path / "run.yaml").write_text(RIGHT + "max_steps: -1\n")
    assert "Optimizer steps" not in run("run.yaml")[1]
    assert json.loads(run("run.yaml", "--json")[1])["max_steps"] is None
