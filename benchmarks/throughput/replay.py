"""Every measured row through ``step_time``, and how far off the answers are."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache

from batchplan.profile import ActivationProfile
from batchplan.sources.gpus import find_gpu
from batchplan.spec import (
    Batch,
    Checkpointing,
    Cluster,
    Gpu,
    Method,
    Numerics,
    OptimizerImpl,
    Recipe,
    Sharding,
)
from batchplan.throughput import Efficiency, StepTime, StepTimer, step_timer
from benchmarks.throughput.rows import Row, load_rows
from benchmarks.throughput.shapes import SHAPES

ALPACA_TOKENS = 128
"""Tokens of a padded Alpaca sample with its prompt, about; LitGPT's rows do not print theirs."""

INTER_NODE_GB_PER_S = {"A100": 25.0, "H100": 50.0}
"""One 200 or 400 Gb/s adapter for each GPU, as in NVIDIA's reference nodes; rows do not say."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Source:
    """How the runs of one source were made, where its rows do not say."""

    recipe: Recipe
    notes: str


SOURCES = {
    "llm-foundry": Source(
        recipe=Recipe(
            numerics=Numerics.BF16_MASTER,
            sharding=Sharding.FSDP_FULL,
            fsdp_version=1,
            optimizer_impl=OptimizerImpl.FOR_LOOP,
        ),
        notes="FSDP FULL_SHARD, fp32 shards, bf16 compute and reduction; DecoupledAdamW of "
        "composer, which updates parameter by parameter; early flash attention",
    ),
    "litgpt": Source(
        recipe=Recipe(numerics=Numerics.BF16, lora_rank=8, lora_targets="q_proj,v_proj"),
        notes=f"bf16-true, LoRA of rank 8 on queries and values; Alpaca, {ALPACA_TOKENS} tokens "
        "taken",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Case:
    """One row as arguments of ``step_time``."""

    row: Row
    profile: ActivationProfile
    recipe: Recipe
    batch: Batch
    cluster: Cluster
    gpu: Gpu

    @property
    def measured(self) -> float:
        """Seconds of one optimizer step, or of a micro-batch where that is what is printed."""
        row = self.row
        if row.micro_batch_ms is not None:
            return row.micro_batch_ms / 1e3
        assert row.tokens_per_second is not None
        tokens = self.batch.micro_batch * self.batch.accum_steps * self.batch.seq_len
        return tokens / row.tokens_per_second

    def seconds(self, reached: Efficiency | None = None) -> float:
        """Return our middle estimate; ``reached`` replaces the rates of the table."""
        return self._timer(reached).seconds(self.batch.micro_batch, self.batch.accum_steps)

    def predicted(self) -> StepTime:
        """Return our whole bill."""
        return self._timer(None).step_time(self.batch.micro_batch, self.batch.accum_steps)

    def _timer(self, reached: Efficiency | None) -> StepTimer:
        timer = step_timer(
            profile=self.profile,
            recipe=self.recipe,
            cluster=self.cluster,
            gpu=self.gpu,
            seq_len=self.batch.seq_len,
            reached=reached,
        )
        assert timer is not None
        return timer


def case_of(row: Row) -> Case:
    """Return the arguments that describe a row."""
    method = Method(row.method)
    seq_len = row.seq_len or ALPACA_TOKENS
    recipe = SOURCES[row.source].recipe.model_copy(
        update={
            "method": method,
            "checkpointing": Checkpointing(row.checkpointing or "none"),
        }
    )
    kind = next(kind for kind in INTER_NODE_GB_PER_S if kind in row.gpu)
    return Case(
        row=row,
        profile=SHAPES[row.model].profile(
            method=method, seq_len=seq_len, lora_rank=recipe.lora_rank
        ),
        recipe=recipe,
        batch=Batch(
            micro_batch=row.micro_batch,
            accum_steps=row.accum_steps or 1,
            num_ranks=row.num_ranks,
            seq_len=seq_len,
        ),
        cluster=Cluster(num_ranks=row.num_ranks, inter_node_gb_per_s=INTER_NODE_GB_PER_S[kind]),
        gpu=find_gpu(row.gpu),
    )


@cache
def all_cases() -> tuple[Case, ...]:
    """Return every row of the data as arguments."""
    return tuple(case_of(row) for row in load_rows())
