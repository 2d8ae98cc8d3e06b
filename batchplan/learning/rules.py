"""The published rules side by side: formula, whom it is for, where it holds, what it gives here."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from batchplan.learning.certainty import Certainty
from batchplan.learning.change import DEFAULT_BETA1, DEFAULT_EPS, Change
from batchplan.learning.scaling import (
    LORA_FACTOR,
    is_whole_rule_defined,
    saturating_rate,
    scale_adam,
    scale_linear,
    scale_sqrt,
    shift_beta2,
    surge_rate,
)
from batchplan.learning.start import OPTIMIZER_RULES
from batchplan.spec import Method, Optimizer

TRUSTED_KAPPA = (1 / 8, 8.0)
"""Batch ratios within which the rules are not an extrapolation: a choice, stated as one."""

_ADAM = frozenset(name for name, known in OPTIMIZER_RULES.items() if known.is_adam)
_SGD = frozenset({Optimizer.SGD, Optimizer.SGD_MOMENTUM})
_SIGN_LIKE = _ADAM | {Optimizer.LION}
_NOT_SGD = frozenset(Optimizer) - _SGD


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """What a rule sets; None where it says nothing."""

    learning_rate: float | None = None
    beta1: float | None = None
    beta2: float | None = None
    eps: float | None = None


Objection = Callable[[Change], str | None]
"""Returns why a rule does not hold for a change, in a few words, or None."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rule:
    """One published rule."""

    name: str
    formula: str
    optimizers: frozenset[Optimizer]
    """Those it was derived or tried for, and those it is borrowed for."""
    family: str
    """The same in words."""
    valid_when: str
    fails_when: str
    source: str
    certainty: Certainty
    settings: Callable[[Change], Settings]
    objections: tuple[Objection, ...] = ()
    needs_noise_scale: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class RuleValue:
    """What one rule gives for one change, and whether it holds there."""

    name: str
    is_recommended: bool
    settings: Settings
    """All None where the rule needs what is not known."""
    holds: bool
    verdict: str
    """``holds``, or why it does not."""
    formula: str
    family: str
    valid_when: str
    fails_when: str
    source: str
    certainty: Certainty


def compare(change: Change) -> tuple[RuleValue, ...]:
    """Return what every rule gives for a change, the recommended one first."""
    values = [_evaluate(rule, change) for rule in RULES]
    return tuple(sorted(values, key=lambda value: not value.is_recommended))


def _evaluate(rule: Rule, change: Change) -> RuleValue:
    is_blind = rule.needs_noise_scale and change.noise_scale is None
    objection = "needs a measured noise scale" if is_blind else _objection(rule, change)
    return RuleValue(
        name=rule.name,
        is_recommended=rule.name == change.known.rule,
        settings=Settings() if is_blind else rule.settings(change),
        holds=objection is None,
        verdict=objection or "holds",
        formula=rule.formula,
        family=rule.family,
        valid_when=rule.valid_when,
        fails_when=rule.fails_when,
        source=rule.source,
        certainty=rule.certainty,
    )


def _objection(rule: Rule, change: Change) -> str | None:
    if change.optimizer not in rule.optimizers:
        return f"not for {change.optimizer}"
    found = (objection(change) for objection in rule.objections)
    return next((words for words in found if words), None)


def _too_far(change: Change) -> str | None:
    low, high = TRUSTED_KAPPA
    return None if low <= change.kappa <= high else "the batch changes more than 8 times"


def _above_noise(change: Change) -> str | None:
    return "above the noise scale" if change.is_capped else None


def _unstudied(change: Change) -> str | None:
    return None if change.known.is_studied else f"an assumption for {change.optimizer}"


def _no_beta1(change: Change) -> str | None:
    if is_whole_rule_defined(beta=DEFAULT_BETA1, kappa=change.kappa):
        return None
    return f"no beta1 from {1 / (1 - DEFAULT_BETA1):.3g} times the batch on"


def _beta2_too_small(change: Change) -> str | None:
    is_small = shift_beta2(beta2=change.beta2, kappa=change.kappa) < change.least_beta2
    return f"below {change.least_beta2:g}, where nobody trains" if is_small else None


def _no_adapters(change: Change) -> str | None:
    if change.method is Method.FULL:
        return "for adapters only"
    return "only if the base is a full fine-tune's" if change.is_given else None


def _linear(change: Change) -> Settings:
    return Settings(learning_rate=scale_linear(learning_rate=change.base.value, kappa=change.kappa))


def _sqrt(change: Change) -> Settings:
    rate, kappa = change.base.value, change.kappa
    if _no_beta1(change) or not is_whole_rule_defined(beta=change.beta2, kappa=kappa):
        return Settings(learning_rate=scale_sqrt(learning_rate=rate, kappa=kappa))
    whole = scale_adam(
        learning_rate=rate, beta1=DEFAULT_BETA1, beta2=change.beta2, eps=DEFAULT_EPS, kappa=kappa
    )
    return Settings(
        learning_rate=whole.learning_rate, beta1=whole.beta1, beta2=whole.beta2, eps=whole.eps
    )


def _by_noise(curve: Callable[[float], float]) -> Callable[[Change], Settings]:
    """Return the base's rate moved along a curve over batch / noise scale."""

    def settings(change: Change) -> Settings:
        noise = change.noise_scale
        if noise is None:
            return Settings()
        before, after = (
            curve(size / noise) for size in (change.base.global_batch_size, change.batch)
        )
        return Settings(learning_rate=change.base.value * after / before)

    return settings


def _half_life(change: Change) -> Settings:
    return Settings(beta2=shift_beta2(beta2=change.beta2, kappa=change.kappa))


def _adapters(change: Change) -> Settings:
    scale = scale_linear if change.known.rule == "linear" else scale_sqrt
    rate = scale(learning_rate=change.base.value, kappa=change.kappa)
    return Settings(learning_rate=LORA_FACTOR * rate)


RULES: tuple[Rule, ...] = (
    Rule(
        name="linear",
        formula="lr' = kappa lr",
        optimizers=_SGD,
        family="SGD, with momentum too",
        valid_when="the batch is well below the noise scale; with a warm-up (5 epochs there)",
        fails_when="the batch is near or above the noise scale, or under Adam",
        source="Goyal et al. 2017, https://arxiv.org/abs/1706.02677, section 2.1",
        certainty=Certainty.MEMORY,
        settings=_linear,
        objections=(_too_far, _above_noise),
    ),
    Rule(
        name="sqrt",
        formula="lr' = sqrt(kappa) lr, 1 - beta' = kappa (1 - beta), eps' = eps / sqrt(kappa)",
        optimizers=_NOT_SGD,
        family="Adam, RMSprop",
        valid_when="noise dominates the gradients; lr, betas and eps change together",
        fails_when="the batch is far above the noise scale; lr alone is a heuristic",
        source="Malladi et al. 2022, https://arxiv.org/abs/2205.10287, definition 5.2",
        certainty=Certainty.ABSTRACT,
        settings=_sqrt,
        objections=(_too_far, _above_noise, _unstudied, _no_beta1),
    ),
    Rule(
        name="saturating",
        formula="lr(B) = lr_max / (1 + B_noise / B)",
        optimizers=_SGD,
        family="SGD",
        valid_when="the loss is near quadratic and lr was tuned at the base batch",
        fails_when="the measured noise scale leaves the curvature out, as the simple one does",
        source="McCandlish et al. 2018, https://arxiv.org/abs/1812.06162, equation 2.6",
        certainty=Certainty.MEMORY,
        settings=_by_noise(lambda ratio: saturating_rate(max_rate=1, noise_ratio=ratio)),
        needs_noise_scale=True,
    ),
    Rule(
        name="surge",
        formula="lr(B) = lr_peak / (0.5 (sqrt(B_noise / B) + sqrt(B / B_noise)))",
        optimizers=_SIGN_LIKE,
        family="Adam and sign descent",
        valid_when="steps are like sign descent under Gaussian noise",
        fails_when="the noise scale grows in training, and the peak with it",
        source="Li et al. 2024, https://arxiv.org/abs/2405.14578",
        certainty=Certainty.ABSTRACT,
        settings=_by_noise(lambda ratio: surge_rate(peak_rate=1, noise_ratio=ratio)),
        needs_noise_scale=True,
    ),
    Rule(
        name="beta2 half-life",
        formula="beta2' = beta2 ** kappa",
        optimizers=_ADAM,
        family="Adam",
        valid_when="the batch changes at all, and most of all where it shrinks much",
        fails_when="the batch grows so much that beta2 leaves practice; lr is another rule's",
        source="Marek et al. 2025, https://arxiv.org/abs/2507.07101",
        certainty=Certainty.READ,
        settings=_half_life,
        objections=(_beta2_too_small,),
    ),
    Rule(
        name="LoRA factor",
        formula=f"lr_LoRA = {LORA_FACTOR} lr_full",
        optimizers=_ADAM,
        family="Adam",
        valid_when="adapters are on every layer and their rank is above what the data needs",
        fails_when="the run is very short (about 15 there) or the batch large",
        source="Schulman et al. 2025, LoRA Without Regret; tinker-cookbook",
        certainty=Certainty.READ,
        settings=_adapters,
        objections=(_no_adapters,),
    ),
)
"""Granziol et al. (https://arxiv.org/abs/2006.09092) also have linear for SGD and square root for
adaptive optimizers, up to a batch that depends on the model: nothing to compute beyond these."""
