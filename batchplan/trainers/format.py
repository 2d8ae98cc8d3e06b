"""What a trainer's config can say, and how it is written and read: a ``TrainerFormat`` each."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from typing import cast

from batchplan.configfile import ConfigFile
from batchplan.spec import Method, Numerics, Recipe, Sharding
from batchplan.trainers.defaults import check_trainer
from batchplan.trainers.emitted import EmittedFile, Job
from batchplan.trainers.policies.rows import Value
from batchplan.trainers.reading import Reading
from batchplan.trainers.releases import Needs

ZERO = (Sharding.ZERO1, Sharding.ZERO2, Sharding.ZERO3)
FSDP = (Sharding.FSDP_GRAD_OP, Sharding.FSDP_FULL, Sharding.FSDP_HYBRID)
DDP = (Sharding.DDP,)
MASTER = (Numerics.BF16_MASTER, Numerics.FP16_MASTER)
AUTOCAST = (Numerics.BF16_AUTOCAST, Numerics.FP16_AUTOCAST)
PURE = (Numerics.FP32, Numerics.BF16, Numerics.FP16)
FULL = (Method.FULL,)
ADAPTERS = (Method.LORA, Method.QLORA)
COMMON = frozenset(
    {
        "method",
        "lora_rank",
        "lora_targets",
        "lora_dropout",
        "numerics",
        "optimizer",
        "optimizer_impl",
        "sharding",
        "offload",
    }
)
"""Fields of the recipe that nearly every trainer's files decide."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """Recipes that a trainer can be configured for: any mix of these values."""

    methods: tuple[Method, ...]
    shardings: tuple[Sharding, ...]
    numerics: tuple[Numerics, ...]
    alone: bool | None = None
    """Only on one device (True) or only on several (False); None is either."""

    def is_for(self, num_ranks: int) -> bool:
        """Whether they run on so many devices."""
        return self.alone is None or self.alone == (num_ranks == 1)

    def allows(self, recipe: Recipe) -> bool:
        """Whether a recipe is one of these, on some number of devices."""
        return (
            recipe.method in self.methods
            and recipe.sharding in self.shardings
            and recipe.numerics in self.numerics
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A mix of values that a trainer cannot be configured for, and why."""

    when: Mapping[str, tuple[Value, ...]]
    """Fields of the recipe and the values that meet."""
    text: str
    """Words after the trainer's name, in which ``{field}`` is a value of the recipe."""

    def applies_to(self, recipe: Recipe) -> bool:
        """Whether a recipe is refused."""
        return all(getattr(recipe, name) in values for name, values in self.when.items())


Writer = Callable[[Job], tuple[EmittedFile, ...]]
Reader = Callable[[Sequence[ConfigFile]], Reading]


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainerFormat:
    """How a trainer is configured."""

    trainer: str
    needs: tuple[Needs, ...]
    """What a run must find installed; first the trainer's library in the releases that know every
    key that is written."""
    decides: frozenset[str]
    """Fields of the recipe that its files decide; the others are as its policy says."""
    ways: tuple[Way, ...]
    values: Mapping[str, tuple[Value, ...]] = field(default_factory=dict)
    """Fields with a closed set of values that its files can say."""
    refusals: tuple[Refusal, ...] = ()
    marks: frozenset[str] = frozenset()
    """Top-level keys (or calls, or programs) by which its files are recognised, most others
    having none of them."""
    trains_causal_only: bool = False
    """Whether it feeds every model as one that predicts the next token, whatever its class."""
    suffix: str = ".yaml"
    """Of the main file."""
    write: Writer
    read: Reader

    @property
    def supports(self) -> str:
        """Releases of its library that know every key that is written, as pip writes them."""
        return self.needs[0].releases


_MODULES = {
    "hf-trainer": "hf_trainer",
    "trl": "trl",
    "accelerate": "accelerate",
    "deepspeed": "deepspeed",
    "axolotl": "axolotl",
    "llamafactory": "llamafactory",
    "ms-swift": "ms_swift",
    "unsloth": "unsloth",
    "torchtune": "torchtune",
    "litgpt": "litgpt",
    "lightning": "lightning",
    "torchtitan": "torchtitan",
}


def format_of(trainer: str) -> TrainerFormat:
    """Return how ``trainer`` is configured.

    Raises:
        UnknownNameError: when there is no such trainer.
    """
    check_trainer(trainer)
    module = import_module(f"batchplan.trainers.{_MODULES[trainer]}")
    return cast("TrainerFormat", module.FORMAT)
