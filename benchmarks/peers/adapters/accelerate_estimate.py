"""``accelerate estimate-memory``: its arithmetic for training with Adam, from the model's size."""
# ruff: noqa: TID253 - it runs beside the tool

from accelerate.commands.estimate import estimate_training_usage
from protocol import choose, full_only, one_device, serve

_DTYPES = {"fp32": "float32", "bf16": "bfloat16", "bf16-autocast": "bfloat16"}


def ask(question):
    """Return what it prints as the peak, which does not depend on the batch."""
    one_device(question)
    full_only(question)
    choose({"adamw": 1}, question["optimizer"], "optimizer")
    dtype = choose(_DTYPES, question["numerics"], "numerics")
    return max(estimate_training_usage(4 * question["num_params"], dtype).values())


serve(ask)
