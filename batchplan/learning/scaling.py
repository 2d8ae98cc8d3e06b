"""Learning-rate rules for a changed batch, as closed forms. ``kappa`` is new batch over old.

Each function says where its rule comes from and when it holds; none of them extrapolates
silently, because none of them decides anything. ``advice`` does.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchplan.errors import SpecError


@dataclass(frozen=True, slots=True, kw_only=True)
class AdamSettings:
    """What the square-root rule changes together."""

    learning_rate: float
    beta1: float
    beta2: float
    eps: float


def scale_linear(*, learning_rate: float, kappa: float) -> float:
    """Return ``kappa * lr``, for SGD well below the noise scale.

    Source: Goyal et al., https://arxiv.org/abs/1706.02677, section 2.1.
    Leaves out: the warm-up it needs (about five epochs there).

    >>> scale_linear(learning_rate=2e-5, kappa=0.5)
    1e-05
    """
    return positive("learning rate", learning_rate) * positive("kappa", kappa)


def scale_sqrt(*, learning_rate: float, kappa: float) -> float:
    """Return ``sqrt(kappa) * lr``, for Adam and its kin in noise-dominated training.

    Source: Malladi et al., https://arxiv.org/abs/2205.10287; Krizhevsky,
    https://arxiv.org/abs/1404.5997, section 5. Changing the learning rate alone is a heuristic;
    the derivation changes beta1, beta2 and eps too: see ``scale_adam``.
    """
    return positive("learning rate", learning_rate) * math.sqrt(positive("kappa", kappa))


def scale_adam(
    *, learning_rate: float, beta1: float, beta2: float, eps: float, kappa: float
) -> AdamSettings:
    """Return Adam's settings by the whole square-root rule.

    ``1 - beta' = kappa (1 - beta)`` for both betas and ``eps' = eps / sqrt(kappa)``.

    Source: Malladi et al., https://arxiv.org/abs/2205.10287, definition 5.2.

    Raises:
        SpecError: when ``kappa (1 - beta)`` reaches 1, where the rule has no answer.
    """
    return AdamSettings(
        learning_rate=scale_sqrt(learning_rate=learning_rate, kappa=kappa),
        beta1=_scaled_beta("beta1", beta1, kappa),
        beta2=_scaled_beta("beta2", beta2, kappa),
        eps=positive("eps", eps) / math.sqrt(kappa),
    )


def is_whole_rule_defined(*, beta: float, kappa: float) -> bool:
    """Return whether ``scale_adam`` has an answer for a beta: ``kappa (1 - beta) < 1``."""
    return kappa * (1 - beta) < _LARGEST_REST


def shift_beta2(*, beta2: float, kappa: float) -> float:
    """Return ``beta2 ** kappa``: the same half-life in tokens at the new batch.

    Source: Marek et al. 2025, https://arxiv.org/abs/2507.07101.
    """
    return float(_beta("beta2", beta2) ** positive("kappa", kappa))


def half_life_tokens(*, beta2: float, tokens_per_step: float) -> float:
    """Return tokens after which half of the second moment has been forgotten.

    Source: Marek et al. 2025, https://arxiv.org/abs/2507.07101.
    """
    tokens = positive("tokens per step", tokens_per_step)
    return tokens * math.log(2) / -math.log(_beta("beta2", beta2))


def beta2_for_half_life(*, half_life_tokens: float, tokens_per_step: float) -> float:
    """Return the beta2 that forgets half in ``half_life_tokens``; inverse of ``half_life_tokens``.

    Source: Marek et al. 2025, https://arxiv.org/abs/2507.07101.
    """
    half_life = positive("half-life", half_life_tokens)
    return float(0.5 ** (positive("tokens per step", tokens_per_step) / half_life))


def saturating_rate(*, max_rate: float, noise_ratio: float) -> float:
    """Return the best SGD learning rate at a batch of ``noise_ratio`` times the noise scale.

    ``max_rate / (1 + B_noise / B)``: linear in B far below the noise scale, flat far above.
    Source: McCandlish et al., https://arxiv.org/abs/1812.06162, equation 2.6.
    """
    return positive("learning rate", max_rate) / (1 + 1 / positive("noise ratio", noise_ratio))


def steps_multiplier(noise_ratio: float) -> float:
    """Return optimizer steps over the least possible, ``1 + B_noise / B``.

    Source: McCandlish et al., https://arxiv.org/abs/1812.06162, equation 2.7.
    """
    return 1 + 1 / positive("noise ratio", noise_ratio)


def examples_multiplier(noise_ratio: float) -> float:
    """Return examples over the least possible, ``1 + B / B_noise``.

    Source: McCandlish et al., https://arxiv.org/abs/1812.06162, equation 2.7.
    """
    return 1 + positive("noise ratio", noise_ratio)


def surge_rate(*, peak_rate: float, noise_ratio: float) -> float:
    """Return the best rate of Adam-like optimizers, which rises and then falls with the batch.

    ``peak / (0.5 (sqrt(B_noise / B) + sqrt(B / B_noise)))``; equals ``peak`` at the noise scale.
    Source: Li et al. 2024, https://arxiv.org/abs/2405.14578; the closed form is quoted from
    memory of the paper.
    """
    root = math.sqrt(positive("noise ratio", noise_ratio))
    return positive("learning rate", peak_rate) / (0.5 * (1 / root + root))


WIDTH_EXPONENTS: dict[str, float] = {"llama": 0.781, "qwen": 0.0775}
"""Source: tinker-cookbook ``hyperparam_utils.py``; other families are not calibrated there."""


def width_rate(*, hidden_size: int, family: str, is_lora: bool) -> float:
    """Return ``5e-5 * (10 if LoRA) * (2000 / hidden_size) ** p`` for a calibrated family.

    Source: tinker-cookbook ``hyperparam_utils.py`` (Schulman et al. 2025, LoRA Without Regret).

    Raises:
        SpecError: for any other family.
    """
    if family not in WIDTH_EXPONENTS:
        known = ", ".join(WIDTH_EXPONENTS)
        raise SpecError(f"The width formula is not calibrated for {family!r}, only for {known}.")
    width = positive("hidden size", hidden_size)
    factor = LORA_FACTOR if is_lora else 1
    return float(5e-5 * factor * (2000 / width) ** WIDTH_EXPONENTS[family])


LORA_FACTOR = 10
"""LoRA's best learning rate over that of full fine-tuning.

Source: Schulman et al. 2025, LoRA Without Regret; about 15 in very short runs.
"""


_LARGEST_REST = 1 - 1e-9
"""``10 * (1 - 0.9)`` is a little below 1 in floats, and beta must not come out as 2e-16."""


def _scaled_beta(name: str, beta: float, kappa: float) -> float:
    rest = kappa * (1 - _beta(name, beta))
    if not is_whole_rule_defined(beta=beta, kappa=kappa):
        raise SpecError(
            f"The square-root rule has no {name} at kappa = {kappa:g}: {kappa:g} × (1 - {beta:g}) "
            f"= {rest:.3g}, and it must stay below 1. Keep kappa under {1 / (1 - beta):.3g}."
        )
    return 1 - rest


def positive(name: str, value: float) -> float:
    """Return a value, or refuse it when it is not a finite number above zero.

    Raises:
        SpecError: naming it.
    """
    if not (value > 0 and math.isfinite(value)):
        raise SpecError(f"The {name} must be a finite number above zero, not {value!r}.")
    return value


def _beta(name: str, value: float) -> float:
    if not 0 < value < 1:
        raise SpecError(f"{name} must lie between 0 and 1, not {value!r}.")
    return value
