"""Read a request, get the model ready, and try micro-batches.

The first line of stdin is the request; every later one says what of it to try: the micro-batch and
the limit. On a CPU each is tried in a fork, which has torch and the model on ``meta`` already. A
device's context cannot be forked and must be fresh: there one trial is all, and the process ends.
With a file's name as argument this is one rank of several.
"""

from __future__ import annotations

import gc
import json
import os
import sys
import warnings
from importlib import metadata
from pathlib import Path
from typing import Any

from .lifeline import end_with_parent, end_with_stdin, wait_for
from .reporter import Reporter

_PACKAGES = ("torch", "transformers", "peft", "bitsandbytes", "accelerate", "deepspeed")


def main(arguments: list[str]) -> int:
    """Answer on stdout until stdin closes."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.simplefilter("ignore")
    if arguments:
        return _as_rank(json.loads(Path(arguments[0]).read_text(encoding="utf-8")))
    end_with_parent()
    reporter = Reporter()
    stdin = open(0, "rb", buffering=0, closefd=False)  # noqa: SIM115
    request = json.loads(stdin.readline())
    built = prepared(request, reporter)
    if built is None:
        return 0
    reporter.tell("ready")
    for line in iter(stdin.readline, b""):
        if request["device"] != "cpu":
            end_with_stdin()
            _try(built, {**request, **json.loads(line)}, reporter)
            return 0
        child = os.fork()
        if not child:
            end_with_parent()
            try:
                _try(built, {**request, **json.loads(line)}, reporter)
            finally:
                os._exit(0)
        reporter.tell("exit", code=wait_for(child))
    return 0


def prepared(request: dict[str, Any], reporter: Reporter) -> Any:
    """Return the model on ``meta``, or None when it was told why there is none."""
    reporter.tell("phase", text="loading torch and transformers")
    from batchplan.tracer.worker.built import WorkerError

    from .failures import one_line
    from .prepare import prepare
    from .sharded import load
    from .training import warm_up

    try:
        reporter.tell("phase", text="building the model")
        built = prepare(request)
        if request["num_ranks"] > 1 or request["as_rank_of"] is not None:
            load(request["engine"])
        warm_up()
    except WorkerError as error:
        reporter.tell("refused", kind=error.kind, text=str(error))
        return None
    except Exception as error:
        reporter.tell("refused", kind="crash", text=one_line(error))
        return None
    gc.collect()
    gc.freeze()  # a fork that looks at all of transformers would copy it
    return built


def device_of(request: dict[str, Any], reporter: Reporter, *, index: int = 0) -> Any:
    """Return the device to train on, or None when it was told that there is none."""
    import torch

    if request["device"] == "cpu":
        return torch.device("cpu")
    if torch.cuda.is_available() and index < torch.cuda.device_count():
        return torch.device("cuda", index)
    found = torch.cuda.device_count() if torch.cuda.is_available() else 0
    reporter.tell(
        "refused",
        kind="device",
        text=f"torch {torch.__version__} sees {found} CUDA or ROCm devices and needs {index + 1}.",
    )
    return None


def _try(built: Any, request: dict[str, Any], reporter: Reporter) -> None:
    """Train a little, and tell how it ended."""
    from batchplan.tracer.worker.built import WorkerError

    from .failures import one_line, outcome_of
    from .meters import meter_for
    from .sharded import ENGINES, pretend_ranks
    from .training import Plain, train

    device = device_of(request, reporter)
    if device is None:
        return
    meter = meter_for(request, device)
    engine_class = Plain
    try:
        if request["as_rank_of"] is not None:
            engine_class = ENGINES[request["engine"]]
            pretend_ranks(request["as_rank_of"])
        meter.start()
        reporter.tell("device", versions=versions(), **meter.about())
        train(
            built,
            request,
            engine_class=engine_class,
            device=device,
            meter=meter,
            tell=reporter.tell,
        )
    except WorkerError as error:
        meter.lift()
        reporter.tell("refused", kind=error.kind, text=str(error))
    except BaseException as error:
        meter.lift()
        reporter.tell("end", outcome=outcome_of(error), text=one_line(error), **meter.peaks())
    else:
        meter.lift()
        reporter.tell("end", outcome="fits", text="", **meter.peaks())


def versions() -> list[list[str]]:
    """Return the installed versions of what ran."""
    found = []
    for name in _PACKAGES:
        if name in sys.modules:
            version = getattr(sys.modules[name], "__version__", None) or metadata.version(name)
            found.append([name, str(version)])
    return found


def _as_rank(request: dict[str, Any]) -> int:
    end_with_parent()
    end_with_stdin()
    from .ranks import run_rank

    return run_rank(request)
