"""The bill at the peak: every term by name, with its formula and source."""

from __future__ import annotations

from batchplan.memory.activations import Instant, Place
from batchplan.memory.buffers import INPUT_BYTES_PER_TOKEN
from batchplan.memory.device import (
    COMMUNICATOR_SOURCE,
    communicator_bytes,
    cublas_workspace_bytes,
    libraries_bytes,
    libraries_source,
)
from batchplan.memory.optimizers import OPTIMIZERS
from batchplan.memory.setting import Setting
from batchplan.memory.states import States
from batchplan.memory.terms import Term
from batchplan.spec import Batch, Method, Offload, Recipe

ZERO_PAPER = "ZeRO, arXiv 1910.02054, section 3.1"
_TRACE = "trace of the model's own code"


def state_terms(
    *, states: States, recipe: Recipe, num_shards: int, gradients: int
) -> tuple[Term, ...]:
    """Return the terms of the persistent states of one rank; ``gradients`` as at the peak."""
    over = f", each over {num_shards} shards where the strategy splits it" if num_shards > 1 else ""
    host = " (in host memory)" if recipe.offload is not Offload.NONE else ""
    quantised = "0.5 B + scales per NF4 value, " if recipe.method is Method.QLORA else ""
    return (
        Term(
            name="weights",
            num_bytes=states.weights,
            formula=f"trainable parameters x dtype{over}",
            source=ZERO_PAPER,
        ),
        Term(
            name="frozen weights",
            num_bytes=states.frozen_weights,
            formula=f"{quantised}frozen parameters x dtype{over}",
            source="QLoRA, arXiv 2305.14314" if quantised else ZERO_PAPER,
        ),
        Term(
            name="master weights",
            num_bytes=states.master_weights,
            formula=f"4 B x trainable parameters where the numerics keep fp32 copies{over}{host}",
            source=ZERO_PAPER,
        ),
        Term(
            name="optimizer states",
            num_bytes=states.optimizer_states,
            formula=f"{recipe.optimizer} states x dtype{over}{host}",
            source=OPTIMIZERS[recipe.optimizer].source,
        ),
        Term(
            name="gradients",
            num_bytes=gradients,
            formula="gradients that exist at the peak: kept ones and those being made",
            source="torch AccumulateGrad; " + ZERO_PAPER,
        ),
    )


def tensor_terms(*, setting: Setting, peak: Instant[int], batch: Batch) -> tuple[Term, ...]:
    """Return every term of live tensors at the peak instant."""
    in_step = peak.place is Place.OPTIMIZER_STEP
    buffers = setting.buffers
    states = state_terms(
        states=setting.states,
        recipe=setting.recipe,
        num_shards=setting.num_shards,
        gradients=peak.gradients,
    )
    return (
        *states,
        Term(
            name="activations saved",
            num_bytes=peak.saved,
            formula="sum over stages of what forward keeps for backward",
            source=_TRACE,
        ),
        Term(
            name="transient peak",
            num_bytes=0 if in_step else peak.transient,
            formula=f"highest point inside {peak.phase} of {peak.stage}",
            source=_TRACE,
        ),
        Term(
            name="logits and loss",
            num_bytes=peak.head,
            formula="head and loss: logits, their casts, softmax and gradient",
            source=_TRACE,
        ),
        Term(
            name="optimizer step",
            num_bytes=peak.transient if in_step else 0,
            formula="fp32 gradient partition (DeepSpeed), list of the weights' size (foreach)",
            source="deepspeed stage_1_and_2.py; torch optim/adam.py",
        ),
        Term(
            name="gather buffers",
            num_bytes=buffers.gathered.get(peak.place, 0),
            formula=buffers.gathered_formula,
            source=buffers.source,
        ),
        Term(
            name="communication buffers",
            num_bytes=buffers.communication.get(peak.place, 0),
            formula=buffers.communication_formula,
            source=buffers.source,
        ),
        Term(
            name="input batch",
            num_bytes=input_bytes(batch),
            formula=f"{INPUT_BYTES_PER_TOKEN} B x b x s x K",
            source="transformers trainer.py, get_batch_samples",
        ),
        Term(
            name="model buffers",
            num_bytes=setting.profile.buffer_bytes,
            formula="non-parameter tensors of the module",
            source=_TRACE,
        ),
        Term(
            name="cuBLAS workspace",
            num_bytes=cublas_workspace_bytes(setting.gpu),
            formula="2 handles x workspace of the compute capability",
            source="aten CublasHandlePool.cpp",
        ),
    )


def overhead_terms(*, setting: Setting, reserve: Term) -> tuple[Term, ...]:
    """Return what comes on top of live tensors, ``reserve`` of the allocator first."""
    gpu = setting.gpu
    return (
        reserve,
        Term(
            name="CUDA context",
            num_bytes=gpu.context_bytes,
            formula="measured" if gpu.num_measurements else "table by GPU",
            source=gpu.context_source or "not known for this device",
        ),
        Term(
            name="libraries",
            num_bytes=libraries_bytes(gpu),
            formula="kernels that cuBLAS, FlashAttention and others load",
            source=libraries_source(gpu),
        ),
        Term(
            name="communicator",
            num_bytes=communicator_bytes(setting.cluster),
            formula="NCCL's buffers once there are two ranks",
            source=COMMUNICATOR_SOURCE,
        ),
    )


def input_bytes(batch: Batch) -> int:
    """Return the bytes of the K micro-batches of token ids, masks and labels."""
    return INPUT_BYTES_PER_TOKEN * batch.micro_batch * batch.seq_len * batch.accum_steps
