"""LitGPT's models, traced from LitGPT's own code."""

from __future__ import annotations

from benchmarks.accuracy.case import NotScoredError
from benchmarks.accuracy.models import written

ENVIRONMENT = "litgpt-0.5"

_WORDS = {
    "q": "query",
    "v": "value",
    "q (in fused qkv)": "query",
    "v (in fused qkv)": "value",
}
_TARGETS = ("query", "key", "value", "projection", "mlp", "head")


def litgpt_model(name: str, *, num_layers: int | None = None) -> str:
    """Return what ``estimate`` takes for a model of LitGPT, cut to ``num_layers`` where given."""
    config: dict[str, str | int] = {"model_type": "litgpt", "name": name.rpartition("/")[2]}
    if num_layers is not None:
        config["n_layer"] = num_layers
    return written(config)


def litgpt_targets(words: tuple[str, ...]) -> str:
    """Return what carries adapters, in LitGPT's words.

    Raises:
        NotScoredError: when LitGPT has no such word.
    """
    found = tuple(dict.fromkeys(_WORDS.get(word, word) for word in words))
    unknown = [word for word in found if word not in _TARGETS]
    if unknown:
        raise NotScoredError(f"adapters on {', '.join(unknown)} cannot be expressed")
    return ",".join(found)
