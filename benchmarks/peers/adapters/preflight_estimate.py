"""torch-preflight: its breakdown without context and fragmentation."""

from protocol import choose, serve
from torch_preflight.vram import OptimizerKind, PrecisionMode, RunConfig, Sharding, estimate_config
from torch_preflight.vram.providers.hub import shape_from_config
from torch_preflight.vram.providers.static import from_shape

_PRECISION = {
    "fp32": PrecisionMode.FP32,
    "bf16": PrecisionMode.PURE_BF16,
    "bf16-autocast": PrecisionMode.AMP,
    "bf16-master": PrecisionMode.FP16_MASTER,
}
_SHARDING = {"ddp": Sharding.DDP, "fsdp-grad-op": Sharding.ZERO2, "fsdp-full": Sharding.ZERO3}
_OPTIMIZERS = {"adamw": OptimizerKind.ADAMW, "adamw-8bit": OptimizerKind.ADAM_8BIT}


def ask(question):
    """Return the sum of its terms that torch counts as allocated."""
    choose({"full": 1, "lora": 1}, question["method"], "method")
    several = question["devices"] > 1
    config = RunConfig(
        batch_size=question["micro_batch"],
        seq_len=question["seq_len"],
        precision=choose(_PRECISION, question["numerics"], "numerics"),
        optimizer=choose(_OPTIMIZERS, question["optimizer"], "optimizer"),
        gradient_checkpointing=question["checkpointing"] == "full",
        flash_attention=question["attention"] != "eager",
        accumulation_steps=question["accum_steps"],
        world_size=question["devices"],
        sharding=choose(_SHARDING, question["sharding"], "sharding") if several else Sharding.NONE,
        frozen_fraction=0.0 if question["method"] == "full" else 1 - question["trained_share"],
    )
    profile = from_shape(shape_from_config(question["config"]))
    found = estimate_config(profile, config, gpu="a100-80gb", with_remediations=False).breakdown
    return found.total - found.cuda_context - found.fragmentation


serve(ask)
