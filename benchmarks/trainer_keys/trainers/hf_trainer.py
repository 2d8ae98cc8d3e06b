"""transformers: ``HfArgumentParser(TrainingArguments)``, and the objects given to models."""

from __future__ import annotations

import importlib
import os
import socket
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes

SOURCE = (
    "transformers.TrainingArguments (fsdp_config: what _process_fsdp_args reads); "
    "peft.LoraConfig; transformers.BitsAndBytesConfig; transformers.Trainer"
)


def snapshot() -> dict[str, Any]:
    """Return the keys of the arguments file and of the three objects a script builds."""
    from peft import LoraConfig
    from transformers import BitsAndBytesConfig, Trainer

    keys = arguments_keys()
    quantization = shapes.of_signature(BitsAndBytesConfig.__init__)
    return {
        "config": {"keys": keys, "open": opened(keys)},
        "lora_config": {"keys": shapes.of_dataclass(LoraConfig), "open": []},
        "quantization_config": {"keys": quantization, "open": []},
        "Trainer": {"keys": shapes.of_signature(Trainer.__init__), "open": []},
    }


_OPEN = (
    "activation_checkpointing_kwargs",
    "deepspeed",
    "gradient_checkpointing_kwargs",
    "liger_kernel_config",
    "lr_scheduler_kwargs",
    "parallelism_config",
)


def opened(keys: shapes.Keys, *more: str) -> list[str]:
    """Return the sections of TrainingArguments, and more, whose keys nobody lists."""
    return [name for name in (*more, *_OPEN) if name in keys]


def arguments_keys(cls: Any = None) -> shapes.Keys:
    """Return the keys of TrainingArguments or a class made from it, with the nested ones."""
    from accelerate.utils import GradientAccumulationPlugin
    from transformers import TrainingArguments
    from transformers.trainer_pt_utils import AcceleratorConfig

    cls = cls or TrainingArguments
    keys = shapes.of_dataclass(cls)
    keys |= shapes.under("accelerator_config", shapes.of_dataclass(AcceleratorConfig))
    accumulation = shapes.of_dataclass(GradientAccumulationPlugin)
    keys |= shapes.under("accelerator_config.gradient_accumulation_kwargs", accumulation)
    fsdp = shapes.read_by(cls._process_fsdp_args, "fsdp_config")
    keys |= shapes.under("fsdp_config", fsdp)
    keys["fsdp"] = shapes.key(bool | str, None)  # annotated as str, documented and parsed as both
    for name in ("gradient_checkpointing_kwargs", "activation_checkpointing_kwargs"):
        if name in keys:
            checkpoint = {"use_reentrant": shapes.key(bool)}
            keys |= shapes.under(name, checkpoint) | {name: keys[name]}
    return keys


def validate(path: Path, **_: Any) -> dict[str, Any]:
    """Parse the file as a training script does; a key that is not known is refused."""
    from transformers import HfArgumentParser, TrainingArguments

    pretend_gpu(path)
    parser = HfArgumentParser(TrainingArguments)
    parse = parser.parse_json_file if path.suffix == ".json" else parser.parse_yaml_file
    (arguments,) = parse(str(path))
    return dict(vars(arguments))


def pretend_gpu(path: Path) -> None:
    """Let a configuration for GPUs be parsed where there is none.

    bf16 is said to be supported. A file that names DeepSpeed has a process group started while it
    is parsed: of one process, on a free port, and without the C++ that DeepSpeed would compile.
    """
    import transformers.training_args as module

    for name in ("is_torch_bf16_gpu_available", "is_torch_tf32_available"):
        if hasattr(module, name):
            setattr(module, name, lambda *_, **__: True)
    os.chdir(path.parent)  # files that the configuration names are relative to it
    if "deepspeed" in path.read_text(encoding="utf-8"):
        # By its full name: deepspeed.comm.torch as an attribute is PyTorch itself.
        communication: Any = importlib.import_module("deepspeed.comm.torch")
        communication.build_shm_op = lambda: None
        alone = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}
        os.environ.update(alone | {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port())})


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
