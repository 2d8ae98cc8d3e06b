"""Benchmarks of batchplan; no part of the package that is installed."""
