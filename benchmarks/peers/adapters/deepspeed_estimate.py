"""DeepSpeed's own estimators: model states alone, without activations."""

from deepspeed.runtime.zero.stage3 import estimate_zero3_model_states_mem_needs
from deepspeed.runtime.zero.stage_1_and_2 import estimate_zero2_model_states_mem_needs
from protocol import choose, full_only, serve

_STAGE = {"ddp": 2, "fsdp-grad-op": 2, "fsdp-full": 3}


def ask(question):
    """Return bytes a GPU, nothing in host memory; FSDP is asked as the stage that is alike."""
    full_only(question)
    stage = choose(_STAGE, question["sharding"], "sharding")
    several = question["devices"] > 1
    choose({False: 1, stage == 3: 1}, several, "ddp on several devices:")
    if stage == 2:
        _, per_gpu = estimate_zero2_model_states_mem_needs(
            question["num_params"], num_gpus_per_node=question["devices"], cpu_offload=False
        )
        return per_gpu
    _, per_gpu, _ = estimate_zero3_model_states_mem_needs(
        question["num_params"],
        question["largest_layer"],
        num_gpus_per_node=question["devices"],
        cpu_offload=False,
        cpu_offload_params=False,
    )
    return per_gpu


serve(ask)
