"""Which plans a trainer can really run, as tables."""

from __future__ import annotations

from batchplan.errors import SpecError
from batchplan.spec import (
    Checkpointing,
    Loss,
    Method,
    Numerics,
    Offload,
    Optimizer,
    OptimizerImpl,
    Recipe,
    Sharding,
)
from batchplan.trainers.defaults import check_trainer

ZERO = (Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3)
FSDP = (Sharding.FSDP_GRAD_OP, Sharding.FSDP_FULL, Sharding.FSDP_HYBRID)
MASTER = (Numerics.BF16_MASTER, Numerics.FP16_MASTER)

_SHARDINGS: dict[tuple[str, bool], tuple[Sharding, ...]] = {
    # DeepSpeed keeps the fp32 copies itself; FSDP keeps fp32 shards and computes in 16 bits.
    ("hf-trainer", True): (*ZERO, *FSDP),
    # DeepSpeed always adds fp32 copies, so without them DDP and FSDP remain.
    ("hf-trainer", False): (Sharding.DDP, *FSDP),
}
_ON_ONE_RANK: dict[tuple[str, bool], tuple[Sharding, ...]] = {
    ("hf-trainer", True): (Sharding.ZERO1,),
    ("hf-trainer", False): (Sharding.DDP,),
}


def realisable_shardings(
    trainer: str, numerics: Numerics, num_ranks: int, *, num_nodes: int = 1
) -> tuple[Sharding, ...]:
    """Return the shardings ``trainer`` can run under ``numerics``, simplest first.

    >>> [sharding.value for sharding in realisable_shardings("hf-trainer", Numerics.BF16, 8)]
    ['ddp', 'fsdp-grad-op', 'fsdp-full']

    Raises:
        SpecError: when the trainer is one that only ``estimate`` knows.
    """
    check_trainer(trainer)
    if (trainer, True) not in _SHARDINGS:
        raise SpecError(f"--trainer {trainer}: {_not_yet()}.")
    table = _ON_ONE_RANK if num_ranks == 1 else _SHARDINGS
    found = table[trainer, numerics in MASTER]
    return tuple(s for s in found if s is not Sharding.FSDP_HYBRID or num_nodes > 1)


def _not_yet() -> str:
    known = ", ".join(name for name, has_master in _SHARDINGS if has_master)
    return f"configs for it cannot be written yet, so recommend takes only {known}"


def obstacles(trainer: str, recipe: Recipe) -> tuple[str, ...]:
    """Return in words what ``trainer`` has no setting for; empty when it can run the recipe."""
    check_trainer(trainer)
    if (trainer, True) not in _SHARDINGS:
        return (_not_yet(),)
    found = [
        (recipe.sharding in ZERO and recipe.numerics not in MASTER, _needs_master(recipe)),
        (
            recipe.sharding is Sharding.DDP and recipe.numerics in MASTER,
            f"numerics {recipe.numerics.value} needs DeepSpeed (--sharding zero1) or FSDP",
        ),
        (
            recipe.checkpointing is Checkpointing.SELECTIVE,
            "it has no selective checkpointing (none or full)",
        ),
        (recipe.loss is Loss.CHUNKED, "it has no chunked loss (standard or fused)"),
        (recipe.optimizer is Optimizer.MUON, "it has no muon optimizer"),
        (
            recipe.optimizer_impl is OptimizerImpl.FOR_LOOP and recipe.optimizer is Optimizer.ADAMW,
            "it has no for-loop AdamW (fused or foreach)",
        ),
        (recipe.bucket_view, "it has no setting for gradients as bucket views"),
        (
            recipe.method is Method.QLORA and recipe.sharding in ZERO,
            "its 4-bit weights are not for DeepSpeed here",
        ),
        *_offload_obstacles(recipe),
        *_dtype_obstacles(recipe),
    ]
    return tuple(text for is_true, text in found if is_true)


def _needs_master(recipe: Recipe) -> str:
    return (
        f"DeepSpeed keeps fp32 copies of the weights, which --numerics {recipe.numerics.value} "
        "does not have (bf16-master does)"
    )


def _offload_obstacles(recipe: Recipe) -> list[tuple[bool, str]]:
    offloads = recipe.offload is not Offload.NONE
    return [
        (offloads and recipe.sharding is Sharding.DDP, "it cannot offload without ZeRO or FSDP"),
        (
            recipe.offload is Offload.OPTIMIZER and recipe.sharding in FSDP,
            "its FSDP offloads weights and optimizer together (--offload params)",
        ),
        (
            recipe.offload is Offload.PARAMS and recipe.sharding in ZERO[:2],
            "DeepSpeed offloads weights only under ZeRO-3",
        ),
        (
            recipe.offload is not Offload.NONE
            and recipe.sharding in ZERO
            and recipe.optimizer is not Optimizer.ADAMW,
            "DeepSpeed offloads only its own AdamW",
        ),
    ]


def _dtype_obstacles(recipe: Recipe) -> list[tuple[bool, str]]:
    given = {
        "--weight-dtype": recipe.weight_dtype,
        "--grad-dtype": recipe.grad_dtype,
        "--optimizer-dtype": recipe.optimizer_dtype,
        "--master-weights": recipe.master_weights,
        "--adapter-dtype": recipe.adapter_dtype,
    }
    return [
        (value is not None, f"it has no setting for {option} apart from --numerics")
        for option, value in given.items()
    ]
