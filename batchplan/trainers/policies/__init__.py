"""What each trainer does when its user says nothing: a table for each."""

from batchplan.trainers.policies import (
    accelerate,
    axolotl,
    deepspeed,
    hf_trainer,
    lightning,
    litgpt,
    llamafactory,
    ms_swift,
    torchtitan,
    torchtune,
    trl,
    unsloth,
)
from batchplan.trainers.policies.rows import Policy

POLICIES: dict[str, Policy] = {
    module.POLICY.trainer: module.POLICY
    for module in (
        hf_trainer,
        trl,
        accelerate,
        deepspeed,
        axolotl,
        llamafactory,
        ms_swift,
        unsloth,
        torchtune,
        litgpt,
        lightning,
        torchtitan,
    )
}
