"""``estimate``: the peak memory of one exact configuration, term by term, and whether it fits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

from batchplan.api.checks import checked, whole
from batchplan.api.data import (
    Data,
    data_caveats,
    data_document,
    data_inputs,
    resolve_with_data,
)
from batchplan.api.devices import exact_devices
from batchplan.api.documents import (
    SCHEMA_VERSION,
    batch_document,
    caveats_document,
    device_document,
    memory_document,
    model_document,
    plain,
    recipe_document,
)
from batchplan.api.fields import AskedFields
from batchplan.api.policies import Policy
from batchplan.api.profiles import OnProgress, Profiles
from batchplan.api.recipes import numerics_words
from batchplan.api.request import Request
from batchplan.memory import Estimate
from batchplan.planner import ProfilePricer, StatesPricer
from batchplan.planner.explain import PeakExplanation, explain_peak
from batchplan.spec import Batch, Caveat, Cluster, Gpu, ModelInfo, Recipe, Sharding


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateAnswer:
    """The bill of one configuration, and all that it depends on."""

    inputs: dict[str, Any]
    """Keyword arguments of ``estimate`` that give this answer again."""
    model: ModelInfo
    num_params: int
    num_trainable_params: int
    batch: Batch
    recipe: Recipe
    memory: Estimate
    peak: PeakExplanation | None
    """Which instant binds and what would move it; None where only states are counted."""
    gpu: Gpu
    versions: dict[str, str]
    """Packages that ran the model's code; empty for ``params``."""
    caveats: tuple[Caveat, ...]
    data: Data | None = None
    """The data set, when one was given."""

    @property
    def headroom_bytes(self) -> int:
        """Usable bytes less the peak; negative when it does not fit."""
        return self.gpu.usable_bytes - self.memory.peak_bytes

    @property
    def fits(self) -> bool:
        """Whether the 95 % bound of the peak is within the usable bytes."""
        return self.memory.bound_bytes <= self.gpu.usable_bytes

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan estimate --json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "estimate",
            "inputs": self.inputs,
            "versions": self.versions,
            "model": model_document(self.model, self.num_params, self.num_trainable_params),
            "batch": batch_document(self.batch),
            "memory": memory_document(self.memory),
            "peak": plain(self.peak),
            "device": device_document(self.gpu),
            "numerics": numerics_words(self.recipe),
            "fits": self.fits,
            "headroom_bytes": self.headroom_bytes,
            "lengths": data_document(self.data, self.batch),
            "caveats": caveats_document((*self.caveats, *self.memory.caveats)),
        }


def estimate(
    model: str | None = None,
    *,
    devices: int | str = 1,
    micro_batch: int | None = None,
    accum_steps: int | None = None,
    on_progress: OnProgress | None = None,
    **fields: Unpack[AskedFields],
) -> EstimateAnswer:
    """Return the peak memory of one exact configuration.

    Args:
        model: Hub id, local folder or config.json, or a catalog name; or give ``params``.
        devices: data-parallel devices over all nodes.
        micro_batch: sequences one device runs in one forward; None is the trainer's default.
        accum_steps: passes per optimizer step; None is the trainer's default.
        on_progress: told in words what a first trace is doing.
        **fields: the shared inputs, named as on the command line; ``gpu`` is needed.

    Raises:
        SpecError: when an input is wrong.
        SourceError: when the model's config cannot be had.
        TraceError: when the model's code cannot be traced.
    """
    request, data = resolve_with_data(model, fields, on_progress)
    num_ranks = exact_devices(devices, request.nodes)
    sizes = {"micro_batch": micro_batch, "accum_steps": accum_steps}
    given = {name: whole(name, size) for name, size in sizes.items() if size is not None}
    policy = Policy(request, given, num_ranks)
    recipe = policy.recipe()
    batch = checked(Batch, {**policy.sizes(), "num_ranks": num_ranks, "seq_len": request.seq_len})
    cluster = checked(Cluster, {"num_ranks": num_ranks, "num_nodes": request.nodes})
    profiles = Profiles(request, on_progress)
    pricer = _pricer(request, profiles)
    bill = pricer.confirm(recipe=recipe, batch=batch, cluster=cluster)
    inputs = request.inputs() | recipe_document(recipe) | data_inputs(data)
    inputs |= {"devices": num_ranks, "micro_batch": batch.micro_batch}
    inputs["accum_steps"] = batch.accum_steps
    return EstimateAnswer(
        inputs=inputs,
        model=request.model,
        num_params=profiles.num_params,
        num_trainable_params=profiles.num_trainable_params,
        batch=batch,
        recipe=recipe,
        memory=bill,
        peak=explain_peak(pricer, recipe, batch, cluster, bill),
        gpu=request.gpu,
        versions=profiles.versions,
        data=data,
        # States alone do not depend on the sequence length, so its caveats do not apply.
        caveats=(
            *(request.caveats if request.resolved else ()),
            *data_caveats(data),
            *policy.caveats(recipe, batch),
            *_nodes_assumed(request, recipe, cluster),
            *profiles.caveats,
        ),
    )


def _nodes_assumed(request: Request, recipe: Recipe, cluster: Cluster) -> tuple[Caveat, ...]:
    """Only hybrid sharding needs other bytes on other numbers of nodes."""
    if request.nodes is not None or cluster.num_nodes == 1:
        return ()
    if recipe.sharding is not Sharding.FSDP_HYBRID:
        return ()
    text = (
        f"No --nodes given: {cluster.num_ranks} devices are taken to be {cluster.num_nodes} nodes "
        f"of {cluster.ranks_per_node}, and states are split within a node."
    )
    return (Caveat(code="nodes-assumed", text=text),)


def _pricer(request: Request, profiles: Profiles) -> ProfilePricer | StatesPricer:
    if request.num_params is None:
        return ProfilePricer(profiles=profiles, gpu=request.gpu)
    return StatesPricer(num_params=request.num_params, activation_bytes=request.activation_bytes)
