"""Trace whole models, uncut: the slow oracle of the fold. Run as a script, in its own process.

Reads a JSON list of {"request", "micro_batch", "seq_len"} on stdin; prints for each the highest
live activation-and-gradient bytes of a first and of a second micro-batch. It shares the recorder
and the stand-ins for GPU kernels with the worker, and nothing of stages, kinds or polynomials.
"""

from __future__ import annotations

import gc
from typing import Any

import torch
from many_traces import answer_all
from torch._subclasses.fake_tensor import FakeTensorMode

from batchplan.tracer.worker import build, fake, kernels, litgpt
from batchplan.tracer.worker.recorder import Recorder
from batchplan.tracer.worker.step import autocast, outputs_in_fp32


def peaks(case: dict[str, Any]) -> list[int]:
    """Return the peak of the first and of the second micro-batch."""
    request = case["request"]
    builder = litgpt if request["library"] == "litgpt" else build
    built = builder.build(request, whole=True)
    fake.answer_for_transformers()
    kernels.install(built.attention)
    shape = (case["micro_batch"], case["seq_len"])
    with FakeTensorMode():
        tensors = fake.to_fake(built.model)
        batches = [[torch.zeros(*shape, dtype=torch.long) for _ in range(2)] for _ in range(2)]
        recorder = Recorder([*tensors, *batches[0], *batches[1]])
        found = []
        for ids, labels in batches:
            gc.collect()
            start = len(recorder.live_after)
            with recorder:
                with autocast(request):
                    loss = outputs_in_fp32(request, built.model(input_ids=ids, labels=labels)).loss
                loss.backward()
                del loss
            found.append(max(recorder.live_after[start:]))
    return found


if __name__ == "__main__":
    answer_all(peaks)
