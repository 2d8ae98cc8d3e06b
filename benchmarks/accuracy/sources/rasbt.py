"""Sebastian Raschka's training-speed chapter: a GPT-2 small with a head of its own, plain PyTorch.

``torch.cuda.memory_reserved`` after each epoch; evaluation runs in it too. The chapter's own
modules are traced, with its own LayerNorm and GELU up to step 5 and torch's from step 6 on.
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import own_model
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

_NUMERICS = {
    "fp32": "fp32",
    "fp32 (tf32 matmul)": "fp32",  # the tensors stay fp32
    "pure bf16 (model.to(bf16))": "bf16",
}
_OWN_ATTENTION = "eager (from scratch, dropout)"
_NATIVE = ("native LayerNorm/GELU",)
_ATTENTION = {_OWN_ATTENTION: "eager", "sdpa flash (dropout 0.1)": "sdpa"}
_IMPLEMENTATIONS = {"AdamW": "foreach", "AdamW fused": "fused"}
_SHARDING = {"none": "ddp", "ddp": "ddp"}


def case(row: Row) -> Case:
    """Return the question that a row of the chapter answers."""
    if row.source != "rasbt-llms-from-scratch":
        raise NotScoredError("a vision model")
    # "A100" is of 40 or 80 GB: only workspaces depend on it.
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    vocab = (row.arch or {}).get("vocab")
    is_native = any(word in (row.notes or "") for word in _NATIVE) or row.attn != _OWN_ATTENTION
    return Case(
        model=own_model("gpt_from_scratch", vocab_size=vocab, native=is_native),
        fields={
            "gpu": gpu,
            "trust_remote_code": True,
            **sizes(row),
            "method": "full",
            "numerics": pick(_NUMERICS, row.precision_mode, "precision"),
            "optimizer": "adamw",
            "optimizer_impl": pick(_IMPLEMENTATIONS, row.optimizer, "optimizer"),
            "sharding": pick(_SHARDING, row.sharding, "sharding"),
            "checkpointing": "none",
            "attention": pick(_ATTENTION, row.attn, "attention"),
            "loss": "standard",
        },
        gpu_is_known=gpu_is_known,
        assumptions=("compiled by torch.compile, compared as eager",) if row.compile else (),
    )
