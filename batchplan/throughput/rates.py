"""What share of a data sheet's rate training really gets: one table, with how far to trust it.

Every share is of the executed work, recomputation included. The fitted values are those that
``python -m benchmarks.throughput --fit`` prints: one half of the published llm-foundry bf16 runs
(MPT 125M to 70B, s 512 to 65,536, 8 to 128 GPUs, with and without full checkpointing), the other
half held out. ``docs/throughput.md`` has the errors. Only the A100 and H100 rows rest on runs; the
other devices are guesses and say so. Those runs use an early flash kernel, so long sequences are
priced on the slow side.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from batchplan.spec import Checkpointing, Dtype, Gpu, Loss

_GUESS = "guess, not measured"
_LLM_FOUNDRY = "fitted to published llm-foundry bf16 runs (scripts/train/benchmarking)"
_SCORES_GUESS = 0.3
"""Scores over products, where not measured: A100 0.36, H100 0.25."""


ELEMENTWISE_BYTES = 240
"""Bytes moved per token, layer and unit of hidden size, forward and backward, by norms,
activations, residual sums and casts; a third of it again under full checkpointing. Fitted."""
LOSS_BYTES = 50
"""Bytes moved per token and vocabulary entry by logits and cross-entropy. Fitted."""
OVERLAP = 0.34
"""Share of the shorter of compute and communication that hides behind the longer. Fitted to FSDP
runs in and between nodes; taken for the other strategies and for PCIe too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Efficiency:
    """What a training step reaches of a device: the constants that a calibration can replace."""

    products: float
    """Share of the dense 16-bit rate in products with weights."""
    scores: float
    """The same in attention scores and their product with the values, causal half counted."""
    elementwise_bytes: float = ELEMENTWISE_BYTES
    loss_bytes: float = LOSS_BYTES
    overlap: float = OVERLAP
    is_measured: bool
    source: str


def _guess(products: float, reason: str = "") -> Efficiency:
    return Efficiency(
        products=products,
        scores=round(_SCORES_GUESS * products, 3),
        is_measured=False,
        source=f"{reason}; {_GUESS}" if reason else _GUESS,
    )


_A100 = Efficiency(products=0.75, scores=0.27, is_measured=True, source=_LLM_FOUNDRY)
_H100 = Efficiency(products=0.62, scores=0.154, is_measured=True, source=_LLM_FOUNDRY)

# Keyed by one word of the GPU's name, in lower case. The guesses take the MFU seen or expected
# with stock PyTorch and divide by 0.69, as MFU over product share is on A100 and H100.
EFFICIENCY_BY_WORD: dict[str, Efficiency] = {
    "a100": _A100,
    "a800": _guess(0.75, "as A100"),
    "h100": _H100,
    "h800": _guess(0.62, "as H100"),
    "h200": _guess(0.62, "as H100"),
    "gh200": _guess(0.62, "as H100"),
    "h20": _guess(0.85, "little compute for its bandwidth"),
    "l40s": _guess(0.50, "MFU .35; LLMQ 35-56 %"),
    "l4": _guess(0.43, "MFU .30, power-capped"),
    "t4": _guess(0.43, "MFU .30, power-capped"),
    "a6000": _guess(0.65, "MFU .45"),
    "3090": _guess(0.65, "MFU .45"),
    "4090": _guess(0.72, "MFU .50; LLMQ 72-81 % with hand-written kernels"),
    "5090": _guess(0.72, "MFU .50"),
}
EFFICIENCY_BY_ARCH: dict[str, Efficiency] = {
    "volta": _guess(0.50, "MFU .35"),
    "turing": _guess(0.43, "MFU .30"),
    "ampere": _guess(0.65, "MFU .45"),
    "ada": _guess(0.65, "MFU .45"),
    "hopper": _guess(0.62, "as H100"),
    "blackwell": _guess(0.48, "MFU .33"),
    "blackwell ultra": _guess(0.48, "MFU .33"),
    "cdna2": _guess(0.43, "MFU .30"),
    "cdna3": _guess(0.43, "MFU .30"),
    "cdna4": _guess(0.43, "MFU .30"),
}
EFFICIENCY_UNKNOWN = _guess(0.50, "no row for this GPU")

LOSS_BYTES_SHARE: dict[Loss, float] = {
    # Bytes a logit, of the 34 that cross-entropy in fp32 on 16-bit logits moves: written and cast
    # up 2 + 2 + 4, log-softmax 8, its gradient 8, cast down 6, read by two products 4.
    Loss.STANDARD: 1.0,
    # Written, read twice and overwritten in place, read by two products (liger-kernel 0.8).
    Loss.FUSED: 12 / 34,
    # Written and read for the sums; made again, read and overwritten, read by two products.
    Loss.CHUNKED: 14 / 34,
}
"""Counted from the passes of each kernel, not measured."""

SCORES_FORWARD_SHARE = 1 / (1 + 2.5 * 0.73 / 0.63)
"""Of the time of attention scores, in the forward pass: what recomputation repeats.

Source: FlashAttention-2, https://arxiv.org/abs/2307.08691, section 4: the backward pass does 2.5
times the FLOPs of the forward one, at 63 % of the peak beside 73 %."""

EAGER_BYTES_PER_PAIR = 58
"""Bytes moved per query-key pair and head by eager attention, forward and backward.

Counted: scores 2, scaled 4, masked 4, softmax through fp32 12, read for the values 2; the same
backward with a softmax gradient of 12: 34."""
EAGER_HEAD_SIZE = 128
"""Profiles keep the width of all heads together; most decoders have heads of 128. Errs low by half
where they have 64."""

MOE_FACTOR = 0.45
"""Mixtures of experts reach this share of a dense model's efficiency.

Source: GPT-OSS-120B bf16 at 16-21 % of peak on H100 to GB300, Megatron-Bridge tables.
"""

LAUNCH_FLOOR_SECONDS: dict[Checkpointing, float] = {
    Checkpointing.NONE: 0.0045,
    Checkpointing.SELECTIVE: 0.0045,
    Checkpointing.FULL: 0.00495,
}
"""Seconds per layer and micro-batch below which eager PyTorch cannot go, forward and backward.

Source: LitGPT LoRA without checkpointing, A100-40GB, micro-batch 1: 4.05, 4.42, 4.65 and 4.79 ms;
Qwen LoRA with it, A100-80GB: 4.7 and 5.2 ms; vTrain fit 3.9 ms. Middle values; the host matters
more than the device."""

LAUNCH_SECONDS = 5e-6
"""Of one small kernel from Python; only the tensor-by-tensor update counts them. A guess."""

LINK_SHARE = 0.72
"""Of the one-direction rate, GPU to GPU inside a node.

Source: H100 busbw 370 of 450 GB/s; Calculon A100 .65; vTrain fit 163 of 300 GB/s. A middle value.
"""
PCIE_SHARE = 0.40
"""Of the one-direction PCIe rate, GPU to GPU. GeForce without peer access gets 8-12 of 31 GB/s,
cards with it about 20; between the two, a guess."""
INTER_NODE_SHARE = 0.70
"""Of the adapter's rate. Source: vTrain multi-node fit 66 %; four B200 nodes 74 %."""
HOST_LINK_SHARE = 0.80
"""Of the PCIe rate for pinned copies to and from the host: 25 of 31.5 GB/s."""
PCIE_UNKNOWN_GB_PER_S = 15.75
"""PCIe 3 x16, when the catalog does not know: the slowest still in use."""

LINK_HOP_SECONDS = 3.6e-6
"""Latency of one step of a ring inside a node with a GPU link.

Source: nccl-tests on 8 B200: all-reduce of 1 MiB at a busbw of 36 GB/s is 51 us in 14 steps."""
NETWORK_HOP_SECONDS = 22e-6
"""The same between nodes.

Source: nccl-tests on 4 x 8 B200: 1 MiB at 5.4 GB/s is 376 us in 62 steps, 8 of them between
nodes."""
TREE_HOP_SECONDS = 80e-6
"""Latency of one level of a tree over nodes.

Source: the same measurement, had NCCL taken a tree: 376 us are two levels of nodes up and down, and
seven steps in the node. It is the least a level can take there."""
PCIE_HOP_SECONDS = 10e-6
"""The same over PCIe, through host memory; a guess between the two."""

DDP_BUCKET_BYTES = 25 * 2**20
"""Source: torch DistributedDataParallel, ``bucket_cap_mb=25``."""

ZERO_GATHER_BUCKET_ELEMENTS = 500_000_000
"""Source: DeepSpeed ``runtime/zero/config.py``, ``allgather_bucket_size``."""

PCIE_OVERLAP = 0.50
"""Of copies to and from the host; a guess."""

MEMORY_SHARE = 1 / 1.2
"""Of the memory bandwidth, in the optimizer step: 8B AdamW on H100 takes 1.2 x the ideal."""
BANDWIDTH_UNKNOWN_GB_PER_S = 500.0

HOST_ADAM_PARAMS_PER_SECOND = 1e9
"""Per CPU socket, for DeepSpeedCPUAdam; from memory of ZeRO-Offload, highly machine-dependent."""
HOST_SOCKETS_PER_NODE = 2

NF4_SECONDS_PER_BILLION = 0.013
"""Dequantising 1e9 NF4 weights in one micro-batch on A100-40GB, forward and backward: LitGPT
bnb-nf4 LoRA runs, 11-15 ms. Memory-bound, so scaled by bandwidth."""
NF4_REFERENCE_GB_PER_S = 1555.0

FP32_SHARE_OF_16_BIT: dict[str, float] = {
    # compute capability: fp32 rate without tensor cores over dense 16-bit rate.
    "7.0": 15.7 / 125,  # V100 SXM2, NVIDIA data sheet
    "7.5": 8.1 / 65,  # T4, NVIDIA data sheet
    "8.0": 19.5 / 312,  # A100 data sheet
    "9.0": 67 / 989.5,  # H100 SXM data sheet
    "10.0": 80 / 2250,  # B200, HGX data sheet
}
FP32_SHARE_UNKNOWN = 0.25
"""RTX A, Ada and PRO cards, L4 and L40S; GeForce is 0.5."""
FP32_SHARE_WITHOUT_BF16 = 1 / 8
"""What has tensor cores for fp16 but not for bf16 (Volta and Turing), where the compute capability
is unknown.

Source: NVIDIA data sheets of V100 (15.7 of 125 TFLOP/s) and T4 (8.1 of 65)."""


def efficiency(gpu: Gpu) -> Efficiency:
    """Return the shares of ``bf16_tflops`` a dense training step reaches on ``gpu``.

    Looks for a word of the name first (an L40S is never an L4), then for the architecture.

    >>> efficiency(Gpu(name="NVIDIA L40S", usable_bytes=1)).products
    0.5
    """
    for word in re.split(r"[^a-z0-9]+", gpu.name.lower()):
        if word in EFFICIENCY_BY_WORD:
            return EFFICIENCY_BY_WORD[word]
    return EFFICIENCY_BY_ARCH.get(gpu.arch.lower(), EFFICIENCY_UNKNOWN)


def rate_share(gpu: Gpu, compute: Dtype) -> tuple[float, str]:
    """Return the share of ``bf16_tflops`` that ``gpu`` has in a dtype, and why it is below 1.

    fp32 runs without TF32, as torch's default is. A card without bf16 tensor cores runs bf16
    products on its fp32 units.
    """
    if compute is Dtype.FP32:
        unknown, reason = FP32_SHARE_UNKNOWN, "fp32 without TF32"
    elif compute is Dtype.BF16 and not gpu.has_bf16:
        unknown, reason = FP32_SHARE_WITHOUT_BF16, "no native bf16, so the fp32 rate"
    else:
        return 1.0, ""
    return FP32_SHARE_OF_16_BIT.get(gpu.compute_capability, unknown), reason
