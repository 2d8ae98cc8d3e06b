"""Read a request, take a place among the ranks, and run the task that it names.

The first line of stdin is the request; with a file's name as argument it is in there, and this is
one rank of several. Whatever is told goes to stdout, a line of JSON an event; ``refused`` and
``end`` are the last of them.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from datetime import timedelta
from importlib import import_module
from pathlib import Path
from typing import Any

from batchplan.prober.worker.lifeline import end_with_parent, end_with_stdin
from batchplan.prober.worker.reporter import Reporter

TASKS = {"noise": "noise", "verify": "verify"}
"""Modules beside this one, by task; each has ``run(request, place)``."""


class Place:
    """Where a task runs: its rank, its device, and whom it tells."""

    def __init__(self, request: dict[str, Any], rank: int) -> None:
        self.rank = rank
        self.num_ranks: int = request["num_ranks"]
        self.reporter = Reporter(rank)
        self.tell = self.reporter.tell
        self.device: Any = None

    def connect(self, request: dict[str, Any]) -> bool:
        """Find the device and the other ranks; return False when it was told why not."""
        from batchplan.prober.worker.main import device_of

        self.device = device_of(request, self.reporter, index=int(os.environ.get("LOCAL_RANK", 0)))
        if self.device is None:
            return False
        import torch

        on_gpu = self.device.type == "cuda"
        if on_gpu:
            torch.cuda.set_device(self.device)
        if self.num_ranks > 1:
            import torch.distributed as dist

            timeout = timedelta(seconds=request["timeout_seconds"])
            dist.init_process_group("nccl" if on_gpu else "gloo", timeout=timeout)
        return True

    def sum(self, tensor: Any) -> Any:
        """Return a tensor summed over the ranks, in place."""
        if self.num_ranks > 1:
            import torch.distributed as dist

            dist.all_reduce(tensor)
        return tensor

    def stay(self) -> None:
        """Wait to be ended by whoever asked, who then has heard every rank.

        A rank's interpreter that ends beside the threads of its process group sometimes aborts,
        and torchrun would end the others for it.
        """
        if self.num_ranks > 1:
            threading.Event().wait()


def main(arguments: list[str]) -> int:
    """Run one task and tell how it ended."""
    os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
    warnings.simplefilter("ignore")
    end_with_parent()
    if arguments:
        request = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))
    else:
        with open(0, "rb", buffering=0, closefd=False) as stdin:
            request = json.loads(stdin.readline())
    end_with_stdin()
    place = Place(request, int(os.environ.get("RANK", 0)))
    place.tell("phase", text="loading torch and transformers")
    try:
        from batchplan.prober.worker.failures import one_line, outcome_of
        from batchplan.prober.worker.main import versions
        from batchplan.tracer.worker.built import WorkerError
    except ImportError as error:
        place.tell("refused", kind="environment", text=str(error))
        return 1
    try:
        task = import_module(f".{TASKS[request['task']]}", __package__)
        if not place.connect(request):
            return 1
        task.run(request, place)
        place.tell("end", versions=versions())
        place.stay()
    except WorkerError as error:
        place.tell("refused", kind=error.kind, text=str(error))
        os._exit(1)  # a rank that waits for the others would hang
    except BaseException as error:
        place.tell("refused", kind=outcome_of(error), text=one_line(error))
        os._exit(1)
    return 0
