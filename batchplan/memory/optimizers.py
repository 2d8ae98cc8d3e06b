"""What each optimizer keeps for a tensor, and what its step needs on top."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import prod

from batchplan.spec import Optimizer, OptimizerImpl

# bitsandbytes 0.50, optim/optimizer.py: tensors below min_8bit_size keep fp32 states; the others
# one byte a value and one fp32 absmax a block.
_MIN_8BIT_ELEMENTS = 4096
_8BIT_BLOCK = 256


@dataclass(frozen=True, slots=True, kw_only=True)
class Updated:
    """A tensor as the optimizer is given it: whole, a shard, or DeepSpeed's flat partition."""

    shape: tuple[int, ...]
    count: int = 1
    uses_muon: bool = False
    """A matrix of a layer; Muon leaves embeddings, heads and vectors to AdamW."""
    is_embedding: bool = False
    has_shape: bool = True
    """False where many parameters of unknown shapes are counted as one."""

    @property
    def num_elements(self) -> int:
        """Elements of one of them."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class OptimizerStates:
    """What an optimizer keeps and needs. A width is the bytes of one element of a moment."""

    kept_bytes: Callable[[Updated, int], int]
    """Bytes kept for one tensor, given the width; the 4-byte ``step`` counters are left out."""
    fixed_bytes: int = 0
    """Bytes kept once."""
    fixed_width: int | None = None
    """Width whatever the recipe's optimizer dtype is; None takes that dtype."""
    lists: int = 0
    """Lists of moments that a foreach step makes."""
    own: int = 0
    """Moments of one tensor that a tensor-by-tensor step makes; the last one stays until the next
    tensor's exist."""
    own_16bit: int = 0
    """The same in 16-bit training without master weights, where up-casts come on top."""
    always_loops: bool = False
    """Whether the step goes tensor by tensor whatever the recipe's implementation."""
    source: str


def _adam(tensor: Updated, width: int) -> int:
    return 2 * tensor.num_elements * width


def _one(tensor: Updated, width: int) -> int:
    return tensor.num_elements * width


def _none(_tensor: Updated, _width: int) -> int:
    return 0


def _eight_bit(tensor: Updated, _width: int) -> int:
    if tensor.num_elements < _MIN_8BIT_ELEMENTS or tensor.is_embedding:
        return _adam(tensor, 4)
    return 2 * (tensor.num_elements + 4 * -(-tensor.num_elements // _8BIT_BLOCK))


def _adafactor(tensor: Updated, width: int) -> int:
    if not tensor.has_shape:
        # Rows + columns of matrices with no side below 512: at most 2/512 values a parameter.
        return width * tensor.num_elements // 256
    if len(tensor.shape) < 2:
        return width * tensor.num_elements
    *batch, rows, columns = tensor.shape
    return width * prod(batch) * (rows + columns)


def _muon(tensor: Updated, width: int) -> int:
    return _one(tensor, width) if tensor.uses_muon else _adam(tensor, width)


# bitsandbytes 0.50, functional.py, create_dynamic_map: two maps of 256 fp32 values, shared.
_EIGHT_BIT_SOURCE = (
    "bitsandbytes optim/optimizer.py: blockwise 8-bit states, fp32 below 4096 elements; "
    "transformers trainer.py, create_optimizer: embeddings stay in 32 bits"
)
_QMAP_BYTES = 2 * 256 * 4

OPTIMIZERS: dict[Optimizer, OptimizerStates] = {
    Optimizer.ADAMW: OptimizerStates(
        kept_bytes=_adam,
        lists=1,
        own=2,
        own_16bit=2,
        source="torch.optim.AdamW: exp_avg, exp_avg_sq; adam.py, exp_avg_sq_sqrt and denom",
    ),
    Optimizer.ADAMW_8BIT: OptimizerStates(
        kept_bytes=_eight_bit, fixed_bytes=_QMAP_BYTES, source=_EIGHT_BIT_SOURCE
    ),
    # Unified memory (get_paged, from 1e5 elements on): outside torch's allocator, and moved to the
    # host only under pressure, so it is counted on the device.
    Optimizer.PAGED_ADAMW_8BIT: OptimizerStates(
        kept_bytes=_eight_bit, fixed_bytes=_QMAP_BYTES, source=_EIGHT_BIT_SOURCE
    ),
    Optimizer.ADAFACTOR: OptimizerStates(
        kept_bytes=_adafactor,
        fixed_width=4,
        # grad**2 and + eps; in 16-bit training the fp32 gradient and weight besides.
        own=2,
        own_16bit=4,
        always_loops=True,
        source="transformers optimization.py, Adafactor: fp32 rows and columns of matrices "
        "(arXiv 1804.04235, section 3), whole second moment of vectors",
    ),
    Optimizer.SGD: OptimizerStates(kept_bytes=_none, source="torch.optim.SGD without momentum"),
    Optimizer.SGD_MOMENTUM: OptimizerStates(
        kept_bytes=_one, source="torch.optim.SGD: momentum_buffer"
    ),
    Optimizer.LION: OptimizerStates(
        kept_bytes=_one,
        fixed_width=4,
        source="bitsandbytes optim/lion.py, 32 bits: one fp32 state (arXiv 2302.06675)",
    ),
    Optimizer.MUON: OptimizerStates(
        kept_bytes=_muon,
        lists=1,
        own=2,
        own_16bit=2,
        source="torch.optim.Muon for matrices of layers; all else stays on AdamW",
    ),
}


def kept_bytes(optimizer: Optimizer, tensors: list[tuple[Updated, int]]) -> int:
    """Return the bytes ``optimizer`` keeps for tensors, each with the width of its moments."""
    kept = OPTIMIZERS[optimizer]
    held = sum(
        tensor.count * kept.kept_bytes(tensor, kept.fixed_width or width)
        for tensor, width in tensors
    )
    return held + (kept.fixed_bytes if tensors else 0)


def step_bytes(
    optimizer: Optimizer,
    impl: OptimizerImpl,
    *,
    group: list[Updated],
    turns: list[tuple[Updated | None, Updated]],
    width: int,
    is_16bit: bool,
) -> int:
    """Return the most the step holds at once besides gradients, weights and what it keeps.

    ``group`` is the largest parameter group; ``turns`` are its (previous, next) tensors where the
    step goes one by one. ``width`` is that of a moment.

    Sources: torch ``optim/adam.py`` (``_multi_tensor_adam`` makes the one list ``exp_avg_sq_sqrt``,
    ``_single_tensor_adam`` a root, its quotient and the last ``denom``), ``optim/sgd.py`` (in
    place without weight decay), ``optim/_muon.py`` (update, two iterates and two Gram matrices);
    transformers ``optimization.py``; bitsandbytes updates in place, as fused kernels do.
    """
    kept = OPTIMIZERS[optimizer]
    used = kept.fixed_width or width
    muon = 0
    if optimizer is Optimizer.MUON:
        muon = max((_newton_schulz(one, used) for one in group if one.uses_muon), default=0)
        group = [one for one in group if not one.uses_muon]
        turns = list(zip([None, *group], group, strict=False))
    if kept.always_loops or impl is OptimizerImpl.FOR_LOOP:
        own = kept.own_16bit if is_16bit else kept.own
        steps = (
            used * (own * now.num_elements + (before.num_elements if before and own else 0))
            for before, now in turns
        )
        return max(muon, max(steps, default=0))
    if impl is OptimizerImpl.FOREACH:
        listed = sum(one.count * one.num_elements for one in group)
        return max(muon, used * kept.lists * listed)
    return muon


def _newton_schulz(tensor: Updated, width: int) -> int:
    """Return the bytes of one orthogonalisation: the iterates and Gram matrices are bf16."""
    smaller = min(tensor.shape) if len(tensor.shape) > 1 else 0
    return (width + 4) * tensor.num_elements + 4 * smaller * smaller
