"""Experiments on the user's own model: its gradients, in a process that trains nothing.

Beside the prober, whose way of starting a child they use. What runs in the child is ``worker``.
"""
