"""Accuracy benchmark: published measurements of memory, replayed through ``batchplan.estimate``."""
