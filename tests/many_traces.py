"""Answer a list of requests, traces and recordings, as the worker would each in its own process.

One process for all keeps what torch remembers of fake tensors, and so takes half the time. With
the argument ``alone`` every request gets a fork, for those that change classes of the libraries.
"""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import sys
from typing import Any

from batchplan.tracer.worker.main import _answer


def answer(request: dict[str, Any]) -> dict[str, Any]:
    reply = _answer(request)
    gc.unfreeze()  # The worker keeps its model to its end; here the next one needs the room.
    return reply


def in_a_fork(run: Any, one: Any) -> Any:
    """Return ``run(one)``; no pool, whose threads would be a danger to forks."""
    context = multiprocessing.get_context("fork")
    receiver, sender = context.Pipe(duplex=False)
    child = context.Process(target=lambda: sender.send(run(one)))
    child.start()
    sender.close()
    reply = receiver.recv()
    child.join()
    return reply


def answer_all(run: Any) -> None:
    """Print what ``run`` returns for every item of the list on stdin."""
    reply_to, asked = sys.stdout, json.load(sys.stdin)
    with contextlib.redirect_stdout(sys.stderr):
        is_alone = sys.argv[1:] == ["alone"]
        replies = [in_a_fork(run, one) if is_alone else run(one) for one in asked]
    json.dump(replies, reply_to)


if __name__ == "__main__":
    answer_all(answer)
