"""LitGPT's ``finetune_full`` and ``finetune_lora``: a YAML whose keys are the command's arguments.

Sources: litgpt ``finetune/full.py`` and ``finetune/lora.py`` (``setup``, ``validate_args``),
``args.py``. It shards and checkpoints on several devices and on one does neither: no key says so.
``train.max_norm`` and ``train.min_lr`` are not written: the first is refused when it fine-tunes,
the second belongs to pre-training.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from math import ceil

from batchplan.errors import SpecError
from batchplan.spec import Method, Numerics, Sharding
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import (
    ADAPTERS,
    AUTOCAST,
    COMMON,
    DDP,
    FULL,
    MASTER,
    PURE,
    Refusal,
    TrainerFormat,
    Way,
)
from batchplan.trainers.keymap import written
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared.adapters import scale
from batchplan.trainers.shared.launch import launch_file, torchrun
from batchplan.trainers.shared.litgpt_keys import (
    ALL_LINEAR,
    HEAD,
    LORA,
    MODEL,
    TARGETS,
    TRAIN,
    read,
)
from batchplan.trainers.shared.needs import QUANTISED
from batchplan.trainers.shared.optimizer_classes import (
    IMPLEMENTATIONS,
    TORCH_ADAMW,
    WITHOUT_TRANSFORMERS,
    class_settings,
)
from batchplan.trainers.shared.precision import WITHOUT_OWN_DTYPES
from batchplan.trainers.shared.summary import header, start
from batchplan.trainers.shared.ways import NOT_ON_DTENSORS
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

_FSDP_FULL = (Sharding.FSDP_FULL,)
_FAMILIES = """
Falcon Gemma Gemma2 Gemma3 GPTNeoX Llama Mistral Mixtral Olmo Olmo2 Phi Phi3 Qwen2 Qwen3 Qwen3Moe
StableLm
"""
"""Whose weights it converts. Source: litgpt config.py, scripts/convert_hf_checkpoint.py."""
_MOVED = "meta-llama/Llama-3.1-"
"""Models that it still has under their first name on the Hub, ``meta-llama/Meta-Llama-3.1-...``."""


def write(job: Job) -> tuple[EmittedFile, ...]:
    """Return the YAML of ``litgpt finetune_full`` or ``finetune_lora``, and how to start it.

    Raises:
        SpecError: when LitGPT has no such model, or no switch for the layers to adapt.
    """
    architecture = job.model.architecture
    if architecture.removesuffix("ForCausalLM") not in _FAMILIES.split():
        raise SpecError(
            f"litgpt has no model of architecture {architecture} ({job.model.id}). "
            "`litgpt download list` names those it has."
        )
    name = f"{job.stem}.yaml"
    text = to_yaml(_header(job), _settings(job))
    launch = launch_file(job, f"{_launcher(job)} {_command(job)} --config {name}")
    return EmittedFile(name=name, text=text), launch


def _command(job: Job) -> str:
    return "finetune_full" if job.plan.recipe.method is Method.FULL else "finetune_lora"


def _launcher(job: Job) -> str:
    """Return what starts LitGPT: it starts the devices of one node itself, not other nodes."""
    return f"{torchrun(job)} -m litgpt" if job.plan.num_nodes > 1 else "litgpt"


def _header(job: Job) -> Iterator[str]:
    return header(
        job,
        FORMAT,
        ("Before", f"litgpt download {' '.join(_download(job.model.id))}"),
        ("Data", f"samples of {job.plan.batch.seq_len} tokens, longer ones are cut; without a"),
        ("", "`data` key LitGPT trains on Alpaca, whose samples are shorter"),
        start(job),
    )


def _download(model: str) -> list[str]:
    """Return the arguments of ``litgpt download``, which takes only the names it knows."""
    return [model, "--model_name", model.partition("/")[2]] if model.startswith(_MOVED) else [model]


def _settings(job: Job) -> Iterator[Setting]:
    recipe, options = job.plan.recipe, job.options()
    yield from written(MODEL, options)
    if recipe.method is not Method.FULL:
        yield from written(LORA, options)
        yield scale(recipe)
        yield from (Setting(key, is_on) for key, is_on in _switches(recipe.lora_targets).items())
    yield from written(TRAIN, options)
    yield from _length(job)
    # A quantised model has bitsandbytes' PagedAdamW, which takes the rates of whatever is named.
    yield from class_settings(job, path=TORCH_ADAMW if recipe.method is Method.QLORA else None)


def _switches(lora_targets: str) -> dict[str, bool]:
    """Return LitGPT's switches for the layers to adapt.

    >>> [key for key, is_on in _switches("q_proj,v_proj").items() if is_on]
    ['lora_query', 'lora_value']
    """
    if lora_targets == ALL_LINEAR:
        return {key: key != HEAD for key in TARGETS}
    names = set(lora_targets.split(","))
    found = {key: names.issuperset(layers) for key, layers in TARGETS.items()}
    covered = {layer for key, is_on in found.items() if is_on for layer in TARGETS[key]}
    if names != covered:
        raise SpecError(
            f"litgpt has no switch for adapters on {', '.join(sorted(names - covered))} alone. It "
            "has them for q_proj, k_proj, v_proj, o_proj, lm_head and, all three together, "
            "gate_proj,up_proj,down_proj."
        )
    return found


def _length(job: Job) -> Iterator[Setting]:
    """Yield how long the run is; LitGPT counts whole epochs, so a part of one in steps."""
    if job.epoch_steps is None:
        return
    each = "" if job.epochs == 1 else " each"
    yield Setting("train.epochs", ceil(job.epochs), f"{job.epoch_steps:,} optimizer steps{each}")
    if job.epochs != int(job.epochs):
        why = f"{job.epochs:g} epochs"
        yield Setting("train.max_steps", max(1, round(job.epochs * job.epoch_steps)), why)


FORMAT = TrainerFormat(
    trainer="litgpt",
    needs=(
        Needs(package="litgpt", releases=">=0.5.11,<0.6"),
        Needs(package="requests"),  # imported for its own data, and not declared
        *QUANTISED,
    ),
    decides=COMMON.union(WITHOUT_OWN_DTYPES, {"double_quant", "expandable_segments"}),
    ways=(
        Way(methods=FULL, shardings=DDP, numerics=(*PURE, *AUTOCAST), alone=True),
        Way(methods=FULL, shardings=_FSDP_FULL, numerics=(*PURE, *MASTER), alone=False),
        Way(methods=ADAPTERS[:1], shardings=DDP, numerics=(*PURE, *AUTOCAST), alone=True),
        Way(
            methods=ADAPTERS[:1],
            shardings=_FSDP_FULL,
            numerics=(*PURE, Numerics.BF16_AUTOCAST),
            alone=False,
        ),
        Way(methods=ADAPTERS[1:], shardings=DDP, numerics=PURE, alone=True),
    ),
    values={
        **WITHOUT_OWN_DTYPES,
        "optimizer": WITHOUT_TRANSFORMERS,
        "optimizer_impl": tuple(IMPLEMENTATIONS),
        "offload": ("none",),
    },
    refusals=(
        Refusal(
            when={"method": ("qlora",), "optimizer": WITHOUT_TRANSFORMERS[1:]},
            text="it trains a quantised model with bitsandbytes' AdamW only, not {optimizer}",
        ),
        Refusal(
            when={"method": ("qlora",), "optimizer_impl": ("foreach", "for-loop")},
            text="bitsandbytes' AdamW has no {optimizer_impl} form (--optimizer-impl fused)",
        ),
        replace(NOT_ON_DTENSORS, when={**NOT_ON_DTENSORS.when, "method": ("lora",)}),
    ),
    marks=frozenset({"checkpoint_dir", "lora_query", "lora_projection", "litgpt"}),
    write=write,
    read=read,
)
