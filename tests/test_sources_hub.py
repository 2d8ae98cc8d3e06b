"""The Hub through its real client, in a process of its own, against a real server on 127.0.0.1."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time

import pytest
from hub_server import COMMIT, FakeHub, Repo
from ports import closed_port

OLD_COMMIT = "f" * 40
CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "vocab_size": 1000,
    "max_position_embeddings": 512,
}
RAW = json.dumps(CONFIG).encode()
SOON_SECONDS = 45
"""The client is given up on after 15; the rest is for a loaded machine to start a process. By
itself the client retries for minutes."""

CODE = """
import json, sys
from batchplan.errors import BatchplanError
from batchplan.sources import resolve_model
text, options = json.loads(sys.argv[1])
try:
    model = resolve_model(text, **options)
except BatchplanError as error:
    print(json.dumps({"error": type(error).__name__, "exit_code": error.exit_code,
                      "text": str(error)}))
else:
    print(json.dumps({"info": model.info.model_dump(), "config": model.config}))
"""


@pytest.fixture
def hub():
    repos = {
        "org/good": Repo(RAW, revisions={"main": COMMIT, COMMIT: COMMIT, "v1": OLD_COMMIT}),
        "oldstyle": Repo(RAW),
        "org/gated-401": Repo(refusal=(401, "GatedRepo")),
        "org/gated-403": Repo(refusal=(403, "GatedRepo")),
        "org/missing-404": Repo(refusal=(404, "RepoNotFound")),
        "org/forbidden": Repo(refusal=(403, "")),
        "org/busy": Repo(refusal=(503, "")),
        "org/limited": Repo(refusal=(429, "")),
        "org/gguf-only": Repo(config=None),
        "org/list": Repo(b"[1, 2]"),
        "org/half": Repo(RAW[:-9]),
        "org/negative": Repo(json.dumps({**CONFIG, "num_hidden_layers": -2}).encode()),
        "org/deep": Repo(b"[" * 100_000),
        "org/huge": Repo(b" " * 10_000_000),
        "org/cut": Repo(RAW, cut_after=10),
    }
    with FakeHub(repos) as server:
        yield server


@pytest.fixture
def ask(tmp_path):
    """Return a function that resolves a model in a new process and gives its answer back."""

    def run(text, endpoint, *, env=None, **options):
        kept = {key: os.environ[key] for key in ("PATH", "PYTHONPATH") if key in os.environ}
        settings = {
            "HF_ENDPOINT": endpoint,
            "HF_HOME": str(tmp_path / "hf"),
            "HOME": str(tmp_path),
            "NO_PROXY": "127.0.0.1",
            "PYTHONWARNINGS": "error",
        }
        done = subprocess.run(
            [sys.executable, "-c", CODE, json.dumps([text, options])],
            capture_output=True,
            text=True,
            env=kept | settings | (env or {}),
            timeout=60,
            check=False,
        )
        assert done.returncode == 0, done.stderr
        answer = json.loads(done.stdout)
        answer["stderr"] = done.stderr
        if "text" in answer:
            assert "\n" not in answer["text"]
        return answer

    return run


def test_a_model_on_the_hub_is_found_with_its_commit(hub, ask):
    answer = ask("org/good", hub.url)
    assert answer["config"] == CONFIG
    assert answer["info"]["revision"] == COMMIT
    assert answer["info"]["source"] == f"hub: org/good at {COMMIT}"
    assert answer["stderr"] == ""  # no progress bar


def test_an_id_without_a_slash_is_asked_for_too(hub, ask):
    assert ask("oldstyle", hub.url)["config"] == CONFIG


def test_a_config_in_the_cache_costs_one_question(hub, ask):
    ask("org/good", hub.url)
    hub.requests.clear()
    assert ask("org/good", hub.url)["config"] == CONFIG
    # The client may ask the Hub other things of its own.
    assert [method for method, path in hub.requests if "/resolve/" in path] == ["HEAD"]


def test_a_changed_model_is_downloaded_again(hub, ask):
    ask("org/good", hub.url)
    changed = {**CONFIG, "num_hidden_layers": 3}
    hub.repos["org/good"] = Repo(json.dumps(changed).encode(), revisions={"main": OLD_COMMIT})
    assert ask("org/good", hub.url)["config"] == changed
    assert ask("org/good", hub.url, offline=True)["config"] == changed


@pytest.mark.parametrize("way", ["argument", "variable", "dead hub", "busy hub"])
def test_what_was_fetched_once_is_there_without_the_hub(hub, ask, way):
    ask("org/good", hub.url)
    hub.requests.clear()
    if way == "argument":
        answer = ask("org/good", hub.url, offline=True)
    elif way == "variable":
        answer = ask("org/good", hub.url, env={"HF_HUB_OFFLINE": "1"})
    elif way == "dead hub":
        with closed_port() as port:
            answer = ask("org/good", f"http://127.0.0.1:{port}")
    else:
        hub.repos["org/good"].refusal = (503, "")
        answer = ask("org/good", hub.url)
    assert answer["config"] == CONFIG
    assert answer["info"]["source"] == f"hub: org/good at {COMMIT} (cached)"
    if way in {"argument", "variable"}:
        assert hub.requests == []


@pytest.mark.parametrize("revision", ["v1", "main", COMMIT])
def test_a_revision_is_found(hub, ask, revision):
    answer = ask("org/good", hub.url, revision=revision)
    assert answer["info"]["revision"] == (OLD_COMMIT if revision == "v1" else COMMIT)


def test_with_a_revision_the_catalog_is_not_asked(hub, ask):
    hub.repos["Qwen/Qwen2.5-7B"] = Repo(RAW)
    answer = ask("Qwen/Qwen2.5-7B", hub.url, revision="main")
    assert answer["config"] == CONFIG
    assert ask("Qwen/Qwen2.5-7B", hub.url)["info"]["source"].startswith("catalog")


@pytest.mark.parametrize(
    ("text", "options", "words"),
    [
        ("org/gated-401", {}, ["gated", "licence", "hf auth login"]),
        ("org/gated-403", {}, ["gated", "licence", "HF_TOKEN"]),
        ("org/missing-404", {}, ["no model org/missing-404", "spelling"]),
        ("org/unknown", {}, ["no model org/unknown", "spelling", "private"]),
        ("Qwen/Qwen2.5-7X", {}, ["Nearest in the catalog", "Qwen/Qwen2.5-7B"]),
        ("gpt3", {}, ["no model gpt3", "openai-community/gpt2"]),
        ("org/good", {"revision": "v9"}, ["no revision 'v9'", "branch, tag or commit"]),
        ("org/gguf-only", {}, ["no config.json at its default branch", "GGUF"]),
        ("org/forbidden", {}, ["HTTP 403", "hf auth login"]),
        ("org/busy", {}, ["cannot be reached"]),
        ("org/limited", {}, ["cannot be reached"]),
        ("org/huge", {}, ["10,000,000 bytes"]),
        ("org/good", {"offline": True}, ["org/good is not in the Hub's cache", "offline"]),
    ],
)
def test_each_way_to_fail_says_what_to_try(hub, ask, text, options, words):
    started = time.monotonic()
    answer = ask(text, hub.url, **options)
    assert time.monotonic() - started < SOON_SECONDS
    assert answer["error"] == "SourceError"
    assert answer["exit_code"] == 5
    for word in words:
        assert word in answer["text"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("org/list", "a list of 2, expected an object"),
        ("org/half", "no JSON"),
        ("org/negative", "num_hidden_layers is -2"),
        ("org/deep", "nested too deeply"),
    ],
)
def test_a_hostile_config_is_bad_input(hub, ask, text, words):
    answer = ask(text, hub.url)
    assert answer["error"] == "SpecError"
    assert answer["exit_code"] == 2
    assert words in answer["text"]


@pytest.mark.slow
def test_a_download_that_breaks_off_fails_within_a_minute(hub, ask):
    answer = ask("org/cut", hub.url)
    assert answer["error"] == "SourceError"
    assert ask("org/cut", hub.url, offline=True)["error"] == "SourceError"


def test_a_refused_connection_fails_fast(ask):
    started = time.monotonic()
    with closed_port() as port:
        answer = ask("org/good", f"http://127.0.0.1:{port}")
    assert time.monotonic() - started < SOON_SECONDS
    assert answer["exit_code"] == 5
    assert "cannot be reached" in answer["text"]


def test_a_hub_that_never_answers_is_given_up_on(ask):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        started = time.monotonic()
        answer = ask("org/good", f"http://127.0.0.1:{silent.getsockname()[1]}")
    assert time.monotonic() - started < SOON_SECONDS
    assert "cannot be reached" in answer["text"]


def test_the_variable_that_forbids_asking_is_named(hub, ask):
    answer = ask("org/good", hub.url, env={"HF_HUB_OFFLINE": "1"})
    assert answer["exit_code"] == 5
    assert "HF_HUB_OFFLINE" in answer["text"]
    assert hub.requests == []


@pytest.mark.parametrize("endpoint", ["not-a-url", "http://", "ftp://127.0.0.1"])
def test_a_wrong_endpoint_is_a_clear_failure(ask, endpoint):
    assert ask("org/good", endpoint)["exit_code"] == 5


def test_a_garbled_token_is_a_clear_failure(hub, ask):
    assert ask("org/unknown", hub.url, env={"HF_TOKEN": "tok\u00e9n"})["exit_code"] == 5


def test_a_cache_that_cannot_be_written_is_a_clear_failure(hub, ask, tmp_path):
    (tmp_path / "file").write_text("no folder")
    answer = ask("org/good", hub.url, env={"HF_HOME": str(tmp_path / "file")})
    assert answer["exit_code"] == 5


@pytest.mark.parametrize("revision", ["../../x", "", "a b", "x" * 300, "-v"])
def test_what_can_be_no_revision_is_bad_input(hub, ask, revision):
    answer = ask("org/good", hub.url, revision=revision)
    assert answer["exit_code"] == 2
    assert "no revision" in answer["text"]
    assert hub.requests == []
