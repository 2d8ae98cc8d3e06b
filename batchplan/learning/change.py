"""A batch that changes: what every rule is given."""

from __future__ import annotations

import math
from dataclasses import dataclass

from batchplan.errors import SpecError
from batchplan.learning.start import GIVEN, OPTIMIZER_RULES, Base, OptimizerRule
from batchplan.spec import Method, Optimizer

DEFAULT_BETA1, DEFAULT_BETA2, DEFAULT_EPS = 0.9, 0.999, 1e-8
"""Source: torch.optim.AdamW's defaults, which transformers keeps."""

SMALLEST_BETA2 = 0.9
"""Very large batches would push beta2 towards 0; nobody trains below this."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One learning rate at one batch, and the batch it is wanted for.

    ``batch``, ``base.global_batch_size`` and ``noise_scale`` share a unit, which no rule needs to
    know. ``sequences`` and ``tokens`` say the same batch in those units where they are known.
    """

    base: Base
    batch: float
    optimizer: Optimizer
    method: Method
    sequences: float | None = None
    tokens: float | None = None
    noise_scale: float | None = None
    """Measured ``tr(Sigma) / |G|**2`` (McCandlish et al.); None when nobody measured it."""
    beta2: float = DEFAULT_BETA2
    """Adam's beta2 at the base."""

    def __post_init__(self) -> None:
        """Refuse sizes that no rule can take.

        Raises:
            SpecError: naming the one that is wrong.
        """
        sizes = {"global batch": self.batch, "noise scale": self.noise_scale}
        for name, size in sizes.items():
            if size is not None and not (size > 0 and math.isfinite(size)):
                raise SpecError(f"The {name} must be a finite number above zero, not {size!r}.")
        if not 0 < self.beta2 < 1:
            raise SpecError(f"beta2 must lie between 0 and 1, not {self.beta2!r}.")

    @property
    def kappa(self) -> float:
        """New batch over old."""
        return self.batch / self.base.global_batch_size

    @property
    def capped_kappa(self) -> float:
        """``kappa`` where neither batch counts for more than the noise scale."""
        if self.noise_scale is None:
            return self.kappa
        return min(self.batch, self.noise_scale) / min(
            self.base.global_batch_size, self.noise_scale
        )

    @property
    def is_capped(self) -> bool:
        """Whether the noise scale holds the rule back."""
        return not math.isclose(self.kappa, self.capped_kappa)

    @property
    def least_beta2(self) -> float:
        """The smallest beta2 that is advised: practice's, or the base's own where that is less."""
        return min(SMALLEST_BETA2, self.beta2)

    @property
    def is_given(self) -> bool:
        """Whether the base is one the user knows to work."""
        return self.base.source == GIVEN

    @property
    def known(self) -> OptimizerRule:
        """What is known of the optimizer."""
        return OPTIMIZER_RULES[self.optimizer]
