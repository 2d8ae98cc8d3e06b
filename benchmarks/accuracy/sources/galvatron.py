"""Galvatron's memory profiles: one to four layers of Llama-2-7B under FSDP, bf16 over fp32 shards.

Each value is states after backward plus the peak of forward and backward, so the optimizer step is
left out. Layers are Megatron's or flash-attn's; transformers' Llama stands in.
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes


def case(row: Row) -> Case:
    """Return the question that a row of Galvatron's profiles answers."""
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    return Case(
        model=model_for(
            "meta-llama/Llama-2-7b-hf", num_hidden_layers=(row.arch or {}).get("n_layers", 1)
        ),
        fields={
            "gpu": gpu,
            **sizes(row),
            "method": "full",
            "numerics": "bf16-master",
            "grad_dtype": "fp32",
            "optimizer": "adamw",
            "optimizer_impl": "fused",
            "sharding": "fsdp-full",
            "fsdp_version": 1,
            "checkpointing": pick({"none": "none", "full": "full"}, row.act_ckpt, "checkpointing"),
            "attention": "flash",
            "loss": "standard",
        },
        has_step=False,
        gpu_is_known=gpu_is_known,
        assumptions=("transformers' Llama stands in for Megatron's and flash-attn's layers",),
    )
