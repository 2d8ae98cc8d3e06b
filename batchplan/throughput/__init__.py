"""Step time: FLOPs, communication and the optimizer step."""

from batchplan.throughput.communication import (
    Traffic,
    bus_bandwidth_gb_per_s,
    moved_bytes,
    ring_seconds,
)
from batchplan.throughput.flops import AttentionCount, FlopCount, micro_batch_flops, token_flops
from batchplan.throughput.rates import Efficiency, efficiency
from batchplan.throughput.step import StepTime, StepTimer, TimePart, step_time, step_timer

__all__ = [
    "AttentionCount",
    "Efficiency",
    "FlopCount",
    "StepTime",
    "StepTimer",
    "TimePart",
    "Traffic",
    "bus_bandwidth_gb_per_s",
    "efficiency",
    "micro_batch_flops",
    "moved_bytes",
    "ring_seconds",
    "step_time",
    "step_timer",
    "token_flops",
]
