"""What the chosen trainer decides for one estimate, and in which words the user is told."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from batchplan.api.recipes import DTYPE_FIELDS, checkpoint_numerics, fill
from batchplan.api.request import Request
from batchplan.spec import Batch, Caveat, Method, Numerics, Recipe
from batchplan.tracer.environment import library_versions
from batchplan.trainers.defaults import (
    CHECKPOINT,
    PEFT_TARGETS,
    Default,
    Settled,
    Value,
    assumed_release,
    settle,
)
from batchplan.trainers.policies.peft_targets import peft_targets

SIZES = ("micro_batch", "accum_steps")
_TOLD = (*SIZES, "method", "numerics", "optimizer", "optimizer_impl", "sharding", "checkpointing")
_TOLD_OF_ADAPTERS = ("lora_rank", "lora_targets")
_TOLD_WHERE_UNUSUAL = {"loss": "standard", "offload": "none"}
"""Told only where the trainer's choice is not this one."""


class Policy:
    """A trainer's choices for what the request leaves open."""

    def __init__(self, request: Request, sizes: Mapping[str, int], num_ranks: int) -> None:
        """Settle them; ``sizes`` holds the micro-batch and passes that were given."""
        self._request = request
        self._num_ranks = num_ranks
        self._sizes = sizes
        self._versions = library_versions(request.python, request.library)
        self._given = {**request.given, **sizes}
        if request.resolved is None:
            # Which parameters an adapter adds depends on the layers, and the sizes do not matter.
            plain = {"method": Method.FULL.value, "micro_batch": 1, "accum_steps": 1}
            self._given = {**plain, **self._given}
        self._settled: Settled = settle(
            request.trainer,
            self._versions,
            given=self._given,
            several_devices=num_ranks > 1,
            resolve=self._value,
        )

    def recipe(self) -> Recipe:
        """Return the recipe: what was given over what the trainer decides.

        Raises:
            SpecError: when a value is not allowed.
        """
        decided = self._settled.values
        defaults = {name: value for name, value in decided.items() if name in Recipe.model_fields}
        given = {name: value for name, value in self._given.items() if name in Recipe.model_fields}
        return fill(given, defaults)

    def sizes(self) -> dict[str, object]:
        """Return micro-batch and passes per step."""
        found = {name: self._settled.values.get(name, self._given.get(name)) for name in SIZES}
        row = self._settled.rows.get("accum_steps")
        if row is not None and row.of_a_step:
            sequences = int(str(found["micro_batch"])) * self._num_ranks
            found["accum_steps"] = -(-int(str(found["accum_steps"])) // sequences)
        return dict(found)

    def caveats(self, recipe: Recipe, batch: Batch) -> tuple[Caveat, ...]:
        """Return a caveat that names what the trainer decided, and why where that is no setting."""
        names = list(self._told())
        notes = "; ".join(self._notes())
        if not names and not notes:
            return ()
        release = assumed_release(self._request.trainer, self._versions)
        text = f"Not given, so as {self._request.trainer} does by default"
        if release is not None:
            text = f"{text} ({release} is assumed)"
        if names:
            words = [self._words(name, recipe, batch) for name in names]
            text = f"{text}: {', '.join(words)}"
        text = f"{text}. {notes[0].upper()}{notes[1:]}." if notes else f"{text}."
        return (Caveat(code="trainer-defaults", text=text),)

    def _told(self) -> Iterator[str]:
        decided = self._settled.values
        adapts = {**decided, **self._given}["method"] != Method.FULL
        for name in _TOLD:
            is_usual = name == "method" and not adapts
            if name in decided and not is_usual and not (name == "numerics" and self._all_dtypes()):
                yield name
        yield from (name for name in _TOLD_OF_ADAPTERS if adapts and name in decided)
        for name, usual in _TOLD_WHERE_UNUSUAL.items():
            if decided.get(name, usual) != usual:
                yield name

    def _notes(self) -> Iterator[str]:
        numerics = self._settled.rows.get("numerics")
        hidden = numerics.note if numerics is not None and self._all_dtypes() else ""
        yield from (note for note in self._settled.notes if note != hidden)

    def _all_dtypes(self) -> bool:
        return all(name in self._given for name in DTYPE_FIELDS)

    def _words(self, name: str, recipe: Recipe, batch: Batch) -> str:
        holder = batch if name in Batch.model_fields else recipe
        words = f"{name.replace('_', '-')} {getattr(holder, name)}"
        if name != "numerics":
            return words
        if any(field in self._given for field in DTYPE_FIELDS):
            return f"{words} where no dtype is given"
        weights = self._settled.values.get("weight_dtype")
        return words if weights is None else f"{words} over {weights} weights"

    def _value(self, row: Default) -> Value:
        resolved = self._request.resolved
        return row_value(row, None if resolved is None else self._request.config)


def row_value(row: Default, config: Mapping[str, object] | None) -> Value:
    """Return the value of a row, looked up in the model's config where that decides.

    Without a model, what nearly every published checkpoint is saved in: bf16.
    """
    if row.value == PEFT_TARGETS:
        return peft_targets(str((config or {}).get("model_type", "")))
    if row.value != CHECKPOINT:
        return row.value
    # A dtype and the numerics in nothing but that dtype have one name.
    return Numerics.BF16.value if config is None else checkpoint_numerics(config).value
