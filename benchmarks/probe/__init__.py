"""Trials that finders of the largest micro-batch need, on the same simulated runs."""
