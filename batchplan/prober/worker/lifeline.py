"""A worker ends with whoever started it, however that went."""

from __future__ import annotations

import ctypes
import os
import select
import signal
import sys
import threading

_PR_SET_PDEATHSIG = 1
"""linux/prctl.h"""


def end_with_parent() -> None:
    """Have the kernel kill this process once its parent is gone (Linux only)."""
    if sys.platform != "linux":
        return
    parent = os.getppid()
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if parent == 1 or os.getppid() != parent:
        os._exit(1)


def end_with_stdin() -> None:
    """End once stdin closes: it is a pipe whose other end is the parent's alone."""

    def watch() -> None:
        while os.read(0, 1):
            pass
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def wait_for(pid: int) -> int:
    """Return how a child ended, as ``subprocess`` says it; end it and us when stdin closes."""
    ended = os.pidfd_open(pid)
    try:
        ready, _, _ = select.select([ended, 0], [], [])
        if ended not in ready:
            os.kill(pid, signal.SIGKILL)
            os._exit(1)
    finally:
        os.close(ended)
    _, status = os.waitpid(pid, 0)
    return os.WEXITSTATUS(status) if os.WIFEXITED(status) else -os.WTERMSIG(status)
