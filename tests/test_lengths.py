"""Data sets: what is read, how padding and packing are counted, and what plans make of it."""

from __future__ import annotations

import itertools
import json
import math
import os
import subprocess
import sys
import time
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_docs import unmentioned

import batchplan
from batchplan.errors import SourceError, SpecError
from batchplan.sequences import (
    LayoutName,
    LengthDistribution,
    candidate_seq_lens,
    packed_bins,
    padded_in_order,
    padded_in_random_order,
    slots,
    survey,
)

STATES = {"params": "7e9", "gpu": "80GB", "devices": 8, "sharding": "zero3"}
LENGTHS = st.lists(st.integers(1, 60), min_size=1, max_size=60)
FEW = st.lists(st.integers(1, 20), min_size=1, max_size=6)


def row_at(lengths: list[int], seq_len: int, micro_batch: int):
    (row,) = survey(LengthDistribution.of(lengths), seq_lens=[seq_len], micro_batch=micro_batch)
    return row


def up(length: int) -> int:
    while length % 8:
        length += 1
    return length


def padded_slots(order, seq_len: int, micro_batch: int) -> int:
    """Pad an epoch in this order, micro-batch by micro-batch, as a data loader would."""
    total = 0
    for at in range(0, len(order), micro_batch):
        held = [min(length, seq_len) for length in order[at : at + micro_batch]]
        total += len(held) * up(max(held))
    return total


def first_fit_decreasing(lengths: list[int], seq_len: int) -> int:
    """Pack by looking at every bin for every sequence."""
    bins: list[int] = []
    for length in sorted((min(length, seq_len) for length in lengths), reverse=True):
        at = next((i for i, room in enumerate(bins) if room >= length), None)
        if at is None:
            bins.append(seq_len - length)
        else:
            bins[at] -= length
    return len(bins)


@given(lengths=FEW, micro_batch=st.integers(1, 7), seq_len=st.integers(1, 24))
def test_random_order_is_the_mean_over_every_order_there_is(lengths, micro_batch, seq_len):
    orders = list(itertools.permutations(lengths))
    expected = Fraction(
        sum(padded_slots(order, seq_len, micro_batch) for order in orders), len(orders)
    )
    row = row_at(lengths, seq_len, micro_batch)
    assert row.layout(LayoutName.LONGEST).slots == pytest.approx(float(expected), rel=1e-12)


@given(lengths=LENGTHS, micro_batch=st.integers(1, 9), seq_len=st.integers(1, 70))
def test_grouping_by_length_is_the_epoch_sorted(lengths, micro_batch, seq_len):
    order = sorted(lengths, reverse=True)
    grouped = row_at(lengths, seq_len, micro_batch).layout(LayoutName.GROUPED)
    assert grouped.slots == padded_slots(order, seq_len, micro_batch)


@given(lengths=LENGTHS, seq_len=st.integers(1, 70))
def test_packing_is_first_fit_decreasing(lengths, seq_len):
    found = packed_bins(LengthDistribution.of(lengths), seq_len)
    assert found == first_fit_decreasing(lengths, seq_len)
    kept = sum(min(length, seq_len) for length in lengths)
    assert math.ceil(kept / seq_len) <= found <= len(lengths)


@given(lengths=LENGTHS, micro_batch=st.integers(1, 9), seq_len=st.integers(1, 70))
def test_each_layout_wastes_no_more_than_the_cruder_one(lengths, micro_batch, seq_len):
    lengths = lengths * micro_batch  # no short micro-batch, which sorting may place badly
    row = row_at(lengths, seq_len, micro_batch)
    fixed, longest, grouped, packed = row.layouts
    assert grouped.slots <= longest.slots * (1 + 1e-12) <= fixed.slots * (1 + 1e-11)
    assert packed.slots <= len(lengths) * seq_len <= fixed.slots
    assert row.tokens + row.lost_tokens == sum(lengths)
    assert row.num_truncated == sum(length > seq_len for length in lengths)
    for layout in row.layouts:
        assert 0 <= layout.waste < 1
        assert layout.slots >= row.tokens * (1 - 1e-12)


@given(lengths=LENGTHS, seq_len=st.integers(1, 70))
def test_padding_grows_with_the_micro_batch_and_is_none_beyond_rounding_at_one(lengths, seq_len):
    spread = LengthDistribution.of(lengths)
    per_size = [
        slots(spread, padded_in_random_order(spread, size), seq_len)
        for size in [size for size in range(1, len(lengths) + 1) if len(lengths) % size == 0]
    ]
    for smaller, larger in itertools.pairwise(per_size):
        assert smaller <= larger * (1 + 1e-12)
    alone = sum(up(min(length, seq_len)) for length in lengths)
    assert per_size[0] == pytest.approx(alone, rel=1e-12)
    assert slots(spread, padded_in_order(spread, 1), seq_len) == alone


@given(lengths=LENGTHS, size=st.integers(1, 80))
def test_every_sequence_is_padded_to_some_length(lengths, size):
    spread = LengthDistribution.of(lengths)
    assert sum(padded_in_random_order(spread, size)) == pytest.approx(len(lengths))
    assert sum(padded_in_order(spread, size)) == len(lengths)


@given(lengths=LENGTHS)
def test_the_distribution_is_that_of_the_list(lengths):
    spread, ordered = LengthDistribution.of(lengths), sorted(lengths)
    assert (spread.num_sequences, spread.total_tokens) == (len(lengths), sum(lengths))
    assert spread.longest == ordered[-1]
    for percent in (1, 50, 90, 99, 100):
        value = spread.percentile(percent)
        assert sum(length <= value for length in lengths) * 100 >= percent * len(lengths)
        assert sum(length < value for length in lengths) * 100 < percent * len(lengths)
    bins = spread.histogram()
    for held in bins:
        assert held.num_sequences == sum(held.low <= length <= held.high for length in lengths)
    assert sum(held.num_sequences for held in bins) == len(lengths)
    assert len(bins) <= 14


@given(lengths=LENGTHS, given_one=st.integers(1, 100))
def test_the_candidates_are_powers_of_two_that_reach_the_longest(lengths, given_one):
    found = candidate_seq_lens(LengthDistribution.of(lengths), [given_one])
    powers = [seq_len for seq_len in found if seq_len != given_one]
    assert all(math.log2(seq_len).is_integer() for seq_len in powers)
    assert given_one in found
    assert max(found) >= max(lengths)
    assert max(powers, default=0) < 2 * max(lengths)


def test_a_million_sequences_take_seconds():
    spread = LengthDistribution.counted(dict.fromkeys(range(1, 20001), 50))
    started = time.process_time()
    rows = survey(spread, seq_lens=candidate_seq_lens(spread), micro_batch=8)
    assert time.process_time() - started < 10
    assert [row.seq_len for row in rows] == [16_384, 32_768]
    for row in rows:
        assert row.layout(LayoutName.PACKED).rows >= math.ceil(row.tokens / row.seq_len)


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory) -> Path:
    """A real tokenizer that takes one token a word, and two more a message."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = {word: at for at, word in enumerate(["[UNK]", "<u>", "</u>", "a", "b", "c"])}
    inner = Tokenizer(models.WordLevel(words, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    made = PreTrainedTokenizerFast(tokenizer_object=inner, unk_token="[UNK]")
    made.chat_template = (
        "{% for m in messages %}{% if m.role == 'nobody' %}{{ raise_exception('who?') }}{% endif %}"
        "<u> {{ m.content }} </u> {% endfor %}"
    )
    folder = tmp_path_factory.mktemp("tokenizer")
    made.save_pretrained(folder)
    return folder


def json_lines(path: Path, rows) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def counted(answer) -> dict[int, int]:
    return dict(zip(answer.distribution.lengths, answer.distribution.counts, strict=True))


def chat(*contents: str, role: str = "user"):
    return [{"role": role, "content": content} for content in contents]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"text": "a b c"}, {"text": "a"}], {3: 1, 1: 1}),
        ([{"messages": chat("a b", "c")}], {7: 1}),
        ([{"prompt": "a b ", "completion": "c"}], {3: 1}),
        ([{"prompt": chat("a"), "completion": chat("b", role="assistant")}], {6: 1}),
        ([{"text": "a"}, {"text": "  "}, {"text": ""}], {1: 1}),
        ([{"text": "a b", "length": 9}], {2: 1}),
    ],
    ids=["text", "chat", "pair", "chat-pair", "empty", "asked-to-count"],
)
def test_text_is_counted_by_the_tokenizer(tmp_path, tokenizer, rows, expected):
    file = json_lines(tmp_path / "data.jsonl", rows)
    answer = batchplan.lengths(file, tokenizer=str(tokenizer))
    assert counted(answer) == expected
    empty = len(rows) - sum(expected.values())
    said = [caveat["text"] for caveat in answer.to_dict()["caveats"]]
    assert said == ([f"Rows without text are left out: {empty}."] if empty else [])


def test_a_text_file_has_a_sequence_a_line(tmp_path, tokenizer):
    file = tmp_path / "data.txt"
    file.write_bytes(b"\xef\xbb\xbfa b\r\n\r\nc\r\n")
    assert counted(batchplan.lengths(file, tokenizer=str(tokenizer))) == {2: 1, 1: 1}


@pytest.mark.parametrize(
    ("name", "content", "column", "expected"),
    [
        ("l.txt", "5\n7\n\n5\n", None, {5: 2, 7: 1}),
        ("l.json", "[5, 7, 5]", None, {5: 2, 7: 1}),
        ("l.json", '{"length": 5}\n{"length": 7}\n', None, {5: 1, 7: 1}),
        ("l.jsonl", "5\n7\n", None, {5: 1, 7: 1}),
        ("l.csv", "id,num_tokens\n1,5\n2,7\n", None, {5: 1, 7: 1}),
        ("l.csv", 'text,n\n"a, \n b",5\n', "n", {5: 1}),
        ("l.tsv", "id\tn\n1\t5\n", "n", {5: 1}),
        ("l.jsonl", '{"input_ids": [1, 2, 3], "x": 0}\n', None, {3: 1}),
    ],
)
def test_lengths_are_read_from_lists_and_columns(tmp_path, name, content, column, expected):
    file = tmp_path / name
    file.write_text(content, encoding="utf-8")
    assert counted(batchplan.lengths(file, length_column=column)) == expected
    answer = batchplan.estimate(**STATES, lengths=file, length_column=column)
    assert answer.to_dict()["lengths"]["num_sequences"] == sum(expected.values())


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("l.txt", "5\nfive\n", "line 2: 'five' is no whole number"),
        ("l.txt", "5\n\n0\n", "line 3: a length of 0 tokens"),
        ("l.txt", "5\n-3\n", "line 2: '-3'"),
        ("l.txt", "5\n1.5\n", "line 2: '1.5'"),
        ("l.txt", "9" * 5000, "line 1: '999"),
        ("l.txt", "99999999999\n", "too many: at most 67,108,864"),
        ("l.txt", "", "is empty"),
        ("l.txt", "\n\n", "is empty"),
        ("l.txt", b"5\n\xff\n", "line 2 is not UTF-8"),
        ("l.json", "[5, true]", "entry 2: True"),
        ("l.json", "[]", "is empty"),
        ("l.json", "7", "must hold a JSON list"),
        ("l.json", "[" * 100_000, "is not JSON"),
        ("l.jsonl", '{"length": 5}\n{"length": \n', "line 2 is not JSON"),
        ("l.jsonl", '{"length": 5}\n{"text": "x"}\n', "line 2: there is no 'length', only text"),
        ("l.jsonl", '{"a": 1, "b": 2}\n', "Name it with --length-column: a, b"),
        ("l.csv", "512\n300\n", "has no header"),
        ("l.jsonl", '{"messages": [{"role": "user", "content": "a"}]}', "text needs --tokenizer"),
        ("l.parquet", "no parquet", "arquet"),
    ],
)
def test_what_is_no_length_is_refused_where_it_is(tmp_path, name, content, words):
    file = tmp_path / name
    file.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecError, match=words.replace("(", r"\(")):
        batchplan.lengths(file)


@pytest.mark.parametrize(
    ("rows", "options", "words"),
    [
        ([{"text": "a"}], {"length_column": "n"}, "no column 'n', only text"),
        ([{"text": "a"}], {"text_column": "body"}, "no column 'body', only text"),
        ([{"a": "b", "c": "d"}], {}, "Name it with --text-column.*: a, c"),
        ([{"text": "a"}, {"text": 5}], {}, "line 2: text must be text or a list of chat"),
        ([{"text": "a"}, {"txt": "b"}], {}, "line 2: there is no 'text', only txt"),
        ([{"text": " "}], {}, "has no text, column text"),
        ([{"messages": chat("a", role="nobody")}], {}, "line 1: the chat template refuses.*who"),
        ([{"text": "a"}], {"text_column": "text", "length_column": "text"}, "not both"),
    ],
)
def test_what_is_no_data_set_is_refused_where_it_is(tmp_path, tokenizer, rows, options, words):
    file = json_lines(tmp_path / "data.jsonl", rows)
    with pytest.raises(SpecError, match=words):
        batchplan.estimate(**STATES, dataset=file, tokenizer=str(tokenizer), **options)


def test_a_chat_needs_a_template(tmp_path, tokenizer):
    from transformers import AutoTokenizer

    plain = AutoTokenizer.from_pretrained(tokenizer)
    plain.chat_template = None
    plain.save_pretrained(tmp_path / "plain")
    file = json_lines(tmp_path / "data.jsonl", [{"messages": chat("a")}])
    with pytest.raises(SpecError, match="no chat template"):
        batchplan.lengths(file, tokenizer=str(tmp_path / "plain"))


def test_a_tokenizer_that_cannot_be_had_is_no_bad_input(tmp_path):
    file = json_lines(tmp_path / "data.jsonl", [{"text": "a"}])
    with pytest.raises(SourceError, match="not in the cache, and we are offline"):
        batchplan.lengths(file, tokenizer="no/such-tokenizer", offline=True)
    with pytest.raises(SourceError, match="cannot be loaded"):
        batchplan.lengths(file, tokenizer=str(tmp_path))


def test_parquet_is_read_by_column(tmp_path, tokenizer):
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    file = tmp_path / "data.parquet"
    rows = [{"messages": chat("a b"), "n": 5}, {"messages": chat("a", "b"), "n": 7}]
    parquet.write_table(pyarrow.Table.from_pylist(rows), file)
    assert counted(batchplan.lengths(file, length_column="n")) == {5: 1, 7: 1}
    assert counted(batchplan.lengths(file, tokenizer=str(tokenizer))) == {4: 1, 6: 1}
    with pytest.raises(SpecError, match="no column 'text', only messages, n"):
        batchplan.lengths(file, text_column="text")
    parquet.write_table(pyarrow.table({"n": [5, None]}), file)
    with pytest.raises(SpecError, match="row 2: None is no whole number"):
        batchplan.lengths(file)


@pytest.fixture
def file(tmp_path) -> Path:
    """Ninety sequences of 100 tokens and ten of 1,001."""
    path = tmp_path / "l.txt"
    path.write_text("100\n" * 90 + "1001\n" * 10)
    return path


@pytest.mark.parametrize(
    ("options", "row_tokens", "rows", "tokens"),
    [
        ({}, 1008, 100, 19_010),
        ({"seq_len": 4096}, 1008, 100, 19_010),
        ({"seq_len": 500}, 504, 100, 14_000),
        # A row takes ten of 100; 1,001 leave no room for more in 1,024.
        ({"packing": True}, 1024, 10 + 9, 19_010),
        ({"packing": True, "seq_len": 2048}, 2048, 5 + 5, 19_010),
    ],
)
def test_the_longest_row_is_priced_and_the_data_is_counted(file, options, row_tokens, rows, tokens):
    answer = batchplan.recommend(**STATES, lengths=file, target_tokens="3802", **options)
    plan = answer.to_dict()["lengths"]["plan"]
    assert {found.batch.seq_len for found in answer.plans} == {row_tokens}
    assert (plan["row_tokens"], plan["rows"]) == (row_tokens, rows)
    per_step = answer.plans[0].batch.global_batch_size
    assert plan["tokens_per_step"] == pytest.approx(per_step * tokens / rows)
    assert plan["steps_per_epoch"] == math.ceil(rows / per_step)
    epoch = answer.to_dict()["epoch"]
    assert (epoch["steps"], epoch["tokens"]) == (plan["steps_per_epoch"], tokens)


def test_the_target_counts_tokens_without_padding(file):
    answer = batchplan.recommend(**STATES, lengths=file, target_tokens="76040")
    assert {plan.batch.global_batch_size for plan in answer.plans} == {400}  # 190.1 tokens each
    assert answer.inputs["target_tokens"] == 76_040
    asked = batchplan.recommend(**STATES, lengths=file, target_sequences=400)
    assert asked.plans == answer.plans
    with pytest.raises(SpecError, match="less than one row"):
        batchplan.recommend(**STATES, lengths=file, target_tokens="100")


@pytest.mark.parametrize("options", [{}, {"seq_len": 500}, {"packing": True}])
def test_the_inputs_give_the_same_answer_again(file, options):
    first = batchplan.recommend(**STATES, lengths=file, target_tokens="76040", **options)
    again = batchplan.recommend(**first.inputs)
    assert (again.plans, again.inputs) == (first.plans, first.inputs)
    first = batchplan.estimate(**STATES, lengths=file, **options).to_dict()
    again = batchplan.estimate(**first["inputs"]).to_dict()
    # Given again, a sequence length is no longer chosen, and nothing is said about it.
    assert {**again, "caveats": first["caveats"]} == first


def test_sequences_are_cut_where_the_model_ends(tmp_path):
    from batchplan.api.data import resolve_with_data

    path = tmp_path / "l.txt"
    path.write_text("100\n5000\n")
    request, data = resolve_with_data("pythia-70m", {"gpu": "80GB", "lengths": path}, None)
    assert (request.seq_len, data.seq_len, data.tokens) == (2048, 2048, 2148)
    (text,) = [c.text for c in data.caveats if c.code == "seq-len-from-data"]
    assert "1 of 2 are longer and lose 57.9% of all tokens" in text
    path.write_text("100\n1030\n")
    request, data = resolve_with_data("pythia-70m", {"gpu": "80GB", "lengths": path}, None)
    assert (request.seq_len, data.seq_len) == (1032, 2048)


def test_the_models_own_tokenizer_is_the_default(tmp_path, tokenizer):
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "hidden_size": 64}
    config |= {"num_hidden_layers": 2, "num_attention_heads": 2, "vocab_size": 6}
    (tokenizer / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    from batchplan.api.data import resolve_with_data

    file = json_lines(tmp_path / "data.jsonl", [{"text": "a b c"}])
    _, data = resolve_with_data(str(tokenizer), {"gpu": "80GB", "dataset": file}, None)
    assert data.measured.distribution.lengths == (3,)


OF_DATA = ("dataset", "lengths", "length_column", "text_column", "tokenizer", "packing")
INPUTS = {"lengths": ("file", "micro_batch"), "estimate": OF_DATA, "recommend": OF_DATA}


@pytest.mark.parametrize("answer", INPUTS)
def test_every_field_is_explained(file, answer):
    ask = {
        "lengths": lambda: batchplan.lengths(file),
        "estimate": lambda: batchplan.estimate(**STATES, lengths=file),
        "recommend": lambda: batchplan.recommend(**STATES, lengths=file),
    }[answer]
    document = ask().to_dict()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    inputs = {name: document["inputs"].get(name) for name in INPUTS[answer]}
    assert unmentioned({"lengths": document["lengths"], "inputs": inputs}) == set()


def run(*arguments: str, **more: str) -> subprocess.CompletedProcess[str]:
    root = str(Path(__file__).parent.parent)
    return subprocess.run(
        [sys.executable, "-m", "batchplan", *arguments],
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, "PYTHONPATH": root, "COLUMNS": "80", "NO_COLOR": "", **more},
        check=False,
    )


PARAMS = ["--params", "7e9", "--gpu", "80GB"]


def test_the_command_prints_a_histogram_that_survives_any_encoding(file):
    done = run("lengths", str(file), "--seq-len", "600", PYTHONIOENCODING="ascii")
    assert done.returncode == 0, done.stderr
    assert done.stdout.isascii()
    assert "100 sequences, 19,010 tokens" in done.stdout
    shares = {line.split()[2]: line.count("#") for line in done.stdout.splitlines() if "#" in line}
    assert list(shares) == ["90.0%", "10.0%"]
    assert shares["10.0%"] == -(-shares["90.0%"] // 9)
    assert any(line.split()[0] == "600" for line in done.stdout.splitlines() if line.strip())
    assert all(len(line) <= 80 for line in done.stdout.splitlines())


def test_a_plan_shows_its_data(file):
    done = run("recommend", *PARAMS, "--devices", "8", "--lengths", str(file))
    assert done.returncode == 0, done.stderr
    assert "Data set\nl.txt\n" in done.stdout
    assert "One epoch: 100 sequences, " in done.stdout


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["lengths", "no-such-file.txt"], 2, "no such file"),
        (["lengths", "."], 2, "is a folder"),
        (["lengths", "FILE", "--seq-len", "0"], 2, "--seq-len"),
        (["lengths", "FILE", "--micro-batch", "1e12"], 2, "--micro-batch"),
        (["lengths", "FILE", "--tokenizer", "no/such", "--offline"], 5, "offline"),
        (["estimate", *PARAMS, "--packing"], 2, "--packing needs --dataset FILE or --lengths"),
        (["estimate", *PARAMS, "--lengths", "FILE", "--dataset", "FILE"], 2, "not both"),
        (["estimate", *PARAMS, "--lengths", "FILE", "--tokenizer", "x"], 2, "--tokenizer goes"),
        (["estimate", *PARAMS, "--dataset", "FILE"], 2, "name a tokenizer with --tokenizer"),
        (["recommend", *PARAMS, "--lengths", "FILE", "--epoch-tokens", "1M"], 2, "--epoch-tokens"),
    ],
)
def test_bad_input_is_one_line(file, arguments, code, words):
    done = run(*(str(file) if argument == "FILE" else argument for argument in arguments))
    assert done.returncode == code, done.stderr
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1, done.stderr
    assert words in done.stderr
