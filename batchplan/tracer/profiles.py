"""The profile of a model under a recipe: from the cache, or from a worker."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

from batchplan.profile import SCHEMA_VERSION, ActivationProfile
from batchplan.spec import Recipe
from batchplan.tracer.cache import cache_key, load_or_build
from batchplan.tracer.environment import library_versions
from batchplan.tracer.request import trace_request
from batchplan.tracer.runner import WORKER, run_worker

MIN_BUCKET = 512


def activation_profile(
    *,
    config: dict[str, Any],
    recipe: Recipe,
    seq_len: int,
    model_ref: str = "",
    python: Path | None = None,
    trust_remote_code: bool = False,
    library: str = "transformers",
    on_progress: Callable[[str], None] | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> ActivationProfile:
    """Return how much the model's stages keep and need under ``recipe`` around ``seq_len``.

    A profile holds for a range of sequence lengths, so the range is tried before the exact
    length, which is what a model gets whose code changes within the range.

    Args:
        config: the model's ``config.json`` as plain data.
        recipe: only what changes activations is looked at.
        seq_len: tokens per sequence.
        model_ref: path or id that remote code is loaded from, when it is trusted.
        python: interpreter of the environment that will train; None is ours.
        trust_remote_code: whether the model's own repository may run code.
        library: whose model code runs: ``transformers`` or ``litgpt``.
        on_progress: gets one line per step of a trace; is not called on a cache hit.
        on_warning: gets one line when the cache cannot be used.

    Raises:
        SpecError: when the recipe or ``python`` cannot be used.
        TraceError: when the model's code cannot be run.
    """
    versions = library_versions(python, library)
    request = trace_request(
        config=config,
        model_ref=model_ref,
        recipe=recipe,
        seq_len=seq_len,
        trust_remote_code=trust_remote_code,
        library=library,
    )
    ran = {"torch", library}
    if library == "transformers" and request["method"] != "full":
        ran.add("peft")
    if request["is_quantised"]:
        ran.add("bitsandbytes")
    versions = {name: version for name, version in versions.items() if name in ran}
    parts = {**request, "versions": versions, "worker": _worker_hash()}

    def build() -> ActivationProfile:
        reply = run_worker(request, python=python, on_progress=on_progress)
        return ActivationProfile.from_dict({"schema_version": SCHEMA_VERSION, **reply})

    key = cache_key({**parts, "seq_len": _bucket(seq_len)})
    profile = load_or_build(key, build, on_warning=on_warning)
    low, high = profile.seq_len_range
    if low <= seq_len <= high:
        return profile
    return load_or_build(cache_key(parts), build, on_warning=on_warning)


def _bucket(seq_len: int) -> str:
    """Return the name of the range of sequence lengths that share a profile."""
    end = MIN_BUCKET
    while end < seq_len:
        end *= 2
    return f"up to {end}"


@cache
def _worker_hash() -> str:
    """Return a hash of the worker's own code, so that a changed worker traces anew."""
    digest = hashlib.sha256()
    for path in sorted(WORKER.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()
