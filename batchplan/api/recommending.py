"""``recommend``: which micro-batch × K × devices reaches the target, fits, and is fastest."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Unpack

from batchplan.api.data import Data, data_document, data_inputs
from batchplan.api.documents import (
    SCHEMA_VERSION,
    caveats_document,
    device_document,
    model_document,
    plain,
    plan_document,
    recipe_document,
    rescue_document,
)
from batchplan.api.epochs import epoch_document, epoch_steps
from batchplan.api.fields import RecommendFields
from batchplan.api.measured_noise import noise_document
from batchplan.api.prepared import goal_inputs, prepare
from batchplan.api.profiles import OnProgress, Profiles
from batchplan.api.recipes import numerics_words
from batchplan.api.request import DEFAULT_TRAINER, Request
from batchplan.api.searching import Question, ask
from batchplan.api.training import Training
from batchplan.errors import NoPlanError, SpecError
from batchplan.experiments.noise_file import NoiseRecord
from batchplan.learning.references import batch_references
from batchplan.learning.runs import PublishedRun, comparable_runs
from batchplan.planner.plan import Answer, Plan
from batchplan.sources import load_runs
from batchplan.spec import Batch, Caveat, Gpu, ModelInfo
from batchplan.trainers import EmittedFile, Job, emit, format_of, obstacles


@dataclass(frozen=True, slots=True, kw_only=True)
class RecommendAnswer:
    """What fits, best first; or the closest miss and what would make it fit."""

    inputs: dict[str, Any]
    """Keyword arguments of ``recommend`` that give this answer again."""
    model: ModelInfo
    num_params: int
    num_trainable_params: int
    gpu: Gpu
    trainer: str
    versions: dict[str, str]
    installed: Mapping[str, str]
    """Packages of the environment that will train."""
    numerics: str
    """Named, or the dtypes in words where they were given apart."""
    found: Answer
    reference_runs: tuple[PublishedRun, ...]
    epoch_tokens: int | None
    """With every row of a data set as long as it is priced."""
    caveats: tuple[Caveat, ...]
    training: Training
    """The whole run, and what is optimised."""
    data: Data | None = None
    """The data set, when one was given."""
    noise: NoiseRecord | None = None
    """The measured noise scale, when one was given."""

    @property
    def plans(self) -> tuple[Plan, ...]:
        """What fits, best first."""
        return self.found.plans

    @property
    def fits(self) -> bool:
        """Whether anything fits."""
        return bool(self.found.plans)

    def config(self, stem: str = "plan") -> tuple[EmittedFile, ...]:
        """Return the trainer's config files for the best plan, the main one first.

        Raises:
            SpecError: when there is no model, or the trainer cannot run the plan.
            NoPlanError: when nothing fits.
        """
        if not self.fits:
            raise NoPlanError("Nothing fits, so there is no config to write.")
        if self.model.source == "--params":
            raise SpecError("A config needs a MODEL: --params plans states alone.")
        best, tokens = self.plans[0], self.epoch_tokens
        steps = None if tokens is None else epoch_steps(best, tokens)
        job = Job(
            plan=best,
            model=self.model,
            gpu=self.gpu,
            stem=stem,
            epoch_steps=steps,
            epochs=self.training.epochs,
        )
        return emit(self.trainer, job, versions=self.installed)

    def to_dict(self) -> dict[str, Any]:
        """Return the JSON document of ``batchplan recommend --json``."""
        found = self.found
        return {
            "schema_version": SCHEMA_VERSION,
            "command": "recommend",
            "inputs": self.inputs,
            "versions": self.versions,
            "model": model_document(self.model, self.num_params, self.num_trainable_params),
            "device": device_document(self.gpu),
            "numerics": self.numerics,
            "fits": self.fits,
            "plans": [self._plan(plan, rank) for rank, plan in enumerate(found.plans, start=1)],
            "pareto": [self._plan(plan, rank) for rank, plan in enumerate(found.pareto, start=1)],
            "closest": None if found.closest is None else plan_document(found.closest),
            "ladder": [rescue_document(rescue) for rescue in found.ladder],
            "rescues": [rescue_document(rescue) for rescue in found.rescues],
            "speedups": [rescue_document(rescue) for rescue in found.speedups],
            "savings": [rescue_document(rescue) for rescue in found.savings],
            "searched": found.searched,
            "epoch": self._epoch(),
            "lengths": data_document(self.data, self._best_batch()),
            "noise_scale": noise_document(self.noise, self._best_batch(), self.training.fill),
            "reference_runs": [plain(run) for run in self.reference_runs],
            "config": self._config_document(),
            "caveats": caveats_document((*self.caveats, *found.caveats)),
        }

    def _plan(self, plan: Plan, rank: int) -> dict[str, Any]:
        return plan_document(plan, rank) | {"training": self.training.document(plan, self.gpu)}

    def _epoch(self) -> dict[str, Any] | None:
        if self.epoch_tokens is None or not self.fits:
            return None
        best = self.plans[0]
        fill = self.training.fill
        references = batch_references(
            method=best.recipe.method,
            data_tokens=round(self.epoch_tokens * fill),
            num_params=self.num_params,
            seq_len=best.batch.seq_len,
            hidden_size=self.model.hidden_size,
            num_layers=self.model.num_layers,
        )
        share = self.training.time_share(best.batch.micro_batch)
        return epoch_document(best, self.epoch_tokens, references, time_share=share, fill=fill)

    def _best_batch(self) -> Batch | None:
        best = self.plans[0] if self.fits else self.found.closest
        return None if best is None else best.batch

    def _config_document(self) -> dict[str, Any] | None:
        if not self.fits or self.model.source == "--params":
            return None
        best, installed = self.plans[0], self.installed
        ranks = best.batch.num_ranks
        problems = list(obstacles(self.trainer, best.recipe, versions=installed, num_ranks=ranks))
        files: tuple[EmittedFile, ...] = ()
        if not problems:
            try:
                files = self.config()
            except SpecError as error:  # some trainers know only some models
                problems = [str(error).rstrip(".")]
        return {
            "trainer": self.trainer,
            "files": [plain(file) for file in files],
            "obstacles": problems,
        }


def recommend(
    model: str | None = None,
    *,
    probe: bool = False,
    on_progress: OnProgress | None = None,
    **fields: Unpack[RecommendFields],
) -> RecommendAnswer:
    """Return the batch configurations that fit, best first.

    Sharding, checkpointing and micro-batch are searched unless given; what is trained (method,
    numerics, optimizer) never changes unless asked, it is only offered as a rescue.

    Args:
        model: Hub id, local folder or config.json, or a catalog name; or give ``params``.
        probe: train with the best plan on this machine's GPU (``gpu`` is ``local``), and leave out
            what does not hold.
        on_progress: told in words what a first trace is doing.
        **fields: the inputs of ``GoalFields``, ``DataFields`` and ``SharedFields``, named as on
            the command line; ``gpu`` is needed.

    Raises:
        SpecError: when an input is wrong.
        SourceError: when the model's config cannot be had.
        TraceError: when the model's code cannot be traced.
    """
    prepared = prepare(model, fields, on_progress)
    if probe:
        from batchplan.api.probed_plans import check_probe

        check_probe(prepared.request)
    request, asked = prepared.on(prepared.request.gpu)
    profiles = Profiles(request, on_progress)
    found = ask(request, asked, profiles)
    if probe:
        from batchplan.api.probed_plans import confirm_by_probe

        found = confirm_by_probe(found, request, on_progress)
    return RecommendAnswer(
        inputs=_inputs(request, asked)
        | goal_inputs(prepared)
        | data_inputs(prepared.data)
        | prepared.target.inputs
        | {"probe": probe},
        model=request.model,
        num_params=profiles.num_params,
        num_trainable_params=profiles.num_trainable_params,
        gpu=request.gpu,
        trainer=request.trainer,
        versions=profiles.versions,
        installed=request.versions,
        numerics=numerics_words(asked.recipe),
        found=found,
        reference_runs=_comparable_runs(found, profiles.num_params),
        epoch_tokens=prepared.training.epoch_tokens,
        data=prepared.data,
        noise=prepared.noise,
        training=prepared.training,
        caveats=(*prepared.caveats, *asked.caveats, *profiles.caveats),
    )


def config_suffix(trainer: str | None = None) -> str:
    """Return what the name of a trainer's main config file ends with, such as ``.yaml``.

    Raises:
        UnknownNameError: when there is no such trainer.
    """
    return format_of(trainer or DEFAULT_TRAINER).suffix


def _comparable_runs(found: Answer, num_params: int) -> tuple[PublishedRun, ...]:
    """Return the nearest pre-training runs, if what is planned is anything like them."""
    best = found.plans[0] if found.plans else found.closest
    if best is None:
        return ()
    return comparable_runs(
        method=best.recipe.method,
        num_params=num_params,
        tokens=best.batch.global_batch_tokens,
        runs=load_runs(),
    )


def _inputs(request: Request, asked: Question) -> dict[str, Any]:
    return request.inputs() | recipe_document(asked.recipe) | asked.inputs()
