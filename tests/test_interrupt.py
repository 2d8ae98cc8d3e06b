"""Ctrl-C at any moment of a first answer: at once, one line, 130, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# A shell that runs tests in the background lets its children ignore Ctrl-C.
COMMAND = (
    "import signal; signal.signal(signal.SIGINT, signal.default_int_handler);"
    "from batchplan.__main__ import main; main()"
)
ASKED = ("recommend", "Qwen/Qwen2.5-0.5B", "--gpu", "a100-80gb", "--target-tokens", "64k")


def workers_of(session: int) -> list[str]:
    found = subprocess.run(
        ["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return [line for line in found if "batchplan_worker" in line and not line.startswith("Z")]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.25, 0.3, 0.35, 0.4, 0.5, 0.8, 1.5, 3.0])
def test_ctrl_c_at_any_moment_ends_everything(seconds: float, tmp_path: Path):
    environment = os.environ | {"BATCHPLAN_CACHE": str(tmp_path / "cache")}
    with subprocess.Popen(
        [sys.executable, "-c", COMMAND, *ASKED],
        cwd=Path(__file__).parents[1],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as child:
        time.sleep(seconds)
        sent = time.monotonic()
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=60)
        assert time.monotonic() - sent < 5
    assert (child.returncode, out) == (130, "")
    assert said.endswith("interrupted\n")
    assert "Traceback" not in said
    time.sleep(1)
    assert workers_of(child.pid) == []
    assert not list((tmp_path / "cache").glob("*.json"))
