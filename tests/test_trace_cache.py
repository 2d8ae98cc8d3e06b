"""Profiles on disk: found, rebuilt when not trustworthy, built once, never in the way."""

from __future__ import annotations

import json
import multiprocessing
import os
import stat
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from strategies import toy_profile

from batchplan.errors import TraceError
from batchplan.profile import ActivationProfile
from batchplan.tracer.cache import cache_key, load_or_build

KEY = "k" * 64
PROFILE = toy_profile()
OTHER = replace(PROFILE, architecture="Other")


def refuse() -> ActivationProfile:
    raise AssertionError("built although it was cached")


@pytest.fixture
def filled(tmp_path: Path) -> Path:
    load_or_build(KEY, lambda: PROFILE, directory=tmp_path)
    return tmp_path / f"{KEY}.json"


def test_what_was_built_is_found_again(filled: Path):
    assert load_or_build(KEY, refuse, directory=filled.parent) == PROFILE


def test_a_profile_survives_plain_data():
    assert ActivationProfile.from_dict(json.loads(json.dumps(PROFILE.to_dict()))) == PROFILE


def edited(path: Path, change: Any) -> bytes:
    entry = json.loads(path.read_text())
    change(entry)
    return json.dumps(entry).encode()


@pytest.mark.parametrize(
    "spoil",
    [
        lambda path: path.read_bytes()[:-40],
        lambda path: b"",
        lambda path: b"\x00\xff" * 50,
        lambda path: b"[" * 100_000,
        lambda path: b"[1, 2]",
        lambda path: edited(path, lambda e: e.update(key="other")),
        lambda path: edited(path, lambda e: e.pop("sha256")),
        lambda path: edited(path, lambda e: e["profile"].update(num_params=1)),
        lambda path: edited(path, lambda e: e["profile"].update(schema_version=0)),
    ],
    ids=["truncated", "empty", "binary", "deep", "list", "key", "no sum", "edited", "version"],
)
def test_an_entry_that_cannot_be_trusted_is_rebuilt(filled: Path, spoil: Any):
    filled.write_bytes(spoil(filled))
    assert load_or_build(KEY, lambda: OTHER, directory=filled.parent) == OTHER
    assert load_or_build(KEY, refuse, directory=filled.parent) == OTHER


def test_an_entry_under_another_key_is_not_taken_for_it(filled: Path):
    filled.rename(filled.parent / ("x" * 64 + ".json"))
    assert load_or_build("x" * 64, lambda: OTHER, directory=filled.parent) == OTHER


def test_a_failed_build_leaves_nothing_behind(tmp_path: Path):
    def fail() -> ActivationProfile:
        raise TraceError("no")

    with pytest.raises(TraceError, match="no"):
        load_or_build(KEY, fail, directory=tmp_path)
    assert not list(tmp_path.glob("*.json"))
    assert load_or_build(KEY, lambda: PROFILE, directory=tmp_path) == PROFILE


def slow_build(directory: str) -> None:
    def build() -> ActivationProfile:
        time.sleep(0.3)
        (Path(directory) / f"built-{os.getpid()}").touch()
        return PROFILE

    load_or_build(KEY, build, directory=Path(directory))


def test_two_processes_build_an_entry_once(tmp_path: Path):
    context = multiprocessing.get_context("spawn")
    children = [context.Process(target=slow_build, args=(str(tmp_path),)) for _ in range(3)]
    for child in children:
        child.start()
    for child in children:
        child.join(timeout=60)
        assert child.exitcode == 0
    assert len(list(tmp_path.glob("built-*"))) == 1
    assert load_or_build(KEY, refuse, directory=tmp_path) == PROFILE


@pytest.mark.parametrize("kind", ["file", "missing parent is a file"])
def test_a_cache_that_cannot_be_used_costs_a_warning_not_the_answer(tmp_path: Path, kind: str):
    blocked = tmp_path / "taken"
    blocked.write_text("not a folder")
    directory = blocked if kind == "file" else blocked / "below"
    warnings: list[str] = []
    found = load_or_build(KEY, lambda: PROFILE, directory=directory, on_warning=warnings.append)
    assert found == PROFILE
    assert warnings
    assert all("\n" not in line for line in warnings)
    assert blocked.read_text() == "not a folder"


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_an_unreadable_folder_costs_a_warning_not_the_answer(tmp_path: Path):
    tmp_path.chmod(stat.S_IRUSR)
    try:
        assert load_or_build(KEY, lambda: PROFILE, directory=tmp_path) == PROFILE
    finally:
        tmp_path.chmod(stat.S_IRWXU)


def test_the_key_depends_on_every_part_and_not_on_their_order():
    base = {"config": {"a": 1, "b": 2}, "versions": {"torch": "2.13.0"}}
    assert cache_key(base) == cache_key(dict(reversed(base.items())))
    changed = [
        base | {"versions": {"torch": "2.12.0"}},
        base | {"config": {"a": 1, "b": 3}},
        base | {"extra": None},
    ]
    assert len({cache_key(parts) for parts in [base, *changed]}) == 4


spoilable = st.sampled_from(sorted(PROFILE.to_dict()))
junk = st.one_of(st.none(), st.text(max_size=3), st.just([]), st.just({}), st.just([{}]))


@given(spoilable, junk)
def test_a_profile_with_a_spoilt_field_is_refused_or_read_never_a_crash(field: str, value: Any):
    data = PROFILE.to_dict() | {field: value}
    try:
        found = ActivationProfile.from_dict(data)
    except TraceError:
        return
    assert ActivationProfile.from_dict(found.to_dict()) == found
