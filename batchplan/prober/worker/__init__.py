"""Runs in the environment that will train, and is the only place that trains.

Loaded by path, beside the tracer's worker whose modules build the model. Depends on torch and
transformers, and on peft, bitsandbytes, liger-kernel, accelerate and DeepSpeed where the recipe
does. Python 3.9 or later.
"""
