"""Time of one optimizer step: a sum of named parts, each with its formula and source."""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.profile import ActivationProfile
from batchplan.spec import Batch, Cluster, Gpu, Recipe
from batchplan.throughput import rates
from batchplan.throughput.bands import (
    COMMUNICATION,
    COMPUTE,
    DEQUANTISATION,
    GUESSED_BAND,
    MEASURED_BAND,
    OFFLOAD,
    OPTIMIZER,
    PART_BANDS,
)
from batchplan.throughput.communication import Exchange, exchange, traffic
from batchplan.throughput.compute import Compute, compute, quantised_params
from batchplan.throughput.update import Update, update

BACKWARD_SHARE = 2 / 3
"""Of a micro-batch's compute; traffic of the step can hide only behind the last backward."""


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
    basis: str
    """What ``low`` and ``high`` rest on."""
    mfu: float
    """Model FLOPs over ``mid`` over the dense 16-bit peak; recomputation is left out."""
    mfu_convention: str
    """How those FLOPs are counted, and the peak they are divided by."""
    parts: tuple[TimePart, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class StepTimer:
    """What does not depend on micro-batch and K, worked out once for a layout."""

    compute: Compute
    exchange: Exchange
    update: Update
    compute_seconds: float
    """Of one sequence, on one rank, when the device is busy throughout."""
    floor_seconds: float
    """Launch floor of one micro-batch."""
    dequantise_seconds: float
    """Per micro-batch."""
    exchange_seconds: float
    """Communication of one micro-batch, before any of it hides."""
    step_exchange_seconds: float
    """Communication once a step, before any of it hides."""
    host_seconds: float
    """Copies from and to the host, per micro-batch, before any of it hides."""
    fixed_seconds: float
    """Update, on the device or the host, with its copies; once a step."""
    overlap: float
    num_layers: int
    traffic_source: str
    peak_flops: float

    def seconds(self, micro_batch: int, accum_steps: int) -> float:
        """Return the middle estimate of one optimizer step in seconds.

        The search asks this for every candidate; ``step_time`` is the same with words.
        """
        each = micro_batch * self.compute_seconds
        if each < self.floor_seconds:
            each = self.floor_seconds
        each += self.dequantise_seconds
        a_step = self.fixed_seconds
        shared = self.exchange_seconds
        total = each + shared - self.overlap * (shared if shared < each else each)
        shared = self.host_seconds
        if shared:
            total += shared - rates.PCIE_OVERLAP * (shared if shared < each else each)
        shared = self.step_exchange_seconds
        if shared:
            each *= BACKWARD_SHARE
            a_step += shared - self.overlap * (shared if shared < each else each)
        return accum_steps * total + a_step

    def step_time(self, micro_batch: int, accum_steps: int) -> StepTime:
        """Return the whole bill for one optimizer step."""
        parts = self._parts(micro_batch, accum_steps)
        compute_band = MEASURED_BAND if self.compute.is_measured else GUESSED_BAND
        bands = [PART_BANDS.get(part.name, compute_band) for part in parts]
        middle = sum(part.seconds for part in parts)
        needed = micro_batch * accum_steps * self.compute.model_flops
        return StepTime(
            low=sum(band.low * part.seconds for band, part in zip(bands, parts, strict=True)),
            mid=middle,
            high=sum(band.high * part.seconds for band, part in zip(bands, parts, strict=True)),
            basis="; ".join(
                f"{part.name}: {band.basis}" for band, part in zip(bands, parts, strict=True)
            ),
            mfu=needed / (middle * self.peak_flops),
            mfu_convention=f"{self.compute.convention} of model FLOPs, recomputation left out; "
            f"peak {self.peak_flops / 1e12:g} TFLOP/s dense 16-bit",
            parts=parts,
        )

    def _parts(self, micro_batch: int, accum_steps: int) -> tuple[TimePart, ...]:
        busy = micro_batch * self.compute_seconds
        is_floor = busy < self.floor_seconds
        floor = self.floor_seconds / self.num_layers if self.num_layers else 0.0
        bound = (
            f"launch floor of {self.num_layers} layers × {floor * 1e3:g} ms"
            if is_floor
            else f"{micro_batch} × ({self.compute.formula})"
        )
        computing = max(self.floor_seconds, busy)
        each = computing + self.dequantise_seconds
        exposed = accum_steps * exposed_seconds(each, self.exchange_seconds, self.overlap)
        exposed += exposed_seconds(BACKWARD_SHARE * each, self.step_exchange_seconds, self.overlap)
        host = accum_steps * exposed_seconds(each, self.host_seconds, rates.PCIE_OVERLAP)
        found = (
            TimePart(
                name=COMPUTE,
                seconds=accum_steps * computing,
                formula=f"{accum_steps} × {bound}",
                source=self.compute.source,
            ),
            TimePart(
                name=DEQUANTISATION,
                seconds=accum_steps * self.dequantise_seconds,
                formula=f"{accum_steps} × {self.dequantise_seconds:.4g} s",
                source="LitGPT bnb-nf4 on A100-40GB, scaled by memory bandwidth",
            ),
            TimePart(
                name=COMMUNICATION,
                seconds=exposed,
                formula=f"{self.exchange.formula}, K = {accum_steps}, "
                f"{self.overlap:.0%} of the shorter side hides",
                source=self.traffic_source,
            ),
            TimePart(
                name=OPTIMIZER,
                seconds=self.update.device_seconds,
                formula=self.update.formula,
                source="memory-bound update; does not depend on K",
            ),
            TimePart(
                name=OFFLOAD,
                seconds=self.update.host_step_seconds + host,
                formula="gradients to the host, update there, weights back over PCIe",
                source="ZeRO-Offload, https://arxiv.org/abs/2101.06840; rates are guesses",
            ),
        )
        return tuple(part for part in found if part.seconds or part.name == COMPUTE)


def exposed_seconds(compute: float, other: float, overlap: float) -> float:
    """Return what ``other`` adds to ``compute`` when ``overlap`` of the shorter one hides.

    ``max(compute, other) + (1 - overlap) * min(compute, other) - compute``.
    """
    return other - overlap * min(compute, other)


def step_time(
    *, profile: ActivationProfile, recipe: Recipe, batch: Batch, cluster: Cluster, gpu: Gpu
) -> StepTime | None:
    """Return the time of one optimizer step, or None when the GPU's rate is unknown.

    ``K × (max(launch floor, products + scores + element-wise) + exposed communication)
    + optimizer step + offload``.

    Leaves out: data loading (1-3 %), evaluation and checkpoint saving (about 5 % of a run),
    stragglers, devices that slow down when hot, the allocator near a full device. Errs low.
    Error: see ``docs/throughput.md``; unknown on devices other than A100 and H100.
    """
    timer = step_timer(
        profile=profile, recipe=recipe, cluster=cluster, gpu=gpu, seq_len=batch.seq_len
    )
    return None if timer is None else timer.step_time(batch.micro_batch, batch.accum_steps)


def step_timer(
    *,
    profile: ActivationProfile,
    recipe: Recipe,
    cluster: Cluster,
    gpu: Gpu,
    seq_len: int,
    reached: rates.Efficiency | None = None,
) -> StepTimer | None:
    """Return the timer of every micro-batch and K for one layout; None when rates are unknown.

    ``reached`` takes the place of the table's row for the device: a calibration.
    """
    if not gpu.bf16_tflops:
        return None
    reached = reached or rates.efficiency(gpu)
    bandwidth = gpu.bandwidth_gb_per_s or rates.BANDWIDTH_UNKNOWN_GB_PER_S
    computing = compute(
        profile=profile,
        recipe=recipe,
        gpu=gpu,
        bandwidth=bandwidth,
        seq_len=seq_len,
        reached=reached,
    )
    exchanging = exchange(
        profile=profile,
        recipe=recipe,
        quantised_params=quantised_params(profile, recipe),
        cluster=cluster,
        gpu=gpu,
    )
    updating = update(profile=profile, recipe=recipe, cluster=cluster, gpu=gpu, bandwidth=bandwidth)
    return StepTimer(
        compute=computing,
        exchange=exchanging,
        update=updating,
        compute_seconds=computing.sequence_seconds,
        floor_seconds=computing.floor_seconds,
        dequantise_seconds=computing.dequantise_seconds,
        exchange_seconds=exchanging.micro_batch_seconds,
        step_exchange_seconds=exchanging.step_seconds,
        host_seconds=updating.fetch_seconds + updating.host_micro_seconds,
        fixed_seconds=updating.device_seconds + updating.host_step_seconds,
        overlap=reached.overlap,
        num_layers=profile.num_layers,
        traffic_source=traffic(recipe).source,
        peak_flops=gpu.bf16_tflops * 1e12,
    )
