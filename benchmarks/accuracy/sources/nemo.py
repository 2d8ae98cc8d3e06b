"""NeMo Automodel's page on gradient checkpointing: Llama-3.2-1B, bf16, eight sequences of 2,048.

It trains transformers' own classes with torch's AdamW as it comes (foreach) and a masked
cross-entropy in fp32. Accumulation is not printed: one pass a step is taken.
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

_SHARDING = {"none": "ddp", "fsdp2": "fsdp-full"}
_LOSS = {"none": "standard", "linear-cut CE": "fused"}
_CHECKPOINTING = {"none": "none", "full": "full", "full?": "full"}


def case(row: Row) -> Case:
    """Return the question that a row of NeMo Automodel answers."""
    if "frozen" in (row.method_detail or ""):
        raise NotScoredError("a vision-language model with frozen parts")
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    return Case(
        model=model_for(row.model or ""),
        fields={
            "gpu": gpu,
            **sizes(row),
            "method": "full",
            "numerics": "bf16",
            "optimizer": "adamw",
            "optimizer_impl": "foreach",
            "sharding": pick(_SHARDING, row.sharding, "sharding"),
            "checkpointing": pick(_CHECKPOINTING, row.act_ckpt, "checkpointing"),
            "attention": "sdpa",
            "loss": pick(_LOSS, row.fused_ce, "loss"),
        },
        # Its pyproject.toml of the releases on torch 2.8 asks for transformers<=4.55.4 (recalled).
        environment="transformers-4.55",
        gpu_is_known=gpu_is_known,
        assumptions=("one accumulation step", "AdamW foreach, torch's default"),
    )
