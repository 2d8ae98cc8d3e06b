"""Train one step of a small Llama under each emitted DeepSpeed config, on CPU processes.

Reads from stdin JSON with ``configs``, ``ranks``, ``port`` and ``folder``; rank r writes what its
engines were set to, and the losses of their micro-batches, to ``r.json`` in the folder.
"""

from __future__ import annotations

import json
import os
import sys
from importlib import import_module
from pathlib import Path
from typing import Any

from held import SHAPE, make_model

SEQUENCE = 8


def work(rank: int, asked: dict[str, Any]) -> None:
    os.environ |= {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(asked["port"]),
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(asked["ranks"]),
        "LOCAL_WORLD_SIZE": str(asked["ranks"]),
        "DS_ACCELERATOR": "cpu",
    }
    import deepspeed
    import torch

    # It would compile a kernel for ranks of one machine, which takes longer than the rest. The
    # package has an attribute of the module's name, which is torch itself.
    import_module("deepspeed.comm.torch").build_shm_op = lambda: None  # type: ignore[attr-defined]
    torch.set_num_threads(1)
    deepspeed.init_distributed("gloo")
    found = [train(config) for config in asked["configs"]]
    Path(asked["folder"], f"{rank}.json").write_text(json.dumps(found), encoding="utf-8")
    torch.distributed.destroy_process_group()


def train(config: str) -> dict[str, Any]:
    """Return what an engine was set to, and what it did."""
    import deepspeed
    import torch

    model = make_model(torch.bfloat16)
    rows = torch.arange(64 * SEQUENCE).reshape(64, SEQUENCE) % SHAPE["vocab_size"]
    engine, _, loader, _ = deepspeed.initialize(
        model=model,
        model_parameters=[p for p in model.parameters() if p.requires_grad],
        training_data=torch.utils.data.TensorDataset(rows),
        config=config,
    )
    losses, shapes = [], []
    for (ids,), _ in zip(loader, range(engine.gradient_accumulation_steps()), strict=False):
        loss = engine(input_ids=ids, labels=ids).loss
        engine.backward(loss)
        engine.step()
        losses.append(loss.item())
        shapes.append(list(ids.shape))
    return {
        "micro_batch": engine.train_micro_batch_size_per_gpu(),
        "accum_steps": engine.gradient_accumulation_steps(),
        "global_batch": engine.train_batch_size(),
        "stage": engine.zero_optimization_stage(),
        "bf16": engine.bfloat16_enabled(),
        "bucket": engine.zero_reduce_bucket_size(),
        "optimizer": type(engine.basic_optimizer).__module__,
        "learning_rate": engine.get_lr(),
        "steps": engine.global_steps,
        "losses": losses,
        "shapes": shapes,
    }


def main() -> None:
    import torch.multiprocessing as processes

    asked = json.load(sys.stdin)
    processes.spawn(work, args=(asked,), nprocs=asked["ranks"])


if __name__ == "__main__":
    main()
