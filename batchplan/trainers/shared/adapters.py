"""How much adapters count: ``lora_alpha``, of which every trainer has a default of its own."""

from __future__ import annotations

from batchplan.spec import Recipe
from batchplan.trainers.shared.yaml_text import Setting


def scale(recipe: Recipe, key: str = "lora_alpha") -> Setting:
    """Return the scale of adapters, twice their rank; it changes no memory.

    A learning rate means little without it. Trainers' own values differ: 8 (peft), 16 (torchtune,
    litgpt, unsloth), 32 (trl, ms-swift) whatever the rank, or twice the rank (llamafactory).
    """
    return Setting(key, 2 * recipe.lora_rank, "twice the rank")
