"""Probe: really train for a few steps, in child processes, until the largest micro-batch is known."""
