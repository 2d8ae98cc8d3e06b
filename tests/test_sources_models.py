"""Models: resolution order, local files, and hostile configs refused before anything heavy."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from batchplan.errors import BatchplanError, SourceError, SpecError
from batchplan.sources.config_check import check_config
from batchplan.sources.local_config import MAX_CONFIG_BYTES, parse_config
from batchplan.sources.models import list_models, resolve_model

LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    """Forbid the network: a test that asks it by mistake fails fast."""
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def write(path, config):
    path.write_text(json.dumps(config), encoding="utf-8")
    return str(path)


def test_a_file_and_its_folder_are_the_same_model(tmp_path):
    file = write(tmp_path / "config.json", LLAMA)
    by_file, by_folder = resolve_model(file), resolve_model(str(tmp_path))
    assert by_file.config == by_folder.config == LLAMA
    assert by_file.info.source == by_folder.info.source == f"local: {file}"
    assert by_file.info.architecture == "LlamaForCausalLM"
    assert by_file.info.max_seq_len == 512
    assert by_file.info.hidden_size == 64
    assert by_file.info.num_layers == 2
    assert not by_file.needs_remote_code


def test_a_local_path_wins_over_the_catalog(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    write(tmp_path / "gpt2" / "config.json", LLAMA)
    monkeypatch.chdir(tmp_path)
    assert resolve_model("gpt2").info.architecture == "LlamaForCausalLM"


def test_a_folder_without_a_config_does_not_hide_the_catalog(tmp_path, monkeypatch):
    (tmp_path / "gpt2").mkdir()
    monkeypatch.chdir(tmp_path)
    assert resolve_model("gpt2").info.architecture == "GPT2LMHeadModel"
    with pytest.raises(SourceError, match=r"holds no config\.json"):
        resolve_model("./gpt2")


@pytest.mark.parametrize("text", ["Qwen/Qwen2.5-7B", "qwen/qwen2.5-7b", " Qwen/Qwen2.5-7B "])
def test_a_catalog_model_needs_no_network_and_no_case(text):
    model = resolve_model(text)
    assert model.info.id == "Qwen/Qwen2.5-7B"
    assert model.info.source.startswith("catalog")
    assert model.info.hidden_size == 3584
    assert model.info.num_layers == 28
    assert model.num_params == 7_615_616_512
    assert model.config["model_type"] == "qwen2"


def test_an_alias_means_its_model():
    assert resolve_model("GPT2").info.id == "openai-community/gpt2"
    assert resolve_model("gpt2").info.max_seq_len == 1024


@pytest.mark.parametrize("row", list_models(), ids=lambda row: row.id)
def test_every_catalog_model_resolves_by_every_name(row):
    model = resolve_model(row.id)
    assert model.info.id == row.id
    assert model.info.hidden_size
    assert model.info.num_layers
    assert row.num_params
    for alias in row.aliases:
        assert resolve_model(alias).info.id == row.id, alias


def test_no_catalog_name_denotes_two_models():
    names = [name.lower() for row in list_models() for name in {row.id, *row.aliases}]
    assert len(names) == len(set(names))


@pytest.mark.parametrize(
    "text", ["./nowhere", "/nowhere/config.json", "nowhere.json", "~/nowhere/"]
)
def test_a_path_that_does_not_exist_is_not_taken_for_a_hub_id(text):
    with pytest.raises(SourceError, match="does not exist"):
        resolve_model(text)


def test_an_adapter_folder_names_its_base_model(tmp_path):
    write(tmp_path / "adapter_config.json", {"base_model_name_or_path": "Qwen/Qwen2.5-7B"})
    with pytest.raises(SourceError, match=r"LoRA adapter.*\(Qwen/Qwen2\.5-7B\)"):
        resolve_model(str(tmp_path))


def test_a_local_path_has_no_revision(tmp_path):
    with pytest.raises(SpecError, match="Leave out --revision"):
        resolve_model(write(tmp_path / "config.json", LLAMA), revision="main")


@pytest.mark.parametrize(
    "text", ["", "   ", "a/b/c", "two words", "-x", "a\0b", "https://hf.co/x/y"]
)
def test_what_can_be_no_model_is_bad_input(text):
    with pytest.raises(SpecError):
        resolve_model(text, offline=True)


@pytest.mark.parametrize(
    ("config", "architecture", "max_seq_len", "hidden_size", "num_layers"),
    [
        ({"model_type": "gpt2", "n_embd": 8, "n_layer": 3, "n_positions": 16}, "gpt2", 16, 8, 3),
        ({"model_type": "t5", "d_model": 8, "num_layers": 3, "n_positions": 512}, "t5", None, 8, 6),
        (
            {"model_type": "bart", "d_model": 8, "encoder_layers": 2, "decoder_layers": 3},
            *("bart", None, 8, 5),
        ),
        (
            {
                **{"model_type": "roberta", "hidden_size": 8, "num_hidden_layers": 2},
                **{"max_position_embeddings": 514, "pad_token_id": 1},
            },
            *("roberta", 512, 8, 2),
        ),
        (
            {"model_type": "llava", "text_config": LLAMA, "vision_config": {"hidden_size": 9}},
            *("llava", 512, 64, 2),
        ),
        ({"model_type": "mpt", "d_model": 8, "n_layers": 2, "max_seq_len": 64}, "mpt", 64, 8, 2),
    ],
)
def test_sizes_are_found_under_every_familys_names(
    tmp_path, config, architecture, max_seq_len, hidden_size, num_layers
):
    info = resolve_model(write(tmp_path / "config.json", config)).info
    assert info.architecture == architecture
    assert info.max_seq_len == max_seq_len
    assert info.hidden_size == hidden_size
    assert info.num_layers == num_layers


def test_code_of_its_own_is_flagged_and_never_allowed_by_itself(tmp_path):
    known = write(tmp_path / "known.json", {**LLAMA, "auto_map": {"AutoConfig": "c.C"}})
    assert resolve_model(known).needs_remote_code
    alone = write(tmp_path / "alone.json", {"hidden_size": 8, "auto_map": {"AutoConfig": "c.C"}})
    with pytest.raises(SpecError, match="--trust-remote-code"):
        resolve_model(alone)
    assert resolve_model(alone, trust_remote_code=True).needs_remote_code


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"hidden_size": -64}, "hidden_size is -64, expected a whole number from 1 to"),
        ({"hidden_size": 0}, "hidden_size is 0"),
        ({"hidden_size": "4096"}, "hidden_size is '4096'"),
        ({"hidden_size": True}, "hidden_size is True"),
        ({"hidden_size": 4096.0}, r"hidden_size is 4096\.0"),
        ({"hidden_size": {}}, "hidden_size is an object of 0"),
        ({"hidden_size": []}, "hidden_size is a list of 0"),
        ({"hidden_size": 10**30}, "hidden_size is 10{30}, expected"),
        ({"hidden_size": 10**400}, "hidden_size is a number of 1329 bits"),
        ({"num_hidden_layers": 10**9}, "num_hidden_layers is 1000000000.* 2,000"),
        ({"n_layer": 10**6}, "n_layer"),
        ({"num_layers": -1}, "num_layers"),
        ({"encoder_layers": 10**6}, "encoder_layers"),
        ({"vocab_size": 10**8}, "vocab_size is 100000000, .* 10,000,000"),
        ({"num_attention_heads": 10**7}, "num_attention_heads"),
        ({"num_key_value_heads": [4, -4]}, "num_key_value_heads is a list of 2"),
        ({"num_experts": 10**6}, "num_experts"),
        ({"max_position_embeddings": -1}, "max_position_embeddings"),
        ({"text_config": {"hidden_size": "big"}}, r"text_config\.hidden_size is 'big'"),
        ({"encoder": {"layers": [{"d_model": -1}]}}, r"encoder\.layers\.0\.d_model is -1"),
        ({"model_type": 7}, "model_type is 7"),
        ({"model_type": "../../etc/passwd"}, "model_type is"),
        ({"model_type": None}, "has no model_type"),
        ({"architectures": "Llama"}, "architectures"),
        ({"architectures": [1]}, "architectures"),
        ({"architectures": ["\x1b[31mred"]}, "architectures"),
        ({"auto_map": "code"}, "auto_map"),
        ({"\x1b[31m": {"d_model": -1}}, r"'\\x1b\[31m'\.d_model"),
    ],
)
def test_a_size_that_makes_no_sense_is_named_with_its_value(tmp_path, change, message):
    file = write(tmp_path / "config.json", {**LLAMA, **change})
    with pytest.raises(SpecError, match=message) as caught:
        resolve_model(file)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400 + len(file)


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "is no JSON"),
        (b"not json", "is no JSON"),
        (json.dumps(LLAMA).encode()[:-20], "cut off"),
        (b"[]", "a list of 0, expected an object"),
        (b"null", "None, expected an object"),
        (b'"text"', "'text', expected an object"),
        (b"{}", "no model_type"),
        (b'{"model_type": "llama", "rope_theta": NaN}', "NaN"),
        (b'{"model_type": "llama", "rope_theta": -Infinity}', "Infinity"),
        (b'{"model_type": "llama", "rope_theta": 1e999}', "finite"),
        (b'{"model_type": "llama", "hidden_size": ' + b"9" * 5000 + b"}", "thousands of digits"),
        (b"\x89PNG\r\n\x1a\n\x00\xff\xfe", "no text file"),
        (b"\xff\xfe{\x00}\x00", "no text file"),
        (b"[" * 200_000, "nested too deeply"),
        (b'{"a":' * 200_000, "nested too deeply"),
        (b'{"a":' * 40 + b"1" + b"}" * 40, "nested more than 32"),
        (b"\x00" * 100, "is no JSON"),
        (b" " * (MAX_CONFIG_BYTES + 1), "larger than 4 MiB"),
    ],
    ids=range(18),
)
def test_a_broken_file_is_refused_in_one_line(tmp_path, raw, message):
    path = tmp_path / "config.json"
    path.write_bytes(raw)
    with pytest.raises(SpecError, match=message) as caught:
        resolve_model(str(path))
    assert "\n" not in str(caught.value)


def test_a_file_of_ten_megabytes_is_not_read_to_its_end(tmp_path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({**LLAMA, "junk": "x" * 10_000_000}), encoding="utf-8")
    with pytest.raises(SpecError, match="larger than 4 MiB"):
        resolve_model(str(path))


def test_a_chain_of_nested_language_models_takes_no_time(tmp_path):
    config: dict = {"model_type": "x"}
    for _ in range(28):
        config = {"model_type": "x", "text_config": config, "decoder": {}}
    started = time.process_time()
    assert resolve_model(write(tmp_path / "config.json", config)).info.hidden_size is None
    assert time.process_time() - started < 2


def test_a_byte_order_mark_is_forgiven(tmp_path):
    path = tmp_path / "config.json"
    path.write_bytes(b"\xef\xbb\xbf" + json.dumps(LLAMA).encode())
    assert resolve_model(str(path)).info.hidden_size == 64


def test_per_layer_sizes_and_fields_that_mean_none_pass():
    check_config({**LLAMA, "intermediate_size": [128, 0, 256]}, "config")
    check_config({**LLAMA, "num_experts": 0, "q_lora_rank": None, "n_inner": None}, "config")
    check_config({**LLAMA, "label2id": {"num_layers": 0, "hidden_size": -3}}, "config")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from([*LLAMA, "text_config", "auto_map", "x"]), inner)
    ),
    max_leaves=20,
)


@given(JSON)
def test_the_check_passes_or_says_what_is_wrong_on_any_json(config):
    try:
        check_config(config, "config")
    except SpecError as error:
        assert "\n" not in str(error)  # noqa: PT017 -- passing is right too


@given(st.fixed_dictionaries({key: JSON | st.just(value) for key, value in LLAMA.items()}))
def test_what_passes_the_check_can_be_resolved(tmp_path_factory, config):
    path = tmp_path_factory.mktemp("config") / "config.json"
    path.write_text(json.dumps(config), encoding="utf-8")
    try:
        info = resolve_model(str(path)).info
    except SpecError:
        return
    assert info.hidden_size is None or info.hidden_size > 0


@given(st.binary(max_size=200))
def test_any_bytes_parse_or_are_refused(raw):
    try:
        parse_config(raw, "config")
    except BatchplanError as error:
        assert isinstance(error, SpecError)  # noqa: PT017 -- passing is right too


def test_resolving_a_catalog_model_loads_nothing_heavy():
    code = (
        "import sys; from batchplan.sources import resolve_model; resolve_model('gpt2')\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "huggingface_hub", "pynvml", "rich", "typer", "numpy"}
    assert heavy.isdisjoint(loaded.stdout.split())


@pytest.mark.parametrize("kind", ["loop", "fifo", "folder"])
def test_a_config_that_is_no_regular_file_is_called_that(tmp_path: Path, kind: str):
    config = tmp_path / "config.json"
    if kind == "loop":
        config.symlink_to(config)
    elif kind == "fifo":
        os.mkfifo(config)
    else:
        config.mkdir()
    for text in (str(tmp_path), str(config)):
        if kind == "folder" and text == str(config):
            continue  # a folder without a config is told as such
        with pytest.raises(SourceError, match="is not a readable file"):
            resolve_model(text)
