"""What an exception says: out of memory, or a crash."""

from __future__ import annotations

import re

import torch

OUT_OF_MEMORY = "out-of-memory"
CRASHED = "crashed"

# What lacks a class of its own says so in words: c10/core/impl/alloc_cpu.cpp, std::bad_alloc,
# cuBLAS' and cuDNN's status, the driver's, NCCL's, oneDNN's.
_IN_WORDS = re.compile(
    r"DefaultCPUAllocator: (can't allocate|not enough) memory|std::bad_alloc|out of memory"
    r"|CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED|Cannot allocate memory"
    r"|could not create a (memory|primitive)",
    re.IGNORECASE,
)


def outcome_of(error: BaseException) -> str:
    """Return how a trial ended that raised ``error``, or an error that led to it."""
    seen: BaseException | None = error
    kinds = (MemoryError, getattr(torch, "OutOfMemoryError", torch.cuda.OutOfMemoryError))
    while seen is not None:
        if isinstance(seen, kinds):
            return OUT_OF_MEMORY
        if isinstance(seen, (RuntimeError, OSError)) and _IN_WORDS.search(str(seen)):
            return OUT_OF_MEMORY
        seen = seen.__cause__ or seen.__context__
    return CRASHED


def one_line(error: BaseException) -> str:
    """Return the class and the first words of an error."""
    text = " ".join(str(error).split())
    # The allocators' own advice comes after their figures.
    text = re.sub(r"\[enforce fail at [^\]]*\] err == 0\. ", "", text)
    return f"{type(error).__name__}: {text}"[:300].rstrip(": ")
