"""Join the steps at several points into the profile of a model."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, Callable

from torch import nn

from .built import Built, Stack, WorkerError, norm_parameters
from .fit import (
    ALL,
    BATCH_ONLY,
    CONSTANT,
    LENGTH_ONLY,
    MAX_RESIDUAL,
    Fitter,
    NotPolynomialError,
    SizeTable,
    evaluate,
    fit_pass,
)
from .step import Interval, Step

_EMBEDDING, _HEAD = "embedding", "head and loss"


MIN_BUCKET = 512
Run = Callable[[int, int], Step]


def make_profile(built: Built, run: Run, seq_len: int) -> dict[str, Any]:
    """Return the parts of a profile that come from running: stages, order, range and error.

    The polynomials are fitted over the range of lengths that ends at the next power of two, where
    sliding windows and with them kernels and masks change. A model whose ops change within the
    range is traced at ``seq_len`` alone.

    Args:
        built: the traced model.
        run: runs one micro-batch of b sequences of s tokens.
        seq_len: the length that is asked for.
    """
    end = MIN_BUCKET
    while end < seq_len:
        end *= 2
    lengths = [end // 2 + end // 8, end * 3 // 4, end]
    between = end // 2 + end // 4 + end // 8
    try:
        joined = _fit(built, run, lengths, between, (ALL, LENGTH_ONLY))
        joined["seq_len_range"] = [1 if end == MIN_BUCKET else end // 2 + 1, end]
    except NotPolynomialError as reason:
        built.notes.append(f"Traced at sequence length {seq_len} alone: {reason}.")
        try:
            joined = _fit(built, run, [seq_len], seq_len, (BATCH_ONLY, CONSTANT))
        except NotPolynomialError as error:
            raise WorkerError(f"Memory is not affine in the micro-batch: {error}.") from error
        joined["seq_len_range"] = [seq_len, seq_len]
    return joined


def _fit(
    built: Built, run: Run, lengths: Sequence[int], between: int, bases: Any
) -> dict[str, Any]:
    """Fit micro-batches 2 and 3, check 5, and fit 1 on its own where it runs other ops.

    A micro-batch of one sequence often needs no copy where larger ones do, because a slice of it
    is already contiguous.
    """
    general, single = bases
    points = [(b, s) for b in (2, 3) for s in lengths]
    middle = lengths[len(lengths) // 2]
    stages, sizes, error = _fit_stages(
        built, Fitter(points, general), [run(b, s) for b, s in points], (5, middle, run(5, middle))
    )
    if error > MAX_RESIDUAL:
        raise NotPolynomialError(f"off by {error:.2%} at a point left out of the fit")
    one = (1, between, run(1, between))
    off = _worst(stages, _representatives(built, one[2]), one)
    alone: list[dict[str, Any]] = []
    alone_sizes: list[list[float]] = []
    if off > MAX_RESIDUAL:
        points = [(1, s) for s in lengths]
        alone, alone_sizes, off = _fit_stages(
            built, Fitter(points, single), [run(1, s) for _, s in points], one
        )
    if off > MAX_RESIDUAL:
        raise NotPolynomialError(f"off by {off:.2%} for a single sequence")
    return {
        "stages": stages,
        "sizes": sizes,
        "single_sequence_stages": alone,
        "single_sequence_sizes": alone_sizes,
        "order": _order(built, stages),
        "max_error": max(error, off),
    }


def _fit_stages(
    built: Built, fitter: Fitter, steps: Sequence[Step], left_out: tuple[int, int, Step]
) -> tuple[list[dict[str, Any]], list[list[float]], float]:
    """Return the stages, the sizes of their scripts, and how far the point left out is off.

    The last is relative to the step's peak.
    """
    joined = [_representatives(built, step) for step in steps]
    seq_lens = sorted({s for _, s in fitter.points})
    sizes = SizeTable(fitter, [step.sizes for step in steps])
    stages = []
    for key in joined[0]:
        released = fitter.fit([one[key][0].released for one in joined])
        left = fitter.fit([one[key][1].left for one in joined])
        stages.append(
            {
                "name": _name(key, built),
                "forward": fit_pass(fitter, [one[key][0] for one in joined], seq_lens)
                | {"script": sizes.script([one[key][0].script for one in joined])},
                "released_before_backward": {"coefficients": released},
                "left_by_last_layer": {"coefficients": left},
                "backward": fit_pass(fitter, [one[key][1] for one in joined], seq_lens)
                | {"script": sizes.script([one[key][1].script for one in joined])},
                **_count(key, built, joined[0][key][1].grads_made),
            }
        )
    return stages, sizes.polynomials, _worst(stages, _representatives(built, left_out[2]), left_out)


def _worst(stages: list[dict[str, Any]], seen: Any, point: tuple[int, int, Step]) -> float:
    b, s, step = point
    off = 0.0
    for stage, passes in zip(stages, seen.values()):
        for direction, interval in zip(("forward", "backward"), passes):
            off = max(off, _off_by(stage[direction], interval, b, s))
    return off / max(step.highest(), 1)


def _order(built: Built, stages: list[dict[str, Any]]) -> list[int]:
    """Return the stage of every layer of the whole model and of what lies between the stacks."""
    glue = [i for i, stage in enumerate(stages) if not stage["name"].startswith("layer")]
    layers = [i for i, stage in enumerate(stages) if stage["name"].startswith("layer")]
    order: list[int] = []
    for k, stack in enumerate(built.stacks):
        order.append(glue[k])
        order.extend(layers[kind] for kind in stack.kinds)
    return [*order, glue[-1]]


def _representatives(built: Built, step: Step) -> dict[Any, tuple[Interval, Interval]]:
    """Return (forward, backward) of every glue stage and every kind of layer.

    A layer at the edge of its stack may keep a little more or less than the others of its kind.
    That difference goes to the glue before the stack, so that the sum stays what was traced; in
    backward, what the stack's end keeps for the rest (the sum of gradients of what all layers
    read: a position bias, an encoder's output) is noted at the glue after it, which runs first.
    """
    forward = _by_stage(step.forward)
    backward = _by_stage(step.backward)
    found: dict[Any, tuple[Interval, Interval]] = {}
    at_the_end = 0
    for k, stack in enumerate(built.stacks):
        glue = f"glue:{k}"
        if f"layer:{k}:0" not in backward and glue in backward:
            # The stack's input needs no gradient (frozen embeddings): backward ends in layer 0.
            backward[f"layer:{k}:0"] = backward.pop(glue)
        extra_forward, extra_backward, left, at_the_end = 0, 0, at_the_end, 0
        kinds: dict[int, tuple[Interval, Interval]] = {}
        for kind in dict.fromkeys(stack.kinds):
            positions = [i for i, kept in enumerate(stack.kept) if stack.kinds[kept] == kind]
            # Forward: the last, because the model's own frame still holds the stack's input while
            # the second runs. Backward walks the other way: one whose gradient comes from its
            # own kind and that is not the first, which may have no input gradient to make, nor
            # the last reader of what the first made for all of them.
            has_inner = positions[0] == 0 or len(positions) > 2
            back = positions[min(1, len(positions) - 1)] if has_inner else positions[0]
            one_forward = forward[f"layer:{k}:{positions[-1]}"]
            one_backward = backward[f"layer:{k}:{back}"]
            kinds[kind] = (one_forward, one_backward)
            for i in positions:
                extra_forward += forward[f"layer:{k}:{i}"].delta - one_forward.delta
                extra = backward[f"layer:{k}:{i}"].delta - one_backward.delta
                if i > back:
                    at_the_end += extra
                else:
                    extra_backward += extra
        found[("glue", k)] = (
            _shifted(forward[glue], extra_forward),
            _shifted(backward.get(glue, _EMPTY), extra_backward, left=left),
        )
        for kind, pair in kinds.items():
            found[("kind", kind)] = pair
    end = f"glue:{len(built.stacks)}"
    found[("glue", len(built.stacks))] = (
        forward[end],
        _shifted(backward.get(end, _EMPTY), left=at_the_end),
    )
    return found


_EMPTY = Interval("", 0, [], [], [], 0)


def _by_stage(intervals: Sequence[Interval]) -> dict[str, Interval]:
    found: dict[str, Interval] = {}
    for interval in intervals:
        if interval.stage in found:
            raise NotPolynomialError(f"{interval.stage} runs more than once in one pass")
        found[interval.stage] = interval
    return found


def _shifted(interval: Interval, extra: int = 0, *, left: int = 0) -> Interval:
    return dataclasses.replace(interval, delta=interval.delta + extra, left=left)


def _off_by(fitted: dict[str, Any], seen: Interval, b: int, s: int) -> float:
    """Return by how many bytes the fit misses the peak or the delta at a point."""
    peak = max(evaluate(p["activations"]["coefficients"], b, s) for p in fitted["peaks"])
    delta = evaluate(fitted["delta"]["coefficients"], b, s)
    return max(abs(peak - max([*seen.activations, 0])), abs(delta - seen.delta))


def _name(key: Any, built: Built) -> str:
    sort, number = key
    if sort == "glue":
        if number == 0:
            return _EMBEDDING
        return _HEAD if number == len(built.stacks) else f"bridge {number}"
    _, layer = _layer_of_kind(built, number)
    return f"layer {number} {type(layer).__name__}"


def _layer_of_kind(built: Built, kind: int) -> tuple[Stack, nn.Module]:
    for stack in built.stacks:
        for position, kept in enumerate(stack.kept):
            if stack.kinds[kept] == kind:
                return stack, stack.module[position]
    raise KeyError(kind)


def _count(key: Any, built: Built, grads_made: int) -> dict[str, Any]:
    """Count parameters of one stage; a gradient counts where the backward makes it."""
    sort, number = key
    if sort == "kind":
        _, layer = _layer_of_kind(built, number)
        parameters = dict(layer.named_parameters())
        is_head = False
        active, width, window = _active(built.config, layer)
        is_causal, num_attentions = _attentions(built, number)
    else:
        parameters = _glue_parameters(built, number)
        head = built.model.get_output_embeddings()
        is_head = number == len(built.stacks) and head is not None
        active, width, window = (head.weight.numel() if is_head else 0), 0, None
        is_causal, num_attentions = True, 0
    trainable = sum(p.numel() for p in parameters.values() if p.requires_grad)
    frozen = sum(p.numel() for p in parameters.values() if not p.requires_grad)
    in_4bit = sort == "kind" or (is_head and built.quantises_head)
    groups = _groups(built, parameters, in_4bit=in_4bit)
    return {
        "trainable_params": grads_made,
        # A parameter that never gets a gradient needs no optimizer state: it is held, not trained.
        "frozen_params": frozen + (max(trainable - grads_made, 0) if sort == "kind" else 0),
        "quantisable_params": sum(
            math.prod(group["shape"]) * group["count"]
            for group in groups
            if group["is_quantisable"]
        ),
        "adapter_params": sum(
            p.numel() for name, p in parameters.items() if "lora_" in name and p.requires_grad
        ),
        "flops_params": active,
        "attention_width": width,
        "attention_window": window,
        "attends_causally": is_causal,
        "num_attentions": num_attentions,
        "parameters": groups,
    }


def _groups(
    built: Built, parameters: dict[str, nn.Parameter], *, in_4bit: bool
) -> list[dict[str, Any]]:
    """Return the parameters by shape and use, in order of first appearance."""
    counts: dict[Any, int] = {}
    norms = norm_parameters(built.model)
    for name, parameter in parameters.items():
        is_matrix = parameter.dim() == 2 and name.endswith("weight")
        kind = (
            tuple(parameter.shape),
            id(parameter) in built.trained,
            in_4bit and is_matrix and not parameter.requires_grad,
            id(parameter) in norms,
        )
        counts[kind] = counts.get(kind, 0) + 1
    names = ("shape", "is_trained", "is_quantisable", "is_norm")
    return [dict(zip(names, kind), count=count) for kind, count in counts.items()]


def _glue_parameters(built: Built, number: int) -> dict[str, nn.Parameter]:
    """Return parameters outside the stacks that are registered between stack number-1 and it."""
    found: dict[str, nn.Parameter] = {}
    section = 0
    names = [name for name, _ in built.model.named_modules()]
    prefixes = [
        next(n for n in names if n == s.name or n.endswith("." + s.name)) for s in built.stacks
    ]
    for name, parameter in built.model.named_parameters():
        inside = [k for k, prefix in enumerate(prefixes) if name.startswith(prefix + ".")]
        if inside:
            section = inside[0] + 1
        elif section == number:
            found[name] = parameter
    return found


def _active(config: Any, layer: nn.Module) -> tuple[int, int, Any]:
    """Return (matmul parameters of one token, attention width, sliding window) of a layer."""
    text = config.get_text_config() if hasattr(config, "get_text_config") else config
    experts = _first(
        text, "num_local_experts", "num_experts", "n_routed_experts", "moe_num_experts"
    )
    chosen = _first(text, "num_experts_per_tok", "moe_top_k", "num_experts_per_token")
    share = chosen / experts if experts and chosen else 1.0
    active = 0.0
    for name, parameter in layer.named_parameters():
        if parameter.dim() < 2:
            continue
        routed = parameter.dim() == 3 or ".experts." in name
        active += parameter.numel() * (share if routed else 1.0)
    heads = _first(text, "num_attention_heads", "n_head", "num_heads") or 0
    hidden = _first(text, "hidden_size", "n_embd", "d_model") or 0
    head_dim = _first(text, "head_dim", "d_kv", "v_head_dim") or (hidden // heads if heads else 0)
    window = None
    for module in layer.modules():
        value = getattr(module, "sliding_window", None)
        if isinstance(value, int) and value > 0 and getattr(module, "is_sliding", True):
            window = value
    return round(active), heads * head_dim, window


def _attentions(built: Built, kind: int) -> tuple[bool, int]:
    """Return (whether a layer's self-attention is causal, its number of attentions)."""
    if built.is_encoder_decoder:
        in_decoder = kind in built.stacks[-1].kinds
        return in_decoder, 2 if in_decoder else 1
    return not type(built.model).__name__.endswith("ForMaskedLM"), 1


def _first(config: Any, *names: str) -> Any:
    for name in names:
        value = getattr(config, name, None)
        if isinstance(value, int) and value > 0:
            return value
    return None
