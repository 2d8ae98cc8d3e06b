"""Up-casts that only some recipes meet: rows that several trainers share."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.trainers.policies.rows import (
    AUTOCAST,
    FSDP,
    ZERO,
    Default,
    Value,
    Versions,
)

_FSDP_UPCAST = (
    "accelerate accelerator.py, Accelerator.prepare_model; utils/fsdp_utils.py, fsdp2_prepare_model"
)
_ENGINE = "deepspeed runtime/engine.py, DeepSpeedEngine._cast_module_mixed_precision"
_KEEPS_FP32 = "DeepSpeed keeps fp32 copies of what trains (runtime/engine.py)"
_HALF = ("fp16", "fp16-autocast", "fp16-master")
_NOT_HALF = ("fp32", "bf16", "bf16-autocast", "bf16-master")


def autocast_over(
    dtype: Value,
    *,
    key: str,
    source: str,
    versions: tuple[Versions, ...] = (),
    numerics: tuple[Value, ...] = AUTOCAST,
) -> Iterator[Default]:
    """Yield the rows of weights that are loaded in ``dtype`` and run under autocast.

    Gradients and moments of a fully trained model have the dtype of its weights, whoever chose it.
    """
    yield Default(
        option="weight_dtype",
        value=dtype,
        key=key,
        source=source,
        versions=versions,
        when={"numerics": numerics},
    )
    for sixteen in ("bf16", "fp16"):
        for option in ("grad_dtype", "optimizer_dtype"):
            yield Default(
                option=option,
                value=sixteen,
                key=key,
                source=source,
                when={"method": ("full",), "numerics": numerics, "weight_dtype": (sixteen,)},
            )


FP32_OUTPUTS = (
    Default(
        option="fp32_outputs",
        value=True,
        key="convert_outputs_to_fp32",
        source="accelerate accelerator.py, Accelerator.prepare_model",
        when={"numerics": AUTOCAST, "loss": ("standard",)},
        note="accelerate copies the outputs to fp32 (accelerator.py)",
    ),
)
"""A chunked or fused loss returns no logits."""

FSDP_FP32_SHARDS = (
    *(
        Default(
            option="numerics",
            value=f"{half}-master",
            key="mixed_precision",
            source=_FSDP_UPCAST,
            when={"sharding": FSDP, "method": ("full",), "numerics": (f"{half}-autocast",)},
            note=f"accelerate keeps FSDP's shards in fp32 under {half} (accelerator.py)",
        )
        for half in ("bf16", "fp16")
    ),
    *(
        Default(
            option=option,
            value=None,
            key="mixed_precision",
            source=_FSDP_UPCAST,
            when={
                "sharding": FSDP,
                "method": ("full",),
                "numerics": ("bf16-master", "fp16-master"),
            },
        )
        for option in ("weight_dtype", "grad_dtype", "optimizer_dtype")
    ),
)
"""4-bit weights are exempt, and adapters are fp32 already, so only a full fine-tune changes."""


def _zero(option: str, value: Value, *, note: str = "", **when: tuple[Value, ...]) -> Default:
    return Default(
        option=option,
        value=value,
        key="bf16 or fp16 enabled",
        source=_ENGINE,
        when={"sharding": ZERO, **when},
        note=note,
    )


# An engine without bf16 and fp16 refuses 16-bit weights, so one of them is on in practice.
ZERO_MASTER = (
    _zero("numerics", "fp16-master", numerics=_HALF, note=_KEEPS_FP32),
    _zero("numerics", "bf16-master", numerics=_NOT_HALF, note=_KEEPS_FP32),
    _zero("weight_dtype", None),
    _zero("grad_dtype", None),
    _zero("optimizer_dtype", None),
    _zero("fp32_outputs", value=False),
    _zero("sync_each_batch", value=True),
)
"""DeepSpeed casts every weight to 16 bits, adapters too, whatever dtype it was loaded in; what that
means for an adapter follows from the numerics."""
