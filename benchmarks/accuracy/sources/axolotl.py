"""axolotl's example READMEs: "about" so much memory, most of them QLoRA of rank 32.

Samples are packed to micro_batch x sequence_len tokens. bf16 means autocast over a bf16 base;
axolotl casts norms and embeddings back to bf16 after peft's preparation. Which figure of its log
the READMEs print is not said.
"""

from __future__ import annotations

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.gpus import catalog_gpu
from benchmarks.accuracy.models import model_for
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.vocabulary import pick, sizes

_MODELS = {
    # Fine-tunes of a model whose config is in the catalog.
    "katanemo/Plano-Orchestrator-4B": "Qwen/Qwen3-4B",
    "mistralai/Devstral-Small-2507": "mistralai/Mistral-Small-24B-Base-2501",
    "mistralai/Magistral-Small-2506": "mistralai/Mistral-Small-24B-Base-2501",
    "mistralai/Magistral-Small-2507": "mistralai/Mistral-Small-24B-Base-2501",
}
_OPTIMIZERS = {
    "adamw_8bit": "adamw-8bit",
    "adamw_bnb_8bit": "adamw-8bit",
    "adamw_torch": "adamw",
    "adamw_torch_fused": "adamw",
}
_ATTENTION = {"flash_attention_2": "flash", "sdpa": "sdpa"}
_LOSS = {"none": "standard", "cut cross entropy": "fused"}


def case(row: Row) -> Case:
    """Return the question that an example of axolotl answers."""
    if row.offload != "none":
        raise NotScoredError("activations offloaded to the host")
    gpu, gpu_is_known = catalog_gpu(row.gpu)
    name = row.model or ""
    fields = {
        "gpu": gpu,
        **sizes(row),
        "method": row.method,
        "numerics": "bf16-autocast",
        "weight_dtype": "bf16",
        "optimizer": pick(_OPTIMIZERS, row.optimizer, "optimizer"),
        "optimizer_impl": "fused",
        # set_pytorch_cuda_alloc_conf of axolotl
        "expandable_segments": True,
        "reentrant": False,
        "fp32_outputs": False,
        "checkpointing": pick({"none": "none", "full": "full"}, row.act_ckpt, "checkpointing"),
        "attention": pick(_ATTENTION, row.attn, "attention"),
        "loss": pick(_LOSS, row.fused_ce, "loss"),
    }
    if row.method == "full":
        fields |= {"grad_dtype": "bf16", "optimizer_dtype": "bf16"}
    else:
        fields |= {
            "lora_rank": row.lora_rank,
            "lora_targets": ",".join(row.lora_targets),
            "lora_dropout": 0.0,
        }
    if row.method == "qlora":
        fields |= {"double_quant": True, "frozen_upcast": False, "adapter_dtype": "fp32"}
    return Case(
        model=model_for(_MODELS.get(name, name)),
        fields=fields,
        gpu_is_known=gpu_is_known,
        assumptions=("LoRA dropout 0", "every pack is full"),
    )
