"""The inputs of ``recommend`` and ``compare``, resolved up to the device."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, cast, get_type_hints

from batchplan.api.axes import Axes, take_axes
from batchplan.api.checks import whole
from batchplan.api.data import (
    Data,
    Target,
    data_caveats,
    epoch_slots,
    fill,
    resolve_with_data,
    target_of,
    time_share,
)
from batchplan.api.fields import AskedFields, GoalFields, RecommendFields
from batchplan.api.measured_noise import given_noise, noise_caveats
from batchplan.api.profiles import OnProgress
from batchplan.api.request import Request
from batchplan.api.searching import Question, question
from batchplan.api.training import Training, training
from batchplan.experiments.noise_file import NoiseRecord
from batchplan.spec import Caveat, Gpu, Objective

DEFAULT_LIMIT = 5
"""Plans shown."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """What was asked, checked; a device turns it into a question."""

    request: Request
    data: Data | None
    target: Target
    training: Training
    axes: Axes
    goal: GoalFields
    noise: NoiseRecord | None = None
    """What was measured of the model's gradients."""

    @property
    def devices(self) -> int | str:
        """How many, as asked."""
        return self.goal.get("devices", 1)

    @property
    def caveats(self) -> tuple[Caveat, ...]:
        """What holds for every device."""
        counted = self.request.seq_len if self.data is None else None
        about_noise = noise_caveats(self.noise, self.request, counted_tokens=counted)
        return (
            *self.request.caveats,
            *data_caveats(self.data),
            *self.target.caveats,
            *about_noise,
        )

    def on(self, gpu: Gpu) -> tuple[Request, Question]:
        """Return the request and the question for one device.

        Raises:
            SpecError: when an input is wrong, two contradict each other, or the device cannot run
                what is asked.
        """
        goal = self.goal
        request = replace(self.request, gpu=gpu)
        asked = question(
            request,
            target_tokens=self.target.tokens,
            target_sequences=self.target.sequences,
            tolerance=goal.get("tolerance"),
            devices=self.devices,
            micro_batch=goal.get("micro_batch"),
            accum_steps=goal.get("accum_steps"),
            lr=goal.get("lr"),
            lr_batch=goal.get("lr_batch"),
            limit=whole("limit", goal.get("limit", DEFAULT_LIMIT)),
            data_tokens=self.training.epoch_tokens,
            fill=self.training.fill,
            aim=self.training.aim,
            pareto=goal.get("pareto", False),
            rescues=goal.get("rescues", False),
            axes=self.axes,
        )
        if self.noise is not None:
            asked = replace(asked, noise_tokens=self.noise.tokens.value)
        return request, asked


def prepare(
    model: str | None,
    fields: RecommendFields,
    on_progress: OnProgress | None,
    *,
    gpus: tuple[Gpu, ...] = (),
    objective: Objective = Objective.THROUGHPUT,
) -> Prepared:
    """Resolve the inputs.

    Args:
        model: as ``recommend``.
        fields: every other input.
        on_progress: told in words what is being done.
        gpus: whose prices may be given; the one of ``fields`` when empty.
        objective: what is optimised when nothing is said.

    Raises:
        SpecError: when an input is wrong or two contradict each other.
        SourceError: when the model's config or tokenizer cannot be had.
    """
    names = get_type_hints(GoalFields)
    goal: dict[str, Any] = {
        name: value for name, value in fields.items() if name in names and value is not None
    }
    others = {name: value for name, value in fields.items() if name not in names}
    axes, rest = take_axes(others)
    request, data = resolve_with_data(model, cast(AskedFields, rest), on_progress)
    run = training(
        gpus=gpus or (request.gpu,),
        optimize=goal.get("optimize"),
        epoch_tokens=epoch_slots(data, goal.get("epoch_tokens")),
        time_share=time_share(data),
        fill=fill(data),
        epochs=goal.get("epochs"),
        deadline=goal.get("deadline"),
        gpu_price=goal.get("gpu_price"),
        default=objective,
    )
    return Prepared(
        request=request,
        data=data,
        target=target_of(data, goal.get("target_tokens"), goal.get("target_sequences")),
        training=run,
        axes=axes,
        goal=cast(GoalFields, goal),
        noise=given_noise(goal.get("noise")),
    )


def goal_inputs(prepared: Prepared) -> dict[str, Any]:
    """Return what was asked of the run, as keyword arguments."""
    goal, run = prepared.goal, prepared.training
    return {
        "devices": prepared.devices,
        "epoch_tokens": None if prepared.data else run.epoch_tokens,
        "epochs": goal.get("epochs"),
        "deadline": goal.get("deadline"),
        "noise": None if goal.get("noise") is None else str(goal["noise"]),
        "gpu_price": None if goal.get("gpu_price") is None else str(goal["gpu_price"]),
    }
