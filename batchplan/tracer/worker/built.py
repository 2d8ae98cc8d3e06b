"""What the worker's parts share: the built module, its stacks of layers, and errors."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


class WorkerError(Exception):
    """A request that cannot be answered; the text is for the user."""

    kind = "trace"


class RequestError(WorkerError):
    """The request itself is wrong: a config or LoRA targets that no model accepts."""

    kind = "input"


@dataclass
class Stack:
    """One run of layers: a ``ModuleList`` of the model."""

    name: str
    module: nn.ModuleList
    kinds: list[int]
    """Kind of every layer of the whole model, in order; numbers are unique over stacks."""
    kept: list[int] = field(default_factory=list)
    """Positions of the layers that are traced."""


@dataclass
class Built:
    """The module that is traced and what was counted on the whole model."""

    model: nn.Module
    config: Any
    stacks: list[Stack]
    num_params: int
    attention: str
    is_encoder_decoder: bool
    notes: list[str]
    quantises_head: bool = False
    """Whether QLoRA holds the head in 4 bits too."""
    trained: set[int] = field(default_factory=set)
    """Identity of every parameter that got a gradient in a step."""


def norm_parameters(model: nn.Module) -> set[int]:
    """Return the identities of the parameters of normalisations."""
    return {
        id(parameter)
        for module in model.modules()
        if "norm" in type(module).__name__.lower()
        for parameter in module.parameters(recurse=False)
    }


def one_line(error: BaseException) -> str:
    """Return an error on one line, short enough for a message."""
    text = re.sub(r"\b[A-Za-z]+Error: ", "", " ".join(str(error).split()))
    return text[:300] or type(error).__name__
