"""Sharding that is configured twice, or that costs other memory than it seems to."""

from __future__ import annotations

from collections.abc import Iterator

from batchplan.checker.roles import ACCELERATE
from batchplan.checker.rule import Remark, Rule, about, at, set_to
from batchplan.checker.subject import Subject
from batchplan.configfile import Severity
from batchplan.trainers.policies.rows import FSDP

_OF_ACCELERATE = {"fsdp": "FSDP", "deepspeed": "DEEPSPEED"}
"""Keys of the Trainer, and what ``distributed_type`` calls the same."""
_OWN_STORAGE = ("axolotl", "llamafactory", "torchtune", "litgpt", "lightning", "torchtitan")
"""Store 4-bit weights in a floating dtype by themselves, or not through bitsandbytes.

Source: axolotl loaders/model.py; llamafactory model/model_utils/quantization.py."""
_STORAGE = ("bnb_4bit_quant_storage", "quantization_config.bnb_4bit_quant_storage")
_INTEGERS = (None, "uint8", "int8")
_DTYPES = ("dtype", "torch_dtype", "model_init_kwargs.dtype", "model_init_kwargs.torch_dtype")
_HALVES = ("bfloat16", "float16", "torch.bfloat16", "torch.float16")
_ONLY_VERSION_1 = (
    *("fsdp_sharding_strategy", "fsdp_backward_prefetch", "fsdp_forward_prefetch"),
    *("fsdp_use_orig_params", "fsdp_sync_module_states"),
)


def _twice(subject: Subject) -> Iterator[Remark]:
    """FSDP or DeepSpeed belongs in the trainer's file or in accelerate's, not in both.

    Source: transformers training_args.py, _process_fsdp_args builds a plugin of its own beside
    accelerate's environment; state.py takes DeepSpeed before FSDP without a word.
    """
    types = {
        str(file.get("distributed_type")).upper(): file for file in subject.of_role(ACCELERATE)
    }
    named = {name: subject.first(name) for name in _OF_ACCELERATE}
    on = {name: found for name, found in named.items() if found and found[1].value}
    for name, (file, entry) in on.items():
        if file in types.values():
            continue
        beside = types.get(_OF_ACCELERATE[name])
        if beside is not None:
            yield at(
                file,
                entry.path,
                f"{name} stands here and in {beside.name} (distributed_type "
                f"{_OF_ACCELERATE[name]}): only one of them can decide.",
                fix=f"Keep one: remove {name} here, or launch without {beside.name}.",
            )
    both = set(on) | {name for name, word in _OF_ACCELERATE.items() if word in types}
    if len(both) > 1:
        option = subject.reading.of("sharding")
        text = "fsdp and deepspeed are both configured; accelerate runs DeepSpeed and says nothing."
        fix = "Keep one of them."
        if option is not None:
            yield about(subject, "sharding", text, fix=fix, severity=Severity.ERROR)
        else:
            file, entry = next(iter(on.values()))
            yield at(file, entry.path, text, fix=fix, severity=Severity.ERROR)


def _upcast(subject: Subject) -> Iterator[Remark]:
    """FSDP under mixed precision keeps what trains as fp32, whatever it was loaded in.

    Source: accelerate utils/fsdp_utils.py, fsdp2_prepare_model; accelerator.py, prepare_model.
    """
    if subject.value("sharding") not in FSDP or subject.value("method") != "full":
        return
    if str(subject.said(*_DTYPES)) not in _HALVES or not _is_mixed(subject):
        return
    file, path = subject.place(*_DTYPES)
    yield at(
        file,
        path,
        f"The weights load in {subject.said(*_DTYPES)}, but FSDP under mixed precision keeps what "
        "trains as fp32 shards: 4 bytes a weight, 4 a gradient and 8 of AdamW's, not 2, 2 and 4.",
        fix="Plan with --numerics bf16-master; for 16-bit states turn mixed precision off.",
    )


def _is_mixed(subject: Subject) -> bool:
    words = [entry.value for _, entry in subject.entries("bf16", "fp16", "mixed_precision")]
    return any(word in (True, "bf16", "fp16", "auto") for word in words)


def _storage(subject: Subject) -> Iterator[Remark]:
    """FSDP shards 4-bit weights only when they are stored in a floating dtype.

    Source: accelerate utils/fsdp_utils.py, fsdp2_prepare_model (ignored_params).
    """
    if subject.value("sharding") not in FSDP or subject.value("method") != "qlora":
        return
    if subject.is_on(*_OWN_STORAGE) or subject.said(*_STORAGE) not in _INTEGERS:
        return
    file, path = subject.place(*_STORAGE)
    asks = subject.first("load_in_4bit", "quantization_config.load_in_4bit", "quant_bits")
    place = path if subject.first(*_STORAGE) or asks is None else asks[1].path
    file = file if asks is None or subject.first(*_STORAGE) else asks[0]
    path = path if subject.first(*_STORAGE) else (*place[:-1], _STORAGE[0])
    yield at(
        file,
        place,
        "4-bit weights are stored as uint8, which FSDP leaves whole on every device "
        "(only a warning at start); memory is counted here as if they were split.",
        fix="Set bnb_4bit_quant_storage: bfloat16, the dtype of the other weights.",
        edits=set_to(path, to="bfloat16"),
    )


def _version_1(subject: Subject) -> Iterator[Remark]:
    """Accelerate's own default is FSDP 1.

    Source: accelerate utils/dataclasses.py, FullyShardedDataParallelPlugin.fsdp_version.
    """
    for file in subject.of_role(ACCELERATE):
        config = file.get("fsdp_config")
        if str(file.get("distributed_type")).upper() != "FSDP" or not isinstance(config, dict):
            continue
        if "fsdp_version" in config:
            continue
        old = [name for name in _ONLY_VERSION_1 if name in config]
        path = ("fsdp_config", "fsdp_version")
        yield at(
            file,
            path,
            "fsdp_config has no fsdp_version, and accelerate then runs FSDP 1."
            + (f" Of version 1: {', '.join(old)}." if old else ""),
            fix="Set fsdp_version: 2" + (f" and drop {', '.join(old)}." if old else "."),
            edits=() if old else set_to(path, to=2),
        )


RULES = (
    Rule(
        code="sharding-twice",
        severity=Severity.WARNING,
        title="FSDP or DeepSpeed configured twice",
        source="transformers training_args.py, _process_fsdp_args; accelerate state.py",
        look=_twice,
    ),
    Rule(
        code="fsdp-upcast",
        severity=Severity.WARNING,
        title="FSDP casts 16-bit weights up",
        source="accelerate utils/fsdp_utils.py, fsdp2_prepare_model",
        look=_upcast,
    ),
    Rule(
        code="quant-storage-missing",
        severity=Severity.ERROR,
        title="4-bit weights that FSDP cannot shard",
        source="accelerate utils/fsdp_utils.py, fsdp2_prepare_model",
        look=_storage,
    ),
    Rule(
        code="fsdp-version-1",
        severity=Severity.NOTE,
        title="FSDP 1 for want of a version",
        source="accelerate utils/dataclasses.py, FullyShardedDataParallelPlugin",
        look=_version_1,
    ),
)
