"""The Hugging Face post on 4-bit training: which runs of Llama 7B and 13B fit a T4.

Only whether they ran is printed. The script is a gist that the page does not hold: LoRA is taken as
peft's defaults (rank 8 on q_proj and v_proj), the preparation as peft's own for 4-bit training.
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

# FP4 holds as many bits and scales as NF4.
_QUANT = {
    "4bit NF4": {"double_quant": False},
    "4bit FP4": {"double_quant": False},
    "4bit NF4 + nested quant": {"double_quant": True},
}
_NUMERICS = {
    "bf16 compute": {"numerics": "bf16-autocast", "weight_dtype": "bf16"},
    "fp16 compute": {"numerics": "fp16-autocast", "weight_dtype": "fp16"},
}


def case(row: Row) -> Case:
    """Return the question that a run of the post answers."""
    if "LLM.int8" in (row.quant or ""):
        raise NotScoredError("an LLM.int8 base")
    if row.sharding != "none":
        raise NotScoredError("layers split over devices (device_map)")
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    return Case(
        model=model_for(row.model or ""),
        fields={
            "gpu": gpu,
            **sizes(row),
            "method": "qlora",
            **pick(_QUANT, row.quant, "quantisation"),
            **pick(_NUMERICS, row.precision_mode, "precision"),
            "frozen_upcast": True,
            "adapter_dtype": "fp32",
            "lora_dropout": 0.0,
            "fp32_outputs": True,
            "reentrant": True,
            "lora_rank": 8,
            "lora_targets": "q_proj,v_proj",
            "optimizer": "adamw",
            "optimizer_impl": "foreach",
            "checkpointing": pick({"none": "none", "full": "full"}, row.act_ckpt, "checkpointing"),
            "attention": "eager",
            "loss": "standard",
        },
        # Of May 2023: bitsandbytes' products keep their inputs, the loss makes copies in fp32.
        environment="transformers-4.45-bitsandbytes-0.41",
        gpu_is_known=gpu_is_known,
        assumptions=("LoRA rank 8 on q_proj and v_proj, peft's defaults",),
    )
