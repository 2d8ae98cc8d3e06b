"""``recommend --gpu any``: which device of the catalog, how many, and how long."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, Unpack

from batchplan.api.checks import option
from batchplan.api.data import data_inputs
from batchplan.api.documents import (
    SCHEMA_VERSION,
    caveats_document,
    device_document,
    model_document,
    plan_document,
    recipe_document,
)
from batchplan.api.fields import RecommendFields
from batchplan.api.prepared import Prepared, goal_inputs, prepare
from batchplan.api.profiles import OnProgress, Profiles
from batchplan.api.recipes import numerics_words
from batchplan.api.searching import ask, planner_question
from batchplan.api.training import Training
from batchplan.errors import SpecError
from batchplan.planner import Aim, Candidate, Plan, scores, shortlist
from batchplan.sources import load_gpus
from batchplan.spec import Caveat, Gpu, ModelInfo, Objective, Recipe

ANY = "any"
DEFAULT_LIMIT = 10
"""Devices shown."""
AUTO = "auto"
_ONE_DEVICE = ("pareto", "rescues")


@dataclass(frozen=True, slots=True, kw_only=True)
class Offer:
    """One device of the catalog with its best plan."""

    gpu: Gpu
    plan: Plan


@dataclass(frozen=True, slots=True, kw_only=True)
class CompareAnswer:
    """The devices on which a model trains, best first."""

    inputs: dict[str, Any]
    model: ModelInfo
    num_params: int
    num_trainable_params: int
    versions: dict[str, str]
    recipe: Recipe
    """On a device with bf16."""
    training: Training
    offers: tuple[Offer, ...]
    num_fitting: int
    """Devices on which something fits by the quick price."""
    num_compared: int
    """Devices that were searched: those with a price, where prices were given."""
    caveats: tuple[Caveat, ...]

    @property
    def fits(self) -> bool:
        """Whether anything fits anywhere."""
        return bool(self.offers)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan recommend --gpu any --json``."""
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "recommend",
            "inputs": self.inputs,
            "versions": self.versions,
            "model": model_document(self.model, self.num_params, self.num_trainable_params),
            "numerics": numerics_words(self.recipe),
            "optimize": self.training.objective.value,
            "fits": self.fits,
            "num_compared": self.num_compared,
            "num_fitting": self.num_fitting,
            "comparison": [
                {
                    "rank": rank,
                    "device": device_document(offer.gpu),
                    "plan": plan_document(offer.plan),
                    "training": self.training.document(offer.plan, offer.gpu),
                }
                for rank, offer in enumerate(self.offers, start=1)
            ],
            "caveats": caveats_document(self.caveats),
        }


def compare(
    model: str,
    *,
    on_progress: OnProgress | None = None,
    **fields: Unpack[RecommendFields],
) -> CompareAnswer:
    """Return the devices of the catalog on which the model trains, best first.

    Every device is searched by the quick price; the ``limit`` best are searched again and their
    memory played. Where nothing else is said, each gets as few devices as fit (``auto``) and the
    fewest win; a price or a deadline changes what is best.

    Args:
        model: as ``recommend``.
        on_progress: told in words what a first trace is doing.
        **fields: as ``recommend``; ``gpu`` is left out.

    Raises:
        SpecError: when an input is wrong.
        SourceError: when the model's config cannot be had.
        TraceError: when the model's code cannot be traced.
    """
    for name in _ONE_DEVICE:
        if fields.get(name):
            raise SpecError(f"{option(name)} is about one device: name one, not --gpu any.")
    gpus = tuple(_comparable())
    prepared = prepare(
        model,
        {"devices": AUTO, "limit": DEFAULT_LIMIT, **fields, "gpu": gpus[0].name},
        on_progress,
        gpus=gpus,
        objective=Objective.DEVICES if fields.get("gpu_price") is None else Objective.COST,
    )
    if prepared.request.num_params is not None:
        raise SpecError("--gpu any needs a MODEL: --params has no step time to compare.")
    found = _Comparison(prepared, Profiles(prepared.request, on_progress))
    ranked = sorted(found.shortlisted(gpus), key=lambda each: each[0])
    _, asked = prepared.on(next(gpu for gpu in gpus if gpu.has_bf16))
    offers: list[Offer] = []
    for _, gpu in ranked:
        if len(offers) == asked.limit:
            break
        offers.extend(found.offers(gpu))
    offers.sort(key=lambda offer: found.order(offer.gpu, Candidate.of(offer.plan)))
    return CompareAnswer(
        inputs=prepared.request.inputs()
        | recipe_document(asked.recipe)
        # Each device follows its own: bf16 where it has it.
        | {"numerics": prepared.request.given.get("numerics")}
        | asked.inputs()
        | goal_inputs(prepared)
        | data_inputs(prepared.data)
        | prepared.target.inputs
        | {"gpu": ANY},
        model=prepared.request.model,
        num_params=found.profiles.num_params,
        num_trainable_params=found.profiles.num_trainable_params,
        versions=found.profiles.versions,
        recipe=asked.recipe,
        training=prepared.training,
        offers=tuple(offers),
        num_fitting=len(ranked),
        num_compared=sum(found.aim(gpu) is not None for gpu in gpus),
        caveats=(*prepared.caveats, *asked.caveats, *found.profiles.caveats),
    )


def _comparable() -> Iterator[Gpu]:
    """Yield the devices of the catalog that have one memory size and known rates."""
    for row in load_gpus():
        if row.usable_bytes is None:
            continue
        gpu = row.to_gpu()
        if gpu.bf16_tflops:
            yield gpu


class _Comparison:
    """Searches one device after another; the model is traced once for all of them."""

    def __init__(self, prepared: Prepared, profiles: Profiles) -> None:
        self.prepared = prepared
        self.profiles = profiles

    def shortlisted(self, gpus: tuple[Gpu, ...]) -> Iterator[tuple[tuple[float, ...], Gpu]]:
        """Yield what each device is ranked by, where anything fits by the quick price."""
        for gpu in gpus:
            if self.aim(gpu) is None:
                continue
            try:
                request, asked = self.prepared.on(gpu)
            except SpecError:
                continue  # The device cannot run what is asked, such as an attention kernel.
            question = planner_question(request, asked, self.profiles)
            first = shortlist(
                question=question, recipe=asked.recipe, space=asked.space, aim=asked.aim
            )
            if first is not None:
                yield self.order(gpu, first), gpu

    def offers(self, gpu: Gpu) -> Iterator[Offer]:
        """Yield the device with its confirmed plan, if there is one."""
        request, asked = self.prepared.on(gpu)
        answer = ask(request, replace(asked, limit=1, pareto=False), self.profiles)
        if answer.plans:
            yield Offer(gpu=gpu, plan=answer.plans[0])

    def order(self, gpu: Gpu, candidate: Candidate) -> tuple[float, ...]:
        """Return what a candidate on a device is ranked by."""
        aim = self.aim(gpu)
        assert aim is not None
        return scores(candidate, aim)

    def aim(self, gpu: Gpu) -> Aim | None:
        """Return what is optimised at the price of a device; None where its price is missing."""
        run = self.prepared.training
        if not run.prices:
            return run.aim
        price = run.prices.get(gpu.name)
        return None if price is None else replace(run.aim, price=price)
