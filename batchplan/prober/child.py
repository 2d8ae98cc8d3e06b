"""A worker's process: started, listened to, and ended whatever happens."""

from __future__ import annotations

import contextlib
import json
import os
import queue
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from batchplan.errors import SpecError
from batchplan.prober.launch import PARTS, worker_command

GRACE_SECONDS = 5.0
"""For what remains to be read once a worker has been killed or has said its last."""


class Child:
    """One child in a session of its own, with a folder for its temporary files."""

    def __init__(
        self,
        request: dict[str, Any],
        *,
        python: Path | None,
        environment: Mapping[str, str],
        num_ranks: int = 1,
        parts: Sequence[str] = PARTS,
    ) -> None:
        """Start it.

        Args:
            request: the first thing it is told.
            python: its interpreter; None is ours.
            environment: added to ours, and to it where temporary files go.
            num_ranks: processes; several are torchrun's.
            parts: as ``worker_command`` has them.

        Raises:
            SpecError: when the interpreter does not start.
        """
        self.events: queue.Queue[dict[str, Any] | None] = queue.Queue()
        self.is_ready = False
        self._tail: deque[str] = deque(maxlen=60)
        self.folder = Path(tempfile.mkdtemp(prefix="batchplan-probe-"))
        """Of its own; removed in the end."""
        try:
            file = None
            if num_ranks > 1:
                file = self.folder / "request.json"
                file.write_text(json.dumps(request), encoding="utf-8")
            self._child = subprocess.Popen(
                worker_command(python=python, parts=parts, num_ranks=num_ranks, request_file=file),
                env={**os.environ, "TMPDIR": str(self.folder), **environment},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                encoding="utf-8",
                errors="replace",
                start_new_session=True,
            )
        except OSError as error:
            self._remove_folder()
            raise SpecError(
                f"--python {python or sys.executable} does not start: {error}"
            ) from error
        except BaseException:
            self._remove_folder()
            raise
        assert self._child.stdout is not None
        assert self._child.stderr is not None
        self._readers = [
            threading.Thread(target=self._listen, args=(self._child.stdout,), daemon=True),
            threading.Thread(target=self._keep_tail, args=(self._child.stderr,), daemon=True),
        ]
        for reader in self._readers:
            reader.start()
        if num_ranks == 1:
            self.write(request)

    def wait(self) -> int:
        """Return the exit code of a worker that has closed its stdout."""
        try:
            return self._child.wait(timeout=GRACE_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()
            return self._child.wait()

    def last_words(self) -> str:
        """Return the end of its stderr."""
        self._readers[1].join(timeout=GRACE_SECONDS)
        return "\n".join(self._tail)

    def kill(self) -> None:
        """Kill it and whatever it started: its group, and by their lifelines the rest."""
        with contextlib.suppress(ProcessLookupError, PermissionError):
            if hasattr(os, "killpg"):
                os.killpg(self._child.pid, signal.SIGKILL)
            else:
                self._child.kill()

    def close(self) -> None:
        """Kill it, and remove what it leaves."""
        self.kill()
        self._child.wait()
        for reader in self._readers:
            reader.join(timeout=GRACE_SECONDS)
        for stream in (self._child.stdin, self._child.stdout, self._child.stderr):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()
        self._remove_folder()

    def _remove_folder(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def write(self, message: dict[str, Any]) -> None:
        """Send a line to its stdin."""
        assert self._child.stdin is not None
        # A child that is gone says why by its exit code.
        with contextlib.suppress(BrokenPipeError):
            self._child.stdin.write(json.dumps(message) + "\n")
            self._child.stdin.flush()

    def _listen(self, stream: IO[str]) -> None:
        for line in stream:
            with contextlib.suppress(ValueError):
                event = json.loads(line)
                if isinstance(event, dict) and "event" in event:
                    self.events.put(event)
        self.events.put(None)

    def _keep_tail(self, stream: IO[str]) -> None:
        for line in stream:
            if line.strip():
                self._tail.append(line.strip())
