"""Sizes DeepSpeed takes from its configuration: its own defaults, or transformers' "auto"."""

from __future__ import annotations

from batchplan.spec import Recipe, ZeroBuckets

# Defaults of deepspeed/runtime/zero/config.py (0.19.8), in elements.
MAX_LIVE_PARAMS = 1_000_000_000
SUB_GROUP_ELEMENTS = 1_000_000_000
_REDUCE_BUCKET = 500_000_000
_PREFETCH_BUCKET = 50_000_000
_PERSISTENCE_THRESHOLD = 100_000

# align_dense_tensors pads a flat group to this many elements a rank: 4 bytes of a 16-bit dtype
# (stage_1_and_2.py, nccl_start_alignment_factor).
ALIGNMENT_FACTOR = 2


def reduce_bucket_elements(recipe: Recipe, hidden_size: int) -> int:
    """Return the elements of a reduction bucket (``reduce_bucket_size``).

    Source: transformers ``integrations/deepspeed.py``, ``trainer_config_finalize``: "auto" is h*h.
    """
    is_auto = recipe.zero_buckets is ZeroBuckets.AUTO
    return hidden_size * hidden_size if is_auto else _REDUCE_BUCKET


def prefetch_elements(recipe: Recipe, hidden_size: int) -> int:
    """Return how many parameters ZeRO-3 gathers ahead (``stage3_prefetch_bucket_size``).

    Source: as ``reduce_bucket_elements``: "auto" is 0.9*h*h.
    """
    is_auto = recipe.zero_buckets is ZeroBuckets.AUTO
    return int(0.9 * hidden_size * hidden_size) if is_auto else _PREFETCH_BUCKET


def persistence_threshold(recipe: Recipe, hidden_size: int) -> int:
    """Return up to how many elements ZeRO-3 leaves a parameter whole on every rank.

    Source: as ``reduce_bucket_elements``: "auto" is 10*h; ``parameter_offload.py``,
    ``mark_persistent_parameters`` (the whole copy is kept beside the rank's partition).
    """
    is_auto = recipe.zero_buckets is ZeroBuckets.AUTO
    return 10 * hidden_size if is_auto else _PERSISTENCE_THRESHOLD
