"""How a script loads the model: keyword arguments of ``from_pretrained`` and of ``LoraConfig``.

Trainers without a config of their own for the model get them as a YAML file; scripts have them as
calls. Sources: transformers ``modeling_utils.py, from_pretrained``; ``utils/quantization_config.py,
BitsAndBytesConfig``; peft ``tuners/lora/config.py, LoraConfig``.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Checkpointing, Method
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import FSDP
from batchplan.trainers.keymap import Key, read, read_at
from batchplan.trainers.reading import Read
from batchplan.trainers.shared.adapters import scale
from batchplan.trainers.shared.auto_class import auto_class
from batchplan.trainers.shared.precision import load_dtype
from batchplan.trainers.shared.yaml_text import Setting, to_yaml

LOAD_DTYPE = "load_dtype"
"""Read, but no option of ours: torch's name of the dtype that the model is loaded in."""
ATTENTION = {"eager": "eager", "sdpa": "sdpa", "flash": "flash_attention_2"}
ATTENTION_ALIASES = {
    "flash_attention_3": "flash",
    "kernels-community/flash-attn2": "flash",
    "kernels-community/flash-attn": "flash",
    "kernels-community/vllm-flash-attn3": "flash",
}
ALL_LINEAR = "all-linear"

_LOADING = (
    Key(key="pretrained_model_name_or_path", option="model"),
    Key(key="0", option="model", is_written=False),
    Key(key="attn_implementation", option="attention", words=ATTENTION, aliases=ATTENTION_ALIASES),
)
_LORA = (
    Key(key="r", option="lora_rank"),
    Key(key="lora_dropout", option="lora_dropout"),
)
_RECOMPUTED = (Checkpointing.SELECTIVE, Checkpointing.FULL)
_CALLS_OF_OTHERS = ("Tokenizer", "Config", "Processor", "Extractor", "GenerationConfig")


def model_file(
    job: Job, usage: Iterable[str] = (), settings: Iterable[Setting] = ()
) -> EmittedFile:
    """Return the YAML file with the keyword arguments, and with what goes after them.

    Args:
        job: the plan.
        usage: further lines that say what calls take the arguments.
        settings: further blocks, each named as the call that takes it.
    """
    name = f"{job.stem}.model.yaml"
    lines = [*_usage(job, name), *usage]
    return EmittedFile(name=name, text=to_yaml(lines, [*_settings(job), *settings]))


def _usage(job: Job, name: str) -> Iterator[str]:
    auto = auto_class(job.model.architecture)
    adapts = job.plan.recipe.method is not Method.FULL
    yield f"How train.py loads the model: kwargs = yaml.safe_load(open({name!r}))"
    if job.plan.recipe.method is Method.QLORA:
        yield 'bits = BitsAndBytesConfig(**kwargs["from_pretrained"].pop("quantization_config"))'
        yield f'model = {auto.name}.from_pretrained(**kwargs["from_pretrained"],'
        yield "    quantization_config=bits)"
    else:
        yield f'model = {auto.name}.from_pretrained(**kwargs["from_pretrained"])'
    if adapts:
        yield 'model = get_peft_model(model, LoraConfig(**kwargs["lora"]))'
    if adapts and job.plan.recipe.reentrant and job.plan.recipe.checkpointing in _RECOMPUTED:
        yield "model.enable_input_require_grads()  # or reentrant checkpoints have no gradients"


def _settings(job: Job) -> Iterator[Setting]:
    recipe, dtype = job.plan.recipe, load_dtype(job.plan.recipe)
    yield Setting("from_pretrained.pretrained_model_name_or_path", job.model.id)
    yield Setting("from_pretrained.dtype", dtype, f"numerics {recipe.numerics.value}")
    yield Setting("from_pretrained.attn_implementation", ATTENTION[recipe.attention.value])
    if recipe.method is Method.QLORA:
        quantised = {
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": recipe.double_quant,
            "bnb_4bit_compute_dtype": dtype,
        }
        if recipe.sharding in FSDP:
            # FSDP shards 4-bit weights only when they are stored in the dtype of the others.
            quantised["bnb_4bit_quant_storage"] = dtype
        yield Setting("from_pretrained.quantization_config", quantised)
    if recipe.method is not Method.FULL:
        yield Setting("lora.r", recipe.lora_rank)
        yield scale(recipe, "lora.lora_alpha")
        yield Setting("lora.target_modules", targets_of(recipe.lora_targets))
        yield Setting("lora.lora_dropout", recipe.lora_dropout)
        task = auto_class(job.model.architecture).task_type
        if task is not None:
            yield Setting("lora.task_type", task)


def targets_of(lora_targets: str) -> Any:
    """Return ``target_modules`` as peft takes it: one word for all layers, or a list of names.

    Any other word alone would be a pattern over whole names.

    >>> targets_of("all-linear"), targets_of("q_proj")
    ('all-linear', ['q_proj'])
    """
    return lora_targets if lora_targets == ALL_LINEAR else lora_targets.split(",")


def targets_from(written: object) -> str:
    """Return our ``lora_targets`` of what a config says.

    >>> targets_from(["q_proj", "v_proj"]), targets_from(["all-linear"]), targets_from("all-linear")
    ('q_proj,v_proj', 'all-linear', 'all-linear')
    """
    return ",".join(map(str, written)) if isinstance(written, list) else str(written)


def read_model(files: Iterable[ConfigFile]) -> tuple[list[Read], list[Finding]]:
    """Return what files say of loading the model: method, adapters, attention, ``load_dtype``."""
    reads: list[Read] = []
    problems: list[Finding] = []
    for file in files:
        for loading, quantised, lora in _blocks(file):
            for found, unknown in (read(_LOADING, loading), read(_LORA, lora)):
                reads += found
                problems += unknown
            reads += [*_dtype(loading), *_method(lora, quantised)]
    return reads, problems


def _blocks(file: ConfigFile) -> Iterator[tuple[ConfigFile, ConfigFile, ConfigFile]]:
    """Yield the parts of a file that load a model, quantise it, and add adapters."""
    if file.format is Format.PYTHON:
        calls = [str(name) for name in file.data]
        loads = [
            name
            for name in calls
            if name.endswith(".from_pretrained")
            and not name.split(".")[0].endswith(_CALLS_OF_OTHERS)
        ]
        loading = file.under(loads[0]) if loads else file.under("from_pretrained")
        yield loading, file.under("BitsAndBytesConfig"), file.under("LoraConfig")
    elif file.format is Format.YAML:
        quantised = file.under("from_pretrained", "quantization_config")
        yield file.under("from_pretrained"), quantised, file.under("lora")


def _dtype(loading: ConfigFile) -> Iterator[Read]:
    for key in ("torch_dtype", "dtype"):
        written = loading.get(key)
        if isinstance(written, str) and written != "auto":
            yield read_at(loading, LOAD_DTYPE, written.removeprefix("torch."), key)


def _method(lora: ConfigFile, quantised: ConfigFile) -> Iterator[Read]:
    is_quantised = quantised.get("load_in_4bit") is True
    if lora.entries:
        method = Method.QLORA if is_quantised else Method.LORA
        path = next(iter(lora.entries))
        yield read_at(lora, "method", method.value, *path)
        if lora.get("target_modules") is not None:
            targets = targets_from(lora.get("target_modules"))
            yield read_at(lora, "lora_targets", targets, "target_modules")
    if is_quantised:
        double = bool(quantised.get("bnb_4bit_use_double_quant", default=False))
        yield read_at(quantised, "double_quant", double, "bnb_4bit_use_double_quant")
