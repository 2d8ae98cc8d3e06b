"""Trace a list of requests in one process, as the worker would each in its own."""

from __future__ import annotations

import gc
import json
import sys

from batchplan.trace.worker.built import WorkerError
from batchplan.trace.worker.main import _trace

if __name__ == "__main__":
    replies = []
    for request in json.load(sys.stdin):
        try:
            replies.append({"profile": _trace(request)})
        except WorkerError as error:
            replies.append({"error": str(error)})
        gc.unfreeze()  # The worker keeps its model to its end; here the next one needs the room.
    json.dump(replies, sys.stdout)
