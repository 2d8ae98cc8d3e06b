"""Optimizers as classes and keyword arguments, for loops that make their optimizer themselves.

Sources: torch ``optim/adamw.py``, ``optim/sgd.py``; bitsandbytes ``optim/adamw.py``,
``optim/lion.py``; transformers ``optimization.py, Adafactor`` with the two arguments that its
Trainer passes; deepspeed ``ops/adam/cpu_adam.py``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from batchplan.configfile import ConfigFile, Finding
from batchplan.spec import Optimizer, OptimizerImpl, Recipe
from batchplan.trainers.emitted import Job
from batchplan.trainers.keymap import not_understood, read_at
from batchplan.trainers.reading import Read
from batchplan.trainers.shared.yaml_text import Setting


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerClass:
    """A class and what makes it ours."""

    path: str
    """Importable."""
    arguments: Mapping[str, Any] = field(default_factory=dict)


TORCH_ADAMW = "torch.optim.AdamW"
CPU_ADAMW = "deepspeed.ops.adam.DeepSpeedCPUAdam"
"""What DeepSpeed offloads; its ``adamw_mode`` is on by default."""
IMPLEMENTATIONS: Mapping[OptimizerImpl, Mapping[str, bool]] = {
    OptimizerImpl.FUSED: {"fused": True},
    OptimizerImpl.FOREACH: {"foreach": True},
    OptimizerImpl.FOR_LOOP: {"foreach": False},
}
"""Of torch's AdamW."""
CLASSES: Mapping[Optimizer, OptimizerClass] = {
    Optimizer.ADAMW: OptimizerClass(path=TORCH_ADAMW),
    Optimizer.ADAMW_8BIT: OptimizerClass(path="bitsandbytes.optim.AdamW8bit"),
    Optimizer.PAGED_ADAMW_8BIT: OptimizerClass(path="bitsandbytes.optim.PagedAdamW8bit"),
    Optimizer.ADAFACTOR: OptimizerClass(
        path="transformers.Adafactor",
        arguments={"scale_parameter": False, "relative_step": False},
    ),
    Optimizer.SGD: OptimizerClass(path="torch.optim.SGD"),
    Optimizer.SGD_MOMENTUM: OptimizerClass(path="torch.optim.SGD", arguments={"momentum": 0.9}),
    Optimizer.LION: OptimizerClass(path="bitsandbytes.optim.Lion"),
}
BITSANDBYTES = tuple(kind for kind, it in CLASSES.items() if it.path.startswith("bitsandbytes."))
"""Those whose kernels are bitsandbytes'."""
WITHOUT_TRANSFORMERS = tuple(k for k, it in CLASSES.items() if "transformers." not in it.path)
"""Those of torch and bitsandbytes alone."""
_NAMES = {
    "AdamW": Optimizer.ADAMW,
    "Adam": Optimizer.ADAMW,
    "FusedAdam": Optimizer.ADAMW,
    "DeepSpeedCPUAdam": Optimizer.ADAMW,
    "AdamW8bit": Optimizer.ADAMW_8BIT,
    "PagedAdamW8bit": Optimizer.PAGED_ADAMW_8BIT,
    "Adafactor": Optimizer.ADAFACTOR,
    "SGD": Optimizer.SGD,
    "Lion": Optimizer.LION,
    "FusedLion": Optimizer.LION,
    "Muon": Optimizer.MUON,
}
"""By the last part of a class path; Adam keeps what AdamW does."""
CALLS = frozenset(_NAMES)


def arguments_of(recipe: Recipe, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the keyword arguments of a recipe's optimizer, the learning rate among them."""
    found: dict[str, Any] = {"lr": options["learning_rate"]}
    if "beta2" in options:
        found["betas"] = [0.9, options["beta2"]]
    return {**found, **CLASSES[recipe.optimizer].arguments}


def class_settings(job: Job, *, path: str | None = None) -> Iterator[Setting]:
    """Yield ``optimizer.class_path`` and ``optimizer.init_args``, as jsonargparse names them.

    Args:
        job: the plan.
        path: a class in place of the recipe's own, which then says how it runs.
    """
    recipe, options = job.plan.recipe, job.options()
    arguments = arguments_of(recipe, options)
    if recipe.optimizer is Optimizer.ADAMW and path is None:
        arguments |= IMPLEMENTATIONS[recipe.optimizer_impl]
    yield Setting("optimizer.class_path", path or CLASSES[recipe.optimizer].path)
    for name, value in arguments.items():
        why = {"lr": f"{options['rule']} rule", "betas": "half-life in tokens kept"}.get(name, "")
        yield Setting(f"optimizer.init_args.{name}", value, why)


def read_optimizer(arguments: ConfigFile, name: object, *path: str) -> Iterator[Read | Finding]:
    """Yield what a class and its arguments say: optimizer, how it runs, learning rate, beta2.

    Args:
        arguments: the keyword arguments, at the top.
        name: the class, as it is written there.
        path: where ``arguments`` says the name; empty where that is the name of a call.
    """
    kind = _NAMES.get(str(name).rpartition(".")[2])
    where = path or next(iter(arguments.entries), ("",))[:1]
    if kind is None:
        yield not_understood(arguments, ".".join(map(str, where)), name)
        return
    if kind is Optimizer.SGD and arguments.get("momentum"):
        kind = Optimizer.SGD_MOMENTUM
    yield read_at(arguments, "optimizer", kind.value, *where)
    if kind is Optimizer.ADAMW:
        for implementation, says in IMPLEMENTATIONS.items():
            ((key, value),) = says.items()
            if arguments.get(key) is value:
                yield read_at(arguments, "optimizer_impl", implementation.value, key)
    rate, beta2 = arguments.get("lr"), arguments.get("betas", 1)
    if isinstance(rate, float):
        yield read_at(arguments, "learning_rate", rate, "lr")
    if isinstance(beta2, float):
        yield read_at(arguments, "beta2", beta2, "betas", 1)


def read_class_path(file: ConfigFile) -> Iterator[Read | Finding]:
    """Yield what ``optimizer.class_path`` and ``optimizer.init_args`` say, where they are there."""
    entry = file.entries.get(("optimizer", "class_path"))
    if entry is not None:
        arguments = file.under("optimizer", "init_args")
        inner = replace(arguments, entries={**arguments.entries, ("class_path",): entry})
        yield from read_optimizer(inner, entry.value, "class_path")
