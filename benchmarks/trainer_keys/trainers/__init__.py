"""One module per trainer: ``snapshot()`` dumps its keys, ``validate(path)`` loads a file.

These modules run inside the trainer's own environment, so they import nothing of batchplan; the
trainer itself is imported inside functions, because importing is often half of the work.

``snapshot`` leaves the process as it was. ``validate`` does not (working directory, environment,
patched checks): run it in a process of its own, as ``worker`` does.
"""
