"""What a user states, frozen and checked once: recipe, device, cluster, batch and goal.

Every spec is immutable, refuses a misspelt field, and has defaults that pass its own checks.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, PositiveInt, model_validator

from batchplan.errors import SpecError

MAX_MICRO_BATCH = 1 << 20
MAX_RANKS = 1 << 20
MAX_SEQ_LEN = 1 << 26
MAX_ACCUM_STEPS = 1 << 30


class Spec(BaseModel):
    """Base of every spec: immutable, and a misspelt field is an error."""

    # Built when first used: --help and --version use none.
    model_config = ConfigDict(frozen=True, extra="forbid", defer_build=True)


class Method(StrEnum):
    """Which parameters train."""

    FULL = "full"
    LORA = "lora"
    QLORA = "qlora"


class Dtype(StrEnum):
    """A number format a state may be held in."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    INT8 = "int8"
    NF4 = "nf4"


class Numerics(StrEnum):
    """A named choice of dtypes; each can be overridden by its own field of the recipe."""

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"
    BF16_AUTOCAST = "bf16-autocast"
    FP16_AUTOCAST = "fp16-autocast"
    BF16_MASTER = "bf16-master"
    FP16_MASTER = "fp16-master"


class Optimizer(StrEnum):
    """The optimizer, by what it keeps per parameter."""

    ADAMW = "adamw"
    ADAMW_8BIT = "adamw-8bit"
    PAGED_ADAMW_8BIT = "paged-adamw-8bit"
    ADAFACTOR = "adafactor"
    SGD = "sgd"
    SGD_MOMENTUM = "sgd-momentum"
    LION = "lion"
    MUON = "muon"


class OptimizerImpl(StrEnum):
    """How torch runs the update; ``foreach`` needs one more list the size of the weights."""

    FUSED = "fused"
    FOREACH = "foreach"
    FOR_LOOP = "for-loop"


class Sharding(StrEnum):
    """How data-parallel ranks split the states."""

    DDP = "ddp"
    ZERO1 = "zero1"
    ZERO2 = "zero2"
    ZERO3 = "zero3"
    FSDP_GRAD_OP = "fsdp-grad-op"
    FSDP_FULL = "fsdp-full"
    FSDP_HYBRID = "fsdp-hybrid"


class Checkpointing(StrEnum):
    """Activation checkpointing."""

    NONE = "none"
    SELECTIVE = "selective"
    FULL = "full"


class Attention(StrEnum):
    """Which attention implementation runs."""

    EAGER = "eager"
    SDPA = "sdpa"
    FLASH = "flash"


class Loss(StrEnum):
    """How logits and cross-entropy are computed."""

    STANDARD = "standard"
    CHUNKED = "chunked"
    FUSED = "fused"


class Objective(StrEnum):
    """What to make as good as possible among the plans that fit."""

    THROUGHPUT = "throughput"
    """Tokens per second."""
    MEMORY = "memory"
    """Least memory on each device."""
    DEVICES = "devices"
    """Fewest devices."""
    COST = "cost"
    """Least device time for each token, and so least money at one price for each device."""
    TIME = "time"
    """Fewest devices that finish by the deadline; the fastest where none does."""


class Offload(StrEnum):
    """What lives in host memory."""

    NONE = "none"
    OPTIMIZER = "optimizer"
    PARAMS = "params"


class ZeroBuckets(StrEnum):
    """Where DeepSpeed's bucket sizes come from."""

    AUTO = "auto"
    """Sized by the hidden width, as transformers fills in ``"auto"``."""
    DEFAULT = "default"
    """DeepSpeed's own: 5e8 elements."""


class Recipe(Spec):
    """What is trained and how, apart from batch and cluster."""

    method: Method = Method.FULL
    lora_rank: Annotated[int, Field(ge=1, le=65536)] = 16
    """Rank of every adapter; ignored by ``full``."""
    lora_targets: str = "all-linear"
    """``all-linear`` or module names joined by commas, as peft takes them."""
    lora_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0
    numerics: Numerics = Numerics.BF16_MASTER
    weight_dtype: Dtype | None = None
    grad_dtype: Dtype | None = None
    optimizer_dtype: Dtype | None = None
    master_weights: bool | None = None
    """Whether fp32 copies of the trainable weights exist; None follows ``numerics``."""
    adapter_dtype: Dtype | None = None
    """Dtype of LoRA adapters; None is fp32, as peft's ``autocast_adapter_dtype`` makes it."""
    optimizer: Optimizer = Optimizer.ADAMW
    optimizer_impl: OptimizerImpl = OptimizerImpl.FUSED
    sharding: Sharding = Sharding.DDP
    offload: Offload = Offload.NONE
    checkpointing: Checkpointing = Checkpointing.NONE
    attention: Attention = Attention.SDPA
    loss: Loss = Loss.STANDARD
    double_quant: bool = True
    """Whether the NF4 scales are quantised too (QLoRA only)."""
    frozen_upcast: bool = False
    """QLoRA: what stays 16-bit in a quantised base (embeddings, head, norms) is cast to fp32, as
    peft's ``prepare_model_for_kbit_training`` does."""
    norm_dtype: Dtype | None = None
    """Dtype of normalisation weights; None is that of the other frozen or trained weights."""
    reentrant: bool = False
    """Checkpointing by torch's older, reentrant implementation."""
    fp32_outputs: bool = False
    """Outputs are copied to fp32, as accelerate does around autocast (``convert_to_fp32``)."""
    zero_buckets: ZeroBuckets = ZeroBuckets.AUTO
    expandable_segments: bool = False
    """Allocator: ``PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True``."""
    sync_each_batch: bool = True
    """FSDP: reduce-scatter after every micro-batch. False keeps whole gradients when K >= 2."""
    fsdp_version: Annotated[int, Field(ge=1, le=2)] = 2
    """FSDP: 1 is ``FullyShardedDataParallel``, 2 is ``fully_shard``."""
    bucket_view: bool = False
    """DDP: gradients are views of the communication buckets (torch's default is False)."""


class Gpu(Spec):
    """One device model, as the catalog or the driver describes it."""

    name: str
    usable_bytes: PositiveInt
    """What torch reports as total memory (the least seen), not the box's figure."""
    context_bytes: Annotated[int, Field(ge=0)] = 0
    """CUDA context and what the driver takes for a process that runs kernels."""
    context_source: str = ""
    libraries_bytes: Annotated[int, Field(ge=0)] | None = None
    """What loaded kernels take beyond the context, as measured; None where nobody measured."""
    overhead_source: str = ""
    """Where context and libraries were measured."""
    in_use_error_percent: Annotated[float, Field(gt=0)] | None = None
    """What the measurements support for what the driver shows of an unsharded run."""
    num_measurements: Annotated[int, Field(ge=0)] = 0
    """Probes that the three rest on."""
    bf16_tflops: float | None = None
    """Dense 16-bit rate in units of 10**12/s: bf16 where native, otherwise fp16."""
    bandwidth_gb_per_s: float | None = None
    link_gb_per_s: float | None = None
    """One direction, GPU to GPU inside a node; None when unknown."""
    pcie_gb_per_s: float | None = None
    has_bf16: bool = True
    compute_capability: str = ""
    arch: str = ""
    source: str = ""
    confidence: str = ""


DEVICES_IN_A_NODE = 8
"""More devices than this are taken to need more nodes."""


def nodes_for(num_ranks: int, *, at_least: int = 1) -> int:
    """Return the fewest nodes of ``DEVICES_IN_A_NODE`` over which devices divide evenly.

    >>> [nodes_for(ranks) for ranks in (8, 9, 12, 32)]
    [1, 3, 2, 4]
    """
    fewest = max(at_least, -(-num_ranks // DEVICES_IN_A_NODE))
    return next(nodes for nodes in range(fewest, num_ranks + 1) if num_ranks % nodes == 0)


class Cluster(Spec):
    """The devices that train together."""

    num_ranks: Annotated[int, Field(ge=1, le=MAX_RANKS)] = 1
    num_nodes: Annotated[int, Field(ge=1, le=MAX_RANKS)] = 1
    """Left out, it is ``nodes_for(num_ranks)``."""
    inter_node_gb_per_s: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 25.0
    """One direction per GPU between nodes; 25 GB/s is a 200 Gb/s adapter for each GPU."""

    @model_validator(mode="before")
    @classmethod
    def _enough_nodes(cls, data: Any) -> Any:
        if not isinstance(data, dict) or "num_nodes" in data:
            return data
        ranks = data.get("num_ranks", 1)
        known = type(ranks) is int and 1 <= ranks <= MAX_RANKS
        return {**data, "num_nodes": nodes_for(ranks)} if known else data

    @model_validator(mode="after")
    def _ranks_fill_nodes(self) -> Cluster:
        if self.num_ranks % self.num_nodes:
            raise SpecError(
                f"{self.num_ranks} devices do not divide over {self.num_nodes} nodes. "
                "--devices is the total over all nodes."
            )
        return self

    @property
    def ranks_per_node(self) -> int:
        """Ranks on each node."""
        return self.num_ranks // self.num_nodes


class Batch(Spec):
    """How much work one optimizer step does, and how it is split."""

    micro_batch: Annotated[int, Field(ge=1, le=MAX_MICRO_BATCH)] = 1
    """Sequences one rank runs in one forward."""
    accum_steps: Annotated[int, Field(ge=1, le=MAX_ACCUM_STEPS)] = 1
    """Forward/backward passes per optimizer step (K)."""
    num_ranks: Annotated[int, Field(ge=1, le=MAX_RANKS)] = 1
    seq_len: Annotated[int, Field(ge=1, le=MAX_SEQ_LEN)] = 2048
    """Tokens per sequence, padding included."""

    @property
    def global_batch_size(self) -> int:
        """Sequences per optimizer step over all ranks."""
        return self.micro_batch * self.accum_steps * self.num_ranks

    @property
    def global_batch_tokens(self) -> int:
        """Tokens per optimizer step over all ranks."""
        return self.global_batch_size * self.seq_len


class BatchGoal(Spec):
    """What the user wants of one optimizer step: tokens or sequences, and how exactly."""

    target_tokens: PositiveInt | None = None
    target_sequences: PositiveInt | None = None
    tolerance: Annotated[float, Field(ge=0, lt=1)] = 0.02
    """Largest accepted relative deviation from the target."""

    @model_validator(mode="after")
    def _one_target(self) -> BatchGoal:
        if self.target_tokens is not None and self.target_sequences is not None:
            raise SpecError("Give --target-tokens or --target-sequences, not both.")
        return self

    @property
    def is_set(self) -> bool:
        """Whether there is a target at all."""
        return self.target_tokens is not None or self.target_sequences is not None

    def target_in_tokens(self, seq_len: int) -> int | None:
        """Return the target in tokens at ``seq_len``, or None without one."""
        if self.target_tokens is not None:
            return self.target_tokens
        if self.target_sequences is not None:
            return self.target_sequences * seq_len
        return None


class ModelInfo(Spec):
    """Which model was resolved, and from where."""

    id: str
    architecture: str
    """Class that runs, such as ``Qwen2ForCausalLM``; ``parameters only`` for ``--params``."""
    source: str
    """``catalog``, ``local``, ``hub`` or ``--params``, with the detail."""
    revision: str | None = None
    max_seq_len: PositiveInt | None = None
    """What the config says the positions reach; None when it says nothing."""
    hidden_size: PositiveInt | None = None
    num_layers: PositiveInt | None = None


class Caveat(Spec):
    """Something true of an answer that the user should know; words are made where it arises."""

    code: str
    text: str
