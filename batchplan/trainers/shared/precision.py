"""In which dtype a model is loaded and run, for trainers that load with transformers.

Recipes name the outcome; configs name the dtype to load in and whether autocast runs. What
accelerate and DeepSpeed make of the two under each sharding is in the policies' conditions, with
their sources.
"""

from __future__ import annotations

from collections.abc import Mapping

from batchplan.spec import Method, Numerics, Recipe
from batchplan.trainers.format import FSDP, MASTER, ZERO
from batchplan.trainers.policies.rows import Value

DTYPES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}
"""torch's names and ours."""
_LOADED = {
    Numerics.BF16: "bfloat16",
    Numerics.FP16: "float16",
    Numerics.BF16_MASTER: "bfloat16",
    Numerics.FP16_MASTER: "float16",
}
_CAST = {
    Numerics.BF16_AUTOCAST: "bf16",
    Numerics.FP16_AUTOCAST: "fp16",
    Numerics.BF16_MASTER: "bf16",
    Numerics.FP16_MASTER: "fp16",
}
WITHOUT_OWN_DTYPES: Mapping[str, tuple[Value, ...]] = {
    "weight_dtype": (None,),
    "grad_dtype": (None,),
    "optimizer_dtype": (None,),
    "master_weights": (None,),
}
"""What a config says of single dtypes: nothing, they follow from the numerics."""


def load_dtype(recipe: Recipe) -> str:
    """Return torch's name of the dtype to load the model in.

    FSDP keeps its master weights as fp32 shards, so master weights under FSDP load in fp32.
    """
    if recipe.weight_dtype is not None:
        ours = recipe.weight_dtype.value
        return next(name for name, known in DTYPES.items() if known == ours)
    if recipe.method is Method.FULL and recipe.sharding in FSDP and recipe.numerics in MASTER:
        return "float32"
    return _LOADED.get(recipe.numerics, "float32")


def autocast(recipe: Recipe) -> str | None:
    """Return ``bf16``, ``fp16`` or None; fp32 adapters over fp16 need fp16's loss scaling."""
    if recipe.method is not Method.FULL and recipe.numerics is Numerics.FP16:
        return "fp16"
    return _CAST.get(recipe.numerics)


def numerics_of(
    load: str | None, cast: str | None, *, method: Value, sharding: Value
) -> dict[str, Value]:
    """Return what our recipe calls a model loaded in ``load`` and run under ``cast``.

    Args:
        load: torch's name of a dtype; None where the config does not say.
        cast: ``bf16``, ``fp16``, or None without autocast.
        method: of the recipe; None is a full fine-tune.
        sharding: of the recipe; None is none.

    Returns:
        Values of ``numerics`` and, where they are known to differ from what it names, of single
        dtypes. Empty where nothing is known.
    """
    is_full = method in (None, Method.FULL.value)
    dtype = None if load is None else DTYPES.get(load)
    half = cast or (dtype if dtype in ("bf16", "fp16") else None)
    if sharding in ZERO:
        return {"numerics": f"{half or 'bf16'}-master"}
    if cast is None:
        return {} if dtype is None else {"numerics": dtype}
    if is_full and sharding in FSDP:
        return {"numerics": f"{cast}-master"}
    if not is_full and cast == dtype == "fp16":
        return {"numerics": "fp16"}  # the inverse of ``autocast``
    found: dict[str, Value] = {"numerics": f"{cast}-autocast"}
    if dtype == "fp32":
        found["weight_dtype"] = None
    elif dtype is not None:
        found["weight_dtype"] = dtype
        if is_full:
            found |= {"grad_dtype": dtype, "optimizer_dtype": dtype}
    return found
