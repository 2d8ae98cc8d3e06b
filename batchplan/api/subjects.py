"""The model of an experiment, resolved, and the device of this machine that it runs on."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from batchplan.api.checks import option, shown, whole
from batchplan.api.documents import recipe_document
from batchplan.api.fields import NO_GRADIENTS, NOT_HERE, SharedFields
from batchplan.api.policies import Policy
from batchplan.api.request import Request, resolve
from batchplan.errors import ProbeError, SpecError
from batchplan.experiments.subject import Subject
from batchplan.planner.hardware import check_attention
from batchplan.prober.politeness import MOST, Advice, State, look
from batchplan.prober.trial import Device
from batchplan.units import format_bytes

AUTO = "auto"
_UNASKED = ("gpu", *NOT_HERE)
_ADVICE = Advice(
    no_gpu="--device cpu runs on the CPU.",
    too_few="--device cpu runs {} ranks on the CPU.",
)
_LARGEST_SEED = 2**32 - 1


def resolve_subject(
    model: str,
    fields: SharedFields,
    *,
    command: str,
    device: str = AUTO,
    devices: int | str = 1,
    weights: bool = False,
    seed: int | str = 0,
) -> tuple[Request, Subject]:
    """Check the inputs, find the device, and resolve the model.

    Args:
        model: Hub id, local folder or config.json, or a catalog name.
        fields: the shared inputs but for those of other devices and ``NO_GRADIENTS``; what is
            left out is as the trainer has it.
        command: its name, for messages.
        device: ``cpu``, ``cuda``, or ``auto``: a free GPU, or else the CPU.
        devices: ranks, each on a device of this machine.
        weights: load the published weights in place of random ones.
        seed: of random weights and of dropout.

    Raises:
        SpecError: when an input is wrong.
        SourceError: when the model's config cannot be had.
        ProbeError: when there is no such device, or others use it.
    """
    for name in _UNASKED:
        if fields.get(name) is not None:
            raise SpecError(f"{option(name)}: {command} runs a model on this machine's devices.")
    for name in NO_GRADIENTS:
        if fields.get(name) is not None:
            raise SpecError(
                f"{option(name)} changes nothing that {command} measures: leave it out."
            )
    num_ranks = whole("devices", devices)
    number = whole("seed", seed, least=0)
    if number > _LARGEST_SEED:
        raise SpecError(f"--seed {number} is too large: at most {_LARGEST_SEED}.")
    state = _look(device, num_ranks)
    request = resolve(model, {**fields, "gpu": f"{state.gpu.usable_bytes}B"})
    recipe = Policy(request, {"micro_batch": 1, "accum_steps": 1}, num_ranks).recipe()
    check_attention(recipe, state.gpu)
    if request.beyond_model:
        raise SpecError(request.beyond_model)
    return request, Subject(
        config=request.traced_config,
        model_ref=_with_weights(model),
        recipe=recipe,
        seq_len=request.seq_len,
        num_ranks=num_ranks,
        device=state.device,
        weights=weights,
        seed=number,
        trust_remote_code=request.trust_remote_code,
        python=request.python,
    )


def _with_weights(model: str) -> str:
    """Return where a model's weights lie: beside its config, where that was named."""
    path = Path(model).expanduser()
    return str(path.parent) if path.is_file() else model


def subject_inputs(request: Request, subject: Subject) -> dict[str, Any]:
    """Return the keyword arguments that give this subject again."""
    shared: Mapping[str, Any] = request.inputs() | recipe_document(subject.recipe)
    return {
        name: value for name, value in shared.items() if name not in (*_UNASKED, *NO_GRADIENTS)
    } | {
        "device": subject.device.value,
        "devices": subject.num_ranks,
        "weights": subject.weights,
        "seed": subject.seed,
    }


def _look(text: str, num_ranks: int) -> State:
    """Return the device that was named, or of ``auto`` the one that is free."""
    if text != AUTO and text not in tuple(Device):
        known = ", ".join((*Device, AUTO))
        raise SpecError(f"--device {shown(text)} is none of {known}.")
    if text != AUTO:
        return _free(look(Device(text), num_devices=num_ranks, advice=_ADVICE))
    try:
        return _free(look(Device.CUDA, num_devices=num_ranks))
    except ProbeError:
        return look(Device.CPU)


def _free(state: State) -> State:
    total = state.total_bytes or 0
    if state.device is Device.CUDA and state.taken_bytes > MOST * total:
        raise ProbeError(
            f"{state.gpu.name} is in use: {format_bytes(state.taken_bytes)} of "
            f"{format_bytes(total)} are taken. Choose another with CUDA_VISIBLE_DEVICES, or "
            "--device cpu."
        )
    return state
