"""``batchplan noise``: its inputs, its page and document, and what others make of its file."""

from __future__ import annotations

import io
import json
import math
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from console_blocks import ROOT
from test_docs import unmentioned

import batchplan
from batchplan.api.noise_answer import NoiseAnswer
from batchplan.errors import SpecError
from batchplan.experiments.noise_file import (
    Estimate,
    NoiseRecord,
    digest,
    noise_text,
    read_noise,
)
from batchplan.prober.trial import Device
from batchplan.render.noise import print_noise, print_plan_noise
from batchplan.render.page import Page
from batchplan.sources import resolve_model
from batchplan.sources.token_rows import draw_rows
from batchplan.spec import Recipe

CONFIG: dict[str, Any] = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 32,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "max_position_embeddings": 64,
}


def config_file(folder: Path) -> Path:
    path = folder / "config.json"
    path.write_text(json.dumps(CONFIG), encoding="utf-8")
    return path


def data_file(folder: Path, rows: list[Any], name: str = "data.jsonl") -> Path:
    path = folder / name
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def plain_rows(count: int) -> list[dict[str, Any]]:
    """Rows of a simple language: every token follows from the one before."""
    return [
        {"input_ids": [(start * 7 + 5 * step) % 32 for step in range(4 + start % 9)]}
        for start in range(count)
    ]


def record(**more: Any) -> NoiseRecord:
    fields: dict[str, Any] = {
        "created": datetime(2026, 1, 1, tzinfo=UTC),
        "batchplan": "0",
        "device": "CPU",
        "kind_of_device": Device.CPU,
        "versions": {},
        "model_id": "Qwen/Qwen2.5-0.5B",
        "config_sha256": "0",
        "weights": True,
        "data": "data.jsonl",
        "seed": 0,
        "recipe": Recipe(),
        "seq_len": 512,
        "micro_batch": 1,
        "window": 8,
        "num_windows": 50,
        "level": 0.95,
        "sequences": Estimate(value=64.0, low=32.0, high=128.0),
        "tokens": Estimate(value=32768.0, low=16384.0, high=65536.0),
        "row_tokens": 512.0,
        "noise": 1.0,
        "signal": 0.1,
        "dimensions": None,
        "loss": 2.0,
        "stopped": "precise",
    }
    return NoiseRecord(**fields | more)


def saved(folder: Path, **more: Any) -> Path:
    path = folder / "noise.json"
    path.write_text(noise_text(record(**more)), encoding="utf-8")
    return path


# ---- rows ----


def test_every_row_is_drawn_once_and_in_another_order(tmp_path):
    path = data_file(tmp_path, [{"input_ids": [number, 0, 0]} for number in range(100)])
    first = [row.ids[0] for row in draw_rows(path, seq_len=8, seed=1)]
    assert sorted(first) == list(range(100))
    assert first != sorted(first)
    assert first == [row.ids[0] for row in draw_rows(path, seq_len=8, seed=1)]
    assert first != [row.ids[0] for row in draw_rows(path, seq_len=8, seed=2)]


def test_labels_masks_and_cuts_are_honoured_and_rows_without_targets_left_out(tmp_path):
    rows = [
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, 3, 4]},
        {"input_ids": [1, 2, 3, 4], "labels": [-100, -100, -100, 4]},
        {"input_ids": [1, 2, 3, 4], "labels": [1, -100, -100, -100]},  # nothing predicts the first
    ]
    drawn = draw_rows(data_file(tmp_path, rows), seq_len=3, seed=0)
    (row,) = drawn
    assert (list(row.ids), list(row.labels or ()), row.num_targets) == (
        [1, 2, 3],
        [-100, -100, 3],
        1,
    )
    assert drawn.num_left_out == 2
    masked = [{"input_ids": [1, 2, 3], "completion_mask": [0, 1, 1]}]
    (row,) = draw_rows(data_file(tmp_path, masked, "masked.jsonl"), seq_len=8, seed=0)
    assert list(row.labels or ()) == [-100, 2, 3]


class Words:
    """A tokenizer of words: a token is a word's length; one more begins a text."""

    chat_template = None

    def __call__(self, texts: list[str], *, add_special_tokens: bool, **_: Any) -> dict[str, Any]:
        begin = [0] * add_special_tokens
        return {"input_ids": [begin + [len(word) for word in text.split()] for text in texts]}


def test_of_prompt_and_completion_only_the_completion_counts(tmp_path, monkeypatch):
    from batchplan.sources.tokenizer import Tokenizer, TokenizerName

    monkeypatch.setattr(TokenizerName, "load", lambda self: Tokenizer("words", Words()))
    path = data_file(tmp_path, [{"prompt": "one two", "completion": " three seven"}])
    drawn = draw_rows(path, seq_len=8, seed=0, tokenizer=TokenizerName(text="words"))
    (row,) = drawn
    assert list(row.ids) == [0, 3, 3, 5, 5]
    assert list(row.labels or ()) == [-100, -100, -100, 5, 5]
    assert drawn.targets == "the completions'"


@pytest.mark.parametrize(
    ("row", "text"),
    [
        ({"input_ids": [1, 40]}, r"token 40 is none of the model's, 0 to 31"),
        ({"input_ids": [1, -3]}, r"token -3 is none"),
        ({"input_ids": "one"}, r"input_ids must be a list of whole numbers"),
        ({"input_ids": [1.5]}, r"input_ids must be a list of whole numbers"),
        ({"input_ids": [1, 2], "labels": [1]}, r"2 input_ids and 1 labels"),
        ({"input_ids": [1, 2], "labels": [1, 40]}, r"label 40 is none of the model's, 0 to 31"),
        ({"input_ids": [1, 2], "labels": [-100, -5]}, r"label -5 is none"),
    ],
)
def test_a_wrong_row_is_named(tmp_path, row, text):
    path = data_file(tmp_path, [row])
    with pytest.raises(SpecError, match=r"data.jsonl, line 1: .*" + text):
        list(draw_rows(path, seq_len=8, seed=0, vocabulary=32))


@pytest.mark.parametrize("row", [{"input_ids": [7]}, {"input_ids": [7, 8], "labels": [7, -100]}])
def test_rows_without_a_token_that_counts_are_no_data(tmp_path, row):
    path = data_file(tmp_path, [row] * 3)
    with pytest.raises(SpecError, match=r"data.jsonl: none of 3 rows has a token that counts"):
        list(draw_rows(path, seq_len=8, seed=0))


@pytest.mark.parametrize("kind", ["list", "large_list", "list with a fixed size"])
def test_parquet_holds_the_rows_that_jsonl_does(tmp_path, kind):
    pa, parquet = (pytest.importorskip(name) for name in ("pyarrow", "pyarrow.parquet"))
    types = {
        "list": pa.list_(pa.int64()),
        "large_list": pa.large_list(pa.int32()),
        "list with a fixed size": pa.list_(pa.int32(), 3),
    }
    rows = [{"input_ids": [n, 1, 2], "labels": [-100, n, 2]} for n in range(9)]
    columns = {name: [row[name] for row in rows] for name in ("input_ids", "labels")}
    table = pa.table({name: pa.array(each, types[kind]) for name, each in columns.items()})
    parquet.write_table(table, tmp_path / "data.parquet")
    one, other = (
        [(list(row.ids), list(row.labels or ())) for row in draw_rows(path, seq_len=8, seed=1)]
        for path in (data_file(tmp_path, rows), tmp_path / "data.parquet")
    )
    assert one == other
    assert len(one) == 9


# ---- inputs ----


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"window": 1}, "--window 1 is too small: at least 2"),
        ({"precision": "0%"}, "--precision '0%' must be from 1% to 1000%"),
        ({"precision": "tight"}, "--precision"),
        ({"max_seconds": 0}, "--max-seconds 0 must be a number above 0"),
        ({"target_tokens": "none"}, "--target-tokens"),
        ({"device": "tpu"}, "--device 'tpu' is none of cuda, cpu, mps, auto"),
        ({"device": "mps"}, "MPS has no fp64"),
        ({"device": "cpu", "method": "qlora"}, "--method lora"),
        ({"device": "cpu", "sharding": "fsdp-full"}, "--sharding fsdp-full"),
        ({"device": "cpu", "numerics": "bf16-master"}, "--numerics bf16-master"),
        ({"device": "cpu", "numerics": "bf16", "norm_dtype": "fp32"}, "--norm-dtype fp32 beside"),
        ({"device": "cpu", "optimizer": "muon"}, "--optimizer changes nothing that noise measures"),
        ({"device": "cpu", "gpu": "a100-80gb"}, "--gpu: noise runs a model on this machine's"),
        ({"device": "cpu", "window": 16}, "has 20 rows, and two windows of 16 .* take 32"),
        ({"device": "cpu", "seed": -1}, "--seed -1 is too small: at least 0"),
        ({"device": "cpu", "seed": "-1"}, "--seed: '-1' must be 0 or more"),
    ],
)
def test_what_cannot_be_measured_is_refused_before_anything_runs(tmp_path, options, text):
    with pytest.raises(SpecError, match=text):
        batchplan.noise(str(config_file(tmp_path)), data_file(tmp_path, plain_rows(20)), **options)


def test_a_missing_file_is_one_line(tmp_path):
    with pytest.raises(SpecError, match="no such file"):
        batchplan.noise(str(config_file(tmp_path)), tmp_path / "none.jsonl", device="cpu")


# ---- its file, in recommend and lr ----


@pytest.mark.parametrize(
    ("content", "text"),
    [
        ("{}", "created: Field required"),
        ("not json", "Invalid JSON"),
        (
            noise_text(record()).replace('"schema_version": 1', '"schema_version": 9'),
            "schema_version",
        ),
        (noise_text(record()).replace("16384.0", "-1"), "tokens.low"),
        (noise_text(record()).replace("16384.0", "40000.0"), "tokens: .* not in order"),
        (noise_text(record()).replace("65536.0", "3.0"), "tokens: .* not in order"),
        (noise_text(record()).replace('"level": 0.95', '"level": 7'), "level"),
    ],
)
def test_a_file_that_is_none_of_ours_is_refused_in_one_line(tmp_path, content, text):
    path = tmp_path / "noise.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(SpecError, match=text) as caught:
        read_noise(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(SpecError, match="none of noise's files"):
        batchplan.learning_rate(lr=1e-4, from_batch=8, to_batch=64, noise=path)


def test_the_file_gives_what_the_number_gives(tmp_path):
    path = saved(tmp_path)
    change: dict[str, Any] = {"lr": 1e-4, "from_batch": 8, "to_batch": 256}
    by_file = batchplan.learning_rate(**change, noise=path).learning_rate
    by_number = batchplan.learning_rate(**change, noise_scale=64).learning_rate
    assert by_file == by_number
    tokens: dict[str, Any] = {"lr": 1e-4, "from_batch": "4k", "to_batch": "128k"}
    assert batchplan.learning_rate(**tokens, noise=path).learning_rate.noise.ratio == (
        pytest.approx(128_000 / 32_768)
    )
    with pytest.raises(SpecError, match="not both"):
        batchplan.learning_rate(**change, noise=path, noise_scale=64)


def test_a_bound_alone_has_no_rate(tmp_path):
    path = saved(tmp_path, tokens=Estimate(value=None, low=9000.0, high=None))
    with pytest.raises(SpecError, match="only that it is above 9,000 tokens"):
        batchplan.learning_rate(lr=1e-4, from_batch=8, to_batch=64, noise=path)


def test_of_nothing_known_no_bound_of_0_is_told(tmp_path):
    nothing = Estimate(value=None, low=0.0, high=None)
    path = saved(tmp_path, tokens=nothing, sequences=nothing)
    with pytest.raises(SpecError, match=r"has no noise scale\. Measure again"):
        batchplan.learning_rate(lr=1e-4, from_batch=8, to_batch=64, noise=path)
    texts = {caveat["code"]: caveat["text"] for caveat in planned(path)["caveats"]}
    assert texts["noise-bound-only"].startswith("Of the noise scale nothing is known:")


def planned(path: Path, **more: Any) -> dict[str, Any]:
    asked = {"gpu": "24GiB", "params": "1e9", "seq_len": 512, "target_tokens": "128k"}
    return batchplan.recommend(**asked | more, noise=path).to_dict()


def test_plans_are_weighed_against_the_file(tmp_path):
    document = planned(saved(tmp_path))
    best, noise = document["plans"][0], document["noise_scale"]
    ratio = best["global_batch_tokens"] / 32_768
    assert noise["best"]["ratio"]["value"] == pytest.approx(ratio)
    assert noise["best"]["ratio"]["low"] == pytest.approx(ratio / 2)
    assert noise["best"]["is_beyond"] is True
    cost = best["learning_rate"]["noise"]
    assert cost["ratio"] == pytest.approx(ratio)
    assert cost["examples_multiplier"] == pytest.approx(1 + ratio)
    codes = {caveat["code"] for caveat in document["caveats"]}
    assert {"noise-other-model", "noise-not-critical-batch"} <= codes
    assert document["inputs"]["noise"] == str(tmp_path / "noise.json")
    assert unmentioned(document) == set()


def about(path: Path, model: str, **more: Any) -> set[str]:
    """The doubts that a plan for a model has about a measurement."""
    document = planned(path, model=model, params=None, offline=True, limit=1, **more)
    return {each["code"] for each in document["caveats"] if each["code"].startswith("noise-other")}


@pytest.mark.slow
def test_a_measurement_of_a_model_that_changed_since_is_doubted(tmp_path):
    name = "Qwen/Qwen2.5-0.5B"
    same = digest(resolve_model(name).config)
    assert about(saved(tmp_path, config_sha256=same), name) == set()
    assert about(saved(tmp_path, config_sha256="0" * 64), name) == {"noise-other-config"}
    other = saved(tmp_path, config_sha256="0" * 64, model_id="another/model")
    assert about(other, name) == {"noise-other-model"}


def test_rows_far_longer_than_those_measured_are_doubted_unless_the_data_is_known(tmp_path):
    def codes(**more: Any) -> set[str]:
        return {each["code"] for each in planned(saved(tmp_path), **more)["caveats"]}

    lengths = tmp_path / "lengths.txt"
    lengths.write_text("300\n" * 50, encoding="utf-8")
    assert "noise-other-lengths" not in codes(seq_len=1024)
    assert "noise-other-lengths" in codes(seq_len=1025)
    assert "noise-other-lengths" not in codes(seq_len=2048, lengths=lengths)


def page_of_plan(document: dict[str, Any]) -> str:
    file = io.StringIO()
    print_plan_noise(Page(file, 400), document["noise_scale"])
    return file.getvalue()


def test_what_is_wasted_is_told_as_surely_as_it_is_known(tmp_path):
    document = planned(saved(tmp_path), target_tokens=32_768)
    # At the noise scale itself half the data; at twice and at half of it 1/3 and 2/3.
    assert "50% of the data (33% to 67%) is wasted on the size" in page_of_plan(document)
    assert "2 (1.5 to 3) times the fewest steps" in page_of_plan(document)
    bound = Estimate(value=None, low=16384.0, high=None)
    document = planned(saved(tmp_path, tokens=bound), target_tokens=32_768)
    assert "At most 67% of the data is wasted" in page_of_plan(document)
    assert "at least 1.5 times the fewest steps" in page_of_plan(document)
    nothing = Estimate(value=None, low=0.0, high=None)
    document = planned(saved(tmp_path, tokens=nothing), target_tokens=32_768)
    assert "How much of the data it wastes is not known." in page_of_plan(document)


def test_of_a_bound_alone_the_learning_rate_knows_nothing(tmp_path):
    document = planned(saved(tmp_path, tokens=Estimate(value=None, low=16384.0, high=None)))
    assert document["plans"][0]["learning_rate"]["noise"] is None
    assert document["noise_scale"]["best"]["ratio"]["value"] is None
    assert document["noise_scale"]["best"]["is_beyond"] is False
    assert "noise-bound-only" in {caveat["code"] for caveat in document["caveats"]}


# ---- the command ----


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "batchplan", *arguments],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "100"},
    )


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], Path]:
    """The document of one real measurement, and the file that it wrote."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("noise")
    config, data = config_file(folder), data_file(folder, plain_rows(200))
    output = folder / "noise.json"
    done = run(
        *("noise", str(config), str(data), "--device", "cpu", "--numerics", "fp32"),
        *("--window", "4", "--max-tokens", "1k", "--target-tokens", "64"),
        *("--precision", "1%", "-o", str(output), "--json"),
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout), output


@pytest.mark.slow
@pytest.mark.xdist_group("noise-command")
def test_the_command_measures_and_says_what_it_means(measured):
    document, output = measured
    found = document["noise_scale"]
    assert found["stopped"] == "max-tokens"
    assert 20 <= found["num_windows"] <= 49
    assert found["num_micro_batches"] == 4 * found["num_windows"]
    assert found["num_sequences"] * document["data"]["row_tokens"] <= 1000
    assert found["loss"] == pytest.approx(math.log(32), rel=0.1)  # random weights know nothing
    assert found["noise"] > 0
    low, high = (found["interval"]["tokens"][end] for end in ("low", "high"))
    assert low < found["tokens"] < high
    assert found["tokens"] == pytest.approx(found["sequences"] * document["data"]["row_tokens"])
    assert found["target"]["ratio"]["value"] == pytest.approx(64 / found["tokens"])
    assert "noise-random-weights" in {caveat["code"] for caveat in document["caveats"]}
    assert unmentioned(document) == set()
    record = read_noise(output)
    assert record.tokens.value == pytest.approx(found["tokens"])
    assert record.model_id == "config.json"
    page = io.StringIO()
    print_noise(document, file=page, width=100)
    assert re.search(r"tokens \(95% interval: ", page.getvalue())
    assert "A step of 64 tokens" in page.getvalue()


@pytest.mark.slow
@pytest.mark.xdist_group("noise-command")
def test_the_inputs_of_the_document_measure_the_same_again(measured):
    document, _ = measured
    answer = batchplan.noise(**document["inputs"])
    assert isinstance(answer, NoiseAnswer)
    again = answer.to_dict()
    assert again["inputs"] == document["inputs"]
    windows = [each["noise_scale"]["windows"] for each in (document, again)]
    for one, other in zip(*windows, strict=True):
        assert other["noise"] == pytest.approx(one["noise"], rel=1e-4)


def test_a_wrong_file_is_one_line_and_exit_code_2(tmp_path):
    done = run("noise", str(config_file(tmp_path)), str(tmp_path / "no.jsonl"), "--device", "cpu")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: ")
    assert done.stderr.count("\n") == 1
