"""ftuneai: its breakdown without overhead."""

from ftuneai.core.memory import MemoryEstimator
from ftuneai.core.models import ModelSpec, TrainingConfig
from protocol import GIB, choose, serve

_SHARDING = {"ddp": "none", "fsdp-full": "fsdp", "fsdp-grad-op": "fsdp_shard_grad"}
_ATTENTION = {"q_proj", "k_proj", "v_proj", "o_proj"}


def ask(question):
    """Return everything but its overhead."""
    config = question["config"]
    heads = config["num_attention_heads"]
    spec = ModelSpec(
        name="model",
        parameters=question["num_params"],
        hidden_size=config["hidden_size"],
        num_layers=config["num_hidden_layers"],
        num_attention_heads=heads,
        num_kv_heads=config.get("num_key_value_heads") or heads,
        intermediate_size=config.get("intermediate_size") or 4 * config["hidden_size"],
        vocab_size=config["vocab_size"],
        max_seq_length=config.get("max_position_embeddings", 2048),
    )
    from ftuneai.core import models

    targets = set(question["lora_targets"])
    target = "attention_all" if targets == _ATTENTION else "attention"
    target = "all_linear" if len(targets) > len(_ATTENTION) else target
    training = TrainingConfig(
        model="model",
        method=models.FineTuneMethod(question["method"]),
        quantization=models.Quantization("4bit" if question["method"] == "qlora" else "none"),
        batch_size=question["micro_batch"],
        seq_length=question["seq_len"],
        gradient_checkpointing=question["checkpointing"] == "full",
        optimizer=models.OptimizerType(
            choose(
                {"adamw": "adamw", "adamw-8bit": "adam_8bit"}, question["optimizer"], "optimizer"
            )
        ),
        lora_rank=question["lora_rank"],
        lora_target=models.LoRATarget(target),
        flash_attention=question["attention"] != "eager",
        sharding=models.ShardingStrategy(choose(_SHARDING, question["sharding"], "sharding")),
        num_gpus=question["devices"],
    )
    found = MemoryEstimator(spec, training).estimate()
    return (found.total_gb - found.overhead_gb) * GIB


serve(ask)
