"""What the worker tells its parent: JSON, one event a line, on the stdout it was started with."""

from __future__ import annotations

import json
import os
from typing import Any


class Reporter:
    """Writes events of one rank, each in one piece (a line is shorter than ``PIPE_BUF``)."""

    def __init__(self, rank: int = 0) -> None:
        # Libraries print on stdout; from now on that is stderr.
        self._descriptor = os.dup(1)
        os.dup2(2, 1)
        self._rank = rank

    def tell(self, event: str, **fields: Any) -> None:
        """Write one event."""
        line = json.dumps({"event": event, "rank": self._rank, **fields}) + "\n"
        os.write(self._descriptor, line.encode())
