"""Read a request, trace, reply."""

from __future__ import annotations

import contextlib
import gc
import json
import os
import sys
import threading
import warnings
from typing import Any

PROGRESS = "progress: "


def main() -> int:
    """Answer the request on the first line of stdin with one JSON document on stdout."""
    request = json.loads(sys.stdin.readline())
    _end_with_stdin()
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.simplefilter("ignore")
    reply_to = sys.stdout
    with contextlib.redirect_stdout(sys.stderr):
        reply = _answer(request)
    json.dump(reply, reply_to)
    reply_to.flush()
    return 0


def _answer(request: dict[str, Any]) -> dict[str, Any]:
    _progress("loading torch and transformers")
    from .built import WorkerError

    try:
        if "micro_batch" in request:
            return {"profile": _record(request)}
        return {"profile": _trace(request)}
    except WorkerError as error:
        return {"error": str(error), "kind": error.kind}


def _trace(request: dict[str, Any]) -> dict[str, Any]:
    import torch
    import transformers
    from torch._subclasses.fake_tensor import FakeTensorMode

    from . import build, fake, kernels
    from .built import WorkerError, one_line
    from .profile import make_profile
    from .step import run_step

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _progress("building the model without weights")
    built = build.build(request)
    fake.answer_for_transformers()
    kernels.install(built.attention)
    with FakeTensorMode():
        tensors = fake.to_fake(built.model)
        # Every step collects garbage so that no log depends on it; what is there by now stays,
        # and looking at all of transformers each time would take longer than the step.
        gc.freeze()

        def step(b: int, s: int) -> Any:
            _progress(f"running {b} x {s} tokens on fake tensors")
            try:
                return run_step(built, tensors, request, b, s)
            except WorkerError:
                raise
            except Exception as error:
                raise WorkerError(
                    f"{type(built.model).__name__} does not run on fake tensors at {b} x {s}: "
                    f"{one_line(error)}"
                ) from error

        joined = make_profile(built, step, request["seq_len"])
    return _reply(built, request, joined, torch, transformers)


def _record(request: dict[str, Any]) -> dict[str, Any]:
    from torch._subclasses.fake_tensor import FakeTensorMode
    import transformers
    from . import build, fake, kernels
    from .whole import record

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    _progress("building the model without weights")
    built = build.build(request, whole=True)
    fake.answer_for_transformers()
    kernels.install(built.attention)
    with FakeTensorMode():
        fake.to_fake(built.model)
        gc.freeze()
        return record(built, request)


def _reply(
    built: Any, request: dict[str, Any], joined: Any, torch: Any, transformers: Any
) -> dict[str, Any]:
    versions = [["torch", torch.__version__], ["transformers", transformers.__version__]]
    if request["method"] != "full":
        import peft

        versions.append(["peft", peft.__version__])
    return {
        **joined,
        "architecture": type(built.model).__name__
        if request["method"] == "full"
        else type(built.model.get_base_model()).__name__,
        "num_params": built.num_params,
        "hidden_size": _hidden_size(built),
        "buffer_bytes": sum(b.numel() * b.element_size() for b in built.model.buffers()),
        "attention": built.attention,
        "versions": versions,
        "notes": built.notes,
    }


def _hidden_size(built: Any) -> int:
    """Return the width of the residual stream, from the config or else from the head."""
    config = built.config
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    hidden = getattr(text, "hidden_size", None)
    if isinstance(hidden, int):
        return hidden
    return int(built.model.get_output_embeddings().weight.shape[-1])


def _end_with_stdin() -> None:
    """End this process once whoever asked is gone, however it went: that closes our stdin."""
    descriptor = sys.stdin.fileno()

    def watch() -> None:
        # The bare descriptor: sys.stdin's lock must not be held when the interpreter ends.
        while os.read(descriptor, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _progress(text: str) -> None:
    print(PROGRESS + text, file=sys.stderr, flush=True)
