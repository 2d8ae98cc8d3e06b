"""gpu-estimator: its total without the 20 % that it adds for the framework."""

from gpu_estimator import GPUEstimator
from protocol import choose, full_only, one_device, serve


def ask(question):
    """Return the total of one device."""
    one_device(question)
    full_only(question)
    found = GPUEstimator().estimate(
        model_params=question["num_params"],
        batch_size=question["micro_batch"],
        sequence_length=question["seq_len"],
        precision=choose(
            {"bf16": "bf16", "bf16-autocast": "bf16", "fp32": "fp32"},
            question["numerics"],
            "numerics",
        ),
        optimizer=choose({"adamw": "adamw"}, question["optimizer"], "optimizer"),
        gradient_checkpointing=question["checkpointing"] == "full",
    )
    return found.total_memory_gb / 1.2 * 2**30


serve(ask)
