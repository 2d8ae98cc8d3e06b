"""The transformers page on training on one GPU: BERT-large on a V100, nvidia-smi, January 2022.

The optimizer is transformers' own AdamW of that time, a loop over parameters. The model is
traced from code of that time: torch 1.10 keeps more of a softmax than today's.

torch before 2.0 zeroes gradients in place: from the second step on they are there in every forward,
as they are in ours from the second pass of a step on. The page prints the context on its own.
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import own_model
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

_NUMERICS = {"fp32": "fp32", "fp16 AMP (fp32 weights)": "fp16-autocast"}
_OPTIMIZERS = {"AdamW": "adamw", "Adafactor": "adafactor", "bnb Adam8bit": "adamw-8bit"}

_CONTEXT = 1343 * 2**20  # "GPU memory occupied: 1343 MB." after a first tensor of one element


def case(row: Row) -> Case:
    """Return the question that a row of the page answers."""
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    return Case(
        model=own_model("bert_2022"),
        fields={
            "gpu": gpu,
            "trust_remote_code": True,
            **sizes(row),
            "accum_steps": max(2, row.grad_accum or 1),
            "method": "full",
            "numerics": pick(_NUMERICS, row.precision_mode, "precision"),
            "optimizer": pick(_OPTIMIZERS, row.optimizer, "optimizer"),
            "optimizer_impl": "for-loop",
            "checkpointing": pick({"none": "none", "full": "full"}, row.act_ckpt, "checkpointing"),
            "attention": "eager",
            "loss": "standard",
            "reentrant": True,
        },
        gpu_is_known=gpu_is_known,
        context_bytes=_CONTEXT,
    )
