"""Floats that JSON lacks, as transformers writes them into a config.json."""

from __future__ import annotations

import json

import pytest


def test_an_infinite_time_step_is_read_as_transformers_saved_it(tmp_path):
    transformers = pytest.importorskip("transformers")
    from batchplan.tracer.worker.build import _config

    saved = transformers.Mamba2Config(num_heads=4, head_dim=8, hidden_size=16)
    saved.save_pretrained(tmp_path)
    content = json.loads((tmp_path / "config.json").read_text())
    config = _config({"config": content, "trust_remote_code": False})
    assert list(config.time_step_limit) == [0.0, float("inf")]
