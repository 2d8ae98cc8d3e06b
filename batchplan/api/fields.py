"""Names of the inputs that ``estimate`` and ``recommend`` share, typed."""

from __future__ import annotations

from os import PathLike
from typing import TypedDict

NOT_HERE = ("nodes", "inter_node_gb_per_s", "params", "activations")
"""Shared inputs that mean nothing to a run on this machine's own devices."""
NO_GRADIENTS = (
    *("optimizer", "optimizer_impl", "optimizer_dtype", "offload", "expandable_segments"),
    *("zero_buckets", "sync_each_batch", "fsdp_version", "double_quant", "frozen_upcast"),
)
"""Shared inputs that no gradient depends on, or that only sharding and QLoRA have."""


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


class DataFields(TypedDict, total=False):
    """The data set, of which a plan needs the lengths of its sequences alone."""

    dataset: str | PathLike[str] | None
    """Data with a column of lengths, or with text that the tokenizer counts."""
    lengths: str | PathLike[str] | None
    """Lengths counted already, in place of ``dataset``."""
    length_column: str | None
    text_column: str | None
    tokenizer: str | None
    """Hub id or folder; None is the model's own."""
    packing: bool
    """Several sequences fill a row, in place of padding each."""


class AskedFields(SharedFields, DataFields, total=False):
    """Every input that ``estimate`` and ``recommend`` take, besides the model."""


class GoalFields(TypedDict, total=False):
    """What ``recommend`` and ``compare`` are asked for, besides the shared inputs."""

    target_tokens: int | str | None
    """Tokens per optimizer step."""
    target_sequences: int | str | None
    """Sequences per optimizer step, in place of tokens."""
    tolerance: float | str | None
    """Largest accepted deviation from the target, such as ``2%``."""
    devices: int | str
    """Exactly N, a range such as ``1..8``, or ``auto`` for the fewest that fit."""
    micro_batch: int | str | None
    """Pins the sequences one device runs in one forward."""
    accum_steps: int | str | None
    """Pins the passes per optimizer step."""
    lr: float | str | None
    """A learning rate you know to work."""
    lr_batch: int | str | None
    """The global batch in sequences (tokens with a suffix) at which it works."""
    epoch_tokens: int | str | None
    """Tokens of your data set."""
    epochs: float | str | None
    """Passes over the data set."""
    optimize: str | None
    """``throughput``, ``memory``, ``devices``, ``cost`` or ``time``: see ``spec.Objective``."""
    deadline: float | str | None
    """Hours that the whole run may take; then ``time`` is optimised."""
    gpu_price: float | str | PathLike[str] | None
    """Of one device and hour, or a file of ``name,price`` lines."""
    noise: str | PathLike[str] | None
    """A file of ``batchplan noise``: the measured noise scale, which plans are weighed against."""
    pareto: bool
    """Whether to add the plans that no other beats in time, memory and devices at once."""
    rescues: bool
    """Whether to add what would make the best plan faster."""
    limit: int
    """Plans, or devices, to return."""


class RecommendFields(AskedFields, GoalFields, total=False):
    """Every input of ``recommend`` and ``compare``, besides the model."""
