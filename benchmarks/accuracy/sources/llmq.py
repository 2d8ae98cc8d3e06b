"""llmq's baselines: LLaMA-Factory pretraining Qwen2.5 on RTX 4090s. That they ran is all there is.

``pure_bf16`` keeps everything in bf16; the larger models go through DeepSpeed with states in host
memory. Liger's fused head and cross-entropy is on.
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

_SHARDING = {
    "none": "ddp",
    "ddp": "ddp",
    "zero2 (1 GPU)": "zero2",
    "zero3 (1 GPU)": "zero3",
    "zero3": "zero3",
}
_NUMERICS = {"pure_bf16": "bf16", "bf16 DeepSpeed (bf16_master_weights_and_grads)": "bf16-master"}
_OFFLOAD = {"none": "none", "cpu optimizer": "optimizer", "cpu params+optimizer": "params"}


def case(row: Row) -> Case:
    """Return the question that a baseline of llmq answers."""
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    return Case(
        model=model_for(row.model or ""),
        fields={
            "gpu": gpu,
            **sizes(row),
            "method": "full",
            "numerics": pick(_NUMERICS, row.precision_mode, "precision"),
            "optimizer": "adamw",
            "optimizer_impl": "fused",
            "sharding": pick(_SHARDING, row.sharding, "sharding"),
            "offload": pick(_OFFLOAD, row.offload, "offload"),
            "checkpointing": "full",
            "reentrant": True,
            "attention": "flash",
            "loss": "fused",
        },
        gpu_is_known=gpu_is_known,
    )
