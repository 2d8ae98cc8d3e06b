"""The comment above a ``Trainer`` config: what to install, how to load the model, how to launch."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.spec import Attention, Loss, Method, Numerics, Optimizer, Recipe, Sharding
from batchplan.trainers.auto_class import auto_class
from batchplan.trainers.emitted import Job
from batchplan.trainers.realise import FSDP, ZERO

_SIXTEEN_BIT = {
    Numerics.BF16: "bfloat16",
    Numerics.FP16: "float16",
    Numerics.BF16_MASTER: "bfloat16",
    Numerics.FP16_MASTER: "float16",
}
_ATTENTION = {
    Attention.EAGER: "eager",
    Attention.SDPA: "sdpa",
    Attention.FLASH: "flash_attention_2",
}
_BITSANDBYTES = (Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT)


def how_to_run(job: Job, name: str) -> Iterator[str]:
    """Yield how to install, load, read and launch what the config ``name`` is for."""
    recipe, batch, nodes = job.plan.recipe, job.plan.batch, job.plan.num_nodes
    attention = _ATTENTION[recipe.attention]
    dtype = load_dtype(recipe)
    quantised = list(_quantised(recipe, dtype))
    end = "," if quantised else ")"
    auto = auto_class(job.model.architecture)
    yield from _why_sharded(recipe, batch.num_ranks)
    packages = _packages(recipe)
    if packages:
        yield f"Install: pip install {' '.join(packages)}"
    yield f"Model:   {auto.name}.from_pretrained({job.model.id!r}, dtype={dtype!r},"
    yield f"             attn_implementation={attention!r}{end}"
    yield from quantised
    if recipe.method is not Method.FULL:
        targets = recipe.lora_targets.split(",")
        shown = targets[0] if len(targets) == 1 else targets
        yield f"Adapter: LoraConfig(r={recipe.lora_rank}, target_modules={shown!r},"
        task = "" if auto.task_type is None else f', task_type="{auto.task_type}"'
        yield f"             lora_dropout={recipe.lora_dropout}{task})"
    yield f"Data:    {batch.seq_len} tokens a sequence"
    read = f"(args,) = HfArgumentParser(TrainingArguments).parse_yaml_file({name!r})"
    yield f"Read:    {read}"
    ranks = f"--nproc_per_node={batch.num_ranks // nodes}"
    if nodes > 1:
        ranks = f"--nnodes={nodes} {ranks} --rdzv-backend=c10d --rdzv-endpoint=HOST:29500"
    if recipe.sharding is Sharding.FSDP_HYBRID:
        yield "Set:     ACCELERATE_USE_PARALLELISM_CONFIG=true  (shards in a node, copies between)"
        yield f"         PARALLELISM_CONFIG_DP_REPLICATE_SIZE={nodes}"
        yield f"         PARALLELISM_CONFIG_DP_SHARD_SIZE={batch.num_ranks // nodes}"
    yield f"Launch:  torchrun {ranks} train.py"


def load_dtype(recipe: Recipe) -> str:
    """Return the dtype to load the model in.

    FSDP keeps its master weights as fp32 shards, so master weights under FSDP load in fp32.
    """
    if recipe.method is Method.FULL and recipe.sharding in FSDP and _has_master(recipe):
        return "float32"
    return _SIXTEEN_BIT.get(recipe.numerics, "float32")


def _has_master(recipe: Recipe) -> bool:
    return recipe.numerics in (Numerics.BF16_MASTER, Numerics.FP16_MASTER)


def _why_sharded(recipe: Recipe, num_ranks: int) -> Iterator[str]:
    if num_ranks > 1 or recipe.sharding not in ZERO or not _has_master(recipe):
        return
    without = recipe.numerics.value.replace("master", "autocast")
    yield "Why:     ZeRO on one device, because DeepSpeed keeps the fp32 copies of 16-bit"
    yield f"         weights; --numerics {without} does without it"


def _packages(recipe: Recipe) -> list[str]:
    """Return what must be installed beside transformers, accelerate and torch."""
    quantised = recipe.method is Method.QLORA or recipe.optimizer in _BITSANDBYTES
    needed = {
        "deepspeed": recipe.sharding in ZERO,
        "peft": recipe.method is not Method.FULL,
        "bitsandbytes": quantised,
        "liger-kernel": recipe.loss is Loss.FUSED,
        "flash-attn": recipe.attention is Attention.FLASH,
    }
    return [name for name, is_needed in needed.items() if is_needed]


def _quantised(recipe: Recipe, dtype: str) -> Iterator[str]:
    if recipe.method is not Method.QLORA:
        return
    # FSDP shards 4-bit weights only when they are stored in the dtype of the others.
    storage = f", bnb_4bit_quant_storage={dtype!r}" if recipe.sharding in FSDP else ""
    yield "             quantization_config=BitsAndBytesConfig(load_in_4bit=True,"
    yield f'                 bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype={dtype!r},'
    yield f"                 bnb_4bit_use_double_quant={recipe.double_quant}{storage}))"
