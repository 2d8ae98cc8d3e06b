"""ms-swift: its benchmark page (A100-80GB, swift 1.x) and the comments on top of its examples.

The figure is ``torch.cuda.max_memory_reserved`` over lengths that vary; ``seq_len`` is the longest
sequence kept. Qwen's first generation runs code of its own repository; Qwen2's class of the same
shapes stands in, with q, k and v apart instead of one c_attn.
"""

from __future__ import annotations

from typing import Any

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

_MODELS = {"01-ai/Yi-6B-Chat": "01-ai/Yi-6B", "01-ai/Yi-34B-Chat": "01-ai/Yi-34B"}
_NUMERICS = {
    # bf16 weights under autocast, as swift's torch_dtype and bf16 flags say.
    ("full", "ms-swift-benchmark"): {"grad_dtype": "bf16", "optimizer_dtype": "bf16"},
    ("full", "ms-swift-examples"): {"grad_dtype": "bf16", "optimizer_dtype": "bf16"},
    # peft 0.7 made adapters in the base's dtype; newer ones make them fp32.
    ("lora", "ms-swift-benchmark"): {"adapter_dtype": "bf16"},
    ("qlora", "ms-swift-benchmark"): {"adapter_dtype": "bf16"},
    ("lora", "ms-swift-examples"): {"adapter_dtype": "fp32"},
}
_OPTIMIZERS = {"adamw_torch": "adamw", "AdamW": "adamw"}
_ATTENTION = {
    "flash-attn": "flash",
    "flash-attn-2": "flash",
    "flash-attn-2 where supported": "flash",
    "flash-attn-3": "flash",
    "qwen eager/sdpa (torch2 sdpa path)": "sdpa",
    "sdpa/flash default": "sdpa",
}
_SHARDING = {
    "none": "ddp",
    "ddp": "ddp",
    "zero2": "zero2",
    "zero3": "zero3",
    "fsdp2": "fsdp-full",
}
_CHECKPOINTING = {"none": "none", "full": "full"}
_LOSS = {"none": "standard", "liger fused CE": "fused"}
_TARGETS = {
    "DEFAULT (fused qkv / c_attn / W_pack / q,k,v)": "q_proj,k_proj,v_proj",
    "c_attn": "q_proj,k_proj,v_proj",
    "all-linear": "all-linear",
}
_DEEPSPEED = ("zero2", "zero3")
_OTHER_ADAPTERS = ("adalora", "dora")
_OLD = "transformers-4.45-bitsandbytes-0.41"
_LORA_DROPOUT = 0.05  # lora_dropout_p of swift 1.x and lora_dropout of 3.x


def case(row: Row) -> Case:
    """Return the question that a row of ms-swift answers."""
    _refuse(row)
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    name = row.model or ""
    fields = {
        "gpu": gpu,
        **sizes(row),
        "method": row.method,
        **_numerics(row),
        "optimizer": pick(_OPTIMIZERS, row.optimizer, "optimizer"),
        "optimizer_impl": "foreach",
        "sharding": pick(_SHARDING, row.sharding, "sharding"),
        "checkpointing": pick(_CHECKPOINTING, row.act_ckpt, "checkpointing"),
        "reentrant": row.sharding in ("none", *_DEEPSPEED),
        "attention": pick(_ATTENTION, row.attn, "attention"),
        "loss": pick(_LOSS, row.fused_ce, "loss"),
    }
    if row.method != "full":
        fields |= {
            "lora_rank": row.lora_rank,
            "lora_targets": ",".join(pick(_TARGETS, word, "target") for word in row.lora_targets),
            "lora_dropout": _LORA_DROPOUT,
        }
    if row.method == "qlora":
        fields["double_quant"] = True  # bnb_4bit_use_double_quant of swift
    return Case(
        model=model_for(_MODELS.get(name, name)),
        fields=fields,
        # The benchmark's QLoRA is of January 2024: bitsandbytes' products keep their inputs.
        environment=_OLD if row.method == "qlora" else None,
        gpu_is_known=gpu_is_known,
        assumptions=("the longest sequence kept has max_length tokens",),
    )


def _refuse(row: Row) -> None:
    detail = row.method_detail or row.method
    if row.method not in ("full", "lora", "qlora") or detail in _OTHER_ADAPTERS:
        raise NotScoredError(f"{detail}, no method of ours")
    if (row.optimizer or "").startswith("full+"):
        raise NotScoredError("GaLore and LISA, no optimizers of ours")
    if "gptq" in (row.quant or ""):
        raise NotScoredError("GPTQ base: its kernels and storage are not NF4's")
    if "device_map" in (row.sharding or ""):
        raise NotScoredError("layers split over devices (device_map)")
    if "megatron" in (row.sharding or "") or "TE" in (row.attn or ""):
        raise NotScoredError("Megatron")


def _numerics(row: Row) -> dict[str, Any]:
    if row.sharding in _DEEPSPEED:
        return {"numerics": "bf16-master"}
    own = _NUMERICS.get((row.method or "", row.source), {})
    # accelerate copies what an autocast model returns to fp32; Liger's loss returns no logits.
    outputs = row.fused_ce == "none"
    return {
        "numerics": "bf16-autocast",
        "weight_dtype": "bf16",
        "fp32_outputs": outputs,
        **own,
    }
