"""Run one micro-batch of a tiny model on real CPU tensors and on fake ones; print both logs."""

from __future__ import annotations

import contextlib
import gc
import json
import sys

import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from batchplan.trace.worker import build, fake
from batchplan.trace.worker.recorder import Recorder


def live_bytes(request: dict, *, fake: bool) -> list[int]:
    """Return the live bytes after each allocation of two micro-batches."""
    built = build.build(request)
    fake.answer_for_transformers()
    if not fake:
        built.model.to_empty(device="cpu")
        torch.manual_seed(0)
        for tensor in [*built.model.parameters(), *built.model.buffers()]:
            tensor.data.uniform_(-0.02, 0.02) if tensor.is_floating_point() else tensor.zero_()
    with FakeTensorMode() if fake else contextlib.nullcontext():
        if fake:
            fake.to_fake(built.model)
        tensors = [*built.model.parameters(), *built.model.buffers()]
        ids = torch.zeros(2, 64, dtype=torch.long)
        labels = torch.zeros(2, 64, dtype=torch.long)
        recorder = Recorder([*tensors, ids, labels])
        gc.collect()
        with recorder:
            for _ in range(2):
                loss = built.model(input_ids=ids, labels=labels).loss
                loss.backward()
                del loss
    return recorder.live_after


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    json.dump([[live_bytes(r, fake=fake) for fake in (False, True)] for r in asked], sys.stdout)
