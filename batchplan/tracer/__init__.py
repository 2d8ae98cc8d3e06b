"""Trace: run the model's own code on fake tensors, in a worker process, and cache the profile."""

from batchplan.tracer.profiles import activation_profile
from batchplan.tracer.request import profile_key
from batchplan.tracer.runner import stop_workers

__all__ = ["activation_profile", "profile_key", "stop_workers"]
