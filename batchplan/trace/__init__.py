"""Trace: run the model's own code on fake tensors, in a worker process, and cache the profile."""

from batchplan.trace.profiles import activation_profile
from batchplan.trace.runner import stop_workers

__all__ = ["activation_profile", "stop_workers"]
