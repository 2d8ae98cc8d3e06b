"""Names of the inputs that ``estimate`` and ``recommend`` share, typed."""

from __future__ import annotations

from os import PathLike
from typing import TypedDict


class RecipeFields(TypedDict, total=False):
    """What is trained and how: the fields of ``batchplan.spec.Recipe``, plus synonyms.

    A field left out or None takes its default; a string is checked like the command line's.
    """

    method: str | None
    lora_rank: int | None
    lora_targets: str | None
    lora_dropout: float | None
    numerics: str | None
    weight_dtype: str | None
    grad_dtype: str | None
    optimizer_dtype: str | None
    master_weights: bool | None
    adapter_dtype: str | None
    optimizer: str | None
    optimizer_impl: str | None
    sharding: str | None
    zero: int | None
    """Synonym of ``sharding``: 0 is ddp, 1 to 3 are zero1 to zero3."""
    offload: str | None
    checkpointing: str | None
    attention: str | None
    loss: str | None
    double_quant: bool | None
    frozen_upcast: bool | None
    norm_dtype: str | None
    reentrant: bool | None
    fp32_outputs: bool | None
    zero_buckets: str | None
    expandable_segments: bool | None
    sync_each_batch: bool | None
    fsdp_version: int | None
    bucket_view: bool | None


class SharedFields(RecipeFields, total=False):
    """Every input that both commands take, besides the model."""

    params: str | float | None
    """Parameters of the model, in place of a model: arithmetic on states alone."""
    activations: str | int | None
    """With ``params``: bytes of activations to add, such as ``2GB``."""
    gpu: str
    nodes: int | None
    """Machines; None takes as many of 8 devices as are needed."""
    inter_node_gb_per_s: float | None
    """Between nodes, one direction per GPU, in 10**9 bytes/s; None is 25."""
    seq_len: int | str | None
    recipe: str | PathLike[str] | None
    """A YAML file with any fields of the recipe; what is given beside it wins."""
    trainer: str
    python: str | PathLike[str] | None
    """Interpreter of the environment that will train; None is our own."""
    revision: str | None
    trust_remote_code: bool
    offline: bool
