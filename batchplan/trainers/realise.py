"""Which plans a trainer can really run: what its config decides, and what it does by itself."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from types import MappingProxyType
from typing import Any

from batchplan.spec import Checkpointing, Method, Numerics, Offload, Optimizer, Recipe, Sharding
from batchplan.trainers.defaults import Default, Settled, Value, settle
from batchplan.trainers.format import (
    ADAPTERS,
    AUTOCAST,
    DDP,
    FSDP,
    MASTER,
    ZERO,
    Way,
    format_of,
)
from batchplan.trainers.policies.rows import CHECKPOINT, PEFT_TARGETS
from batchplan.trainers.releases import needed

_PREFERRED: dict[bool, tuple[Numerics, ...]] = {
    # Full: fp32 values of whatever trains, cheapest first. Adapters have them in any case.
    True: (*MASTER, *AUTOCAST, Numerics.BF16, Numerics.FP16, Numerics.FP32),
    False: (Numerics.BF16, Numerics.FP16, *AUTOCAST, *MASTER, Numerics.FP32),
}
_ADAMW = (Optimizer.ADAMW,)
_MATTERS: dict[str, Mapping[str, tuple[Value, ...]]] = {
    "lora_rank": {"method": ADAPTERS},
    "lora_targets": {"method": ADAPTERS},
    "lora_dropout": {"method": ADAPTERS},
    "adapter_dtype": {"method": ADAPTERS},
    "double_quant": {"method": ADAPTERS[1:]},
    "frozen_upcast": {"method": ADAPTERS[1:]},
    "optimizer_impl": {"optimizer": _ADAMW, "offload": (Offload.NONE,)},
    "reentrant": {"checkpointing": (Checkpointing.SELECTIVE, Checkpointing.FULL)},
    "zero_buckets": {"sharding": ZERO},
    "sync_each_batch": {"sharding": FSDP},
    "fsdp_version": {"sharding": FSDP},
    "bucket_view": {"sharding": DDP},
}
"""Fields that change something only under some values of others."""


def realisable_shardings(
    trainer: str,
    numerics: Numerics,
    num_ranks: int,
    *,
    num_nodes: int = 1,
    method: Method = Method.FULL,
) -> tuple[Sharding, ...]:
    """Return the shardings ``trainer`` can run under ``numerics``, simplest first.

    On one device that is the first way that needs no sharding of any kind.

    >>> [sharding.value for sharding in realisable_shardings("hf-trainer", Numerics.BF16, 8)]
    ['ddp', 'fsdp-grad-op', 'fsdp-full']

    Raises:
        UnknownNameError: when there is no such trainer.
    """
    found = [
        sharding
        for way in format_of(trainer).ways
        if numerics in way.numerics and method in way.methods
        if way.is_for(num_ranks)
        for sharding in way.shardings
    ]
    order = list(Sharding)
    several = sorted(set(found), key=order.index)
    if num_ranks == 1:
        return tuple(several[:1])
    return tuple(s for s in several if s is not Sharding.FSDP_HYBRID or num_nodes > 1)


def preferred_numerics(
    trainer: str,
    *,
    method: Method,
    sharding: Sharding | None,
    has_bf16: bool,
    counts: Iterable[int] = (1, 2),
) -> Numerics:
    """Return the numerics to plan with where nobody names any.

    Args:
        trainer: its name.
        method: which parameters train.
        sharding: the one that is asked for; None where it is searched.
        has_bf16: whether the GPU computes in bf16.
        counts: of devices, one of which will train.

    >>> preferred_numerics("hf-trainer", method=Method.FULL, sharding=None, has_bf16=True).value
    'bf16-master'

    Raises:
        UnknownNameError: when there is no such trainer.
    """
    found = format_of(trainer)
    ways = [
        way
        for way in found.ways
        if method in way.methods and any(way.is_for(count) for count in counts)
    ]
    # No way at all is no reason to plan with other numerics: the answer says why there is none.
    asked = [way for way in ways if sharding is None or sharding in way.shardings] or ways
    refused = {
        numerics
        for refusal in found.refusals
        if refusal.when.keys() == {"method", "numerics"} and method in refusal.when["method"]
        for numerics in refusal.when["numerics"]
    }
    known = {numerics for way in asked for numerics in way.numerics} - refused
    unwanted = "fp16" if has_bf16 else "bf16"
    wanted = [n for n in _PREFERRED[method is Method.FULL] if not n.value.startswith(unwanted)]
    return next((numerics for numerics in wanted if numerics in known), wanted[0])


def matters(name: str, recipe: Recipe) -> bool:
    """Whether a field of the recipe changes anything under the others.

    >>> matters("lora_rank", Recipe()), matters("reentrant", Recipe(checkpointing="full"))
    (False, True)
    """
    when = _MATTERS.get(name, {})
    return all(getattr(recipe, other) in values for other, values in when.items())


def as_configured(
    trainer: str,
    values: Mapping[str, object],
    *,
    versions: Mapping[str, str] = MappingProxyType({}),
    several_devices: bool,
    resolve: Callable[[Default], Value] = lambda row: row.value,
) -> tuple[dict[str, object], Settled]:
    """Return all that a config decides, and what of it the trainer adds by itself.

    Args:
        trainer: its name.
        values: what the config says, by our option names (``Reading.values``).
        versions: releases of the libraries that will train.
        several_devices: whether more than one device trains.
        resolve: turns a row of the policy into its value.

    Raises:
        UnknownNameError: when there is no such trainer.
    """
    settled = settle(
        trainer,
        versions,
        given={},
        configured=values,
        several_devices=several_devices,
        resolve=resolve,
    )
    return {**values, **settled.values}, settled


def realised(
    trainer: str,
    recipe: Recipe,
    *,
    versions: Mapping[str, str] = MappingProxyType({}),
    several_devices: bool,
    given: frozenset[str] = frozenset(),
    resolve: Callable[[Default], Value] = lambda row: row.value,
) -> Recipe:
    """Return a recipe as ``trainer`` runs it: what its files cannot decide is as it does by itself.

    What is ``given`` stays as it is, and is an obstacle where the trainer does something else.

    >>> realised("hf-trainer", Recipe(numerics=Numerics.BF16_AUTOCAST), several_devices=False
    ... ).fp32_outputs
    True

    Raises:
        UnknownNameError: when there is no such trainer.
    """
    kept = format_of(trainer).decides | given
    configured = {name: value for name, value in _plain(recipe).items() if name in kept}
    settled = settle(
        trainer,
        versions,
        given={},
        configured=configured,
        several_devices=several_devices,
        resolve=resolve,
    )
    own = {
        name: value
        for name, value in settled.values.items()
        if name in Recipe.model_fields
        and name not in given
        and value not in (CHECKPOINT, PEFT_TARGETS)
    }
    return Recipe.model_validate({**_plain(recipe), **own})


def obstacles(
    trainer: str,
    recipe: Recipe,
    *,
    versions: Mapping[str, str] = MappingProxyType({}),
    num_ranks: int | None = None,
) -> tuple[str, ...]:
    """Return in words why no config can be written for a recipe; empty when one can be.

    Args:
        trainer: its name.
        recipe: what is planned.
        versions: releases of the libraries that will train.
        num_ranks: devices that will train; None is any number.

    Raises:
        UnknownNameError: when there is no such trainer.
    """
    outdated = (
        f"it needs {one.package}{one.releases}, not {versions[one.package]}"
        for one in needed(format_of(trainer).needs, recipe)
        if not one.holds(versions)
    )
    return (*outdated, *refusals(trainer, recipe, versions=versions, num_ranks=num_ranks))


def refusals(
    trainer: str,
    recipe: Recipe,
    *,
    versions: Mapping[str, str] = MappingProxyType({}),
    num_ranks: int | None = None,
) -> tuple[str, ...]:
    """Return in words what ``trainer`` has no setting for; empty when it can run the recipe.

    Unlike ``obstacles`` they do not ask whether the installed releases take the keys we write: a
    trainer runs a plan in older releases too.

    Args:
        trainer: its name.
        recipe: what is planned.
        versions: releases of the libraries that will train.
        num_ranks: devices that will train; None is any number.

    Raises:
        UnknownNameError: when there is no such trainer.
    """
    found = format_of(trainer)
    if not any(recipe.method in way.methods for way in found.ways):
        own = (refusal for refusal in found.refusals if set(refusal.when) == {"method"})
        said = [one.text for one in own if one.applies_to(recipe)]
        return tuple(said) or (f"it cannot train --method {recipe.method.value}",)
    texts = [
        refusal.text.format_map(_plain(recipe))
        for refusal in found.refusals
        if refusal.applies_to(recipe)
    ]
    texts += [
        _no_value(name, getattr(recipe, name), values)
        for name, values in found.values.items()
        if getattr(recipe, name) not in values and matters(name, recipe)
    ]
    here = [way for way in found.ways if num_ranks is None or way.is_for(num_ranks)]
    if not texts and not any(way.allows(recipe) for way in here):
        where = ""
        if num_ranks is not None and any(way.allows(recipe) for way in found.ways):
            where = f" on {_devices(num_ranks)}"
        texts.append(_no_way(here, recipe, where))
    return tuple(texts) or tuple(_differences(trainer, recipe, versions))


def no_sharding(trainer: str, recipe: Recipe, num_ranks: int) -> str:
    """Return in words why no way to shard is left, sharding being open.

    >>> no_sharding("litgpt", Recipe(method="qlora", numerics="bf16"), 8)
    'it trains qlora on one device only'

    Raises:
        UnknownNameError: when there is no such trainer.
    """
    ways = [way for way in format_of(trainer).ways if recipe.method in way.methods]
    here = [way for way in ways if way.is_for(num_ranks)]
    if not ways:
        return "; ".join(obstacles(trainer, recipe))
    if not here:
        where = "one device" if num_ranks > 1 else "several devices"
        return f"it trains {recipe.method.value} on {where} only"
    names = dict.fromkeys(numerics.value for way in here for numerics in way.numerics)
    return f"on {_devices(num_ranks)} it takes --numerics {', '.join(names)}"


def _devices(num_ranks: int) -> str:
    return "one device" if num_ranks == 1 else "several devices"


def _no_value(name: str, value: object, known: tuple[Value, ...]) -> str:
    if known == (None,):
        return f"it has no setting for --{name.replace('_', '-')} apart from --numerics"
    return f"it has no {_words(name)} {_shown(value)} ({' or '.join(map(_shown, known))})"


def _no_way(ways: Iterable[Way], recipe: Recipe, where: str = "") -> str:
    same = [way for way in ways if recipe.method in way.methods]
    mixes = {
        sharding.value: [n.value for way in same if sharding in way.shardings for n in way.numerics]
        for way in same
        for sharding in way.shardings
    }
    name = recipe.sharding.value
    what = f"{recipe.method.value} with --sharding {name} and --numerics {recipe.numerics.value}"
    if name in mixes:
        taken = ", ".join(dict.fromkeys(mixes[name]))
        return f"it cannot run {what}{where}; under {name} it takes {taken}"
    taken = f"; it takes --sharding {', '.join(mixes)}" if mixes else ""
    return f"it cannot run {what}{where}{taken}"


def _differences(trainer: str, recipe: Recipe, versions: Mapping[str, str]) -> list[str]:
    """Say what the trainer does in place of what the recipe asks, on one device or several."""
    alone, several = (
        _plain(realised(trainer, recipe, versions=versions, several_devices=several))
        for several in (False, True)
    )
    return [
        f"it has no setting for {_words(name)} {_shown(value)}: it runs {_shown(several[name])}"
        for name, value in _plain(recipe).items()
        if matters(name, recipe) and value not in (alone[name], several[name])
    ]


def _plain(recipe: Recipe) -> dict[str, Any]:
    return recipe.model_dump(mode="json")


def _words(name: str) -> str:
    return name.replace("_", " ")


def _shown(value: object) -> str:
    if value is None:
        return "of its own choice"
    if isinstance(value, bool):
        return "on" if value else "off"
    return str(value)
