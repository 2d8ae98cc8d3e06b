"""The command that starts a plan, on one node or several, as a shell script."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from batchplan.configfile import ConfigFile, Format
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.format import ZERO
from batchplan.trainers.reading import Read

ALLOCATOR = "PYTORCH_CUDA_ALLOC_CONF"
EXPANDABLE = "expandable_segments:True"
HEAD = "${HEAD_NODE:?address of the first node}"
"""The shell stops with these words where the variable is not set."""
RANK = "${NODE_RANK:?0 on the first node}"
PORT = 29500
_ASKED = re.compile(r"\$\{(\w+):\?")
"""A variable without which the shell stops."""

# torchrun takes ``_`` and ``-`` alike (torch/distributed/argparse_util.py, run.py).
_RANKS_FLAGS = ("--nproc_per_node", "--nproc-per-node", "--num_processes", "--num_gpus")
_NODES_FLAGS = ("--nnodes", "--num_machines", "--num_nodes")
_RANKS_ENV = ("NPROC_PER_NODE",)
_NODES_ENV = ("NNODES",)
_TOTAL = ("--num_processes",)
"""Flags that count the processes of all nodes."""


def is_one_process(job: Job) -> bool:
    """Whether Python itself is to start a trainer on accelerate, and not a launcher.

    Under a launcher accelerate wraps a model in DDP even where it is alone, and DDP's buckets are
    as large as all gradients (accelerate ``state.py, PartialState._prepare_backend``;
    ``accelerator.py, Accelerator.prepare_model``). DeepSpeed takes the launcher's variables.
    """
    return not job.several_devices and job.plan.recipe.sharding not in ZERO


def processes(job: Job) -> str:
    """Return what starts a script of a trainer on accelerate (``is_one_process``)."""
    return "python" if is_one_process(job) else torchrun(job)


def one_device(job: Job) -> dict[str, str]:
    """Return the variable that keeps a process that is alone from taking every GPU it sees."""
    return visible_devices(job) if is_one_process(job) else {}


def torchrun(job: Job) -> str:
    """Return the launcher and its flags: one process a device, on every node."""
    return " ".join(["torchrun", *torchrun_flags(job)])


def torchrun_flags(job: Job) -> list[str]:
    """Return the flags of torchrun alone."""
    nodes = job.plan.num_nodes
    flags = [f"--nproc_per_node={_ranks_per_node(job)}"]
    if nodes > 1:
        flags += [f"--nnodes={nodes}", "--rdzv_backend=c10d", f'--rdzv_endpoint="{HEAD}:{PORT}"']
    return flags


def torchrun_environment(job: Job) -> dict[str, str]:
    """Return the variables of trainers that start torchrun themselves."""
    nodes = job.plan.num_nodes
    found = {"NPROC_PER_NODE": str(_ranks_per_node(job))}
    if nodes > 1:
        found |= {
            "NNODES": str(nodes),
            "NODE_RANK": f'"{RANK}"',
            "MASTER_ADDR": f'"{HEAD}"',
            "MASTER_PORT": str(PORT),
        }
    return found


def visible_devices(job: Job) -> dict[str, str]:
    """Return the variable for trainers that spread a model over every GPU that they see."""
    every = ",".join(map(str, range(_ranks_per_node(job))))
    return {"CUDA_VISIBLE_DEVICES": f'"${{CUDA_VISIBLE_DEVICES:-{every}}}"'}


def _ranks_per_node(job: Job) -> int:
    return job.plan.batch.num_ranks // job.plan.num_nodes


def launch_file(
    job: Job, command: str, *, environment: Mapping[str, str] | None = None
) -> EmittedFile:
    """Return the script that starts ``command`` with what the plan needs in its environment."""
    return EmittedFile(
        name=f"{job.stem}.launch.sh",
        text="\n".join(_lines(job, command, environment or {})) + "\n",
    )


def _lines(job: Job, command: str, environment: Mapping[str, str]) -> Iterator[str]:
    plan = job.plan
    yield "#!/usr/bin/env bash"
    if plan.num_nodes > 1:
        asked = dict.fromkeys(_ASKED.findall(" ".join([*environment.values(), command])))
        yield f"# Run this on each of the {plan.num_nodes} nodes, with {', '.join(asked)} set."
    if plan.recipe.expandable_segments:
        yield f"export {ALLOCATOR}={EXPANDABLE}"
    yield from (f"export {name}={value}" for name, value in environment.items())
    yield command


def read_launch(files: Iterable[ConfigFile]) -> Iterator[Read]:
    """Yield devices, nodes and the allocator's setting, as launch scripts say."""
    for file in files:
        if file.format is not Format.SHELL:
            continue
        nodes = _first(file, _NODES_FLAGS, _NODES_ENV)
        ranks = _first(file, _RANKS_FLAGS, _RANKS_ENV)
        if nodes is not None:
            yield _read(file, "num_nodes", nodes[1], nodes[0])
        if ranks is not None:
            is_total = ranks[0][-1] in _TOTAL
            factor = 1 if is_total or nodes is None else nodes[1]
            yield _read(file, "num_ranks", ranks[1] * factor, ranks[0])
        allocator = file.get("env", ALLOCATOR)
        if allocator is not None:
            is_on = "expandable_segments:true" in str(allocator).lower()
            yield _read(file, "expandable_segments", is_on, ("env", ALLOCATOR))


def _first(
    file: ConfigFile, flags: tuple[str, ...], environment: tuple[str, ...]
) -> tuple[tuple[str, str], int] | None:
    paths = [("flags", name) for name in flags] + [("env", name) for name in environment]
    for path in paths:
        value = file.get(*path)
        if isinstance(value, int) and not isinstance(value, bool):
            return path, value
    return None


def _read(file: ConfigFile, option: str, value: Any, path: tuple[str, str]) -> Read:
    return Read(option=option, value=value, key=path[-1], file=file.name, line=file.line(*path))
