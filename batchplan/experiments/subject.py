"""What an experiment is about: a model under a recipe, on devices of this machine."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchplan.errors import SpecError
from batchplan.prober.trial import Device
from batchplan.spec import Attention, Loss, Method, Recipe, Sharding
from batchplan.states.numerics import resolve_dtypes
from batchplan.tracer.request import trace_request


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """The model whose gradients are taken, and where."""

    config: dict[str, Any]
    """The model's ``config.json``."""
    model_ref: str
    recipe: Recipe
    seq_len: int
    """Where rows are cut."""
    num_ranks: int = 1
    device: Device = Device.CPU
    weights: bool = False
    """Load the published weights in place of random ones."""
    seed: int = 0
    """Of random weights and of dropout."""
    trust_remote_code: bool = False
    python: Path | None = None

    def request(self, task: str, *, timeout_seconds: float) -> dict[str, Any]:
        """Return what the worker is asked, but for what only the task knows.

        Raises:
            SpecError: when the recipe's gradients cannot be taken here.
        """
        _refuse(self)
        return trace_request(
            config=self.config,
            model_ref=self.model_ref,
            recipe=self.recipe,
            seq_len=self.seq_len,
            trust_remote_code=self.trust_remote_code,
        ) | {
            "task": task,
            "model_ref": self.model_ref,
            "loads_weights": self.weights,
            "device": self.device.value,
            "num_ranks": self.num_ranks,
            "seed": self.seed,
            "timeout_seconds": timeout_seconds,
        }

    def environment(self) -> dict[str, str]:
        """Return what the worker has in its environment beside ours."""
        added = {"PYTHONUNBUFFERED": "1", "TOKENIZERS_PARALLELISM": "false"}
        if self.device is Device.CPU:
            # Ranks share the cores; torchrun would give each one thread.
            threads = max(1, (os.cpu_count() or 1) // self.num_ranks)
            added |= {"CUDA_VISIBLE_DEVICES": ""}
            added |= {"OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads))}
        if not self.weights and not self.trust_remote_code:
            added |= {"HF_HUB_OFFLINE": "1"}
        return added


def _refuse(subject: Subject) -> None:
    recipe = subject.recipe
    dtypes = resolve_dtypes(recipe)
    on_cpu = subject.device is Device.CPU
    for is_true, text in (
        (
            subject.device is Device.MPS,
            "MPS has no fp64 to sum squares in; use --device cpu or cuda.",
        ),
        (
            recipe.method is Method.QLORA,
            "--method qlora: its 4-bit base cannot be loaded here yet. --method lora has the same "
            "parameters, on a base that is not rounded.",
        ),
        (
            recipe.sharding is not Sharding.DDP,
            f"--sharding {recipe.sharding}: every device holds all parameters here; use ddp. What "
            "is measured does not depend on it.",
        ),
        (
            dtypes.has_master,
            f"--numerics {recipe.numerics}: gradients are those of its 16-bit weights; use bf16.",
        ),
        (
            not dtypes.autocast and recipe.norm_dtype not in (None, dtypes.frozen),
            f"--norm-dtype {recipe.norm_dtype} beside weights in {dtypes.frozen}: without autocast "
            "torch's layers take one dtype; use --numerics bf16-autocast, or leave it out.",
        ),
        (
            on_cpu and recipe.attention is Attention.FLASH,
            "--attention flash runs FlashAttention's kernels, which need a GPU; use sdpa.",
        ),
        (
            recipe.loss is Loss.CHUNKED or (on_cpu and recipe.loss is not Loss.STANDARD),
            f"--loss {recipe.loss} cannot be run here; the standard loss has the same gradients.",
        ),
    ):
        if is_true:
            raise SpecError(text)
