"""Options that several commands share, each declared once: its type, unit, default and help."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from copy import copy
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from batchplan import spec

Options = Mapping[str, Any]
_Function = TypeVar("_Function", bound=Callable[..., Any])
_WIDEST_CHOICES = 64
"""Characters of choices beside their option, so that its line fits in 80 columns."""


def option(kind: Any, help_text: str, *flags: str, metavar: str | None = None) -> Any:
    """Return the annotated type of one option; its default is None (or False for a flag)."""
    shown = None if kind is bool else metavar
    if _is_choice(kind):
        # Of itself typer puts all choices where help cannot wrap them.
        choices = "|".join(kind)
        is_long = len(choices) > _WIDEST_CHOICES
        shown = "NAME" if is_long else None
        help_text += f" Any of {', '.join(kind)}." if is_long else ""
    return Annotated[
        bool if kind is bool else kind | None,
        typer.Option(*flags, help=help_text, metavar=shown, show_default=False),
    ]


def _is_choice(kind: Any) -> bool:
    return isinstance(kind, type) and issubclass(kind, Enum)


def takes(*groups: Options) -> Callable[[_Function], _Function]:
    """Give a function the options of ``groups`` as keyword parameters that typer reads.

    The function itself takes ``**options``. Its positional parameters come first.
    """

    def decorate(function: _Function) -> _Function:
        own = [
            parameter
            for parameter in inspect.signature(function, eval_str=True).parameters.values()
            if parameter.kind is not inspect.Parameter.VAR_KEYWORD
        ]
        shared = [
            inspect.Parameter(
                name,
                inspect.Parameter.KEYWORD_ONLY,
                default=False if annotation.__origin__ is bool else None,
                annotation=annotation,
            )
            for group in groups
            for name, annotation in group.items()
        ]
        parameters = [*own, *shared]
        function.__annotations__ = {p.name: p.annotation for p in parameters} | {"return": int}
        function.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        return function

    return decorate


MODEL = Annotated[
    str | None,
    typer.Argument(
        help="Hub id (Qwen/Qwen2.5-7B), local folder or config.json, or a catalog name.",
        show_default=False,
        metavar="MODEL",
    ),
]
SUBJECT: Options = {
    "gpu": option(
        str,
        "GPU: a catalog name (a100-80gb), a memory size with unit (24GiB), or local. Required.",
        metavar="NAME|SIZE",
    ),
    "nodes": option(
        int,
        "Machines the devices are spread over. Default: as many of 8 devices as are needed.",
        metavar="N",
    ),
    "inter_node_gb_per_s": option(
        float,
        "Between nodes, one direction per GPU, in GB/s (1e9 bytes). Default: 25.",
        metavar="GB/S",
    ),
    "seq_len": option(
        str,
        "Tokens per sequence, padding included. Default: 4096 or the model's maximum if less.",
        metavar="TOKENS",
    ),
    "params": option(
        str, "Parameters (7B, 7e9) in place of MODEL: arithmetic on states alone.", metavar="COUNT"
    ),
    "activations": option(
        str, "With --params: activation memory to add, with unit. Default: none.", metavar="SIZE"
    ),
    "trainer": option(
        str, "Trainer whose defaults and config apply. Default: hf-trainer.", metavar="NAME"
    ),
    "python": option(
        Path,
        "Interpreter of the environment that will train; its library versions decide. "
        "Default: the one batchplan runs in.",
        metavar="PATH",
    ),
    "revision": option(str, "Hub branch, tag or commit. Default: main.", metavar="NAME"),
    "trust_remote_code": option(
        bool,
        "Let the model's own code from its repository run. Default: off.",
        "--trust-remote-code",
    ),
    "offline": option(bool, "Never ask the network. Default: off.", "--offline"),
}
BATCH: Options = {
    "micro_batch": option(
        str, "Sequences one device runs in one forward. Default: {micro_batch}.", metavar="N"
    ),
    "accum_steps": option(
        str, "Passes per optimizer step (K). Default: {accum_steps}.", metavar="N"
    ),
}
RECIPE: Options = {
    "recipe": option(
        Path, "YAML file with any of the recipe options below; options given win.", metavar="FILE"
    ),
    "method": option(spec.Method, "Which parameters train. Default: full."),
    "lora_rank": option(int, "Rank of every adapter. Default: 16.", metavar="N"),
    "lora_targets": option(
        str, "all-linear, or module names joined by commas. Default: all-linear.", metavar="NAMES"
    ),
    "lora_dropout": option(float, "Dropout of the adapters, 0 to 1. Default: 0.", metavar="P"),
    "numerics": option(spec.Numerics, "Named choice of dtypes. Default: {numerics}."),
    "weight_dtype": option(spec.Dtype, "Dtype of the weights. Default: as --numerics says."),
    "grad_dtype": option(spec.Dtype, "Dtype of the gradients. Default: as --numerics says."),
    "optimizer_dtype": option(
        spec.Dtype, "Dtype of optimizer states. Default: as --numerics says."
    ),
    "master_weights": option(
        bool | None,
        "Whether fp32 copies of 16-bit weights are kept. Default: as --numerics says.",
        "--master-weights/--no-master-weights",
    ),
    "adapter_dtype": option(spec.Dtype, "Dtype of LoRA adapters. Default: fp32."),
    "optimizer": option(spec.Optimizer, "Optimizer, by what it keeps. Default: adamw."),
    "optimizer_impl": option(spec.OptimizerImpl, "How torch runs the update. Default: fused."),
    "sharding": option(spec.Sharding, "How devices split the states. Default: {sharding}."),
    "zero": option(int, "ZeRO stage 0 to 3, a synonym of --sharding.", metavar="STAGE"),
    "offload": option(spec.Offload, "What lives in host memory. Default: none."),
    "checkpointing": option(
        spec.Checkpointing, "Activation checkpointing. Default: {checkpointing}."
    ),
    "attention": option(spec.Attention, "Attention implementation. Default: sdpa."),
    "loss": option(spec.Loss, "How logits and loss are computed. Default: standard."),
    "double_quant": option(
        bool | None,
        "QLoRA: whether the NF4 scales are quantised too. Default: yes.",
        "--double-quant/--no-double-quant",
    ),
    "frozen_upcast": option(
        bool | None,
        "QLoRA: what stays 16-bit in the base is cast to fp32. Default: no.",
        "--frozen-upcast/--no-frozen-upcast",
    ),
    "norm_dtype": option(
        spec.Dtype, "Dtype of normalisation weights. Default: as the other weights."
    ),
    "reentrant": option(
        bool | None,
        "Checkpointing by torch's older implementation. Default: no.",
        "--reentrant/--no-reentrant",
    ),
    "fp32_outputs": option(
        bool | None,
        "Autocast: outputs are copied to fp32, as accelerate does. Default: no.",
        "--fp32-outputs/--no-fp32-outputs",
    ),
    "zero_buckets": option(
        spec.ZeroBuckets, "DeepSpeed's bucket sizes: by hidden width, or its own. Default: auto."
    ),
    "expandable_segments": option(
        bool | None,
        "Allocator grows segments in place (PYTORCH_CUDA_ALLOC_CONF). Default: no.",
        "--expandable-segments/--no-expandable-segments",
    ),
    "sync_each_batch": option(
        bool | None,
        "FSDP: reduce gradients after every micro-batch. Default: {sync_each_batch}.",
        "--sync-each-batch/--no-sync-each-batch",
    ),
    "fsdp_version": option(
        int, "FSDP: 1 (FullyShardedDataParallel) or 2 (fully_shard). Default: 2.", metavar="1|2"
    ),
    "bucket_view": option(
        bool | None,
        "DDP: gradients are views of the communication buckets. Default: no.",
        "--bucket-view/--no-bucket-view",
    ),
}
PROBE: Options = {
    "device": option(
        str, "cpu, cuda, mps, or auto: the GPU there is. Default: auto.", metavar="NAME"
    ),
    "memory_limit": option(
        str,
        "What a trial may take, with unit; needed on cpu and mps. Default: what is free.",
        metavar="SIZE",
    ),
    "devices": option(str, "Devices of this machine that train together. Default: 1.", metavar="N"),
    "as_rank_of": option(
        str,
        "Train one rank of so many alone, with its share of the states. Default: no.",
        metavar="N",
    ),
    "accum_steps": option(
        str, "Micro-batches of an optimizer step (K), 2 or more. Default: 2.", metavar="N"
    ),
    "max_micro_batch": option(str, "Largest micro-batch of interest. Default: any.", metavar="N"),
    "weights": option(
        bool, "Load the published weights. Default: random ones of the same shapes.", "--weights"
    ),
    "timeout": option(
        float, "Seconds that one trial may take once loaded. Default: 600.", metavar="SECONDS"
    ),
    "save": option(
        bool, "Keep the result, for later estimates on this device. Default: no.", "--save"
    ),
    "dry_run": option(bool, "Say what would be done, and do nothing. Default: no.", "--dry-run"),
}
COLUMNS: Options = {
    "length_column": option(
        str,
        "Column of lengths, or of token lists. Default: length, num_tokens or input_ids.",
        metavar="NAME",
    ),
    "text_column": option(
        str,
        "Column of text or chat messages. Default: messages, text, prompt and completion, content.",
        metavar="NAME",
    ),
}
DATA: Options = {
    "dataset": option(
        Path,
        "Data set (jsonl, csv, parquet, text): its lengths decide --seq-len. Default: none.",
        metavar="FILE",
    ),
    "lengths": option(
        Path,
        "Token counts, one a line, as JSON list or column; in place of --dataset. Default: none.",
        metavar="FILE",
    ),
    **COLUMNS,
    "tokenizer": option(
        str, "Hub id or folder that counts the data set's text. Default: MODEL's.", metavar="NAME"
    ),
    "packing": option(
        bool,
        "Several sequences fill a row of --seq-len. Default: each is padded.",
        "--packing",
    ),
}
JSON_ONLY: Options = {
    "json": option(bool, "Print one JSON document instead of tables.", "--json"),
    "quiet": option(bool, "Print no progress and no warnings on stderr.", "-q", "--quiet"),
}
OUTPUT: Options = {
    **JSON_ONLY,
    "output": option(Path, "Write {written} to FILE.", "-o", "--output", metavar="FILE"),
    "explain": option(bool, "Show the formula and source beside each term.", "--explain"),
    "verbose": option(
        bool, "Tell more: terms below 0.005 GiB; traceback of a bug on stderr.", "-v", "--verbose"
    ),
}


def worded(group: Options, **words: str) -> dict[str, Any]:
    """Return a group with the ``{names}`` in its help texts filled in."""
    filled = {}
    for name, annotation in group.items():
        info = copy(annotation.__metadata__[0])
        info.help = info.help.format(**words)
        filled[name] = Annotated[annotation.__origin__, info]
    return filled


def without(group: Options, *names: str) -> dict[str, Any]:
    """Return a group less some of its options."""
    return {name: annotation for name, annotation in group.items() if name not in names}
