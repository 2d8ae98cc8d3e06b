"""All that is the same for every micro-batch and K: resolved once, priced many times."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from batchplan.memory.activations import GradientLife, Instant, Place
from batchplan.memory.buffers import Buffers, compute_buffers
from batchplan.memory.device import cublas_workspace_bytes
from batchplan.memory.parameters import Parameters
from batchplan.memory.states import States, compute_states
from batchplan.profile import ActivationProfile
from batchplan.spec import Checkpointing, Cluster, Gpu, Method, Recipe
from batchplan.states.numerics import BYTES_PER_ELEMENT, Dtypes, resolve_dtypes
from batchplan.states.sharding import RULES, Engine, ShardingRule

OPTIMIZER_STEP = "optimizer step"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """A recipe on a cluster, resolved to dtypes, states and buffers."""

    profile: ActivationProfile
    recipe: Recipe
    cluster: Cluster
    gpu: Gpu
    dtypes: Dtypes
    rule: ShardingRule
    num_shards: int
    states: States
    buffers: Buffers

    @property
    def fixed_bytes(self) -> int:
        """Bytes that are there at every instant of the step."""
        return (
            self.states.weights
            + self.states.frozen_weights
            + self.states.master_weights
            + self.states.optimizer_states
            + self.profile.buffer_bytes
            + cublas_workspace_bytes(self.gpu)
        )

    @property
    def optimizer_instant(self) -> Instant[int]:
        """The optimizer step, as an instant beside those of the passes."""
        return Instant(
            phase=OPTIMIZER_STEP,
            stage="all",
            place=Place.OPTIMIZER_STEP,
            saved=0,
            transient=self.states.step_temporary,
            head=0,
            gradients=self.states.gradients,
        )

    @property
    def is_sharded(self) -> bool:
        """Whether any state is really split; DDP splits none."""
        return self.rule.optimizer and self.num_shards > 1

    @property
    def keeps_inputs(self) -> bool:
        """Whether every layer's input and its gradient stay until backward ends.

        The hooks that FSDP 1 registers on the inputs of a layer without trained weights of its own
        hold them, where a reentrant checkpoint around FSDP's call makes them leaves; transformers
        checkpoints inside it since 4.52. Seen in recordings of the real
        ``FullyShardedDataParallel``, and in public runs: 2 x 2 h bytes a token and layer.
        Source: torch ``_runtime_utils.py``, ``_register_post_backward_reshard_only_hook``;
        transformers ``modeling_layers.py``, ``GradientCheckpointingLayer``.
        """
        return (
            self.rule.engine is Engine.FSDP
            and self.num_shards > 1
            and self.recipe.fsdp_version == 1
            and self.recipe.reentrant
            and self.recipe.checkpointing is Checkpointing.FULL
            and self.recipe.method is not Method.FULL
            and _is_before(dict(self.profile.versions).get("transformers"), (4, 52))
        )

    @property
    def frozen_gradient_bytes(self) -> tuple[int, ...]:
        """Bytes of gradients that units make for frozen weights, by stage; mostly none.

        FSDP 1 makes one flat parameter of a unit, with one gradient. LitGPT wraps blocks with
        their adapters inside; peft's policy, which transformers' trainers take, wraps adapters
        apart. Seen in recordings of the real ``FullyShardedDataParallel``.
        Source: torch ``fsdp/wrap.py``, ``_validate_frozen_params``; litgpt ``finetune/lora.py``.
        """
        if (
            self.rule.engine is not Engine.FSDP
            or self.recipe.fsdp_version > 1
            or self.recipe.method is Method.FULL
            or "litgpt" not in dict(self.profile.versions)
        ):
            return ()
        stages = (self.profile.stages[index] for index in self.profile.order)
        width = BYTES_PER_ELEMENT[self.dtypes.frozen]
        return tuple(width * stage.frozen_params for stage in stages if stage.trainable_params)

    def lives(self, accum_steps: int) -> Iterator[GradientLife]:
        """Yield how gradients live in the first micro-batch and, for K >= 2, in a later one.

        Sources: torch ``AccumulateGrad`` (the first gradient is kept, later ones are added and
        freed); FSDP2 ``_fsdp_param_group.py`` (a unit's gradients stay whole until its
        post-backward, the root unit's until the end; without sync they stay whole and
        accumulate); DeepSpeed ``stage_1_and_2.py`` and ``stage3.py`` (reduced bucket by bucket).
        """
        width = BYTES_PER_ELEMENT[self.dtypes.weights]
        trainable = self.profile.trainable_params
        kept = self.states.gradients / trainable if trainable else 0.0
        is_fsdp = self.rule.engine is Engine.FSDP and self.num_shards > 1
        whole = not self.rule.gradients or self.num_shards == 1
        defers = is_fsdp and accum_steps > 1 and not self.recipe.sync_each_batch
        if defers:
            yield GradientLife(
                resident_bytes=0, made_bytes=width, kept_bytes=width, holds_stage=True
            )
            yield GradientLife(
                resident_bytes=width * trainable + sum(self.frozen_gradient_bytes),
                made_bytes=width,
                kept_bytes=0,
                holds_stage=False,
            )
            return
        yield GradientLife(
            resident_bytes=0,
            made_bytes=width,
            kept_bytes=kept,
            holds_stage=whole or is_fsdp,
            holds_root=is_fsdp,
        )
        if accum_steps > 1:
            # ZeRO-2 reduces into a second partition, which is then added to the first.
            is_zero2 = self.rule.engine is Engine.DEEPSPEED and not (whole or self.rule.weights)
            yield GradientLife(
                resident_bytes=self.states.gradients,
                made_bytes=width,
                kept_bytes=kept if is_zero2 else 0,
                holds_stage=is_fsdp,
                holds_root=is_fsdp,
            )


def _is_before(version: str | None, release: tuple[int, int]) -> bool:
    numbers = [int(part) for part in (version or "").split(".")[:2] if part.isdigit()]
    return len(numbers) == 2 and tuple(numbers) < release


def prepare(*, profile: ActivationProfile, recipe: Recipe, cluster: Cluster, gpu: Gpu) -> Setting:
    """Resolve ``recipe`` on ``cluster`` for every micro-batch and K at once."""
    dtypes = resolve_dtypes(recipe)
    rule = RULES[recipe.sharding]
    num_shards = rule.num_shards(cluster)
    states = compute_states(
        parameters=Parameters.of(profile, recipe),
        recipe=recipe,
        dtypes=dtypes,
        rule=rule,
        num_shards=num_shards,
    )
    buffers = compute_buffers(
        profile=profile,
        recipe=recipe,
        dtypes=dtypes,
        rule=rule,
        num_ranks=cluster.num_ranks,
        states=states,
    )
    return Setting(
        profile=profile,
        recipe=recipe,
        cluster=cluster,
        gpu=gpu,
        dtypes=dtypes,
        rule=rule,
        num_shards=num_shards,
        states=states,
        buffers=buffers,
    )
