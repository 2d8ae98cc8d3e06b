"""FLOPs of training, with the convention always named.

``N`` is matmul-active parameters, ``q`` query heads times head size, ``s`` tokens a sequence. One
multiply-add is two FLOPs: a weight costs 2 in the forward pass, 2 for the gradient of its input
and 2 for its own gradient. Scores and their product with the values cost ``4 q s`` a token and
layer in the forward pass when every key counts, half of that when the mask is skipped.

Sources: PaLM, https://arxiv.org/abs/2204.02311, appendix B (6 N + 12 L q s); torchtitan
``get_num_flop_per_token``; FlashAttention-2, https://arxiv.org/abs/2307.08691, section 4.1
(causal: half); Megatron, https://arxiv.org/abs/2205.05198 (recomputation).
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from enum import StrEnum

from batchplan.profile import ActivationProfile, StageProfile
from batchplan.spec import Attention, Checkpointing, Loss, Method, Recipe


class AttentionCount(StrEnum):
    """Which keys of the score matrix are counted."""

    FULL = "full"
    """Every key: ``12 L q s`` a token, as PaLM, llm-foundry and torchtitan count."""
    CAUSAL = "causal"
    """Only what the mask lets through: ``6 L q s`` a token, as flash kernels execute."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FlopCount:
    """FLOPs of one micro-batch on one rank."""

    model: float
    """What the model needs, recomputation left out: the numerator of MFU."""
    executed: float
    """What runs, recomputation included: the numerator of HFU."""
    executed_scores: float
    """The part of ``executed`` in attention scores and their product with the values."""
    repeated_scores: float
    """The part of ``executed_scores`` that is recomputation."""
    is_eager: bool
    """Whether the scores are written to memory."""
    convention: str
    """In words, such as ``6N + 6Lqs (causal-exact), forward of layers repeated``."""


def keys_per_sequence(*, seq_len: int, window: int | None, count: AttentionCount) -> int:
    """Return query-key pairs of one sequence and head.

    >>> keys_per_sequence(seq_len=4, window=None, count=AttentionCount.CAUSAL)
    10
    """
    reach = seq_len if window is None else min(window, seq_len)
    if count is AttentionCount.FULL:
        return seq_len * reach
    return reach * (reach + 1) // 2 + (seq_len - reach) * reach


def token_flops(
    *,
    matmul_params: int,
    trained_params: int | None = None,
    attention_width: int = 0,
    keys: float = 0,
) -> float:
    """Return model FLOPs per trained token: ``4 N + 2 N_trained + 12 q keys``.

    Args:
        matmul_params: weights in matrix products for one token, adapters in and input embedding
            left out.
        trained_params: those that get a gradient; None trains them all.
        attention_width: query heads times head size, summed over layers.
        keys: keys that a query sees on average: all ``s`` of them, or about ``s / 2`` when causal.
    """
    trained = matmul_params if trained_params is None else trained_params
    return 4.0 * matmul_params + 2.0 * trained + 12.0 * attention_width * keys


def micro_batch_flops(
    *, profile: ActivationProfile, recipe: Recipe, micro_batch: int, seq_len: int
) -> FlopCount:
    """Return FLOPs of one forward and backward of ``micro_batch`` sequences.

    Full checkpointing repeats the forward pass of every layer, not of the head; selective
    repeats the attention scores alone. Frozen weights get no gradient of their own (LoRA: 4 N for
    the base, 6 N for adapters). A chunked loss makes the logits twice.

    Leaves out: element-wise work, the flash kernel's own recomputation of scores in backward,
    optimizer FLOPs (Muon's Newton-Schulz steps), packing with a block-diagonal mask (errs high).
    """
    eager = recipe.attention is Attention.EAGER or profile.attention == Attention.EAGER
    model = executed = executed_scores = repeated_scores = 0.0
    counts: set[AttentionCount] = set()
    for index, times in Counter(profile.order).items():
        stage = profile.stages[index]
        pairs = _pairs(stage, seq_len, eager=eager)
        counts |= set(pairs)
        keys = sum(pairs.values()) / seq_len
        scores = times * 4.0 * stage.attention_width * keys * seq_len
        needed = (
            times
            * seq_len
            * token_flops(
                matmul_params=stage.flops_params,
                trained_params=_trained_matmul_params(stage, recipe),
                attention_width=stage.attention_width,
                keys=keys,
            )
        )
        model += needed
        executed += needed
        executed_scores += 3 * scores
        if recipe.checkpointing is Checkpointing.FULL and stage.is_layer:
            executed += times * 2.0 * repeated_params(stage, recipe) * seq_len
            repeated_scores += scores
        elif recipe.checkpointing is Checkpointing.SELECTIVE:
            repeated_scores += scores
    if recipe.loss is Loss.CHUNKED:
        executed += 2.0 * profile.stages[profile.order[-1]].flops_params * seq_len
    return FlopCount(
        model=micro_batch * model,
        executed=micro_batch * (executed + repeated_scores),
        executed_scores=micro_batch * (executed_scores + repeated_scores),
        repeated_scores=micro_batch * repeated_scores,
        is_eager=eager,
        convention=_convention(recipe, counts),
    )


def repeated_params(stage: StageProfile, recipe: Recipe) -> int:
    """Return the parameters whose forward products full checkpointing runs again.

    torch's checkpoint stops as soon as everything that backward needs is there. Nothing needs the
    output of a layer's last product, the one that narrows the feed-forward back to the residual
    stream, so it is not repeated. All is repeated by the reentrant implementation, by mixtures of
    experts (their outputs are weighted), and where an adapter follows the product.

    Source: torch ``utils/checkpoint.py``, ``set_checkpoint_early_stop``.

    Leaves out: a norm or dropout after the feed-forward, which does need that output (errs low by
    up to 8 % of compute).
    """
    if recipe.reentrant or stage.adapter_params or not stage.is_layer:
        return stage.flops_params
    narrowing = [
        group
        for group in stage.parameters
        if len(group.shape) == 2 and group.shape[0] < group.shape[1]
    ]
    last = max(narrowing, key=lambda group: group.num_elements, default=None)
    if last is None or last.count != 1 or any(len(group.shape) > 2 for group in stage.parameters):
        return stage.flops_params
    return stage.flops_params - last.num_elements


def _pairs(stage: StageProfile, seq_len: int, *, eager: bool) -> dict[AttentionCount, int]:
    """Return query-key pairs of one sequence and head, by which keys run.

    Eager attention computes the whole matrix; so do encoders, masked language models and
    cross-attention, which sees every key of an encoder with as many tokens.
    """
    pairs: dict[AttentionCount, int] = {}
    if not stage.attention_width:
        return pairs
    is_causal = stage.attends_causally and not eager
    count = AttentionCount.CAUSAL if is_causal else AttentionCount.FULL
    pairs[count] = keys_per_sequence(seq_len=seq_len, window=stage.attention_window, count=count)
    if stage.num_attentions > 1:
        crossed = (stage.num_attentions - 1) * seq_len * seq_len
        pairs[AttentionCount.FULL] = pairs.get(AttentionCount.FULL, 0) + crossed
    return pairs


def is_mixture_of_experts(profile: ActivationProfile) -> bool:
    """Whether layers hold clearly more parameters than one token multiplies with."""
    held = active = 0
    for index in profile.order:
        stage = profile.stages[index]
        if stage.is_layer:
            held += stage.trainable_params + stage.frozen_params
            active += stage.flops_params
    return 0 < active < 0.75 * held


def _trained_matmul_params(stage: StageProfile, recipe: Recipe) -> int:
    if recipe.method is Method.FULL and not stage.frozen_params:
        return stage.flops_params
    return min(stage.flops_params, stage.trainable_params)


def _convention(recipe: Recipe, counts: set[AttentionCount]) -> str:
    weights = "6N" if recipe.method is Method.FULL else "4N + 6N_lora"
    scores = {
        frozenset(): "no scores",
        frozenset({AttentionCount.FULL}): "12Lqs (every key)",
        frozenset({AttentionCount.CAUSAL}): "6Lqs (causal-exact)",
    }.get(frozenset(counts), "12Lqs (every key; 6Lqs where causal)")
    repeated = {
        Checkpointing.NONE: "",
        Checkpointing.SELECTIVE: ", scores repeated",
        Checkpointing.FULL: ", forward of layers repeated",
    }[recipe.checkpointing]
    return f"{weights} + {scores}{repeated}"
