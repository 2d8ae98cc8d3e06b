"""Bytes of parameters that do not train: plain ones, and NF4 with its constants."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from batchplan.memory.parameters import Kind, Parameters
from batchplan.memory.shards import held_elements, split
from batchplan.spec import Dtype, Method, Recipe
from batchplan.states.numerics import BYTES_PER_ELEMENT, Dtypes
from batchplan.states.sharding import Engine, ShardingRule
from batchplan.states.zero import persistence_threshold

# bitsandbytes 0.50, functional.py, quantize_4bit: fp32 absmax a block of 64; under double
# quantisation in 8 bits, with its own fp32 absmax a block of 256 and one fp32 offset. Each weight
# has its own table of 16 fp32 values, and each quantised absmax its own of 256.
_NF4_BLOCK = 64
_SCALE_BLOCK = 256
_CODE_BYTES = 16 * 4
_SCALE_CODE_BYTES = 256 * 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Nf4:
    """One matrix in NF4."""

    packed_bytes: int
    constant_bytes: int
    """Scales, offset and table."""


def nf4(num_elements: int, *, double_quant: bool) -> Nf4:
    """Return the bytes of a matrix in NF4.

    Source: bitsandbytes ``functional.py``, ``quantize_4bit``.

    >>> nf4(4096, double_quant=False)
    Nf4(packed_bytes=2048, constant_bytes=320)
    """
    blocks = split(num_elements, _NF4_BLOCK)
    scales = 4 * blocks
    if double_quant:
        scales = blocks + 4 * split(blocks, _SCALE_BLOCK) + 4 + _SCALE_CODE_BYTES
    return Nf4(packed_bytes=split(num_elements, 2), constant_bytes=scales + _CODE_BYTES)


def frozen_bytes(
    *,
    parameters: Parameters,
    recipe: Recipe,
    dtypes: Dtypes,
    rule: ShardingRule,
    num_shards: int,
) -> int:
    """Return the bytes of frozen parameters on the fullest rank.

    NF4 constants are whole on every rank: they belong to the module, not to the parameter that is
    sharded (bitsandbytes ``nn/modules.py``, ``Linear4bit.quant_state``).
    """
    threshold = persistence_threshold(recipe, parameters.hidden_size)

    def held(kind: Kind, shape: tuple[int, ...]) -> int:
        if not kind.has_shape:
            return split(prod(shape), num_shards if rule.weights else 1)
        return held_elements(shape, rule=rule, num_shards=num_shards, threshold=threshold)

    num_bytes = 0
    for kind, count in parameters.kinds():
        if kind.is_trained:
            continue
        if kind.is_quantised:
            matrix = nf4(kind.num_elements, double_quant=recipe.double_quant)
            # bitsandbytes packs into one column of bytes.
            num_bytes += count * (held(kind, (matrix.packed_bytes, 1)) + matrix.constant_bytes)
        else:
            width = BYTES_PER_ELEMENT[_plain_dtype(kind, recipe, dtypes, rule)]
            num_bytes += count * width * held(kind, kind.shape)
    return num_bytes


def _plain_dtype(kind: Kind, recipe: Recipe, dtypes: Dtypes, rule: ShardingRule) -> Dtype:
    """Return the dtype of a frozen parameter that is not in NF4.

    Sources: peft ``other.py``, ``prepare_model_for_kbit_training`` (``frozen_upcast``); deepspeed
    ``engine.py``, ``_cast_module_mixed_precision`` (undoes it in 16-bit training).
    """
    if rule.engine is Engine.DEEPSPEED and dtypes.has_master:
        return dtypes.frozen
    if kind.is_norm and recipe.norm_dtype is not None:
        return recipe.norm_dtype
    if recipe.method is Method.QLORA and recipe.frozen_upcast:
        return Dtype.FP32
    return dtypes.frozen
