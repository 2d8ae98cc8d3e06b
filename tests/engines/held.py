"""Train a small Llama for one or two steps on several CPU processes; print the bytes each held.

Reads from stdin JSON with ``ranks``, ``port``, ``folder`` and ``requests``: an ``engine`` each and
what it needs. Rank r writes what it held to ``r.json`` in the folder, and rank 0 the parameters to
``parameters.json``. Every byte is that of a storage, padding included, counted once.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from collections.abc import Iterable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import torch
from step import Counter
from torch import Tensor, nn

# Odd sizes, so that no dimension divides evenly over 2, 3 or 4 ranks.
SHAPE = {
    "vocab_size": 97,
    "hidden_size": 60,
    "intermediate_size": 161,
    "num_hidden_layers": 3,
    "num_attention_heads": 6,
    "num_key_value_heads": 3,
    "head_dim": 10,
    "max_position_embeddings": 64,
}


def make_model(dtype: torch.dtype) -> nn.Module:
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**SHAPE)).to(dtype)


def flattened(value: Any) -> Iterator[Tensor]:
    """Yield every tensor inside lists, tuples and dictionaries; a DTensor's local part."""
    if isinstance(value, Tensor):
        yield getattr(value, "_local_tensor", value)
    elif isinstance(value, dict):
        for inner in value.values():
            yield from flattened(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from flattened(inner)


def held(values: Any) -> int:
    """Return the bytes of the storages behind some tensors, each storage once."""
    storages = {t.untyped_storage().data_ptr(): t.untyped_storage() for t in flattened(values)}
    return sum(storage.nbytes() for storage in storages.values())


def moments(optimizer: torch.optim.Optimizer) -> list[Tensor]:
    """Return what the optimizer keeps, less its 4-byte scalars: ``step``, Adafactor's ``RMS``."""
    return [
        value
        for state in optimizer.state.values()
        for key, value in state.items()
        if key not in ("step", "RMS") and isinstance(value, Tensor)
    ]


def groups_of(model: nn.Module) -> list[dict[str, Any]]:
    """Return two groups, as transformers' Trainer makes them: with weight decay and without."""
    decays = [p for p in model.parameters() if p.requires_grad and p.ndim > 1]
    plain = [p for p in model.parameters() if p.requires_grad and p.ndim <= 1]
    groups = [{"params": decays, "weight_decay": 0.0}, {"params": plain, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def make_optimizer(name: str, groups: Iterable[Any]) -> torch.optim.Optimizer:
    if name == "adafactor":
        from transformers import Adafactor

        return Adafactor(groups, lr=1e-3, scale_parameter=False, relative_step=False)
    if name == "sgd-momentum":
        return torch.optim.SGD(groups, lr=1e-3, momentum=0.9)
    if name == "sgd":
        return torch.optim.SGD(groups, lr=1e-3)
    return torch.optim.AdamW(groups, lr=1e-3, foreach=name == "foreach")


def batch(rank: int) -> dict[str, Tensor]:
    ids = (torch.arange(16).reshape(2, 8) * 7 + rank) % SHAPE["vocab_size"]
    return {"input_ids": ids, "labels": ids.clone()}


def ddp(request: dict[str, Any], rank: int) -> dict[str, Any]:
    from torch.nn.parallel import DistributedDataParallel

    model = make_model(getattr(torch, request["dtype"]))
    wrapped = DistributedDataParallel(model, gradient_as_bucket_view=request["bucket_view"])
    optimizer = make_optimizer(request["optimizer"], groups_of(model))
    for _ in range(2):
        optimizer.zero_grad()
        wrapped(**batch(rank)).loss.backward()
        optimizer.step()
    return {
        "weights": held(list(model.parameters())),
        "gradients": [held([p.grad for p in model.parameters()])],
        "optimizer_states": held(moments(optimizer)),
    }


def fsdp(request: dict[str, Any], rank: int) -> dict[str, Any]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    ranks, nodes = request["ranks"], request["nodes"]
    model = make_model(getattr(torch, request["dtype"]))
    policy = MixedPrecisionPolicy()
    if request["dtype"] == "float32":
        policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32)
    if nodes > 1:
        names = ("replicate", "shard")
        mesh = init_device_mesh("cpu", (nodes, ranks // nodes), mesh_dim_names=names)
    else:
        mesh = init_device_mesh("cpu", (ranks,))
    for layer in model.model.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy)
    fully_shard(model, mesh=mesh, mp_policy=policy)
    optimizer = make_optimizer(request["optimizer"], groups_of(model))
    for _ in range(2):
        optimizer.zero_grad()
        model(**batch(rank)).loss.backward()
        optimizer.step()
    for module in model.modules():
        if hasattr(module, "reshard"):
            module.reshard()
    return {
        "weights": held(list(model.parameters())),
        "gradients": [held([p.grad for p in model.parameters()])],
        "optimizer_states": held(moments(optimizer)),
    }


def deepspeed(request: dict[str, Any], rank: int) -> dict[str, Any]:
    import deepspeed

    # It would compile a kernel for ranks of one machine, which takes longer than the rest.
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None

    stage = request["stage"]
    zero = {"stage": stage, **request.get("zero", {})}
    config = {
        "train_micro_batch_size_per_gpu": 2,
        "gradient_accumulation_steps": request.get("accum_steps", 1),
        "zero_optimization": zero,
        "zero_allow_untested_optimizer": True,
        "zero_force_ds_cpu_optimizer": False,
    }
    if request["dtype"] == "bfloat16":
        config["bf16"] = {"enabled": True}
    model = make_model(torch.float32)
    for name, parameter in model.named_parameters():
        parameter.requires_grad = not any(frozen in name for frozen in request.get("frozen", ()))
    optimizer = make_optimizer(request["optimizer"], groups_of(model))
    engine, zero_optimizer, *_ = deepspeed.initialize(
        model=model, optimizer=optimizer, config=config
    )
    found: dict[str, Any] = {"gradients": []}
    for _ in range(2 * request.get("accum_steps", 1)):
        loss = engine(**batch(rank)).loss
        engine.backward(loss)
        found["gradients"].append(gradients(engine, zero_optimizer, stage))
        known = [value for value in gc.get_objects() if isinstance(value, Tensor)]
        with Counter(known) as counter:
            engine.step()
        found["step"] = counter.peak
    parameters = list(model.parameters())
    trained = [p for p in parameters if p.requires_grad]
    frozen = [p for p in parameters if not p.requires_grad]
    if stage == 3:
        masters = zero_optimizer.fp32_partitioned_groups_flat
        weights, unchanged = (
            [[p.ds_tensor for p in group], [p.data for p in group if p.ds_persist]]
            for group in (trained, frozen)
        )
        found["bucket"] = held([bucket.buffer for bucket in zero_optimizer.ipg_buckets.values()])
    else:
        masters = zero_optimizer.single_partition_of_fp32_groups
        weights, unchanged = [zero_optimizer.bit16_groups_flat, trained], frozen
    found["weights"] = held(weights)
    found["frozen_weights"] = held(unchanged)
    found["master_weights"] = held([masters, weights]) - found["weights"]
    found["optimizer_states"] = held(moments(zero_optimizer.optimizer))
    return found


def gradients(engine: Any, zero_optimizer: Any, stage: int) -> int:
    """Return the gradient bytes DeepSpeed holds between a backward and what follows it."""
    parameters = [p for p in engine.module.parameters() if p.grad is not None]
    if stage == 3:
        return held([zero_optimizer.grad_partitions_flat_buffer, [p.grad for p in parameters]])
    averaged = [list(group) for group in zero_optimizer.averaged_gradients.values() if group]
    sums = [list(group) for group in zero_optimizer.all_grad_tensors.values() if group]
    return held([averaged, sums, [p.grad for p in parameters]])


ENGINES = {"ddp": ddp, "fsdp": fsdp, "deepspeed": deepspeed}


def work(rank: int, requests: list[dict[str, Any]], port: int, ranks: int, folder: str) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "DS_ACCELERATOR": "cpu",
        "OMP_NUM_THREADS": "1",
    }
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", rank=rank, world_size=ranks)
    found = []
    for request in requests:
        gc.collect()
        found.append(ENGINES[request["engine"]](request | {"ranks": ranks}, rank))
    Path(folder, f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    if rank == 0:
        shapes = [(name, list(p.shape)) for name, p in make_model(torch.float32).named_parameters()]
        Path(folder, "parameters.json").write_text(json.dumps(shapes), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    asked = json.load(sys.stdin)
    torch.multiprocessing.spawn(
        work,
        args=(asked["requests"], asked["port"], asked["ranks"], asked["folder"]),
        nprocs=asked["ranks"],
    )
