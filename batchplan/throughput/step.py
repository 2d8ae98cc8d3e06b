"""Time of one optimizer step: a sum of named parts, each with its formula and source."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.profile import ActivationProfile
from batchplan.spec import (
    Batch,
    Checkpointing,
    Cluster,
    Gpu,
    Method,
    Offload,
    Optimizer,
    Recipe,
)
from batchplan.states.numerics import resolve_dtypes
from batchplan.states.sharding import (
    RULES,
    keeps_masters_as_weights,
    stored_gradient_dtype,
)
from batchplan.throughput import rates
from batchplan.throughput.communication import (
    bus_bandwidth_gb_per_s,
    element_bytes,
    moved_bytes,
    node_bandwidth_gb_per_s,
    ring_seconds,
    traffic,
)
from batchplan.throughput.flops import is_mixture_of_experts, micro_batch_flops

BAND = (0.8, 1.3)
"""Low and high over middle, uncalibrated: a choice, not a measured coverage."""

BACKWARD_SHARE = 2 / 3
"""Of a micro-batch's compute; traffic of the step can hide only behind the last backward."""

# Bytes of optimizer states read and written per trainable parameter, at fp32 values.
# Source: the update formulas; AdamW mixed precision then touches about 30 bytes in all.
STATE_BYTES_TOUCHED: dict[Optimizer, float] = {
    Optimizer.ADAMW: 16,
    Optimizer.ADAMW_8BIT: 4,
    Optimizer.PAGED_ADAMW_8BIT: 4,
    Optimizer.ADAFACTOR: 0.1,
    Optimizer.SGD: 0,
    Optimizer.SGD_MOMENTUM: 8,
    Optimizer.LION: 8,
    Optimizer.MUON: 8,
}
_EIGHT_BIT = frozenset({Optimizer.ADAMW_8BIT, Optimizer.PAGED_ADAMW_8BIT})


@dataclass(frozen=True, slots=True, kw_only=True)
class TimePart:
    """One line of the time bill, for one optimizer step."""

    name: str
    seconds: float
    formula: str
    source: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTime:
    """Seconds of one optimizer step; ``parts`` sum to ``mid``."""

    low: float
    mid: float
    high: float
    parts: tuple[TimePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimer:
    """What does not depend on micro-batch and K, worked out once for a layout."""

    compute_seconds: float
    """Of one sequence, on one rank, when the device is busy throughout."""
    compute_formula: str
    compute_source: str
    num_layers: int
    floor_seconds: float
    """Launch floor of one micro-batch."""
    dequantise_seconds: float
    """Per micro-batch."""
    exchange_seconds: float
    """Communication of one micro-batch, before any of it hides."""
    step_exchange_seconds: float
    """Communication once a step, before any of it hides."""
    overlap: float
    exchange_formula: str
    exchange_source: str
    optimizer_seconds: float
    optimizer_formula: str
    fetch_seconds: float
    """Weights from the host, per micro-batch, before any of it hides."""
    host_micro_seconds: float
    """Gradients to the host, per micro-batch, before any of it hides."""
    host_step_seconds: float
    """Gradients and updated weights over PCIe and the update on the host, once a step."""

    def seconds(self, micro_batch: int, accum_steps: int) -> float:
        """Return the middle estimate of one optimizer step in seconds."""
        compute, dequantise, exchange, optimizer, host = self._parts(micro_batch, accum_steps)
        return compute + dequantise + exchange + optimizer + host

    def step_time(self, micro_batch: int, accum_steps: int) -> StepTime:
        """Return the whole bill for one optimizer step."""
        compute, dequantise, exchange, optimizer, host = self._parts(micro_batch, accum_steps)
        bound = (
            f"launch floor of {self.num_layers} layers × {rates.LAUNCH_FLOOR_SECONDS * 1e3:g} ms"
            if micro_batch * self.compute_seconds < self.floor_seconds
            else f"{micro_batch} × ({self.compute_formula})"
        )
        parts = [
            TimePart(
                name="compute",
                seconds=compute,
                formula=f"{accum_steps} × {bound}",
                source=self.compute_source,
            )
        ]
        if dequantise:
            parts.append(
                TimePart(
                    name="dequantisation",
                    seconds=dequantise,
                    formula=f"{accum_steps} × {self.dequantise_seconds:.4g} s",
                    source="LitGPT bnb-nf4 on A100-40GB, scaled by memory bandwidth",
                )
            )
        if exchange:
            parts.append(
                TimePart(
                    name="exposed communication",
                    seconds=exchange,
                    formula=f"{self.exchange_formula}, K = {accum_steps}, "
                    f"{self.overlap:.0%} of the shorter side hides",
                    source=self.exchange_source,
                )
            )
        if optimizer:
            parts.append(
                TimePart(
                    name="optimizer step",
                    seconds=optimizer,
                    formula=self.optimizer_formula,
                    source="memory-bound update; does not depend on K",
                )
            )
        if host:
            parts.append(
                TimePart(
                    name="offload",
                    seconds=host,
                    formula="gradients to the host, update there, weights back over PCIe",
                    source="ZeRO-Offload, https://arxiv.org/abs/2101.06840; rates are guesses",
                )
            )
        middle = sum(part.seconds for part in parts)
        low, high = BAND
        return StepTime(low=low * middle, mid=middle, high=high * middle, parts=tuple(parts))

    def _parts(
        self, micro_batch: int, accum_steps: int
    ) -> tuple[float, float, float, float, float]:
        compute = max(self.floor_seconds, micro_batch * self.compute_seconds)
        each = compute + self.dequantise_seconds
        exchange = accum_steps * exposed_seconds(each, self.exchange_seconds, self.overlap)
        exchange += exposed_seconds(BACKWARD_SHARE * each, self.step_exchange_seconds, self.overlap)
        host = self.host_step_seconds + accum_steps * exposed_seconds(
            each, self.fetch_seconds + self.host_micro_seconds, rates.PCIE_OVERLAP
        )
        return (
            accum_steps * compute,
            accum_steps * self.dequantise_seconds,
            exchange,
            self.optimizer_seconds,
            host,
        )


def exposed_seconds(compute: float, other: float, overlap: float) -> float:
    """Return what ``other`` adds to ``compute`` when ``overlap`` of the shorter one hides.

    ``max(compute, other) + (1 - overlap) * min(compute, other) - compute``.
    """
    longer, shorter = (compute, other) if compute >= other else (other, compute)
    return longer + (1 - overlap) * shorter - compute


def step_time(
    *, profile: ActivationProfile, recipe: Recipe, batch: Batch, cluster: Cluster, gpu: Gpu
) -> StepTime | None:
    """Return the time of one optimizer step, or None when the GPU's rate is unknown.

    ``K × max(launch floor, products + scores + element-wise) + exposed communication
    + optimizer step + offload``.

    Leaves out: data loading (1-3 %), evaluation and checkpoint saving (about 5 % of a run),
    collective latency, stragglers. Errs low.
    Error: mean 6 % and worst 30 % on the 191 published A100 and H100 runs that ``rates`` was
    fitted to, 98 % of them within ``BAND``; unknown on other devices.
    """
    timer = step_timer(
        profile=profile, recipe=recipe, cluster=cluster, gpu=gpu, seq_len=batch.seq_len
    )
    return None if timer is None else timer.step_time(batch.micro_batch, batch.accum_steps)


def step_timer(
    *, profile: ActivationProfile, recipe: Recipe, cluster: Cluster, gpu: Gpu, seq_len: int
) -> StepTimer | None:
    """Return the timer of every micro-batch and K for one layout; None when rates are unknown."""
    if not gpu.bf16_tflops:
        return None
    bandwidth = gpu.bandwidth_gb_per_s or rates.BANDWIDTH_UNKNOWN_GB_PER_S
    compute_seconds, compute_formula, compute_source = _compute(
        profile=profile, recipe=recipe, gpu=gpu, bandwidth=bandwidth, seq_len=seq_len
    )
    quantised = (
        sum(profile.stages[index].quantisable_params for index in profile.order)
        if recipe.method is Method.QLORA
        else 0
    )
    trainable, frozen = profile.trainable_params, profile.frozen_params
    exchange, step_exchange, overlap, formula = _exchange(
        recipe=recipe,
        trainable_params=trainable,
        frozen_params=frozen,
        quantised_params=quantised,
        cluster=cluster,
        gpu=gpu,
    )
    rule = RULES[recipe.sharding]
    shards = rule.num_shards(cluster) if rule.optimizer else 1
    updated = -(-trainable // shards)
    touched = _bytes_touched(recipe)
    host_rate = (gpu.pcie_gb_per_s or rates.PCIE_UNKNOWN_GB_PER_S) * rates.HOST_LINK_SHARE
    on_host = recipe.offload is not Offload.NONE
    copied = ring_seconds(2.0 * updated, host_rate)
    per_micro = traffic(recipe).gradients_per_micro_batch > 0
    sockets = min(cluster.ranks_per_node, rates.HOST_SOCKETS_PER_NODE)
    host_update = updated * cluster.ranks_per_node / (sockets * rates.HOST_ADAM_PARAMS_PER_SECOND)
    fetched = 0.0
    if recipe.offload is Offload.PARAMS:
        gathers = max(1, traffic(recipe).weights_per_micro_batch)
        fetched = gathers * ring_seconds(2.0 * (trainable + frozen) / shards, host_rate)
    return StepTimer(
        compute_seconds=compute_seconds,
        compute_formula=compute_formula,
        compute_source=compute_source,
        num_layers=profile.num_layers,
        floor_seconds=rates.LAUNCH_FLOOR_SECONDS * profile.num_layers,
        dequantise_seconds=rates.NF4_SECONDS_PER_BILLION
        * (quantised / 1e9)
        * (rates.NF4_REFERENCE_GB_PER_S / bandwidth),
        exchange_seconds=exchange,
        step_exchange_seconds=step_exchange,
        overlap=overlap,
        exchange_formula=formula,
        exchange_source=traffic(recipe).source,
        optimizer_seconds=(
            0.0 if on_host else ring_seconds(touched * updated, bandwidth * rates.MEMORY_SHARE)
        ),
        optimizer_formula=f"{touched:g} bytes × {updated:,} parameters at "
        f"{bandwidth * rates.MEMORY_SHARE:.0f} GB/s",
        fetch_seconds=fetched,
        host_micro_seconds=copied if on_host and per_micro else 0.0,
        host_step_seconds=(
            (copied + host_update + (0.0 if per_micro else copied)) if on_host else 0.0
        ),
    )


def _compute(
    *,
    profile: ActivationProfile,
    recipe: Recipe,
    gpu: Gpu,
    bandwidth: float,
    seq_len: int,
) -> tuple[float, str, str]:
    """Return seconds of one sequence on a busy device, the formula and its source."""
    reached = rates.efficiency(gpu)
    peak = (gpu.bf16_tflops or 0.0) * 1e12
    source = (
        f"{gpu.name}: {reached.products:.0%} of {gpu.bf16_tflops:g} TFLOP/s in products, "
        f"{reached.scores:.0%} in scores: {reached.source}"
    )
    if is_mixture_of_experts(profile):
        peak *= rates.MOE_FACTOR
        source += f"; mixture of experts × {rates.MOE_FACTOR}"
    slower, reason = rates.rate_share(gpu, resolve_dtypes(recipe).compute)
    peak *= slower
    if reason:
        source += f"; {reason} × {slower:.3g}"
    flops = micro_batch_flops(profile=profile, recipe=recipe, micro_batch=1, seq_len=seq_len)
    products = flops.executed - flops.executed_scores
    passes = 4 / 3 if recipe.checkpointing is Checkpointing.FULL else 1.0
    # The last stage is taken to be a head alone: one row of ``hidden_size`` for each vocabulary
    # entry. A model without one multiplies nothing there, and has no logits to move.
    head = profile.stages[profile.order[-1]].flops_params
    vocabulary = head / profile.hidden_size if profile.hidden_size else 0.0
    moved = seq_len * (
        passes * rates.ELEMENTWISE_BYTES * profile.num_layers * profile.hidden_size
        + rates.LOSS_BYTES * vocabulary
    )
    seconds = (
        products / (reached.products * peak)
        + flops.executed_scores / (reached.scores * peak)
        + ring_seconds(moved, bandwidth)
    )
    formula = (
        f"{products:.4g} FLOP in products + {flops.executed_scores:.4g} in scores + "
        f"{moved / 1e9:.3g} GB element-wise at {bandwidth:g} GB/s; {flops.convention}"
    )
    if reason:
        formula += f"; {reason}: {slower:.3g} of the 16-bit rate"
    return seconds, formula, source


def _exchange(
    *,
    recipe: Recipe,
    trainable_params: int,
    frozen_params: int,
    quantised_params: int,
    cluster: Cluster,
    gpu: Gpu,
) -> tuple[float, float, float, str]:
    """Return seconds per micro-batch, seconds per step, the overlap and a formula."""
    if cluster.num_ranks == 1:
        return 0.0, 0.0, rates.LINK_OVERLAP, "one rank"
    moved = moved_bytes(
        recipe=recipe,
        trainable_params=trainable_params,
        frozen_params=frozen_params,
        quantisable_params=quantised_params,
        cluster=cluster,
    )
    stays_in_node = cluster.num_nodes == 1 or RULES[recipe.sharding].within_node
    rate = (
        node_bandwidth_gb_per_s(gpu)
        if stays_in_node
        else bus_bandwidth_gb_per_s(gpu=gpu, cluster=cluster)
    )
    between_rate = cluster.inter_node_gb_per_s * rates.INTER_NODE_SHARE
    fast = bool(gpu.link_gb_per_s) and cluster.num_nodes == 1
    formula = (
        f"{moved.per_micro_batch / 1e9:.3g} GB a micro-batch and {moved.per_step / 1e9:.3g} GB "
        f"a step at {rate:.3g} GB/s"
    )
    return (
        ring_seconds(moved.per_micro_batch, rate)
        + ring_seconds(moved.between_nodes_per_micro_batch, between_rate),
        ring_seconds(moved.per_step, rate)
        + ring_seconds(moved.between_nodes_per_step, between_rate),
        rates.LINK_OVERLAP if fast else rates.PCIE_OVERLAP,
        formula,
    )


def _bytes_touched(recipe: Recipe) -> float:
    """Return bytes the update reads and writes per trainable parameter.

    AdamW with fp32 masters: gradient 2, moments 16, master 8, weight 2, an fp32 copy of the
    gradient 2-4: about 30. Under FSDP the masters are the weights, and their gradients are fp32:
    28. Pure 16-bit: gradient 2, moments 8, weight 4.
    """
    dtypes = resolve_dtypes(recipe)
    states = STATE_BYTES_TOUCHED[recipe.optimizer]
    if recipe.optimizer not in _EIGHT_BIT:
        states *= element_bytes(dtypes.optimizer, recipe) / 4
    rule = RULES[recipe.sharding]
    gradient = element_bytes(stored_gradient_dtype(recipe, rule, dtypes), recipe)
    weight = element_bytes(dtypes.weights, recipe)
    if not dtypes.has_master:
        return states + gradient + 2 * weight
    if keeps_masters_as_weights(rule, dtypes):
        return states + gradient + 8
    converted = 2 if gradient < 4 else 0
    return states + gradient + 8 + weight + converted
