"""``python -m benchmarks.peers``: ask other estimators about the rows that torch counted.

Every open, averaged row of the last ``python -m benchmarks.accuracy --write`` whose allocated peak
is known is put to each tool; a tool refuses what it has no way to be asked. Ours is averaged over
the same rows. Tools are installed when first needed, each into a folder of its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.accuracy import report, results
from benchmarks.accuracy.environments import environments_dir
from benchmarks.peers.answers import RESULTS_FILE, Answers, summary_of
from benchmarks.peers.questions import questions
from benchmarks.peers.tools import TOOLS, Tool

_ADAPTERS = Path(__file__).with_name("adapters")


def main() -> int:
    """Run every tool and write the answers."""
    asked = questions()
    print(f"{len(asked)} rows")
    found = []
    for tool in TOOLS:
        answers = _ask(tool, [one.document for one in asked])
        one = summary_of(tool, asked, answers)
        found.append(one)
        print(f"{one.name}: {one.tool.count if one.tool else 0} rows; {one.refusals}")
    RESULTS_FILE.write_text(Answers.dump(found), encoding="utf-8")
    report.DOCUMENT.write_text(report.document(results.load()), encoding="utf-8")
    return 0


def _ask(tool: Tool, documents: list[dict[str, Any]]) -> list[dict[str, Any]]:
    folder = environments_dir() / f"peer-{tool.adapter}"
    if not folder.is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps"]
        command += ["--no-build-isolation", "--target", str(folder), *tool.requirements]
        subprocess.run(command, check=True)
    path = os.pathsep.join((str(folder), str(_ADAPTERS)))
    environment = os.environ | {
        "PYTHONPATH": path,
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
    }
    done = subprocess.run(
        [sys.executable, str(_ADAPTERS / f"{tool.adapter}.py")],
        input=json.dumps(documents),
        capture_output=True,
        text=True,
        env=environment,
        check=False,
    )
    if done.returncode:
        reason = done.stderr.strip().splitlines()[-1]
        return [{"reason": f"does not start: {reason[:160]}"} for _ in documents]
    answers: list[dict[str, Any]] = json.loads(done.stdout)
    return answers


if __name__ == "__main__":
    sys.exit(main())
