"""Read a request, trace, reply."""

from __future__ import annotations

import contextlib
import gc
import importlib
import json
import os
import sys
import threading
import warnings
from collections.abc import Iterator
from importlib import metadata
from typing import Any

PROGRESS = "progress: "

_BUILDERS = {"transformers": "build", "litgpt": "litgpt"}
"""The module here that builds a library's models."""


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
    _progress(f"loading torch and {request['library']}")
    from .built import WorkerError

    try:
        if "micro_batch" in request:
            return {"profile": _record(request)}
        return {"profile": _trace(request)}
    except WorkerError as error:
        return {"error": str(error), "kind": error.kind}


def _trace(request: dict[str, Any]) -> dict[str, Any]:
    """Return the profile of the model, cut to its distinct layers."""
    from .built import WorkerError, one_line
    from .profile import make_profile
    from .step import run_step

    with _built(request, whole=False) as (built, tensors):

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
    return {
        **joined,
        "architecture": _architecture(built, request),
        "num_params": built.num_params,
        "hidden_size": _hidden_size(built),
        "buffer_bytes": sum(b.numel() * b.element_size() for b in built.model.buffers()),
        "attention": built.attention,
        "versions": _versions(request),
        "notes": built.notes,
    }


def _architecture(built: Any, request: dict[str, Any]) -> str:
    model = built.model if request["method"] == "full" else built.model.get_base_model()
    return type(model).__name__


def _record(request: dict[str, Any]) -> dict[str, Any]:
    """Return the log of a whole step of the whole model."""
    from .built import WorkerError, one_line
    from .whole import record

    with _built(request, whole=True) as (built, _):
        _progress(f"running {request['micro_batch']} x {request['seq_len']} tokens")
        try:
            log = record(built, request)
        except WorkerError:
            raise
        except Exception as error:
            name = type(built.model).__name__
            raise WorkerError(f"{name} cannot be recorded: {one_line(error)}") from error
    return {
        **log,
        "architecture": _architecture(built, request),
        "num_params": built.num_params,
        "num_trainable_params": sum(p.numel() for p in built.model.parameters() if p.requires_grad),
        "versions": _versions(request),
        "notes": built.notes,
    }


@contextlib.contextmanager
def _built(request: dict[str, Any], *, whole: bool) -> Iterator[Any]:
    """Yield the built module and its fake weights and buffers, inside fake tensor mode."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    from . import fake, kernels

    if request["library"] == "transformers":
        _quieten_transformers()
    _progress("building the model without weights")
    builder = importlib.import_module(f".{_BUILDERS[request['library']]}", __package__)
    built = builder.build(request, whole=whole)
    fake.answer_for_transformers()
    kernels.install(built.attention)
    with FakeTensorMode():
        tensors = fake.to_fake(built.model)
        # Every step collects garbage so that no log depends on it; what is there by now stays,
        # and looking at all of transformers each time would take longer than the step.
        gc.freeze()
        yield built, tensors


def _quieten_transformers() -> None:
    import transformers

    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def _versions(request: dict[str, Any]) -> list[list[str]]:
    names = ["torch", request["library"]]
    if request["library"] == "transformers" and request["method"] != "full":
        names.append("peft")
    # torch's own is more exact than its metadata, which lack the build; LitGPT names none.
    return [
        [name, getattr(sys.modules[name], "__version__", None) or metadata.version(name)]
        for name in names
    ]


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
