"""What a candidate costs: two ways to price one, behind one protocol."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from batchplan import memory
from batchplan.errors import SpecError
from batchplan.memory import Estimate
from batchplan.profile import ActivationProfile
from batchplan.spec import Batch, Cluster, Gpu, Recipe
from batchplan.throughput import StepTimer, step_timer

ProfileSource = Callable[[Recipe, int], ActivationProfile]
"""Recipe and sequence length to a profile; may trace, so whoever supplies it caches."""


class QuickPrices(Protocol):
    """Every (micro-batch, K) of one layout at one sequence length, at microseconds each."""

    def peak_bytes(self, micro_batch: int, accum_steps: int) -> int:
        """Return what is in use with the least reserve."""
        ...

    def bound_bytes(self, micro_batch: int, accum_steps: int) -> int:
        """Return the least that the device must have."""
        ...


class Pricer(Protocol):
    """Prices candidates in bytes and seconds; pure as far as the planner can tell."""

    @property
    def counts_activations(self) -> bool:
        """Whether micro-batch, sequence length, checkpointing and method change the price."""
        ...

    def price(self, *, recipe: Recipe, batch: Batch, cluster: Cluster) -> Estimate:
        """Return the least memory bill of one rank, quickly."""
        ...

    def quick(self, *, recipe: Recipe, cluster: Cluster, seq_len: int) -> QuickPrices:
        """Return what ``price`` finds for every batch of one layout, without the bills."""
        ...

    def confirm(self, *, recipe: Recipe, batch: Batch, cluster: Cluster) -> Estimate:
        """Return the memory bill of one rank as it is shown."""
        ...

    def timer(self, *, recipe: Recipe, cluster: Cluster, seq_len: int) -> StepTimer | None:
        """Return the step timer of one layout; None when rates or shapes are unknown."""
        ...

    def num_params(self, *, recipe: Recipe, seq_len: int) -> int:
        """Return the parameters of the whole model, adapters left out."""
        ...


class ProfilePricer:
    """Prices by the model's activation profile."""

    counts_activations = True

    def __init__(self, *, profiles: ProfileSource, gpu: Gpu) -> None:
        self._profiles = profiles
        self._gpu = gpu
        self._known: dict[tuple[Recipe, int], ActivationProfile] = {}
        self._settings: dict[tuple[Recipe, int, Cluster], memory.Setting] = {}
        self._confirmed: dict[tuple[Recipe, Batch, Cluster], Estimate] = {}

    def price(self, *, recipe: Recipe, batch: Batch, cluster: Cluster) -> Estimate:
        """Return the bill with the least reserve."""
        return memory.price(self._setting(recipe, batch.seq_len, cluster), batch)

    def quick(self, *, recipe: Recipe, cluster: Cluster, seq_len: int) -> QuickPrices:
        """Return the bill's bound for every batch of one layout."""
        return memory.QuickPrice(self._setting(recipe, seq_len, cluster), seq_len)

    def confirm(self, *, recipe: Recipe, batch: Batch, cluster: Cluster) -> Estimate:
        """Return the bill with the allocator played."""
        key = (recipe, batch, cluster)
        if key not in self._confirmed:
            setting = self._setting(recipe, batch.seq_len, cluster)
            self._confirmed[key] = memory.confirm(setting, batch)
        return self._confirmed[key]

    def _setting(self, recipe: Recipe, seq_len: int, cluster: Cluster) -> memory.Setting:
        key = (recipe, seq_len, cluster)
        if key not in self._settings:
            self._settings[key] = memory.prepare(
                profile=self._profile(recipe, seq_len),
                recipe=recipe,
                cluster=cluster,
                gpu=self._gpu,
            )
        return self._settings[key]

    def timer(self, *, recipe: Recipe, cluster: Cluster, seq_len: int) -> StepTimer | None:
        """Return the step timer of one layout; None when the GPU's rate is unknown."""
        return step_timer(
            profile=self._profile(recipe, seq_len),
            recipe=recipe,
            cluster=cluster,
            gpu=self._gpu,
            seq_len=seq_len,
        )

    def num_params(self, *, recipe: Recipe, seq_len: int) -> int:
        """Return the parameters of the whole model, adapters left out."""
        return self._profile(recipe, seq_len).num_params

    def _profile(self, recipe: Recipe, seq_len: int) -> ActivationProfile:
        key = (recipe, seq_len)
        if key not in self._known:
            self._known[key] = self._profiles(recipe, seq_len)
        return self._known[key]


@dataclass(frozen=True, slots=True)
class _Constant:
    """States alone: the same bytes for every batch."""

    num_bytes: int

    def peak_bytes(self, micro_batch: int, accum_steps: int) -> int:  # noqa: ARG002 - the same
        return self.num_bytes

    def bound_bytes(self, micro_batch: int, accum_steps: int) -> int:  # noqa: ARG002 - the same
        return self.num_bytes


class StatesPricer:
    """Prices weights, gradients and optimizer states alone (``--params 7B``)."""

    counts_activations = False

    def __init__(self, *, num_params: int, activation_bytes: int = 0) -> None:
        if num_params < 1:
            raise SpecError(f"A model needs parameters, not {num_params}.")
        self._num_params = num_params
        self._activation_bytes = activation_bytes

    def price(self, *, recipe: Recipe, batch: Batch, cluster: Cluster) -> Estimate:  # noqa: ARG002 - batch never matters here
        """Return the states of one rank; the batch does not matter."""
        return memory.estimate_states(
            num_params=self._num_params,
            recipe=recipe,
            cluster=cluster,
            activation_bytes=self._activation_bytes,
        )

    def quick(self, *, recipe: Recipe, cluster: Cluster, seq_len: int) -> QuickPrices:
        """Return the same for every batch."""
        states = self.price(recipe=recipe, batch=Batch(seq_len=seq_len), cluster=cluster)
        return _Constant(states.bound_bytes)

    def confirm(self, *, recipe: Recipe, batch: Batch, cluster: Cluster) -> Estimate:
        """Return the same: states have no allocator to play."""
        return self.price(recipe=recipe, batch=batch, cluster=cluster)

    def timer(self, *, recipe: Recipe, cluster: Cluster, seq_len: int) -> StepTimer | None:  # noqa: ARG002 - no shapes, no time
        """Return None: without shapes there are no FLOPs."""
        return None

    def num_params(self, *, recipe: Recipe, seq_len: int) -> int:  # noqa: ARG002 - given
        """Return the parameters that were given."""
        return self._num_params
