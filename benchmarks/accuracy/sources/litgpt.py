"""LitGPT: its resource tables, the table of its config hub, and its pretraining under Thunder.

Memory is ``torch.cuda.max_memory_allocated``. The first iteration holds the longest sample, so
``seq_len`` is real; weights, gradients and moments are in bf16 ("bf16-true").
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.sources.litgpt_models import ENVIRONMENT, litgpt_model, litgpt_targets
from benchmarks.accuracy.vocabulary import pick, sizes

_NUMERICS = {
    "bf16-true": {"numerics": "bf16", "adapter_dtype": "bf16"},
    "bf16-true (pure bf16)": {"numerics": "bf16", "adapter_dtype": "bf16"},
    # Everything, adapters included, is kept in fp32 and cast on the fly.
    "bf16-mixed": {"numerics": "bf16-autocast"},
    "bf16-mixed (fp32 weights, autocast)": {"numerics": "bf16-autocast"},
}

_SHARDING = {
    "none": "ddp",
    "ddp": "ddp",
    "fsdp": "fsdp-full",
    "fsdp full_shard (per Block)": "fsdp-full",
}

_CHECKPOINTING = {"none": "none", "full (per Block)": "full"}

_MODELS = {"TinyLlama/TinyLlama-1.1B (litgpt tiny-llama-1.1b)": "tiny-llama-1.1b"}

# Sequences per optimizer step on one device, which the rows leave out: batch_size of
# finetune/lora.py for the tables, global_batch_size of the config hub's yaml files, and
# global_batch_size of the pretraining script (over all devices).
_SEQUENCES_PER_STEP = {"litgpt-resource-tables": 128, "litgpt-config-hub": 8, "litgpt-thunder": 512}
_OVER_ALL_DEVICES = ("litgpt-config-hub", "litgpt-thunder")

# The tables name bitsandbytes 0.41.1, whose products keep their inputs.
_QLORA_ENVIRONMENT = "litgpt-0.5-bitsandbytes-0.41"

_LORA_DROPOUT = 0.05  # default of finetune/lora.py and of the config hub


def case(row: Row) -> Case:
    """Return the question that a row of LitGPT answers."""
    _refuse(row)
    name = _MODELS.get(row.model or "", row.model or "")
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    fields = {
        "gpu": gpu,
        **sizes(row),
        "accum_steps": _accum_steps(row),
        "method": row.method,
        **pick(_NUMERICS, row.precision_mode, "precision"),
        "optimizer": "adamw",
        # torch.optim.AdamW as it comes; only the pretraining script asks for fused=True.
        "optimizer_impl": "fused" if row.source == "litgpt-thunder" else "foreach",
        "sharding": pick(_SHARDING, row.sharding, "sharding"),
        # Fabric's no_backward_sync wraps all micro-batches but the last of a step.
        "sync_each_batch": False,
        "checkpointing": pick(_CHECKPOINTING, row.act_ckpt, "checkpointing"),
        "attention": "sdpa",
        "fsdp_version": 1,  # Fabric's FSDPStrategy
        # finetune/lora.py, finetune/full.py and pretrain.py all take chunked_cross_entropy.
        "loss": "chunked",
        "fp32_outputs": True,  # Fabric's precision plug-in
    }
    assumptions = [f"{fields['accum_steps']} accumulation steps"]
    if row.method != "full":
        fields |= {
            "lora_rank": row.lora_rank,
            "lora_targets": litgpt_targets(row.lora_targets),
            "lora_dropout": _LORA_DROPOUT,
        }
        assumptions.append(f"LoRA dropout {_LORA_DROPOUT}, the source's default")
    if row.method == "qlora":
        fields["double_quant"] = "double" in (row.quant or "")
        if "Paged" in (row.optimizer or ""):
            # The 32-bit paged one is not ours to name; adapters are small, and so is what differs.
            fields["optimizer"] = "paged-adamw-8bit"
    return Case(
        model=litgpt_model(name),
        fields=fields,
        environment=_QLORA_ENVIRONMENT if row.method == "qlora" else ENVIRONMENT,
        needs_environment=True,
        gpu_is_known=gpu_is_known,
        assumptions=tuple(assumptions),
    )


def _refuse(row: Row) -> None:
    if row.method not in ("full", "lora", "qlora") or "adapter" in (row.method_detail or ""):
        raise NotScoredError("LLaMA-Adapter, no method of ours")
    if row.compile:
        raise NotScoredError("compiled by Thunder")
    if row.grade == "C":
        raise NotScoredError("the source contradicts itself about what was run")
    if row.act_ckpt == "full (per Block) if really multi-GPU":
        raise NotScoredError("the source contradicts itself about how many devices ran")


def _accum_steps(row: Row) -> int:
    sequences = _SEQUENCES_PER_STEP[row.source]
    if row.source in _OVER_ALL_DEVICES:
        sequences //= row.n_gpus or 1
    return max(1, sequences // (row.micro_batch or 1))
