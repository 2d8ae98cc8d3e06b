"""The model catalog: every configuration loads, builds, and counts to its published total."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from decimal import Decimal
from pathlib import Path
from typing import Any

import pytest

CATALOG = Path(__file__).resolve().parents[1] / "profiles" / "models"
COLUMNS = [
    "id",
    "file",
    "aliases",
    "num_params",
    "num_params_exact",
    "num_params_source",
    "config_source",
    "checked",
]
UNITS = {"K": 10**3, "M": 10**6, "B": 10**9, "T": 10**12}
# Keys of published files that a config class takes in without naming them among its fields.
COMMON_KEYS = {
    "architectures",
    "head_dim",
    "model_type",
    "partial_rotary_factor",
    "rope_scaling",
    "rope_theta",
    "tie_word_embeddings",
    "torch_dtype",
}
FAMILY_KEYS = {
    "deepseek_v3": {"num_nextn_predict_layers"},
    "gemma3_text": {"rope_local_base_freq", "sliding_window_pattern"},
    "gpt_neox": {"rotary_emb_base", "rotary_pct"},
    "modernbert": {"global_attn_every_n_layers", "global_rope_theta", "local_rope_theta"},
    "t5": {"decoder_start_token_id", "n_positions"},
}


def read_rows() -> list[dict[str, str]]:
    with (CATALOG / "index.csv").open(newline="", encoding="utf-8") as handle:
        return list(csv.DictReader(handle))


ROWS = read_rows()
per_model = pytest.mark.parametrize("row", ROWS, ids=[row["id"] for row in ROWS])


def read_config(row: dict[str, str]) -> dict[str, Any]:
    return json.loads((CATALOG / row["file"]).read_text(encoding="utf-8"))


def load_config(raw: dict[str, Any]) -> Any:
    from transformers import AutoConfig
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    if raw["model_type"] not in CONFIG_MAPPING:
        pytest.skip(f"this transformers release has no model type {raw['model_type']!r}")
    return AutoConfig.for_model(**raw)


def auto_class_for(architecture: str) -> Any:
    import transformers

    if architecture.endswith("ForMaskedLM"):
        return transformers.AutoModelForMaskedLM
    if architecture.endswith("ForConditionalGeneration"):
        return transformers.AutoModelForSeq2SeqLM
    return transformers.AutoModelForCausalLM


def build_on_meta(raw: dict[str, Any]) -> Any:
    """Build the model without storage; skipping weight init would also skip tying the head."""
    import torch

    config = load_config(raw)
    with torch.device("meta"):
        return auto_class_for(raw["architectures"][0]).from_config(config)


def count_parameters(model: Any, raw: dict[str, Any]) -> int:
    """Count as the published checkpoint does.

    transformers 5 ties the head of every T5 built from a config, and keeps it apart when it loads
    a checkpoint whose two matrices differ, so a published `false` adds the head again.
    """
    total = sum(parameter.numel() for parameter in model.parameters())
    head = model.get_output_embeddings().weight
    if not raw["tie_word_embeddings"] and head is model.get_input_embeddings().weight:
        total += head.numel()
    return total


def rounding_of(source: str) -> int | None:
    found = re.search(r"rounded to ([\d.]+)([KMBT])\b", source)
    return int(Decimal(found[1]) * UNITS[found[2]]) if found else None


@pytest.fixture(autouse=True)
def quiet_transformers() -> Iterator[None]:
    from transformers.utils import logging

    before = logging.get_verbosity()
    logging.set_verbosity_error()
    yield
    logging.set_verbosity(before)


def test_the_index_has_exactly_the_documented_columns() -> None:
    header = (CATALOG / "index.csv").read_text(encoding="utf-8").splitlines()[0]
    assert header.split(",") == COLUMNS
    assert all(None not in row and None not in row.values() for row in ROWS)


def test_the_catalog_holds_at_least_sixty_models() -> None:
    assert len(ROWS) >= 60


def test_index_rows_and_files_correspond_one_to_one() -> None:
    listed = [row["file"] for row in ROWS]
    assert len(listed) == len(set(listed))
    assert sorted(listed) == sorted(path.name for path in CATALOG.glob("*.json"))
    assert all(row["file"] == row["id"].replace("/", "--") + ".json" for row in ROWS)


def test_ids_and_aliases_are_unique_whatever_their_case() -> None:
    names = [name for row in ROWS for name in (row["id"], *row["aliases"].split(";"))]
    lowered = [name.lower() for name in names]
    assert all(name and name == name.strip() for name in names)
    assert sorted(lowered) == sorted(set(lowered))


def test_every_model_answers_to_its_bare_lower_case_name() -> None:
    for row in ROWS:
        assert row["id"].split("/")[1].lower() in row["aliases"].split(";"), row["id"]


def test_every_row_says_where_its_numbers_come_from() -> None:
    for row in ROWS:
        assert row["num_params_source"], row["id"]
        assert row["config_source"], row["id"]
        assert re.fullmatch(r"\d{4}-\d{2}-\d{2}", row["checked"]), row["id"]
        assert row["num_params_exact"] in {"yes", "no"}, row["id"]
        is_rounded = rounding_of(row["num_params_source"]) is not None
        assert is_rounded == (row["num_params_exact"] == "no"), row["id"]


def test_a_rounded_figure_is_a_multiple_of_its_rounding() -> None:
    for row in ROWS:
        unit = rounding_of(row["num_params_source"])
        assert unit is None or int(row["num_params"]) % unit == 0, row["id"]


@per_model
def test_every_config_loads_without_a_key_its_class_does_not_know(row: dict[str, str]) -> None:
    import inspect

    raw = read_config(row)
    config_class = type(load_config(raw))
    known = set(inspect.signature(config_class.__init__).parameters)
    known |= set(config_class.attribute_map) | COMMON_KEYS
    known |= FAMILY_KEYS.get(raw["model_type"], set())
    assert set(raw) - known == set()


@per_model
def test_every_config_keeps_its_data_type_and_rotary_base_when_loaded(row: dict[str, str]) -> None:
    raw = read_config(row)
    config = load_config(raw)
    dtype = getattr(config, "dtype", None) or config.torch_dtype
    assert str(dtype).removeprefix("torch.") == raw["torch_dtype"]
    theta = raw.get("rope_theta", raw.get("rotary_emb_base"))
    if theta is None:
        return
    parameters = getattr(config, "rope_parameters", None)
    if parameters is None:  # transformers 4
        assert getattr(config, "rope_theta", theta) == theta
        return
    parameters = parameters.get("full_attention", parameters)
    assert parameters["rope_theta"] == theta
    fraction = raw.get("partial_rotary_factor", raw.get("rotary_pct"))
    assert fraction is None or parameters["partial_rotary_factor"] == fraction
    scaling = raw.get("rope_scaling") or {}
    assert {key: parameters.get(key) for key in scaling} == scaling


@per_model
def test_every_config_states_the_fields_a_plan_needs(row: dict[str, str]) -> None:
    raw = read_config(row)
    assert len(raw["architectures"]) == 1
    assert raw["torch_dtype"] in {"float32", "float16", "bfloat16"}
    assert isinstance(raw["tie_word_embeddings"], bool)
    assert raw["vocab_size"] > 0
    # BLOOM has no position limit of its own: it uses ALiBi.
    limits = {"max_position_embeddings", "n_positions"} & set(raw)
    assert limits or raw["model_type"] == "bloom"
    layers = raw.get("num_hidden_layers", 0)
    for key in ("layer_types", "no_rope_layers"):
        assert key not in raw or len(raw[key]) == layers


@pytest.mark.slow
@per_model
def test_every_parameter_count_equals_the_published_total(row: dict[str, str]) -> None:
    raw = read_config(row)
    model = build_on_meta(raw)
    assert type(model).__name__ == raw["architectures"][0]
    published = int(row["num_params"])
    counted = count_parameters(model, raw)
    if row["num_params_exact"] == "yes":
        assert counted == published
        return
    unit = rounding_of(row["num_params_source"])
    assert unit is not None
    assert 2 * abs(counted - published) <= unit
