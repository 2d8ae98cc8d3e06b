"""fitcheck-llm: its components without overhead, which is context and reserve."""

from fitcheck.config_parser import ModelConfig, _count_params, _parse_fields, _reject_unsupported
from fitcheck.estimator import TrainingConfig, estimate
from fitcheck.gpu_db import GpuSpec
from protocol import choose, one_device, serve

_FIELDS = (
    "hidden_size",
    "num_layers",
    "num_attention_heads",
    "num_kv_heads",
    "intermediate_size",
    "vocab_size",
    "head_dim",
    "tie_word_embeddings",
)
_PRECISION = {"bf16": "bf16", "bf16-autocast": "bf16", "fp32": "fp32"}


def ask(question):
    """Return weights, adapters, states, gradients and activations."""
    one_device(question)
    raw = question["config"]
    _reject_unsupported(raw, "model")
    fields = _parse_fields(raw)
    model = ModelConfig(
        name="model",
        num_params=_count_params(fields),
        **{name: getattr(fields, name) for name in _FIELDS},
    )
    adapts = question["method"] != "full"
    training = TrainingConfig(
        precision=choose(_PRECISION, question["numerics"], "numerics"),
        quantization="nf4" if question["method"] == "qlora" else "none",
        double_quant=question["double_quant"] and question["method"] == "qlora",
        optimizer=choose(
            {"adamw": "adamw", "adamw-8bit": "adamw_8bit"}, question["optimizer"], "optimizer"
        ),
        optimizer_dtype="bf16" if question["numerics"] == "bf16" and not adapts else "fp32",
        batch_size=question["micro_batch"],
        seq_len=question["seq_len"],
        lora_rank=question["lora_rank"] if adapts else None,
        lora_targets=question["lora_targets"],
        grad_checkpoint=question["checkpointing"] == "full",
        flash_attn=question["attention"] != "eager",
        grad_accum_steps=question["accum_steps"],
    )
    report = estimate(model, training, _gpu())
    return (report.total_mib - report.overhead_mib) * 2**20


def _gpu():
    from fitcheck import gpu_db

    found = [value for value in vars(gpu_db).values() if isinstance(value, dict)]
    return next(spec for table in found for spec in table.values() if isinstance(spec, GpuSpec))


serve(ask)
