"""fms-acceleration: HF Trainer on A100-80GB, gradient checkpointing, flash attention, packed 4096.

The benchmark's defaults.yaml sets gradient_checkpointing, use_flash_attn, packing to 4096 and one
accumulation step; its scenarios set LoRA r 16, dropout 0, on the attention projections. The value
is the HF Trainer's memory tracker: ``torch.cuda.max_memory_allocated``.
"""

from __future__ import annotations

import re

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

_SHARDING = {"none": "ddp", "fsdp1": "fsdp-full"}

_NUMERICS = {
    # Loaded in bf16 and trained without autocast, moments in the weights' dtype.
    "pure bfloat16 (no autocast; accelerate mixed_precision no)": {"numerics": "bf16"},
    # Loaded in bf16, bf16: true. On one GPU accelerate leaves the loaded dtype alone.
    "bf16 AMP flag": {"numerics": "bf16-autocast", "weight_dtype": "bf16"},
}

_DRIVER = re.compile(r"nvidia-smi peak delta [^:]*: (\d+) MiB")

# The plug-in's own 4-bit scenario lists c_attn among the targets; the peft baseline does not.
_PLUGIN_TARGET = "c_attn"


def case(row: Row) -> Case:
    """Return the question that a row of fms-acceleration answers."""
    if "GPTQ" in (row.quant or ""):
        raise NotScoredError("GPTQ base: its kernels and storage are not NF4's")
    if row.fused_ce != "none":
        raise NotScoredError("fused operators and cross-entropy of fms-acceleration itself")
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    fields = {
        "gpu": gpu,
        **sizes(row),
        "method": row.method,
        **pick(_NUMERICS, row.precision_mode, "precision"),
        "optimizer": "adamw",
        "optimizer_impl": "foreach",
        "sharding": pick(_SHARDING, row.sharding, "sharding"),
        "fsdp_version": 1,
        "checkpointing": "full",
        "reentrant": True,  # Trainer's default up to transformers 4
        "attention": "flash",
        "loss": "standard",
    }
    if row.method != "full":
        targets = [name for name in row.lora_targets if name != _PLUGIN_TARGET]
        fields |= {
            "lora_rank": row.lora_rank,
            "lora_targets": ",".join(targets),
            "lora_dropout": 0.0,
            "adapter_dtype": "fp32",
        }
    if row.method == "qlora":
        fields |= {"double_quant": True, "frozen_upcast": False}
        # The baseline goes through trl 0.13's peft_module_casting_to_bf16, which leaves norms in
        # fp32, except where the 4-bit base is sharded; the plug-in's own scenario never calls it.
        if _PLUGIN_TARGET not in row.lora_targets and row.sharding == "none":
            fields["norm_dtype"] = "fp32"
    found = _DRIVER.search(row.notes or "")
    return Case(
        model=model_for(row.model or ""),
        fields=fields,
        environment="transformers-4.48",
        gpu_is_known=gpu_is_known,
        also_in_use=int(found[1]) * 2**20 if found else None,
    )
