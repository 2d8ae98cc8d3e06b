"""The worker process: its requests, its errors, its environment, its time and its memory."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import textwrap
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from clocks import child_seconds
from older import OLD, OLDEST

import batchplan
from batchplan.errors import SpecError, TraceError
from batchplan.memory import estimate
from batchplan.sources import resolve_model
from batchplan.spec import Batch, Cluster, Gpu, Recipe
from batchplan.tracer import activation_profile
from batchplan.tracer.environment import library_versions
from batchplan.tracer.request import trace_request
from batchplan.tracer.runner import run_worker

TINY = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "vocab_size": 128,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
BF16 = Recipe(numerics="bf16")


def request(config: dict[str, Any], recipe: Recipe = BF16, seq_len: int = 64) -> dict[str, Any]:
    return trace_request(config=config, model_ref="", recipe=recipe, seq_len=seq_len)


def test_sharding_optimizer_and_offload_do_not_change_the_request():
    plain = request(TINY)
    for change in (
        {"sharding": "zero3"},
        {"optimizer": "lion"},
        {"offload": "optimizer"},
        {"optimizer_impl": "foreach"},
        {"lora_rank": 64},
    ):
        assert request(TINY, Recipe.model_validate({"numerics": "bf16"} | change)) == plain


def test_what_changes_activations_changes_the_request():
    recipes = [
        BF16,
        Recipe(numerics="fp32"),
        Recipe(numerics="bf16-autocast"),
        Recipe(numerics="bf16", checkpointing="full"),
        Recipe(numerics="bf16", attention="eager"),
        Recipe(numerics="bf16", method="lora"),
        Recipe(numerics="bf16", method="lora", lora_rank=8),
        Recipe(numerics="bf16", method="lora", lora_dropout=0.1),
    ]
    assert len({json.dumps(request(TINY, recipe)) for recipe in recipes}) == len(recipes)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"model_type": "no-such-model"}, "does not accept this config"),
        (TINY | {"num_attention_heads": 7}, "LlamaForCausalLM|does not accept"),
        ({"model_type": "clip"}, "no language-model class with a loss"),
        (
            {"model_type": "no-such-model", "auto_map": {"AutoConfig": "x.Y"}},
            "--trust-remote-code",
        ),
        ({"model_type": "llama", "hidden_size": "wide"}, "does not accept|cannot be built"),
    ],
)
def test_a_config_that_cannot_run_is_one_clear_line(config: dict[str, Any], message: str):
    with pytest.raises((SpecError, TraceError), match=message) as caught:
        run_worker(request(config))
    assert "Error:" not in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


@pytest.mark.slow
def test_adapters_on_names_the_model_does_not_have_are_refused():
    recipe = Recipe(numerics="bf16", method="lora", lora_targets="no_such_proj")
    with pytest.raises(SpecError, match="peft refuses these LoRA targets"):
        run_worker(request(TINY, recipe))


T5 = {
    **{"model_type": "t5", "architectures": ["T5ForConditionalGeneration"], "vocab_size": 128},
    **{"d_model": 64, "d_ff": 96, "d_kv": 16, "num_heads": 4, "num_layers": 2},
}
BERT = {
    **{"model_type": "bert", "architectures": ["BertForMaskedLM"], "vocab_size": 128},
    **{"hidden_size": 64, "intermediate_size": 96, "num_attention_heads": 4},
    **{"num_hidden_layers": 2, "max_position_embeddings": 48},
}


@pytest.mark.slow
@pytest.mark.parametrize("config", [T5, BERT])
def test_a_loss_that_a_model_never_asks_for_is_not_replaced(config: dict[str, Any]):
    recipe = Recipe(numerics="bf16", loss="chunked")
    with pytest.raises(TraceError, match=r"computes its own loss.*--loss standard"):
        run_worker(request(config, recipe, seq_len=32))


@pytest.mark.slow
def test_more_tokens_than_learned_positions_is_said_before_what_torch_says(tmp_path: Path):
    path = tmp_path / "config.json"
    path.write_text(json.dumps(BERT))
    with pytest.raises(TraceError, match=r"^--seq-len 64 is more than the 48 positions of .*: The"):
        batchplan.estimate(str(path), gpu="a100-80gb", seq_len=64)


def script(path: Path, body: str) -> Path:
    path.write_text(f"#!{sys.executable}\n{textwrap.dedent(body)}")
    path.chmod(0o755)
    return path


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("import sys; sys.exit('boom')", "exited with 1: boom"),
        ("import os; os.kill(os.getpid(), 9)", "killed by signal 9"),
        ("print('not json')", "not JSON"),
        ("print('{}')", "neither a profile nor an error"),
        ('print(\'{"error": "why"}\')', "why"),
        ("import sys; sys.stdin.close(); print('[]')", "neither a profile nor an error"),
    ],
)
def test_a_worker_that_fails_is_told_in_one_line(tmp_path: Path, body: str, message: str):
    with pytest.raises(TraceError, match=message) as caught:
        run_worker({}, python=script(tmp_path / "python", body))
    assert "\n" not in str(caught.value)


def test_an_interruption_amid_progress_lets_the_listener_end_first(tmp_path: Path):
    """Its stream closed under it would be a thread's traceback on the user's screen."""

    def interrupted(*_: Any) -> None:
        raise KeyboardInterrupt

    told: list[str] = []
    asking = threading.get_ident()

    def tell(text: str) -> None:
        if not told:
            signal.pthread_kill(asking, signal.SIGUSR1)
            time.sleep(0.5)
        told.append(text)

    body = "import sys, time; sys.stderr.write('progress: 1\\nprogress: 2\\n'); time.sleep(1000)"
    before = signal.signal(signal.SIGUSR1, interrupted)
    try:
        with pytest.raises(KeyboardInterrupt):
            run_worker({}, python=script(tmp_path / "python", body), on_progress=tell)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert told == ["1", "2"]


def test_an_interpreter_that_does_not_run_is_bad_input(tmp_path: Path):
    with pytest.raises(SpecError, match="is not a Python that runs"):
        library_versions(tmp_path / "missing")


def test_an_environment_without_transformers_is_told_what_to_install(tmp_path: Path):
    bare = script(tmp_path / "python", 'print(\'{"torch": "2.4.0"}\')')
    with pytest.raises(TraceError, match="has no transformers"):
        library_versions(bare)


@pytest.mark.slow
def test_the_worker_needs_no_batchplan_in_its_environment(tmp_path: Path):
    """An interpreter in which importing batchplan fails traces all the same."""
    (tmp_path / "batchplan").mkdir()
    (tmp_path / "batchplan" / "__init__.py").write_text("raise ImportError('not installed')")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    probe = subprocess.run(
        [python, "-c", "import batchplan"], cwd=tmp_path, capture_output=True, check=False
    )
    assert probe.returncode == 1
    there = activation_profile(config=TINY, recipe=BF16, seq_len=64, python=python)
    assert there == activation_profile(config=TINY, recipe=BF16, seq_len=64)


@pytest.mark.slow
def test_progress_is_told_on_a_trace_and_not_on_a_cache_hit(tmp_path: Path, monkeypatch: Any):
    monkeypatch.setenv("BATCHPLAN_CACHE", str(tmp_path))
    lines: list[str] = []
    for _ in range(2):
        activation_profile(config=TINY, recipe=BF16, seq_len=64, on_progress=lines.append)
        assert "building the model without weights" in lines
        assert len(lines) == len(set(lines))


@pytest.mark.slow
@pytest.mark.parametrize("model", ["Qwen/Qwen2.5-7B", "meta-llama/Llama-3.1-70B"])
def test_a_first_trace_is_quick_and_small(model: str, tmp_path: Path, monkeypatch: Any):
    """Promised: 10 s for 7B and 15 s for 70B, under 1.5 GiB. Twice that, of processor time: CI is
    shared, and slow."""
    monkeypatch.setenv("BATCHPLAN_CACHE", str(tmp_path))
    limit_seconds = {"Qwen/Qwen2.5-7B": 20, "meta-llama/Llama-3.1-70B": 30}[model]
    before = child_seconds()
    profile = activation_profile(config=resolve_model(model).config, recipe=BF16, seq_len=4096)
    assert child_seconds() - before < limit_seconds
    assert profile.num_params > 7e9
    children_kib = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss
    if "PYTEST_XDIST_WORKER" not in os.environ:  # other tests' children count there too
        assert children_kib * 1024 < 1.5 * 2**30


# fms-acceleration's published benchmark: HF Trainer 4.48, peft 0.13, A100-80GB, Mistral-7B, 4096
# tokens, full checkpointing, FlashAttention-2, foreach AdamW; peak of
# torch.cuda.max_memory_allocated. Nothing of ours is fitted to them.
BF16_BASE = {"numerics": "bf16-autocast", "weight_dtype": "bf16"}
FSDP_1 = {"sharding": "fsdp-full", "fsdp_version": 1, "reentrant": True}
PUBLISHED = [
    ({"method": "full"}, 4, 1, 72_434_837_504),
    ({"method": "full"}, 8, 1, 72_435_230_720),
    ({"method": "lora"}, 4, 1, 26_704_571_904),
    ({"method": "lora"}, 8, 1, 38_742_912_512),
    # TRL 0.13 leaves normalisations in fp32 under a quantised base, and with them the residuals.
    ({"method": "qlora", **BF16_BASE, "norm_dtype": "fp32"}, 4, 1, 20_669_338_112),
    ({"method": "qlora", **BF16_BASE, "norm_dtype": "fp32"}, 8, 1, 37_002_646_016),
    ({"method": "qlora", **BF16_BASE}, 4, 1, 16_373_838_336),
    ({"method": "qlora", **BF16_BASE}, 8, 1, 28_412_178_944),
    ({"method": "full", **FSDP_1}, 2, 2, 36_225_939_968),
    ({"method": "full", **FSDP_1}, 4, 2, 36_226_136_576),
    ({"method": "lora", **FSDP_1}, 2, 2, 15_144_870_400),
    ({"method": "lora", **FSDP_1}, 4, 2, 21_959_827_968),
    ({"method": "qlora", **BF16_BASE, **FSDP_1}, 2, 2, 9_424_594_432),
    ({"method": "qlora", **BF16_BASE, **FSDP_1}, 4, 2, 15_970_067_968),
]


@pytest.mark.slow
@pytest.mark.xdist_group("older")
def test_published_peaks_are_met_with_the_versions_of_the_measurement(older: Any):
    python = older(OLD)
    config = resolve_model("mistralai/Mistral-7B-v0.1").config
    gpu = Gpu(name="A100", usable_bytes=85 * 10**9, compute_capability="8.0")
    for fields, micro_batch, num_ranks, measured in PUBLISHED:
        recipe = Recipe(
            lora_targets="q_proj,k_proj,v_proj,o_proj",
            optimizer_impl="foreach",
            checkpointing="full",
            attention="flash",
            **{"numerics": "bf16", **fields},
        )
        profile = activation_profile(config=config, recipe=recipe, seq_len=4096, python=python)
        assert dict(profile.versions)["transformers"] == "4.48.1"
        found = estimate(
            profile=profile,
            recipe=recipe,
            batch=Batch(micro_batch=micro_batch, seq_len=4096, num_ranks=num_ranks),
            cluster=Cluster(num_ranks=num_ranks),
            gpu=gpu,
        )
        off = found.allocated_peak_bytes / measured - 1
        # Seen: within 0.009 % on one device; 0 to -0.6 % on two.
        assert abs(off) < (2e-4 if num_ranks == 1 else 8e-3), (fields, micro_batch, f"{off:+.4%}")


@pytest.mark.slow
@pytest.mark.xdist_group("older")
def test_the_oldest_supported_transformers_can_be_traced(older: Any):
    python = older(OLDEST)
    for checkpointing in ("none", "full"):
        recipe = Recipe(numerics="bf16", checkpointing=checkpointing)
        profile = activation_profile(config=TINY, recipe=recipe, seq_len=64, python=python)
        assert dict(profile.versions)["transformers"] == "4.45.2"
        assert profile.num_layers == 4


@pytest.mark.slow
def test_the_worker_ends_when_whoever_asked_is_killed(tmp_path: Path):
    """SIGKILL and SIGTERM leave no time to kill a child; it must notice by itself.

    Its torch never finishes loading, so nothing else ends it.
    """
    (tmp_path / "torch.py").write_text("import time\ntime.sleep(1000)\n")
    python = tmp_path / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={tmp_path} exec {sys.executable} "$@"\n')
    python.chmod(0o755)
    body = f"""
    import json, os, sys
    from pathlib import Path
    sys.path.insert(0, {str(Path(__file__).parents[1])!r})
    from batchplan.tracer.runner import run_worker
    request = json.loads({json.dumps(json.dumps(request(TINY)))})
    tell = lambda text: print(text, flush=True)
    run_worker(request, python=Path({str(python)!r}), on_progress=tell)
    """
    code = textwrap.dedent(body)
    with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True) as asks:
        assert asks.stdout is not None
        assert asks.stdout.readline().startswith("loading")
        (worker,) = children_of(asks.pid)
        asks.kill()
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and Path(f"/proc/{worker}").exists():
        time.sleep(0.1)
    assert not Path(f"/proc/{worker}").exists()


def children_of(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        found.extend(int(child) for child in (task / "children").read_text().split())
    return found
