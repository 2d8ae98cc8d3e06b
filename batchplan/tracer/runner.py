"""Run the worker in its own process and read its one JSON reply."""

from __future__ import annotations

import contextlib
import json
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

from batchplan.errors import SpecError, TraceError

WORKER = Path(__file__).parent / "worker"
PROGRESS = "progress: "
TIMEOUT_SECONDS = 900

# The worker is loaded by path under a name of its own: the interpreter may not have batchplan,
# and must not see the modules that happen to lie beside the worker or in the current folder.
_BOOTSTRAP = """
import sys
if sys.path[:1] == [""]:
    del sys.path[0]
import importlib.util
where = sys.argv[1]
spec = importlib.util.spec_from_file_location(
    "batchplan_worker", where + "/__init__.py", submodule_search_locations=[where]
)
package = importlib.util.module_from_spec(spec)
sys.modules["batchplan_worker"] = package
spec.loader.exec_module(package)
from batchplan_worker.main import main
sys.exit(main())
"""


_running: set[subprocess.Popen[str]] = set()


def stop_workers() -> None:
    """Kill every worker of this process; whoever waits for one sees it end."""
    for child in list(_running):
        child.kill()


def run_worker(
    request: dict[str, Any],
    *,
    python: Path | None = None,
    on_progress: Callable[[str], None] | None = None,
) -> dict[str, Any]:
    """Return the worker's profile as plain data.

    The child dies with us: on any exception, Ctrl-C included, it is killed before we go on, and
    when we are killed ourselves it sees its stdin close.

    Raises:
        SpecError: when the worker finds the request itself wrong.
        TraceError: when the worker says why it cannot, crashes, or runs out of time.
    """
    command = [str(python or sys.executable), "-c", _BOOTSTRAP, str(WORKER)]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        encoding="utf-8",
        errors="replace",
    ) as child:
        assert child.stdin is not None
        assert child.stdout is not None
        assert child.stderr is not None
        tail: deque[str] = deque(maxlen=20)
        listener = threading.Thread(
            target=_listen, args=(child.stderr, tail, on_progress), daemon=True
        )
        expired = threading.Event()

        def expire() -> None:
            expired.set()
            child.kill()

        timer = threading.Timer(TIMEOUT_SECONDS, expire)
        timer.daemon = True
        _running.add(child)
        try:
            listener.start()
            timer.start()
            output = _exchange(child.stdin, child.stdout, json.dumps(request))
            code = child.wait()
        except BaseException:
            child.kill()
            raise
        finally:
            _running.discard(child)
            timer.cancel()
            # Before its stream is closed under it; it may never have started.
            with contextlib.suppress(RuntimeError):
                listener.join(timeout=5)
    if expired.is_set():
        raise TraceError(f"The trace took longer than {TIMEOUT_SECONDS} s and was stopped.")
    return _read_reply(output, code, tail)


def _exchange(stdin: IO[str], stdout: IO[str], text: str) -> str:
    try:
        stdin.write(text + "\n")
        stdin.flush()
    except BrokenPipeError:
        pass  # The child is gone already; its exit code and stderr say why.
    output = stdout.read()
    with contextlib.suppress(BrokenPipeError):
        stdin.close()
    return output


def _listen(stream: IO[str], tail: deque[str], on_progress: Callable[[str], None] | None) -> None:
    for line in stream:
        text = line.rstrip()
        if text.startswith(PROGRESS):
            if on_progress is not None:
                on_progress(text[len(PROGRESS) :])
        elif text:
            tail.append(text)


def _read_reply(output: str, code: int, tail: deque[str]) -> dict[str, Any]:
    last = tail[-1] if tail else "it printed nothing"
    if code:
        how = f"was killed by signal {-code}" if code < 0 else f"exited with {code}"
        raise TraceError(f"The trace worker {how}: {last[:500]}")
    try:
        reply = json.loads(output)
    except ValueError as error:
        raise TraceError(f"The trace worker's reply is not JSON: {last[:500]}") from error
    if not isinstance(reply, dict) or ("error" not in reply) == ("profile" not in reply):
        raise TraceError("The trace worker's reply has neither a profile nor an error.")
    if "error" in reply:
        kind = SpecError if reply.get("kind") == "input" else TraceError
        raise kind(str(reply["error"]))
    profile = reply["profile"]
    if not isinstance(profile, dict):
        raise TraceError("The trace worker's profile is not an object.")
    return profile
