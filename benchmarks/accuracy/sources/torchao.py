"""torchao's optimizer table: torchtune's full fine-tuning of Llama-2-7B on one A100-80GB, bf16.

Neither batch nor length is printed: torchtune's default of two alpaca sequences is in the row, and
512 tokens are taken for the longest of them. States decide.
"""

from __future__ import annotations

from dataclasses import replace

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

_SEQ_LEN = 512
_OPTIMIZERS = {
    "AdamW fused": "adamw",
    "bnb AdamW8bit": "adamw-8bit",
    "torchao AdamW8bit": "adamw-8bit",
}


def case(row: Row) -> Case:
    """Return the question that a row of torchao's table answers."""
    if row.grade == "C":
        raise NotScoredError("shape of the model and optimizer are not printed")
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    return Case(
        model=model_for(row.model or ""),
        fields={
            "gpu": gpu,
            **sizes(replace(row, seq_len=row.seq_len or _SEQ_LEN)),
            "method": "full",
            "numerics": "bf16",
            "optimizer": pick(_OPTIMIZERS, row.optimizer, "optimizer"),
            "optimizer_impl": "fused",
            "checkpointing": "full",
            "attention": "sdpa",
            "loss": "standard",
        },
        gpu_is_known=gpu_is_known,
        assumptions=(f"sequences of {_SEQ_LEN} tokens",),
    )
