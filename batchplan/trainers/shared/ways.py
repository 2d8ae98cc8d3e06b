"""What trainers on transformers and accelerate can be configured for, and what they cannot."""

from __future__ import annotations

from batchplan.spec import Checkpointing, Loss, Numerics, Offload, Optimizer
from batchplan.trainers.format import (
    ADAPTERS,
    AUTOCAST,
    COMMON,
    DDP,
    FSDP,
    FULL,
    MASTER,
    PURE,
    ZERO,
    Refusal,
    Way,
)
from batchplan.trainers.policies.rows import Value
from batchplan.trainers.shared.optimizer_classes import BITSANDBYTES
from batchplan.trainers.shared.optimizers import IMPLEMENTATIONS, OPTIMIZERS
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES

# DeepSpeed keeps the fp32 copies itself; FSDP keeps fp32 shards and computes in 16 bits.
FULL_WAYS = (
    Way(methods=FULL, shardings=ZERO, numerics=MASTER),
    Way(methods=FULL, shardings=DDP, numerics=(*PURE, *AUTOCAST)),
    Way(methods=FULL, shardings=FSDP, numerics=(*MASTER, *PURE), alone=False),
)
"""Autocast under FSDP is not among them: accelerate makes fp32 shards of it, as of masters."""
ADAPTER_WAYS = (
    Way(methods=ADAPTERS, shardings=DDP, numerics=(*PURE, *AUTOCAST)),
    Way(methods=ADAPTERS, shardings=FSDP, numerics=(*PURE, *AUTOCAST), alone=False),
    Way(methods=ADAPTERS[:1], shardings=ZERO, numerics=MASTER),
)
"""DeepSpeed is not for 4-bit weights here."""


def _values(*members: object) -> tuple[str, ...]:
    return tuple(str(member) for member in members)


OFFLOAD_REFUSALS = (
    Refusal(
        when={"sharding": DDP, "offload": _values(Offload.OPTIMIZER, Offload.PARAMS)},
        text="it cannot offload without ZeRO or FSDP",
    ),
    Refusal(
        when={"sharding": FSDP, "offload": _values(Offload.OPTIMIZER)},
        text="its FSDP offloads weights and optimizer together (--offload params)",
    ),
    Refusal(
        when={"sharding": ZERO[:2], "offload": _values(Offload.PARAMS)},
        text="DeepSpeed offloads weights only under ZeRO-3",
    ),
    Refusal(
        when={
            "sharding": ZERO,
            "offload": _values(Offload.OPTIMIZER, Offload.PARAMS),
            "optimizer": tuple(o for o in Optimizer if o is not Optimizer.ADAMW),
        },
        text="DeepSpeed offloads only its own AdamW",
    ),
)
NOT_ON_DTENSORS = Refusal(
    when={"sharding": FSDP, "optimizer": BITSANDBYTES},
    text="bitsandbytes' {optimizer} does not take the sharded tensors of FSDP2 (--optimizer adamw)",
)
"""Tried with bitsandbytes 0.50.2: its kernels have no sharding rule, and the first step raises."""
DEEPSPEED_REFUSALS = (
    Refusal(
        when={
            "method": (*FULL, *ADAPTERS[:1]),
            "sharding": ZERO,
            "numerics": tuple(n for n in Numerics if n not in MASTER),
        },
        text="DeepSpeed keeps fp32 copies of the weights, which --numerics {numerics} does not "
        "have (bf16-master does)",
    ),
    Refusal(
        when={"method": _values("qlora"), "sharding": ZERO},
        text="it does not train 4-bit weights under DeepSpeed here (--sharding ddp)",
    ),
)
NO_REENTRANT_FSDP = Refusal(
    when={
        "sharding": FSDP,
        "checkpointing": _values(Checkpointing.FULL),
        "reentrant": (True,),
    },
    text="FSDP checkpoints without reentrance",
)
NO_MASTERS_UNDER_DDP = Refusal(
    when={"sharding": DDP, "numerics": MASTER},
    text="numerics {numerics} needs DeepSpeed (--sharding zero1) or FSDP",
)
REFUSALS = (
    *DEEPSPEED_REFUSALS,
    NO_MASTERS_UNDER_DDP,
    Refusal(
        when={"sharding": FSDP, "method": FULL, "numerics": AUTOCAST},
        text="accelerate keeps FSDP's shards in fp32 under mixed precision, which is "
        "--numerics bf16-master or fp16-master, not {numerics}",
    ),
    NO_REENTRANT_FSDP,
    NOT_ON_DTENSORS,
    *OFFLOAD_REFUSALS,
)
CHECKPOINTINGS = _values(Checkpointing.NONE, Checkpointing.FULL)
LOSSES = _values(Loss.STANDARD, Loss.FUSED)
DECIDED = frozenset(
    {
        *COMMON,
        *WITHOUT_OWN_DTYPES,
        "double_quant",
        "checkpointing",
        "reentrant",
        "attention",
        "expandable_segments",
        "zero_buckets",
        "sync_each_batch",
        "fsdp_version",
    }
)
"""Fields of the recipe that TrainingArguments, model kwargs and a launch script decide."""
ARGUMENT_VALUES: dict[str, tuple[Value, ...]] = {
    "optimizer": OPTIMIZERS,
    "optimizer_impl": IMPLEMENTATIONS,
    "checkpointing": CHECKPOINTINGS,
    "fsdp_version": (2,),
}
"""What TrainingArguments can say of them."""
