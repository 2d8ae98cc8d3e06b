"""Record one micro-batch of a model under the real FSDP, of either version, on fake tensors.

A fake process group stands for any number of ranks in one process. Reads a JSON list of cases on
stdin; prints for each the highest live bytes of the rank, its shards included.
"""

from __future__ import annotations

import functools
import gc
import json
import sys
import warnings
import weakref
from typing import Any

import torch
import torch.distributed as dist
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.wrap import _or_policy, lambda_auto_wrap_policy
from torch.distributed.tensor import DTensor
from torch.testing._internal.distributed.fake_pg import FakeStore

from batchplan.tracer.worker import build, fake, kernels
from batchplan.tracer.worker.recorder import Recorder
from batchplan.tracer.worker.step import autocast


class _Recorder(Recorder):
    """Lets distributed tensors reach their local ops, and sees storages that are resized."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(issubclass(kind, DTensor) for kind in types):
            return NotImplemented
        return super().__torch_dispatch__(func, types, args, kwargs)

    def resized(self, storage: torch.UntypedStorage, num_bytes: int) -> None:
        self.freed(storage._cdata)
        if num_bytes:
            self.allocated(storage._cdata, num_bytes, None)
            weakref.finalize(storage, self.freed, storage._cdata)


def _watch_resizes(recorders: list[_Recorder]) -> None:
    resize = torch.UntypedStorage.resize_

    def resize_and_tell(self: torch.UntypedStorage, num_bytes: int) -> Any:
        out = resize(self, num_bytes)
        for recorder in recorders:
            recorder.resized(self, num_bytes)
        return out

    def resize_elements(self: torch.TypedStorage, size: int) -> None:
        self._untyped_storage.resize_(size * self._element_size())

    torch.UntypedStorage.resize_ = resize_and_tell
    torch.TypedStorage._resize_ = resize_elements


def _is_trained_leaf(module: nn.Module) -> bool:
    """As peft's policy for FSDP 1 wraps adapters: peft utils/other.py, fsdp_auto_wrap_policy."""
    weight = getattr(module, "weight", None)
    return not list(module.children()) and weight is not None and weight.requires_grad


def _shard(built: Any, case: dict[str, Any], mesh: Any) -> nn.Module:
    layers = [layer for stack in built.stacks for layer in stack.module]
    if case["version"] == 2:
        for layer in layers:
            fully_shard(layer, mesh=mesh)
        return fully_shard(built.model, mesh=mesh)
    policies = [functools.partial(lambda_auto_wrap_policy, lambda_fn=lambda m: m in layers)]
    if case["request"]["method"] != "full":
        policies.append(functools.partial(lambda_auto_wrap_policy, lambda_fn=_is_trained_leaf))
    return FullyShardedDataParallel(
        built.model,
        auto_wrap_policy=functools.partial(_or_policy, policies=policies),
        device_id=torch.device("cpu"),
    )


def peak(case: dict[str, Any], mesh: Any, recorders: list[_Recorder]) -> int:
    """Return the highest live bytes of forward and backward of one micro-batch."""
    built = build.build(case["request"], whole=True)
    fake.answer_for_transformers()
    kernels.install(built.attention)
    with FakeTensorMode():
        fake.to_fake(built.model)
        model = _shard(built, case, mesh)
        shape = (case["micro_batch"], case["request"]["seq_len"])
        ids, labels = (torch.zeros(shape, dtype=torch.long) for _ in range(2))
        recorder = _Recorder([ids, labels])
        gc.collect()
        with recorder:
            recorders.append(recorder)
            for parameter in model.parameters():
                local = parameter._local_tensor if isinstance(parameter, DTensor) else parameter
                recorder.register(local)
            with autocast(case["request"]):
                loss = model(input_ids=ids, labels=labels).loss
            loss.backward()
            recorders.clear()
    return max(recorder.live_after)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    cases = json.load(sys.stdin)
    (ranks,) = {case["num_ranks"] for case in cases}
    dist.init_process_group("fake", rank=0, world_size=ranks, store=FakeStore())
    device_mesh = init_device_mesh("cpu", (ranks,))
    watching: list[_Recorder] = []
    _watch_resizes(watching)
    json.dump([peak(case, device_mesh, watching) for case in cases], sys.stdout)
