"""TRL's ``SFTTrainer`` as ``trl sft`` runs it."""

from __future__ import annotations

from batchplan.trainers.policies.conditions import autocast_over
from batchplan.trainers.policies.on_transformers import ON_TRANSFORMERS
from batchplan.trainers.policies.rows import CHECKPOINT, Default, Policy, Versions, built_on

_CONFIG = "trl trainer/sft_config.py, SFTConfig"
_MODEL = "trl trainer/model_config.py, ModelConfig"
_LOAD = "trl trainer/utils.py, create_model_from_path"
_TRAINER = "trl trainer/sft_trainer.py, SFTTrainer"
_KBIT = "trl models/utils.py, prepare_peft_model"


def _trl(since: tuple[int, ...] = (0,), before: tuple[int, ...] = (10**6,)) -> Versions:
    return Versions(package="trl", since=since, before=before)


_NO_BF16, _WITH_BF16 = _trl(before=(0, 19)), _trl(since=(0, 19))
_AS_SAVED = _trl(since=(0, 19), before=(0, 27))
_KBIT_PREPARED = _trl(before=(0, 26))
_TRANSFORMERS_4 = Versions(package="transformers", before=(5,))
_TRANSFORMERS_5 = Versions(package="transformers", since=(5,))

POLICY = Policy(
    trainer="trl",
    package="trl",
    rows=built_on(
        ON_TRANSFORMERS,
        Default(
            option="numerics",
            value="bf16-autocast",
            key="bf16: null is true",
            source="trl trainer/base_config.py, _BaseConfig.__post_init__",
            versions=(_WITH_BF16,),
        ),
        Default(
            option="numerics",
            value=CHECKPOINT,
            key="bf16: false; dtype unset",
            source=_CONFIG,
            versions=(_NO_BF16, _TRANSFORMERS_5),
        ),
        Default(
            option="numerics",
            value="fp32",
            key="bf16: false; dtype unset",
            source=_CONFIG,
            versions=(_NO_BF16, _TRANSFORMERS_4),
        ),
        # An unset dtype is fp32 under transformers 4; from 0.27 on TRL itself says float32.
        *autocast_over(
            CHECKPOINT,
            key="bf16: true; dtype unset",
            source=_LOAD,
            versions=(_AS_SAVED, _TRANSFORMERS_5),
        ),
        Default(
            option="checkpointing",
            value="full",
            key="gradient_checkpointing: true",
            source="trl trainer/base_config.py, _BaseConfig",
            versions=(_trl(since=(0, 22)),),
        ),
        Default(
            option="checkpointing",
            value="none",
            key="gradient_checkpointing: false",
            source=_CONFIG,
            versions=(_trl(before=(0, 22)),),
        ),
        Default(
            option="reentrant",
            value=False,
            key="gradient_checkpointing_kwargs",
            source=_TRAINER,
            versions=(_trl(since=(0, 28)),),
        ),
        Default(
            option="reentrant",
            value=False,
            key="gradient_checkpointing_kwargs",
            source="transformers modeling_utils.py, gradient_checkpointing_enable",
            versions=(_trl(before=(0, 28)), _TRANSFORMERS_5),
        ),
        Default(
            option="reentrant",
            value=True,
            key="gradient_checkpointing_kwargs",
            source="transformers modeling_utils.py, gradient_checkpointing_enable",
            versions=(_trl(before=(0, 28)), _TRANSFORMERS_4),
        ),
        # From transformers 5.23 on the forced setting no longer reaches the Trainer.
        Default(
            option="reentrant",
            value=True,
            key="PEFT with ZeRO-3",
            source=_TRAINER,
            versions=(
                _trl(since=(0, 28)),
                Versions(package="transformers", before=(5, 23)),
            ),
            when={"sharding": ("zero3",), "method": ("lora", "qlora")},
            note="TRL forces reentrant checkpointing for PEFT under ZeRO-3 (sft_trainer.py)",
        ),
        # A config that has kwargs shares them with the Trainer, so there the setting arrives.
        Default(
            option="reentrant",
            value=True,
            key="PEFT with ZeRO-3",
            source=_TRAINER,
            versions=(_trl(since=(0, 28)),),
            when={
                "sharding": ("zero3",),
                "method": ("lora", "qlora"),
                "checkpointing": ("full",),
            },
            note="TRL forces reentrant checkpointing for PEFT under ZeRO-3 (sft_trainer.py)",
            overrides=True,
        ),
        Default(
            option="reentrant",
            value=True,
            key="prepare_model_for_kbit_training(gradient_checkpointing_kwargs={})",
            source=_KBIT,
            versions=(_KBIT_PREPARED,),
            when={"method": ("qlora",)},
        ),
        Default(
            option="loss",
            value="chunked",
            key="fused LM head",
            source="trl trainer/utils.py, add_fused_lm_head",
            versions=(_trl(since=(1, 15)),),
        ),
        Default(
            option="loss",
            value="chunked",
            key="loss_type: chunked_nll",
            source=_CONFIG,
            versions=(_trl(since=(1, 6), before=(1, 15)),),
        ),
        Default(
            option="loss",
            value="standard",
            key="loss_type: nll",
            source=_CONFIG,
            versions=(_trl(before=(1, 6)),),
        ),
        Default(option="lora_rank", value=16, key="lora_r: 16", source=_MODEL),
        Default(option="lora_dropout", value=0.05, key="lora_dropout: 0.05", source=_MODEL),
        Default(
            option="double_quant", value=False, key="use_bnb_nested_quant: false", source=_MODEL
        ),
        Default(
            option="adapter_dtype",
            value="bf16",
            key="adapters of a quantised model",
            source=_TRAINER,
            versions=(_trl(since=(0, 26)),),
            when={"method": ("qlora",)},
            note="TRL casts adapters of a quantised model to bf16 (sft_trainer.py)",
        ),
        Default(
            option="norm_dtype",
            value="fp32",
            key="peft_module_casting_to_bf16",
            source=_KBIT,
            versions=(_KBIT_PREPARED,),
            when={"method": ("qlora",), "numerics": ("bf16-autocast",), "sharding": ("ddp",)},
            note="TRL leaves fp32 norms in a quantised base (models/utils.py)",
        ),
        Default(
            option="frozen_upcast",
            value=True,
            key="prepare_model_for_kbit_training",
            source=_TRAINER,
            versions=(_NO_BF16,),
            when={"method": ("qlora",), "sharding": ("ddp",)},
            note="TRL casts what stays 16-bit in a quantised base to fp32 (sft_trainer.py)",
        ),
    ),
)
