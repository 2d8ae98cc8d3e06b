"""Published laws of batch size and learning rate against model, data or loss, as closed forms.

All were fitted on pre-training from scratch. ``D`` is tokens of data, ``N`` parameters without
embeddings, ``C`` training FLOPs; a batch is in tokens per optimizer step.
"""

from __future__ import annotations

import math

from batchplan.learning.scaling import positive

POWER_LINES_SEQ_LEN = 2048
"""Power Lines counts sequences of this many tokens."""


def power_lines_optimal(*, data_tokens: float) -> float:
    """Return tokens per step, ``0.0306 D**0.383`` sequences of 2048.

    Source: Bergsma et al. 2025, https://arxiv.org/abs/2505.13738; the factor from memory, the
    exponent as nanochat uses it.
    """
    return POWER_LINES_SEQ_LEN * 0.0306 * _power("data in tokens", data_tokens, 0.383)


def power_lines_critical(*, data_tokens: float) -> float:
    """Return tokens per step, ``0.0471 D**0.462`` sequences of 2048.

    Source: Bergsma et al. 2025, https://arxiv.org/abs/2505.13738, from memory.
    """
    return POWER_LINES_SEQ_LEN * 0.0471 * _power("data in tokens", data_tokens, 0.462)


def step_law_batch(*, data_tokens: float) -> float:
    """Return tokens per step, ``0.58 D**0.571``.

    Source: Li et al. 2025, https://arxiv.org/abs/2503.04715. An independent refit found another
    exponent.
    """
    return 0.58 * _power("data in tokens", data_tokens, 0.571)


def step_law_rate(*, non_embedding_params: float, data_tokens: float) -> float:
    """Return the peak learning rate of AdamW, ``1.79 N**-0.713 D**0.307``.

    Source: Li et al. 2025, https://arxiv.org/abs/2503.04715; the last rate fixed at 1e-5. An
    independent refit missed by 4 to 10 times at 4.7B parameters and 100B tokens.
    """
    by_size = _power("parameters", non_embedding_params, -0.713)
    return 1.79 * by_size * _power("data in tokens", data_tokens, 0.307)


def deepseek_compute(
    *,
    non_embedding_params: float,
    data_tokens: float,
    seq_len: int | None = None,
    hidden_size: int | None = None,
    num_layers: int | None = None,
) -> float:
    """Return training FLOPs without embeddings, ``(6 N + 12 L h s) D``.

    Source: DeepSeek LLM, https://arxiv.org/abs/2401.02954, where ``6 N`` is ``72 L h**2``.
    Leaves out: the attention term ``12 L h s`` where a shape is not known.
    """
    per_token = 6 * positive("parameters", non_embedding_params)
    if seq_len is not None and hidden_size is not None and num_layers is not None:
        per_token += 12 * num_layers * hidden_size * seq_len
    return per_token * positive("data in tokens", data_tokens)


def deepseek_batch(*, compute: float) -> float:
    """Return tokens per step, ``0.2920 C**0.3271``.

    Source: DeepSeek LLM, https://arxiv.org/abs/2401.02954, section 3.1.
    """
    return 0.2920 * _power("compute", compute, 0.3271)


def deepseek_rate(*, compute: float) -> float:
    """Return the peak learning rate of AdamW, ``0.3118 C**-0.1250``.

    Source: DeepSeek LLM, https://arxiv.org/abs/2401.02954, section 3.1.
    """
    return 0.3118 * _power("compute", compute, -0.1250)


def kaplan_critical(*, loss: float) -> float:
    """Return tokens per step, ``2e8 / loss**(1 / 0.21)``; the loss in nats per token.

    Source: Kaplan et al. 2020, https://arxiv.org/abs/2001.08361, the critical-batch figure.
    """
    return 2e8 * _power("loss", loss, -1 / 0.21)


MERRILL_PLATEAU = 4096 * 4096
"""Tokens per step where the measured critical batch of OLMo 1B and 7B stops growing.

Source: Merrill et al. 2025, https://arxiv.org/abs/2505.23971: 4096 documents of 4096 tokens.
"""
MERRILL_FROM = 503e9
"""Tokens into OLMo 1B's training at which Merrill et al. went to 4096 documents."""


def _power(name: str, value: float, exponent: float) -> float:
    return math.pow(positive(name, value), exponent)
