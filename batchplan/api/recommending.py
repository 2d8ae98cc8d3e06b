"""``recommend``: which micro-batch × K × devices reaches the target, fits, and is fastest."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Unpack

from batchplan.api.checks import whole
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
from batchplan.api.epochs import epoch_document, epoch_steps, within_epoch
from batchplan.api.fields import SharedFields
from batchplan.api.profiles import OnProgress, Profiles
from batchplan.api.recipes import numerics_words
from batchplan.api.request import Request, resolve
from batchplan.api.searching import Question, ask, question
from batchplan.errors import NoPlanError, SpecError
from batchplan.learning.advice import reference_runs
from batchplan.learning.runs import PublishedRun
from batchplan.planner.plan import Answer, Plan
from batchplan.sources import load_runs
from batchplan.spec import Caveat, Gpu, Method, ModelInfo
from batchplan.trainers import EmittedFile, Job, emit, obstacles

DEFAULT_LIMIT = 5
"""Plans shown."""
NEAR = 10
"""A published run is compared with when its tokens a step are within this factor."""


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
    numerics: str
    """Named, or the dtypes in words where they were given apart."""
    found: Answer
    reference_runs: tuple[PublishedRun, ...]
    epoch_tokens: int | None
    caveats: tuple[Caveat, ...]

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
        job = Job(plan=best, model=self.model, gpu=self.gpu, stem=stem, epoch_steps=steps)
        return emit(self.trainer, job)

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
            "plans": [plan_document(plan, rank) for rank, plan in enumerate(found.plans, start=1)],
            "closest": None if found.closest is None else plan_document(found.closest),
            "ladder": [rescue_document(rescue) for rescue in found.ladder],
            "rescues": [rescue_document(rescue) for rescue in found.rescues],
            "searched": found.searched,
            "epoch": self._epoch(),
            "reference_runs": [plain(run) for run in self.reference_runs],
            "config": self._config_document(),
            "caveats": caveats_document((*self.caveats, *found.caveats)),
        }

    def _epoch(self) -> dict[str, Any] | None:
        if self.epoch_tokens is None or not self.fits:
            return None
        return epoch_document(self.plans[0], self.epoch_tokens)

    def _config_document(self) -> dict[str, Any] | None:
        if not self.fits or self.model.source == "--params":
            return None
        problems = obstacles(self.trainer, self.plans[0].recipe)
        files = [] if problems else [plain(file) for file in self.config()]
        return {"trainer": self.trainer, "files": files, "obstacles": list(problems)}


def recommend(
    model: str | None = None,
    *,
    target_tokens: int | str | None = None,
    target_sequences: int | str | None = None,
    tolerance: float | str | None = None,
    devices: int | str = 1,
    micro_batch: int | str | None = None,
    accum_steps: int | str | None = None,
    lr: float | str | None = None,
    lr_batch: int | str | None = None,
    epoch_tokens: int | str | None = None,
    limit: int = DEFAULT_LIMIT,
    on_progress: OnProgress | None = None,
    **fields: Unpack[SharedFields],
) -> RecommendAnswer:
    """Return the batch configurations that fit, fastest first.

    Sharding, checkpointing and micro-batch are searched unless given; what is trained (method,
    numerics, optimizer) never changes unless asked, it is only offered as a rescue.

    Args:
        model: Hub id, local folder or config.json, or a catalog name; or give ``params``.
        target_tokens: tokens per optimizer step.
        target_sequences: sequences per optimizer step, in place of tokens.
        tolerance: largest accepted deviation from the target, such as ``2%``.
        devices: exactly N, a range such as ``1..8``, or ``auto`` for the fewest that fit.
        micro_batch: pins the sequences one device runs in one forward.
        accum_steps: pins the passes per optimizer step.
        lr: a learning rate you know to work.
        lr_batch: the global batch in sequences (tokens with a suffix) at which it works.
        epoch_tokens: tokens of your data set, for the time of one epoch.
        limit: plans to return.
        on_progress: told in words what a first trace is doing.
        **fields: the shared inputs, named as on the command line; ``gpu`` is needed.

    Raises:
        SpecError: when an input is wrong.
        SourceError: when the model's config cannot be had.
        TraceError: when the model's code cannot be traced.
    """
    request = resolve(model, fields)
    asked = question(
        request,
        target_tokens=target_tokens,
        target_sequences=target_sequences,
        tolerance=tolerance,
        devices=devices,
        micro_batch=micro_batch,
        accum_steps=accum_steps,
        lr=lr,
        lr_batch=lr_batch,
        limit=whole("limit", limit),
    )
    epoch = None if epoch_tokens is None else whole("epoch_tokens", epoch_tokens)
    profiles = Profiles(request, on_progress)
    found = ask(request, asked, profiles)
    if epoch is not None:
        found = within_epoch(found, epoch)
    return RecommendAnswer(
        inputs=_inputs(request, asked) | {"devices": devices, "epoch_tokens": epoch},
        model=request.model,
        num_params=profiles.num_params,
        num_trainable_params=profiles.num_trainable_params,
        gpu=request.gpu,
        trainer=request.trainer,
        versions=profiles.versions,
        numerics=numerics_words(asked.recipe),
        found=found,
        reference_runs=_comparable_runs(found, profiles.num_params),
        epoch_tokens=epoch,
        caveats=(*request.caveats, *asked.caveats, *profiles.caveats),
    )


def _comparable_runs(found: Answer, num_params: int) -> tuple[PublishedRun, ...]:
    """Return the nearest pre-training runs, if what is planned is anything like them."""
    best = found.plans[0] if found.plans else found.closest
    if best is None or best.recipe.method is not Method.FULL:
        return ()
    tokens = best.batch.global_batch_tokens
    near = [run for run in load_runs() if _is_near(run, tokens)]
    return reference_runs(num_params=num_params, tokens=tokens, runs=near)


def _is_near(run: PublishedRun, tokens: int) -> bool:
    last = run.global_batch_tokens_end or run.global_batch_tokens
    return run.global_batch_tokens <= tokens * NEAR and tokens <= last * NEAR


def _inputs(request: Request, asked: Question) -> dict[str, Any]:
    fixed = recipe_document(asked.recipe)
    for name in asked.searched_fields:
        fixed[name] = None
    return request.inputs() | fixed | asked.inputs()
