"""Probe: really train a few steps, in child processes, until the largest micro-batch is known."""
