"""Liger's fused loss in place of the model's, where the recipe has it."""

from __future__ import annotations

from typing import Any

from torch import nn

from batchplan.tracer.worker.built import Built
from batchplan.tracer.worker.losses import PassOn, headed

from .libraries import need


def install(built: Built, loss: str) -> None:
    """Replace the model's loss by the ``fused`` one; ``standard`` stays.

    Raises:
        WorkerError: when liger-kernel is not installed, or the model computes its own loss.
    """
    if loss == "standard":
        return
    liger = need("liger_kernel.transformers", what="--loss fused", package="liger-kernel")
    model, head = headed(built, loss)
    stand_in = PassOn(head)
    model.set_output_embeddings(stand_in)
    compute = liger.LigerFusedLinearCrossEntropyLoss()

    def loss_function(logits: Any = None, labels: Any = None, **kwargs: Any) -> Any:
        # The next token is the label, and the last has none: as transformers shifts them.
        shifted = nn.functional.pad(labels, (0, 1), value=-100)[..., 1:].reshape(-1)
        return compute(stand_in.weight, logits.reshape(-1, logits.shape[-1]), shifted)

    type(model).loss_function = property(lambda self: loss_function)
