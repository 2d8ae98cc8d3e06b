"""Whether a smaller global batch would train as well per token, said once."""

from __future__ import annotations

from batchplan.learning.references import CRITICAL, batch_references
from batchplan.spec import Caveat, Method
from batchplan.units import format_count

WELL_ABOVE = 2
"""How far a batch must be above the smallest critical batch to be told: a choice. The references
are themselves apart by as much."""


def smaller_batch_note(
    *,
    global_batch_tokens: int,
    method: Method,
    num_params: int,
    data_tokens: int | None,
    accum_steps: int,
    num_ranks: int,
) -> Caveat | None:
    """Return why a smaller batch would do, or None where nothing speaks for one.

    With the size of the data, a batch more than ``WELL_ABOVE`` times the smallest critical batch
    of the references wastes tokens. Otherwise accumulating on one device, where no communication
    is saved, makes K times fewer updates for the same FLOPs.

    Args:
        global_batch_tokens: tokens per optimizer step.
        method: full, LoRA or QLoRA.
        num_params: of the whole model.
        data_tokens: of the data; None where that is not known.
        accum_steps: passes per optimizer step (K).
        num_ranks: devices that share the step.

    Source: ``references``; Marek et al. 2025, https://arxiv.org/abs/2507.07101, for K.
    """
    found = _above_critical(global_batch_tokens, method, num_params, data_tokens, accum_steps)
    if found is not None or accum_steps == 1 or num_ranks > 1:
        return found
    return Caveat(
        code="smaller-batch",
        text=f"On one device K = 1 would make {accum_steps} times the updates for the same FLOPs; "
        "small batches train as well per token (Marek et al. 2025).",
    )


def _above_critical(
    batch: int, method: Method, num_params: int, data_tokens: int | None, accum_steps: int
) -> Caveat | None:
    if data_tokens is None:
        return None
    references = batch_references(method=method, data_tokens=data_tokens, num_params=num_params)
    least = references.low(CRITICAL)
    if least is None or batch <= WELL_ABOVE * least.batch_tokens:
        return None
    enough = int(accum_steps * least.batch_tokens / batch)
    remedy = f" K = {enough} would reach it." if accum_steps > 1 and enough else ""
    hint = "; fitted on pre-training, so only a hint here" if references.is_fine_tuning else ""
    return Caveat(
        code="smaller-batch",
        text=f"{format_count(batch)} tokens a step are {batch / least.batch_tokens:.2g} times the "
        f"critical batch of {least.name} for {format_count(data_tokens)} tokens of data, "
        f"{format_count(round(least.batch_tokens))}: a smaller batch would train as well per "
        f"token{hint}.{remedy}",
    )
