"""The trace worker: runs in the environment that will train, needs only torch and transformers.

Nothing here imports batchplan, because the interpreter that runs it may not have it. It reads one
JSON request, a line on stdin, and writes one JSON reply on stdout; progress goes to stderr, one
line each. Stdin stays open while the answer is wanted: when it closes, the worker ends.
Tolerates Python >= 3.9, torch >= 2.4 and transformers >= 4.45.
"""
