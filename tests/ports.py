"""Ports of 127.0.0.1 that nobody else takes while a test uses them."""

from __future__ import annotations

import random
import socket
from collections.abc import Iterator
from contextlib import contextmanager


def free_port() -> int:
    """Return a port below those that the kernel hands out, so that nobody takes it meanwhile."""
    for port in random.SystemRandom().sample(range(20_000, 30_000), 100):
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise OSError("no free port")


@contextmanager
def closed_port() -> Iterator[int]:
    """Hold a port that refuses connections: it is bound, and nobody listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        yield taken.getsockname()[1]
