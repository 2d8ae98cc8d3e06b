"""The measured models as profiles of exact shapes: step time reads no polynomial of a trace.

A GPT-2 or Llama layer is counted from its config. The test compares the counts with the published
ones, and with a traced model.
"""

from __future__ import annotations

from dataclasses import dataclass

from batchplan.profile import ZERO, ActivationProfile, ParameterGroup, Pass, Peak, StageProfile
from batchplan.spec import Method

_NOTHING = Pass(delta=ZERO, peaks=(Peak(activations=ZERO),))
_UNUSED_SEQ_LENS = (1, 1 << 20)


@dataclass(frozen=True, slots=True, kw_only=True)
class Shape:
    """A decoder whose query heads together are as wide as the residual stream."""

    hidden_size: int
    num_layers: int
    vocabulary: int
    feed_forward: int
    num_wide: int = 1
    """Matrices that widen to ``feed_forward``: 2 where it is gated."""
    layer_vectors: int = 0
    """Elements of its biases and norms."""
    has_learned_positions: bool = False
    is_tied: bool = False
    config: str

    @property
    def layer_matrices(self) -> int:
        """Elements of the weight matrices of one layer."""
        wide = (self.num_wide + 1) * self.hidden_size * self.feed_forward
        return 4 * self.hidden_size**2 + wide

    def num_params(self, seq_len: int) -> int:
        """Return all parameters, with learned positions for ``seq_len`` tokens."""
        return sum(count for count, _ in self._stages(seq_len))

    def profile(self, *, method: Method, seq_len: int, lora_rank: int = 0) -> ActivationProfile:
        """Return the profile; LoRA adapts queries and values, as LitGPT does by default."""
        is_full = method is Method.FULL
        adapters = 0 if is_full else 4 * self.hidden_size * lora_rank
        (embedding, _), (layer, used), *_, (head, head_used) = self._stages(seq_len)
        stages = (
            self._stage("embedding", embedding, 0, is_full=is_full),
            self._stage("layer", layer, used, is_full=is_full, adapters=adapters),
            self._stage("head and loss", head, head_used, is_full=is_full),
        )
        return ActivationProfile(
            architecture=self.config,
            num_params=self.num_params(seq_len),
            stages=stages,
            order=(0, *([1] * self.num_layers), 2),
            hidden_size=self.hidden_size,
            buffer_bytes=0,
            max_error=0.0,
            seq_len_range=_UNUSED_SEQ_LENS,
            attention="sdpa",
            versions=(),
        )

    def _stages(self, seq_len: int) -> list[tuple[int, int]]:
        """Return (parameters registered, parameters in products) of each stage, in order."""
        table = self.vocabulary * self.hidden_size
        positions = seq_len * self.hidden_size if self.has_learned_positions else 0
        layer = (self.layer_matrices + self.layer_vectors, self.layer_matrices)
        norm = 2 * self.hidden_size if self.has_learned_positions else self.hidden_size
        head = (norm + (0 if self.is_tied else table), table)
        return [(table + positions, 0), *([layer] * self.num_layers), head]

    def _stage(
        self, name: str, params: int, used: int, *, is_full: bool, adapters: int = 0
    ) -> StageProfile:
        is_layer = name == "layer"
        return StageProfile(
            name=name,
            forward=_NOTHING,
            backward=_NOTHING,
            trainable_params=params if is_full else adapters,
            frozen_params=0 if is_full else params,
            quantisable_params=self.layer_matrices if is_layer and not is_full else 0,
            adapter_params=adapters,
            flops_params=used + adapters,
            attention_width=self.hidden_size if is_layer else 0,
            parameters=self._layer_groups() if is_layer and is_full else (),
        )

    def _layer_groups(self) -> tuple[ParameterGroup, ...]:
        width, wide = self.hidden_size, self.feed_forward
        return tuple(
            ParameterGroup(shape=shape, count=count)
            for shape, count in (
                ((width, width), 4),
                ((wide, width), self.num_wide),
                ((width, wide), 1),
                ((self.layer_vectors,), 1),
            )
        )


def _mpt(hidden_size: int, num_layers: int) -> Shape:
    """Return an MPT of llm-foundry: GPT-2's layer with biases, tied head, learned positions."""
    return Shape(
        hidden_size=hidden_size,
        num_layers=num_layers,
        vocabulary=50_368,
        feed_forward=4 * hidden_size,
        layer_vectors=13 * hidden_size,
        has_learned_positions=True,
        is_tied=True,
        config="mosaicml/llm-foundry scripts/train/yamls/pretrain",
    )


def _llama(hidden_size: int, num_layers: int, feed_forward: int) -> Shape:
    return Shape(
        hidden_size=hidden_size,
        num_layers=num_layers,
        vocabulary=32_000,
        feed_forward=feed_forward,
        num_wide=2,
        layer_vectors=2 * hidden_size,
        config="meta-llama config.json",
    )


SHAPES: dict[str, Shape] = {
    "MPT-125m": _mpt(768, 12),
    "MPT-350m": _mpt(1024, 24),
    "MPT-760m": _mpt(1536, 24),
    "MPT-1b": _mpt(2048, 24),
    "MPT-3b": _mpt(2560, 32),
    "MPT-7b": _mpt(4096, 32),
    "MPT-13b": _mpt(5120, 40),
    "MPT-30b": _mpt(7168, 48),
    "MPT-70b": _mpt(8192, 80),
    "phi-1.5 1.3B": Shape(
        hidden_size=2048,
        num_layers=24,
        vocabulary=51_200,
        feed_forward=4 * 2048,
        layer_vectors=11 * 2048,
        config="microsoft/phi-1_5 config.json; one norm a layer",
    ),
    "StableLM 3B": Shape(
        hidden_size=4096,
        num_layers=16,
        vocabulary=50_688,
        feed_forward=4 * 4096,
        layer_vectors=13 * 4096,
        config="stabilityai/stablelm-base-alpha-3b config.json",
    ),
    "Llama-2-7B": _llama(4096, 32, 11_008),
    "Llama-2-13B": _llama(5120, 40, 13_824),
}
