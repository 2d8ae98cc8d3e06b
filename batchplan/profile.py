"""ActivationProfile: what a model's stages keep and need, as exact polynomials. Plain data.

The trace writes it, the cache stores it, the memory arithmetic reads it, and nothing in between
knows where it came from. Layouts are versioned by ``SCHEMA_VERSION``; an entry of another version
is rebuilt, never converted.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import IntEnum
from math import prod
from typing import Any

from batchplan.errors import TraceError

SCHEMA_VERSION = 5

BASIS = ("1", "s", "s^2", "b", "b*s", "b*s^2")
"""Monomials of micro-batch b and sequence length s that memory is made of."""


@dataclass(frozen=True, slots=True)
class Polynomial:
    """Bytes as a polynomial over ``BASIS``."""

    coefficients: tuple[float, ...]

    def __call__(self, micro_batch: int, seq_len: int) -> int:
        """Return the bytes at (b, s), rounded to a whole number."""
        one, s, s2, b, bs, bs2 = self.coefficients
        per_sequence = b + seq_len * (bs + seq_len * bs2)
        return round(one + seq_len * (s + seq_len * s2) + micro_batch * per_sequence)

    def line(self, seq_len: int) -> complex:
        """Return the bytes at s of any micro-batch: ``real + imag * b``, not rounded.

        Lines add up and multiply with numbers as complex numbers do.
        """
        one, s, s2, b, bs, bs2 = self.coefficients
        return complex(one + seq_len * (s + seq_len * s2), b + seq_len * (bs + seq_len * bs2))


ZERO = Polynomial((0, 0, 0, 0, 0, 0))


@dataclass(frozen=True, slots=True, kw_only=True)
class Peak:
    """One instant inside a pass that can be its highest.

    Activations and gradients are kept apart because the recipe decides how wide a gradient is
    and whether the earlier micro-batch's are still there.
    """

    activations: Polynomial
    """Live activation bytes above the start of the pass."""
    new_grad_params: int = 0
    """Elements of gradients made so far in this pass (what the first micro-batch holds)."""
    in_flight_grad_params: int = 0
    """Elements of the one gradient not yet added to ``.grad`` (what K >= 2 holds on top)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pass:
    """One direction (forward or backward) through one stage.

    Bytes are activations only: weights, gradients and optimizer states are added by the memory
    arithmetic.
    """

    delta: Polynomial
    """Live bytes at the end of the pass less live bytes at its start."""
    peaks: tuple[Peak, ...]
    """The highest point of the pass is the largest of these; which one depends on (b, s)."""
    script: tuple[int, ...] = ()
    """What the pass makes and frees, in order, three numbers an entry: see ``Action``."""


class Action(IntEnum):
    """What an entry of a script does; the other two numbers are ``what`` and ``how``."""

    MAKE = 0
    """An allocation: ``what`` is the number of its size, ``how`` is of ``Use``."""
    FREE_OWN = 1
    """The ``what``-th allocation that this script made."""
    FREE_OTHER = 2
    """One of size ``what`` that another pass made: ``how`` is 0 to 4 for the forward of the stages
    from two before to two after, 5 more for a backward, 10 for anywhere else."""
    ACCUMULATE = 3
    """The gradient that is this script's ``what``-th allocation is added to ``.grad``."""


class Use(IntEnum):
    """What an allocation of a script is for."""

    PLAIN = 0
    GRADIENT = 1
    """It becomes ``.grad`` where there is none yet."""
    RELEASED = 2
    """A cast weight that leaving autocast frees."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ParameterGroup:
    """Parameters of one stage that are alike.

    Shapes matter where a sharding engine pads, where an optimizer factors matrices or leaves
    small tensors wide, and where one tensor is up-cast at a time.
    """

    shape: tuple[int, ...]
    count: int = 1
    is_trained: bool = True
    """Whether it gets a gradient."""
    is_quantisable: bool = False
    """A frozen matrix of a layer, which QLoRA holds in NF4."""
    is_norm: bool = False
    """A weight of a normalisation."""

    @property
    def num_elements(self) -> int:
        """Elements of one of them."""
        return prod(self.shape)


@dataclass(frozen=True, slots=True, kw_only=True)
class StageProfile:
    """One kind of stage: embedding, a kind of layer, a bridge, or head and loss."""

    name: str
    forward: Pass
    backward: Pass
    released_before_backward: Polynomial = ZERO
    """Bytes of ``forward`` that leaving autocast frees: cast weights nobody saved."""
    left_by_last_layer: Polynomial = ZERO
    """Bytes that the backward of the layer before this stage, the last of its stack, leaves beyond
    what others of its kind do: gradients of what all layers read, such as a position bias."""
    trainable_params: int
    """Parameters that get a gradient, in elements; tied ones count in the first stage."""
    frozen_params: int
    quantisable_params: int = 0
    """Frozen parameters of linear layers, which QLoRA holds in NF4."""
    adapter_params: int = 0
    """Those of ``trainable_params`` that adapters added."""
    flops_params: int = 0
    """Matmul-active parameters for one token, adapters included: experts not chosen and look-ups
    are left out; a tied head counts in the head."""
    attention_width: int = 0
    """Query heads times head size, for the score FLOPs; 0 without attention."""
    attention_window: int | None = None
    """Sliding window in tokens; None attends to everything."""
    attends_causally: bool = True
    """Whether self-attention sees earlier tokens only."""
    num_attentions: int = 1
    """Attentions of a layer; the second is cross-attention, which sees every key."""
    parameters: tuple[ParameterGroup, ...] = ()
    """Those registered in the stage, by shape; tied ones only where they are registered first."""

    @property
    def parameter_groups(self) -> tuple[ParameterGroup, ...]:
        """``parameters``, or one flat group each where only their numbers are known."""
        if self.parameters:
            return self.parameters
        plain = self.frozen_params - self.quantisable_params
        groups = (
            ParameterGroup(shape=(self.trainable_params,)),
            ParameterGroup(shape=(plain,), is_trained=False),
            ParameterGroup(shape=(self.quantisable_params,), is_trained=False, is_quantisable=True),
        )
        return tuple(group for group in groups if group.num_elements)

    @property
    def is_layer(self) -> bool:
        """Whether this is one of the repeated layers (a sharding and checkpointing unit)."""
        return self.name.startswith("layer")


@dataclass(frozen=True, slots=True, kw_only=True)
class ActivationProfile:
    """A model's stages in execution order, for one way of running them."""

    architecture: str
    num_params: int
    """Elements of the model's own parameters, tied ones counted once, adapters left out."""
    stages: tuple[StageProfile, ...]
    """The distinct kinds."""
    order: tuple[int, ...]
    """Indices into ``stages``: forward order, every layer once."""
    hidden_size: int
    """Width of the residual stream."""
    buffer_bytes: int
    """Non-parameter tensors that stay on the device."""
    max_error: float
    """Largest relative residual at the points left out of the fit."""
    seq_len_range: tuple[int, int]
    """Sequence lengths the polynomials were fitted for, both ends included."""
    attention: str
    """Attention that really ran; some models support only eager."""
    versions: tuple[tuple[str, str], ...]
    """Package name and version of what ran the model, such as ("torch", "2.13.0")."""
    notes: tuple[str, ...] = ()
    """What the worker could not do exactly, in words."""
    single_sequence_stages: tuple[StageProfile, ...] = ()
    """``stages`` for micro-batch 1 where it runs other ops (fewer copies); empty when the same."""
    sizes: tuple[Polynomial, ...] = ()
    """Bytes asked for by the allocations of the stages' scripts, by their number."""
    single_sequence_sizes: tuple[Polynomial, ...] = ()

    @property
    def trainable_params(self) -> int:
        """Parameters that get a gradient, whole model."""
        return sum(self.stages[i].trainable_params for i in self.order)

    @property
    def frozen_params(self) -> int:
        """Parameters without a gradient, whole model."""
        return sum(self.stages[i].frozen_params for i in self.order)

    @property
    def num_layers(self) -> int:
        """Stages that are layers."""
        return sum(self.stages[i].is_layer for i in self.order)

    def stages_at(self, micro_batch: int) -> tuple[StageProfile, ...]:
        """Return the stages whose polynomials hold for a micro-batch."""
        if micro_batch == 1 and self.single_sequence_stages:
            return self.single_sequence_stages
        return self.stages

    def sizes_at(self, micro_batch: int) -> tuple[Polynomial, ...]:
        """Return the sizes that the scripts of ``stages_at`` refer to."""
        if micro_batch == 1 and self.single_sequence_stages:
            return self.single_sequence_sizes
        return self.sizes

    def to_dict(self) -> dict[str, Any]:
        """Return plain data that ``from_dict`` reads back to an equal profile."""
        data = {"schema_version": SCHEMA_VERSION, **asdict(self)}
        for key in ("sizes", "single_sequence_sizes"):
            data[key] = [size["coefficients"] for size in data[key]]
        return data

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> ActivationProfile:
        """Rebuild a profile, checking every field.

        Raises:
            TraceError: when the data is of another version, incomplete, or makes no sense.
        """
        try:
            if data["schema_version"] != SCHEMA_VERSION:
                raise TraceError(f"profile version {data['schema_version']}, not {SCHEMA_VERSION}")
            fields = {key: value for key, value in data.items() if key != "schema_version"}
            for key in ("stages", "single_sequence_stages"):
                fields[key] = tuple(_stage(stage) for stage in data[key])
            for key in ("sizes", "single_sequence_sizes"):
                fields[key] = tuple(_polynomial({"coefficients": size}) for size in data[key])
            fields["order"] = tuple(int(index) for index in data["order"])
            low, high = data["seq_len_range"]
            fields["seq_len_range"] = (int(low), int(high))
            fields["versions"] = tuple((str(name), str(ver)) for name, ver in data["versions"])
            fields["notes"] = tuple(str(note) for note in data["notes"])
            for key in ("num_params", "hidden_size", "buffer_bytes"):
                fields[key] = int(data[key])
            fields["max_error"] = float(data["max_error"])
            for key in ("architecture", "attention"):
                fields[key] = str(data[key])
            profile = cls(**fields)
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TraceError(f"profile is not readable: {error!r}") from error
        if not profile.order or not all(0 <= i < len(profile.stages) for i in profile.order):
            raise TraceError("profile has no stages, or an order that points outside them")
        if len(profile.single_sequence_stages) not in (0, len(profile.stages)):
            raise TraceError("profile has other stages for a single sequence")
        if profile.num_params <= 0 or not 0 <= profile.max_error < 1:
            raise TraceError("profile has no parameters or no error")
        return profile


def _polynomial(data: Any) -> Polynomial:
    coefficients = tuple(data["coefficients"])
    if len(coefficients) != len(BASIS):
        raise ValueError(f"{len(coefficients)} coefficients, not {len(BASIS)}")
    if not all(isinstance(value, int | float) for value in coefficients):
        raise TypeError("a coefficient is no number")
    return Polynomial(coefficients)


def _pass(data: Mapping[str, Any]) -> Pass:
    peaks = tuple(
        Peak(
            activations=_polynomial(peak["activations"]),
            new_grad_params=int(peak["new_grad_params"]),
            in_flight_grad_params=int(peak["in_flight_grad_params"]),
        )
        for peak in data["peaks"]
    )
    if not peaks:
        raise ValueError("a pass has no peak")
    script = tuple(int(number) for number in data["script"])
    return Pass(delta=_polynomial(data["delta"]), peaks=peaks, script=script)


def _parameter_group(data: Mapping[str, Any]) -> ParameterGroup:
    shape = tuple(int(size) for size in data["shape"])
    if any(size < 0 for size in shape) or int(data["count"]) < 1:
        raise ValueError(f"no parameter has shape {shape} or count {data['count']}")
    return ParameterGroup(**(dict(data) | {"shape": shape}))


def _stage(data: Mapping[str, Any]) -> StageProfile:
    fields = dict(data) | {
        "forward": _pass(data["forward"]),
        "backward": _pass(data["backward"]),
        "released_before_backward": _polynomial(data["released_before_backward"]),
        "left_by_last_layer": _polynomial(data["left_by_last_layer"]),
        "parameters": tuple(_parameter_group(group) for group in data["parameters"]),
    }
    return StageProfile(**fields)
