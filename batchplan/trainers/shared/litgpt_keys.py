"""LitGPT's keys, and what a config says by them."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace

from batchplan.configfile import ConfigFile, Finding, Format
from batchplan.spec import Method, Optimizer
from batchplan.trainers.format import ADAPTERS
from batchplan.trainers.keymap import Key, read_at
from batchplan.trainers.keymap import read as read_keys
from batchplan.trainers.reading import Read, Reading
from batchplan.trainers.shared.flags import flags_of, words_of
from batchplan.trainers.shared.launch import read_launch
from batchplan.trainers.shared.optimizer_classes import read_class_path, read_optimizer

_COMMANDS = {
    "finetune": Method.LORA,
    "finetune_full": Method.FULL,
    "finetune_lora": Method.LORA,
    "pretrain": Method.FULL,
}
_DEVICES = "ranks_per_node"
"""Read, but no option of ours: devices of one node."""

MODEL = (
    Key(key="checkpoint_dir", option="model"),
    Key(
        key="precision",
        option="numerics",
        words={
            "bf16-master": "bf16-mixed",  # FSDP's fp32 shards: what mixed means under it
            "fp16-master": "16-mixed",
            "bf16-autocast": "bf16-mixed",
            "fp16-autocast": "16-mixed",
            "bf16": "bf16-true",
            "fp16": "16-true",
            "fp32": "32-true",
        },
        aliases={"bf16": "bf16-autocast", "16": "fp16-autocast", "32": "fp32"},
        why="numerics {numerics}",
    ),
    Key(
        key="quantize",
        option="double_quant",
        words={True: "bnb.nf4-dq", False: "bnb.nf4"},
        aliases={"bnb.fp4-dq": True, "bnb.fp4": False},
        when={"method": ("qlora",)},
    ),
    Key(key="devices", option=_DEVICES),
    Key(key="num_nodes", option="num_nodes"),
)
LORA = (
    Key(key="lora_r", option="lora_rank", when={"method": ADAPTERS}),
    Key(key="lora_dropout", option="lora_dropout", when={"method": ADAPTERS}),
)
TRAIN = (
    Key(
        key="train.global_batch_size",
        option="global_batch",
        why="sequences a step = {micro_batch} x {accum_steps} passes x {num_ranks} devices",
    ),
    Key(key="train.micro_batch_size", option="micro_batch"),
    Key(key="train.max_seq_length", option="seq_len"),
    Key(key="train.lr_warmup_steps", option="warmup_steps", why="optimizer steps"),
    Key(key="train.epochs", option="epochs", is_written=False),
    Key(key="train.max_steps", option="max_steps", is_written=False),
)
TARGETS = {
    "lora_query": ("q_proj",),
    "lora_key": ("k_proj",),
    "lora_value": ("v_proj",),
    "lora_projection": ("o_proj",),
    "lora_mlp": ("gate_proj", "up_proj", "down_proj"),
    "lora_head": ("lm_head",),
}
"""LitGPT's switches, and the layers they adapt by transformers' names."""
HEAD = "lora_head"
_ON_BY_DEFAULT = ("lora_query", "lora_value")
ALL_LINEAR = "all-linear"
"""peft's word for every linear layer but the head."""


def read(files: Sequence[ConfigFile]) -> Reading:
    """Return what the files of one run say: YAML, and flags that override it."""
    reads: list[Read] = [*read_launch(files), *_commands(files)]
    problems: list[Finding] = []
    configs = [file for file in files if file.format is Format.YAML]
    for file in (*configs, *flags_of(files, "litgpt")):
        found, unknown = read_keys((*MODEL, *LORA, *TRAIN), file)
        reads += [*found, *_read_method(file), *_read_targets(file)]
        problems += unknown
    for file in configs:
        for one in _read_optimizer(file):
            if isinstance(one, Read):
                reads.append(one)
            else:
                problems.append(one)
    last = {read.option: read for read in reads}
    return Reading(trainer="litgpt", reads=tuple(_together(last)), problems=tuple(problems))


def _read_optimizer(file: ConfigFile) -> Iterator[Read | Finding]:
    """Yield the optimizer, which is a class and arguments or the bare name of one of torch's."""
    name = file.get("optimizer")
    if isinstance(name, str):
        yield from read_optimizer(file, name, "optimizer")
    else:
        yield from read_class_path(file)


def _read_method(file: ConfigFile) -> Iterator[Read]:
    if file.get("quantize") is not None:
        yield read_at(file, "method", Method.QLORA.value, "quantize")
    elif any((key,) in file for key in ("lora_r", "lora_alpha", "lora_dropout", *TARGETS)):
        key = next(str(path[0]) for path in file.entries if str(path[0]).startswith("lora_"))
        yield read_at(file, "method", Method.LORA.value, key)


def _commands(files: Iterable[ConfigFile]) -> Iterator[Read]:
    """Yield the method that a launch command names; ``quantize`` makes QLoRA of LoRA."""
    for file in files:
        if file.format is not Format.SHELL:
            continue
        for position, word in enumerate(words_of(file)):
            if word in _COMMANDS:
                yield read_at(file, "method", _COMMANDS[word].value, "program", position)


def _read_targets(file: ConfigFile) -> Iterator[Read]:
    said = [key for key in TARGETS if isinstance(file.get(key), bool)]
    if not said:
        return
    on = [key for key in TARGETS if file.get(key, default=key in _ON_BY_DEFAULT) is True]
    is_all = on == [key for key in TARGETS if key != HEAD]
    names = ALL_LINEAR if is_all else ",".join(layer for key in on for layer in TARGETS[key])
    yield read_at(file, "lora_targets", names, said[0])


def _together(last: dict[str, Read]) -> Iterator[Read]:
    """Yield what was read, with what only several keys together say: devices and numerics."""
    ranks = _num_ranks(last)
    for option, one in last.items():
        if option == _DEVICES:
            if _whole(one.value):
                yield replace(one, option="num_ranks", value=ranks)
        elif option == "model":
            yield replace(one, value=str(one.value).removeprefix("checkpoints/"))
        elif option == "numerics" and ranks > 1 and _value(last, "method") in (None, "full"):
            yield replace(one, value=str(one.value).replace("autocast", "master"))
        elif option == "optimizer" and _value(last, "method") == Method.QLORA.value:
            yield replace(one, value=Optimizer.ADAMW.value)
        elif option != "num_ranks" or _DEVICES not in last:
            yield one


def _num_ranks(last: dict[str, Read]) -> int:
    """Return the devices of all nodes: ``devices`` counts those of one."""
    devices = _whole(_value(last, _DEVICES))
    if devices:
        return devices * (_whole(_value(last, "num_nodes")) or 1)
    return _whole(_value(last, "num_ranks")) or 1


def _whole(value: object) -> int:
    """Return a number of devices, or 0 where it is none, such as ``auto``."""
    return value if isinstance(value, int) and value > 0 else 0


def _value(last: dict[str, Read], option: str) -> object:
    return last[option].value if option in last else None
