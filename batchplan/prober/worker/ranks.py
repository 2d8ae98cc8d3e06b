"""One rank of several: all agree on how the trial ended, and none waits for one that is gone.

A rank that fails tells a store, which torchrun's own process keeps, before anything else. Every
rank has a thread that looks there, so one that waits in a collective for an answer that will
never come ends all the same.
"""

from __future__ import annotations

import os
import threading
import time
from datetime import timedelta
from typing import Any

from .reporter import Reporter

POLL_SECONDS = 0.1
STOPPED = "stopped"
"""How a rank ended because another one failed."""


class Agreement:
    """What ranks tell each other beside the collectives."""

    def __init__(self, rank: int, num_ranks: int, *, timeout_seconds: float) -> None:
        self._rank, self._num_ranks = rank, num_ranks
        self._timeout_seconds = timeout_seconds
        self._store = self._connect()

    def _connect(self) -> Any:
        import torch.distributed as dist

        store = dist.TCPStore(
            os.environ["MASTER_ADDR"],
            int(os.environ["MASTER_PORT"]),
            is_master=False,
            timeout=timedelta(seconds=self._timeout_seconds),
        )
        return dist.PrefixStore("batchplan-probe", store)

    def fail(self) -> None:
        """Tell the others that this rank has failed."""
        self._store.set("failed", str(self._rank))

    def failed_rank(self) -> int | None:
        """Return a rank that has told of a failure."""
        return int(self._store.get("failed")) if self._store.check(["failed"]) else None

    def watch(self, stop: Any) -> None:
        """Call ``stop`` with the rank once another one has failed."""
        other = Agreement(self._rank, self._num_ranks, timeout_seconds=self._timeout_seconds)

        def look() -> None:
            while True:
                failed = other.failed_rank()
                if failed is not None and failed != self._rank:
                    stop(failed)
                time.sleep(POLL_SECONDS)

        threading.Thread(target=look, daemon=True).start()

    def all_done(self) -> None:
        """Return when every rank has got here."""
        self._store.add("done", 1)
        last = time.monotonic() + self._timeout_seconds
        while self._store.add("done", 0) < self._num_ranks and time.monotonic() < last:
            time.sleep(POLL_SECONDS / 10)


def run_rank(request: dict[str, Any]) -> int:
    """Train as the rank that torchrun says we are; tell how it ended."""
    rank, num_ranks = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    reporter = Reporter(rank)
    from .main import prepared

    built = prepared(request, reporter)
    if built is None:
        return 0
    import torch
    import torch.distributed as dist

    from batchplan.tracer.worker.built import WorkerError

    from .failures import one_line, outcome_of
    from .main import device_of, versions
    from .meters import meter_for
    from .sharded import ENGINES
    from .training import train

    device = device_of(request, reporter, index=int(os.environ["LOCAL_RANK"]))
    if device is None:
        return 0
    reporter.tell("ready")
    engine_class = ENGINES[request["engine"]]
    agreement = Agreement(rank, num_ranks, timeout_seconds=request["timeout_seconds"])
    meter = meter_for(request, device)
    telling = threading.Lock()

    def end(outcome: str, text: str) -> None:
        with telling:  # the first of the two threads to get here tells, and ends both
            meter.lift()
            reporter.tell("end", outcome=outcome, text=text, **meter.peaks())
            os._exit(0)

    agreement.watch(lambda failed: end(STOPPED, f"rank {failed} failed"))
    try:
        if device.type == "cuda":
            torch.cuda.set_device(device)
        dist.init_process_group(
            "nccl" if device.type == "cuda" else "gloo",
            timeout=timedelta(seconds=request["timeout_seconds"]),
        )
        engine_class.connect()
        meter.start()  # NCCL makes its communicator later, with the first collective
        reporter.tell("device", versions=versions(), **meter.about())
        train(
            built,
            request,
            engine_class=engine_class,
            device=device,
            meter=meter,
            tell=reporter.tell,
        )
        agreement.all_done()
    except WorkerError as error:
        meter.lift()
        reporter.tell("refused", kind=error.kind, text=str(error))
        os._exit(0)
    except BaseException as error:
        meter.lift()
        failed = agreement.failed_rank()
        if failed is None:
            agreement.fail()
            end(outcome_of(error), one_line(error))
        end(STOPPED, f"rank {failed} failed")
    end("fits", "")
    return 0
