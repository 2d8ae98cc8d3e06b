"""Lightning's FSDP pages: a 1.0B encoder-decoder of 35 tokens, fp32, Adam (foreach), two A100-40GB.

``lightning.pytorch.demos.Transformer`` is traced from its own code. FSDP wraps layer by layer.
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import own_model
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

_SHARDING = {
    "ddp": {"sharding": "ddp"},
    # One flat gradient is reduced in place, as DDP's does when its gradients are bucket views.
    "fsdp1 NO_SHARD": {"sharding": "ddp", "bucket_view": True},
    "fsdp1 SHARD_GRAD_OP": {"sharding": "fsdp-grad-op"},
    "fsdp1": {"sharding": "fsdp-full"},
}

_OFFLOAD = {"none": "none", "cpu params": "params"}


def case(row: Row) -> Case:
    """Return the question that a row of Lightning's pages answers."""
    if not (row.model or "").startswith("lightning.pytorch.demos"):
        raise NotScoredError("tensor parallelism")
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    return Case(
        model=own_model("lightning_demo"),
        fields={
            "gpu": gpu,
            "trust_remote_code": True,
            **sizes(row),
            "method": "full",
            "numerics": "fp32",
            "optimizer": "adamw",
            "optimizer_impl": "foreach",
            **pick(_SHARDING, row.sharding, "sharding"),
            "offload": pick(_OFFLOAD, row.offload, "offload"),
            "fsdp_version": 1,
            "checkpointing": "none",
            "attention": "sdpa",
            "loss": "standard",
        },
        gpu_is_known=gpu_is_known,
    )
