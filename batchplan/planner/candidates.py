"""The axes of the search: each a generator that yields only valid values.

Every candidate satisfies ``global_batch_size = micro_batch * accum_steps * num_ranks``; nothing is
rounded on the way.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product

from batchplan.errors import SpecError
from batchplan.spec import (
    MAX_ACCUM_STEPS,
    MAX_RANKS,
    MAX_SEQ_LEN,
    Attention,
    BatchGoal,
    Checkpointing,
    Cluster,
    Offload,
    Recipe,
    Sharding,
    nodes_for,
)

MICRO_BATCH_CAP = 4096
"""No search looks beyond this many sequences on one device; a pin may."""

# What each strategy's library can keep on the host. Sources: DeepSpeed ``zero/config.py``
# (optimizer from stage 1, parameters at stage 3 only); PyTorch FSDP ``CPUOffload``.
OFFLOADS: dict[Sharding, frozenset[Offload]] = {
    Sharding.DDP: frozenset({Offload.NONE}),
    Sharding.ZERO1: frozenset({Offload.NONE, Offload.OPTIMIZER}),
    Sharding.ZERO2: frozenset({Offload.NONE, Offload.OPTIMIZER}),
    Sharding.ZERO3: frozenset({Offload.NONE, Offload.OPTIMIZER, Offload.PARAMS}),
    Sharding.FSDP_GRAD_OP: frozenset({Offload.NONE, Offload.PARAMS}),
    Sharding.FSDP_FULL: frozenset({Offload.NONE, Offload.PARAMS}),
    Sharding.FSDP_HYBRID: frozenset({Offload.NONE, Offload.PARAMS}),
}
FSDP = frozenset({Sharding.FSDP_GRAD_OP, Sharding.FSDP_FULL, Sharding.FSDP_HYBRID})


Realise = Callable[[Recipe, bool], Recipe]
"""From a recipe, and whether several devices train, to the recipe that really runs."""


Refusals = Callable[[Recipe, int], tuple[str, ...]]
"""From a recipe and the number of devices to why it is not run so, in words."""


def nothing_refused(recipe: Recipe, num_ranks: int) -> tuple[str, ...]:  # noqa: ARG001
    """Return nothing: any recipe is run on any number of devices."""
    return ()


def as_it_is(recipe: Recipe, several_devices: bool) -> Recipe:  # noqa: ARG001, FBT001
    """Return the recipe: nothing but what it says decides how it runs."""
    return recipe


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """What may vary; a tuple of one value, or a number instead of None, is a pin."""

    num_ranks: tuple[int, ...]
    """Values to try, fewest first."""
    num_nodes: int | None = None
    """None takes as many as the devices of each candidate need."""
    inter_node_gb_per_s: float | None = None
    """None takes the default of ``Cluster``."""
    stop_at_first_fit: bool = False
    """Take the fewest devices on which anything fits (``--devices auto``)."""
    micro_batch: int | None = None
    accum_steps: int | None = None
    shardings: tuple[Sharding, ...] = tuple(Sharding)
    checkpointings: tuple[Checkpointing, ...] = (Checkpointing.NONE, Checkpointing.FULL)
    offloads: tuple[Offload, ...] = (Offload.NONE,)
    attentions: tuple[Attention, ...] | None = None
    """None keeps the recipe's."""
    sync_each_batch: tuple[bool, ...] | None = None
    """FSDP only; None keeps the recipe's."""
    refusals: Refusals = nothing_refused
    """Why a recipe is not tried, such as what the trainer has no setting for."""
    realise: Realise = as_it_is
    """What the trainer makes of a recipe, on one device or on several."""
    seq_len: int

    def __post_init__(self) -> None:
        for name, value, largest in (
            ("--seq-len", self.seq_len, MAX_SEQ_LEN),
            ("--micro-batch", self.micro_batch, 1 << 20),
            ("--accum-steps", self.accum_steps, MAX_ACCUM_STEPS),
            ("--nodes", self.num_nodes, MAX_RANKS),
            *(("--devices", ranks, MAX_RANKS) for ranks in self.num_ranks),
        ):
            if value is not None and not 1 <= value <= largest:
                raise SpecError(f"{name} must lie between 1 and {largest:,}, not {value:,}.")
        if not (self.num_ranks and self.shardings and self.checkpointings and self.offloads):
            raise SpecError("Nothing to search: an axis has no values.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """A recipe with sharding, checkpointing and offload decided, on a cluster."""

    recipe: Recipe
    cluster: Cluster

    @property
    def key(self) -> tuple[Sharding, Checkpointing, Offload, Attention, int]:
        """What tells one recommendation from another."""
        recipe = self.recipe
        return (
            recipe.sharding,
            recipe.checkpointing,
            recipe.offload,
            recipe.attention,
            self.cluster.num_ranks,
        )

    @property
    def complexity(self) -> tuple[int, int, int, int, bool]:
        """How much this asks of the user's set-up: the smaller, the simpler."""
        recipe = self.recipe
        return (
            _SHARDING_ORDER[recipe.sharding],
            _OFFLOAD_ORDER[recipe.offload],
            _CHECKPOINTING_ORDER[recipe.checkpointing],
            _ATTENTION_ORDER[recipe.attention],
            not recipe.sync_each_batch,
        )


_SHARDING_ORDER = {sharding: position for position, sharding in enumerate(Sharding)}
_OFFLOAD_ORDER = {offload: position for position, offload in enumerate(Offload)}
_CHECKPOINTING_ORDER = {value: position for position, value in enumerate(Checkpointing)}
_ATTENTION_ORDER = {Attention.SDPA: 0, Attention.FLASH: 1, Attention.EAGER: 2}
"""SDPA comes with torch; FlashAttention is one more package; eager needs the most memory."""


def clusters(space: SearchSpace) -> Iterator[Cluster]:
    """Yield the clusters to try, fewest devices first.

    Raises:
        SpecError: when no number of devices divides over the nodes.
    """
    counts = [
        ranks for ranks in sorted(set(space.num_ranks)) if ranks % (space.num_nodes or 1) == 0
    ]
    if not counts:
        tried = ", ".join(map(str, space.num_ranks))
        raise SpecError(
            f"{tried} devices do not divide over {space.num_nodes} nodes. "
            "--devices is the total over all nodes."
        )
    for ranks in counts:
        cluster = Cluster(num_ranks=ranks, num_nodes=space.num_nodes or nodes_for(ranks))
        yield between_nodes(cluster, space)


def between_nodes(cluster: Cluster, space: SearchSpace) -> Cluster:
    """Return ``cluster`` with the rate between nodes that ``space`` gives, if any."""
    rate = space.inter_node_gb_per_s
    return cluster if rate is None else cluster.model_copy(update={"inter_node_gb_per_s": rate})


def layouts(*, recipe: Recipe, space: SearchSpace, cluster: Cluster) -> Iterator[Layout]:
    """Yield every valid (sharding, offload, checkpointing, attention) on one cluster.

    One rank holds everything whatever the strategy, so there only the first that is run at all is
    tried for each offload. Hybrid sharding needs several ranks on each of several nodes. What the
    trainer makes of two recipes may be one.
    """
    seen = set()
    for offload in space.offloads:
        for sharding in _shardings(space, cluster, offload):
            found = _run_with(
                recipe.model_copy(update={"sharding": sharding, "offload": offload}), space, cluster
            )
            for varied in found:
                if varied not in seen:
                    seen.add(varied)
                    yield Layout(recipe=varied, cluster=cluster)
            if found and cluster.num_ranks == 1:
                break


def _shardings(space: SearchSpace, cluster: Cluster, offload: Offload) -> tuple[Sharding, ...]:
    spans_nodes = cluster.num_nodes > 1 and cluster.ranks_per_node > 1
    return tuple(
        sharding
        for sharding in space.shardings
        if offload in OFFLOADS[sharding] and (spans_nodes or sharding is not Sharding.FSDP_HYBRID)
    )


def _run_with(recipe: Recipe, space: SearchSpace, cluster: Cluster) -> list[Recipe]:
    """Return what is run of a recipe in every way that the space leaves open but sharding."""
    axes = product(
        _syncs(recipe, space, cluster, recipe.sharding),
        space.checkpointings,
        space.attentions or (recipe.attention,),
    )
    names = ("sync_each_batch", "checkpointing", "attention")
    varied = (
        space.realise(
            recipe.model_copy(update=dict(zip(names, values, strict=True))), cluster.num_ranks > 1
        )
        for values in axes
    )
    return [each for each in varied if not space.refusals(each, cluster.num_ranks)]


def _syncs(
    recipe: Recipe, space: SearchSpace, cluster: Cluster, sharding: Sharding
) -> tuple[bool, ...]:
    matters = sharding in FSDP and cluster.num_ranks > 1
    if space.sync_each_batch is None or not matters:
        return (recipe.sync_each_batch,)
    return space.sync_each_batch


def largest_micro_batch(*, space: SearchSpace, num_ranks: int, target: int | None) -> int:
    """Return the largest micro-batch worth trying: K = 1 reaches the target with it."""
    if space.micro_batch is not None:
        return space.micro_batch
    if target is None:
        return MICRO_BATCH_CAP
    one_each = num_ranks * space.seq_len * (space.accum_steps or 1)
    return max(1, min(MICRO_BATCH_CAP, -(-target // one_each)))


def accum_choices(
    *, space: SearchSpace, micro_batch: int, num_ranks: int, target: int | None
) -> tuple[int, ...]:
    """Return the K to try: the pinned one, 1 without a target, else the two nearest it.

    >>> space = SearchSpace(num_ranks=(8,), seq_len=2048)
    >>> accum_choices(space=space, micro_batch=1, num_ranks=8, target=4_000_000)
    (244, 245)
    """
    if space.accum_steps is not None:
        return (space.accum_steps,)
    if target is None:
        return (1,)
    tokens = micro_batch * num_ranks * space.seq_len
    below, rest = divmod(target, tokens)
    choices = {max(1, below), max(1, below + (rest > 0))}
    return tuple(sorted(min(MAX_ACCUM_STEPS, choice) for choice in choices))


def deviation(*, tokens: int, target: int | None) -> float:
    """Return (reached - target) / target; 0 without a target."""
    return 0.0 if target is None else (tokens - target) / target


def check_target(*, goal: BatchGoal, space: SearchSpace) -> int | None:
    """Return the target in tokens, or None without one.

    Raises:
        SpecError: when it is less than one sequence.
    """
    target = goal.target_in_tokens(space.seq_len)
    if target is not None and target < space.seq_len:
        raise SpecError(
            f"The target of {target:,} tokens is less than one sequence of {space.seq_len:,}. "
            f"Raise --target-tokens or lower --seq-len to {target:,} or less."
        )
    return target
