"""Lightning Thunder's benchmark of LitGPT models on H100: what eager and torch.compile ran.

``benchmark_litgpt.py`` trains on dummy data of the model's block size with bf16 weights, gradients
and moments and a fused AdamW, one micro-batch a step. Rows that Thunder compiled are its own
subject; torch.compile's stay close to eager and are compared with it. Those are traced from
transformers' class of the same architecture, which is as far from what ran and takes seconds where
LitGPT's own takes minutes; the eager ones are traced from LitGPT's.
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.sources.litgpt_models import ENVIRONMENT, litgpt_model
from benchmarks.accuracy.vocabulary import pick, sizes

_SHARDING = {
    ("none", None): "ddp",
    ("ddp", None): "ddp",
    ("fsdp1", "FULL_SHARD, bucketing none (every submodule wrapped)"): "fsdp-full",
    ("fsdp1", "zero3 FULL_SHARD, bucketing_mode=block (wrap per Block)"): "fsdp-full",
    ("fsdp1", "zero3, bucketing_mode=block"): "fsdp-full",
    ("fsdp1", "zero2: SHARD_GRAD_OP, bucketing none"): "fsdp-grad-op",
    ("fsdp1", "zero2 (reshard_after_forward=False / SHARD_GRAD_OP)"): "fsdp-grad-op",
    ("fsdp2", "zero2: reshard_after_forward=False, per Block"): "fsdp-grad-op",
    ("fsdp2", "zero2 (reshard_after_forward=False / SHARD_GRAD_OP)"): "fsdp-grad-op",
    ("fsdp2", "zero2 assumed"): "fsdp-grad-op",
}

_EAGER_ENOUGH = (False, "inductor")


def case(row: Row) -> Case:
    """Return the question that a row of Thunder's benchmark answers."""
    if row.compile not in _EAGER_ENOUGH:
        raise NotScoredError("compiled by Thunder")
    if row.precision_mode != "bf16-true":
        raise NotScoredError("8-bit matrix products")
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    is_cut = (row.model or "").endswith(" truncated")
    layers = (row.arch or {}).get("n_layers") if is_cut else None
    key = (row.sharding, row.sharding_detail)
    if key not in _SHARDING:
        raise NotScoredError(f"sharding {row.sharding} {row.sharding_detail} cannot be expressed")
    name = (row.model or "").removesuffix(" truncated")
    cut = {} if layers is None else {"num_hidden_layers": layers}
    return Case(
        model=model_for(name, tie_word_embeddings=False, **cut)
        if row.compile
        else litgpt_model(name, num_layers=layers),
        fields={
            "gpu": gpu,
            **sizes(row),
            "method": "full",
            "numerics": "bf16",
            "optimizer": "adamw",
            "optimizer_impl": "fused",
            "sharding": _SHARDING[key],
            "fsdp_version": 2 if row.sharding == "fsdp2" else 1,
            "checkpointing": pick({"none": "none", "full": "full"}, row.act_ckpt, "checkpointing"),
            "attention": "sdpa",
            # F.cross_entropy on the bf16 logits, without the cast to fp32 of transformers' loss.
            "loss": "standard",
        },
        environment=None if row.compile else ENVIRONMENT,
        needs_environment=not row.compile,
        gpu_is_known=gpu_is_known,
        assumptions=("compiled by torch.compile, compared as eager",) if row.compile else (),
    )
