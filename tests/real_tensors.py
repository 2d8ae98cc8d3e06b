"""Train tiny models on real CPU tensors, and record a step of each on fake ones; print both.

Reads a JSON list of recording requests on stdin. For each it prints the real run's allocations and
frees in order, bytes signed, and the worker's recording, which has to foretell them. The loop here
is a trainer's; with the worker it shares the recorder and the making of the module.
"""

from __future__ import annotations

import gc
from math import isfinite
from typing import Any

import torch
from many_traces import answer_all
from torch._subclasses.fake_tensor import FakeTensorMode

from batchplan.tracer.worker import build, fake, whole
from batchplan.tracer.worker.recorder import Recorder
from batchplan.tracer.worker.step import autocast

STEPS = 3
OPTIMIZERS = {
    "adamw": lambda parameters, **impl: torch.optim.AdamW(parameters, **impl),
    "sgd": lambda parameters, **impl: torch.optim.SGD(parameters, **impl),
    "sgd-momentum": lambda parameters, **impl: torch.optim.SGD(parameters, momentum=0.5, **impl),
}
IMPLS = {"fused": {"fused": True}, "foreach": {"foreach": True}, "for-loop": {"foreach": False}}


def trained(request: dict[str, Any]) -> list[int]:
    """Return what three optimizer steps on real tensors make (above zero) and free (below)."""
    model = build.build(request, whole=True).model
    fake.answer_for_transformers()
    fake.to_fake(model)  # outside fake mode the tensors are real; ``to_empty`` would untie weights
    torch.manual_seed(0)
    for tensor in [*model.parameters(), *model.buffers()]:
        tensor.data.uniform_(-0.02, 0.02) if tensor.is_floating_point() else tensor.data.zero_()
    parameters = [p for p in model.parameters() if p.requires_grad]
    before = [p.detach().clone() for p in parameters]
    optimizer = OPTIMIZERS[request["optimizer"]](
        parameters, lr=1e-3, **IMPLS[request["optimizer_impl"]]
    )
    rows, seq_len = request["micro_batch"], request["seq_len"]
    recorder = Recorder([])
    gc.collect()
    gc.disable()
    with recorder:
        for tensor in [*model.parameters(), *model.buffers()]:
            recorder.register(tensor)
        for _ in range(STEPS):
            ids, mask, labels = (
                torch.zeros(request["accum_steps"] * rows, seq_len, dtype=torch.long).random_(100)
                for _ in range(3)
            )
            for first in range(0, len(ids), rows):
                with autocast(request):
                    loss = model(
                        input_ids=ids[first : first + rows], labels=labels[first : first + rows]
                    ).loss
                loss.backward()
                assert isfinite(float(loss))
                del loss
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            del ids, mask, labels
    gc.enable()
    assert any(not torch.equal(old, new) for old, new in zip(before, parameters, strict=True))
    return [recorder.sizes[e] if e >= 0 else -recorder.sizes[~e] for e in recorder.log]


def recorded(request: dict[str, Any]) -> dict[str, Any]:
    """Return the worker's recording, without the stand-ins for GPU kernels."""
    built = build.build(request, whole=True)
    fake.answer_for_transformers()
    with FakeTensorMode():
        fake.to_fake(built.model)
        return whole.record(built, request)


if __name__ == "__main__":
    torch.set_num_threads(1)
    answer_all(lambda request: [trained(request), recorded(request)])
