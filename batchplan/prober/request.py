"""What a trial's worker is asked, as plain data, and what cannot be asked of it."""

from __future__ import annotations

import sys
from typing import Any

from batchplan.errors import SpecError
from batchplan.prober.trial import Device, Job
from batchplan.spec import (
    Attention,
    Dtype,
    Loss,
    Method,
    Offload,
    Optimizer,
    OptimizerImpl,
    Sharding,
)
from batchplan.states.numerics import resolve_dtypes
from batchplan.states.sharding import RULES, Engine
from batchplan.tracer.request import trace_request
from batchplan.units import format_bytes

_BITSANDBYTES = (Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT, Optimizer.LION)


def probe_request(job: Job) -> dict[str, Any]:
    """Return the worker's request for a job: the trace's, and what only real training needs.

    Raises:
        SpecError: when the job cannot be tried anywhere, or not on its device.
    """
    _refuse(job)
    recipe = job.recipe
    dtypes = resolve_dtypes(recipe)
    request = trace_request(
        config=job.config,
        model_ref=job.model_ref,
        recipe=recipe,
        seq_len=job.seq_len,
        trust_remote_code=job.trust_remote_code,
    )
    rule = RULES[recipe.sharding]
    return request | {
        "model_ref": job.model_ref,
        "double_quant": recipe.double_quant,
        "optimizer": recipe.optimizer.value,
        "optimizer_impl": recipe.optimizer_impl.value,
        "compute_dtype": dtypes.compute.value,
        "has_master": dtypes.has_master,
        "accum_steps": job.accum_steps,
        "num_steps": job.num_steps,
        "device": job.device.value,
        "memory_limit_bytes": job.memory_limit_bytes,
        "loads_weights": job.weights,
        "num_ranks": job.num_ranks,
        "as_rank_of": job.as_rank_of,
        "engine": rule.engine.value,
        "zero_stage": 1 + rule.gradients + rule.weights,
        "zero_buckets": recipe.zero_buckets.value,
        "reshards": rule.reshards_after_forward,
        "sync_each_batch": recipe.sync_each_batch,
        "bucket_view": recipe.bucket_view,
        "timeout_seconds": job.timeout_seconds,
    }


def _refuse(job: Job) -> None:
    recipe, dtypes = job.recipe, resolve_dtypes(job.recipe)
    on_cpu = job.device is Device.CPU
    shards = job.as_rank_of is not None
    engine = RULES[recipe.sharding].engine
    several = job.num_ranks > 1 or shards
    # Gradients and moments have the dtype of what the optimizer updates; nothing casts them.
    held = Dtype.FP32 if dtypes.has_master else dtypes.weights
    for is_true, text in (
        (job.accum_steps < 1 or job.num_steps < 2, "A trial takes 2 optimizer steps or more."),
        (
            job.device is Device.MPS,
            "MPS keeps no peak figures, so it cannot be probed; use --device cpu or cuda.",
        ),
        (
            on_cpu and sys.platform != "linux",
            "--device cpu needs Linux, whose kernel can limit what a process allocates.",
        ),
        (
            on_cpu and job.memory_limit_bytes is None,
            "--device cpu needs --memory-limit, such as 2GiB: it is what stands for a device.",
        ),
        (
            job.memory_limit_bytes is not None and job.memory_limit_bytes < 1,
            f"--memory-limit is {format_bytes(job.memory_limit_bytes or 0)}; it has to be more.",
        ),
        (
            on_cpu and recipe.method is Method.QLORA,
            "QLoRA on a CPU is not supported by the probe: its 4-bit kernels are bitsandbytes' "
            "for GPUs. Use --method lora.",
        ),
        (
            on_cpu and recipe.optimizer in _BITSANDBYTES,
            f"--optimizer {recipe.optimizer} runs bitsandbytes' kernels, which need a GPU.",
        ),
        (
            on_cpu and recipe.attention is Attention.FLASH,
            "--attention flash runs FlashAttention's kernels, which need a GPU; use sdpa.",
        ),
        (
            on_cpu and recipe.loss is not Loss.STANDARD,
            f"--loss {recipe.loss} runs Triton kernels, which need a GPU; use standard.",
        ),
        (
            recipe.loss is Loss.CHUNKED,
            "--loss chunked cannot be probed yet; use standard or fused.",
        ),
        (
            recipe.offload is not Offload.NONE,
            f"--offload {recipe.offload} cannot be probed yet; estimate prices it.",
        ),
        (
            recipe.grad_dtype not in (None, dtypes.weights),
            f"--grad-dtype {recipe.grad_dtype} cannot be probed; estimate prices it.",
        ),
        (
            recipe.optimizer_dtype not in (None, held),
            f"--optimizer-dtype {recipe.optimizer_dtype} cannot be probed; estimate prices it.",
        ),
        (
            recipe.norm_dtype not in (None, Dtype.FP32, dtypes.weights),
            f"--norm-dtype {recipe.norm_dtype} cannot be probed; estimate prices it.",
        ),
        (
            several and recipe.sharding is Sharding.FSDP_HYBRID,
            "--sharding fsdp-hybrid needs several nodes, which the probe does not start.",
        ),
        (
            several and engine is Engine.FSDP and recipe.fsdp_version == 1,
            "FSDP version 1 cannot be probed; use --fsdp-version 2.",
        ),
        (
            shards and engine is not Engine.FSDP,
            f"--as-rank-of holds shares as FSDP2 does; use --sharding fsdp-full in place of "
            f"{recipe.sharding}.",
        ),
        (shards and job.num_ranks > 1, "--as-rank-of is for one device: leave --devices out."),
        (
            several and recipe.method is Method.QLORA and engine is not Engine.TORCH_DDP,
            "QLoRA with sharded weights cannot be probed yet; use --sharding ddp.",
        ),
        (
            several
            and engine is Engine.DEEPSPEED
            and recipe.optimizer_impl is OptimizerImpl.FUSED
            and on_cpu
            and not dtypes.has_master
            and dtypes.weights is not Dtype.FP32,
            f"DeepSpeed trains in fp32 or with master weights, not --numerics {recipe.numerics}.",
        ),
    ):
        if is_true:
            raise SpecError(text)
