"""A pricer with made-up memory, and searches with it: what the planner's tests share."""

from __future__ import annotations

from dataclasses import dataclass, field

from strategies import A100, TOY_MODEL, toy_profile

from batchplan.errors import TraceError
from batchplan.memory import ErrorBand, Estimate, Moment, Term
from batchplan.planner import Answer, Pricer, Question, SearchSpace, search
from batchplan.spec import (
    Batch,
    BatchGoal,
    Checkpointing,
    Cluster,
    Gpu,
    Method,
    ModelInfo,
    Offload,
    Recipe,
    Sharding,
)
from batchplan.throughput import StepTimer, step_timer

BARE = Gpu(name="bare", usable_bytes=10**9)
EXPLICIT = {
    "weight_dtype": "fp16",
    "grad_dtype": "fp32",
    "optimizer_dtype": "fp32",
    "master_weights": False,
}
STATES_ONLY = ModelInfo(id="13B", architecture="parameters only", source="--params")


ERROR = ErrorBand(percent=10, basis="made up")


def bill(num_bytes: int) -> Estimate:
    """An estimate of one line, whose bound is the line itself."""
    return Estimate(
        terms=(Term(name="all", num_bytes=num_bytes, formula="", source=""),),
        timeline=(Moment(phase="backward", stage="head and loss", num_bytes=num_bytes),),
        peak_phase="backward: head and loss",
        allocated_peak_bytes=num_bytes,
        reserved_peak_bytes=num_bytes,
        in_use_peak_bytes=num_bytes,
        host_bytes=0,
        allocated_error=ERROR,
        reserved_error=ERROR,
        in_use_error=ERROR,
        bound_bytes=num_bytes,
    )


@dataclass(frozen=True)
class Quick:
    """The made-up memory of one layout."""

    pricer: FakePricer
    recipe: Recipe
    cluster: Cluster
    seq_len: int

    def peak_bytes(self, micro_batch: int, accum_steps: int) -> int:
        batch = Batch(
            micro_batch=micro_batch,
            accum_steps=accum_steps,
            num_ranks=self.cluster.num_ranks,
            seq_len=self.seq_len,
        )
        return self.pricer.num_bytes(self.recipe, batch, self.cluster)

    bound_bytes = peak_bytes


@dataclass
class FakePricer:
    """Made-up memory with the shape of the real one, and the real clock on a toy model."""

    gpu: Gpu = A100
    states: int = 600
    per_sequence: int = 10
    untraceable: frozenset[Method] = frozenset()
    counts_activations: bool = True
    missed_percent: int = 0
    """By how much the quick price is below the confirmed one."""
    asked: list[Recipe] = field(default_factory=list)

    def num_bytes(self, recipe: Recipe, batch: Batch, cluster: Cluster) -> int:
        splits = {
            Sharding.DDP: 0,
            Sharding.ZERO1: 2,
            Sharding.ZERO2: 3,
            Sharding.FSDP_GRAD_OP: 3,
        }.get(recipe.sharding, 4)
        states = self.states * (4 - splits) / 4 + self.states * splits / 4 / cluster.num_ranks
        states /= {Offload.NONE: 1, Offload.OPTIMIZER: 2, Offload.PARAMS: 6}[recipe.offload]
        states /= {Method.FULL: 1, Method.LORA: 4, Method.QLORA: 12}[recipe.method]
        kept = self.per_sequence * batch.micro_batch * batch.seq_len / 1024
        if recipe.checkpointing is Checkpointing.FULL:
            kept /= 5
        if batch.accum_steps > 1:
            states *= 1.1
        return round(1000 * (states + kept))

    def price(self, *, recipe: Recipe, batch: Batch, cluster: Cluster) -> Estimate:
        self.asked.append(recipe)
        if recipe.method in self.untraceable:
            raise TraceError(f"{recipe.method} cannot be traced")
        return bill(self.num_bytes(recipe, batch, cluster))

    def quick(self, *, recipe: Recipe, cluster: Cluster, seq_len: int) -> Quick:
        return Quick(self, recipe, cluster, seq_len)

    def confirm(self, *, recipe: Recipe, batch: Batch, cluster: Cluster) -> Estimate:
        found = self.price(recipe=recipe, batch=batch, cluster=cluster)
        return bill(found.peak_bytes * (100 + self.missed_percent) // 100)

    def timer(self, *, recipe: Recipe, cluster: Cluster, seq_len: int) -> StepTimer | None:
        return step_timer(
            profile=toy_profile(num_layers=8, hidden_size=512, method=recipe.method),
            recipe=recipe,
            cluster=cluster,
            gpu=self.gpu,
            seq_len=seq_len,
        )

    def num_params(self, *, recipe: Recipe, seq_len: int) -> int:
        return 1_000_000


def ask(
    pricer: Pricer,
    space: SearchSpace,
    *,
    gpu: Gpu,
    recipe: Recipe | None = None,
    goal: BatchGoal | None = None,
    model: ModelInfo = TOY_MODEL,
    **more,
) -> Answer:
    """Search as ``recommend`` does."""
    question = Question(
        pricer=pricer,
        goal=goal or BatchGoal(),
        gpu=gpu,
        model=model,
        assumes_nodes=space.num_nodes is None,
        assumes_inter_node=space.inter_node_gb_per_s is None,
        checkpointings=space.checkpointings,
    )
    return search(question=question, recipe=recipe or Recipe(), space=space, **more)


def find(
    pricer=None,
    *,
    budget=10**6,
    goal=None,
    recipe=None,
    gpu=A100,
    limit=5,
    aim=None,
    pareto=False,
    **space,
) -> Answer:
    """Search with the made-up memory on eight devices, unless told otherwise."""
    space = {"num_ranks": (8,), "seq_len": 1024, **space}
    return ask(
        pricer or FakePricer(gpu=gpu),
        SearchSpace(**space),
        gpu=gpu.model_copy(update={"usable_bytes": budget}),
        recipe=recipe,
        goal=goal,
        limit=limit,
        aim=aim,
        pareto=pareto,
    )
