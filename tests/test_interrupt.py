"""Ctrl-C at any moment of a first answer: at once, one line, 130, and no process left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

COMMAND = """
import signal, sys
# A shell that runs tests in the background lets its children ignore Ctrl-C.
signal.signal(signal.SIGINT, signal.default_int_handler)
from batchplan.__main__ import main

class Begins:
    def find_spec(self, name, path=None, target=None):
        if name == "batchplan.cli.main":
            print("begins", file=sys.stderr, flush=True)

sys.meta_path.insert(0, Begins())
main()
"""
"""Moments count from where our code is in charge: how soon Python itself is differs by machine."""
ASKED = ("recommend", "Qwen/Qwen2.5-0.5B", "--gpu", "a100-80gb", "--target-tokens", "64k")


def workers_of(session: int) -> list[str]:
    found = subprocess.run(
        ["ps", "-o", "stat=,args=", "-s", str(session)], capture_output=True, text=True, check=False
    ).stdout.splitlines()
    return [line for line in found if "batchplan_worker" in line and not line.startswith("Z")]


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.15, 0.25, 0.5, 1.2, 2.5])
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
        assert child.stderr is not None
        assert child.stderr.readline() == "begins\n"
        time.sleep(seconds)
        if child.poll() is not None:
            pytest.skip(f"this machine answers in less than {seconds} s")
        child.send_signal(signal.SIGINT)
        out, said = child.communicate(timeout=60)
    assert (child.returncode, out) == (130, "")
    assert said.endswith("interrupted\n")
    assert "Traceback" not in said
    # What was killed may take a moment to go; a trace that goes on takes longer than this.
    last = time.monotonic() + 3
    while (left := workers_of(child.pid)) and time.monotonic() < last:
        time.sleep(0.1)
    assert left == []
    assert not list((tmp_path / "cache").glob("*.json"))
