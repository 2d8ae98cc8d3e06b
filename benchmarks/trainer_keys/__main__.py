"""``python -m benchmarks.trainer_keys``: ask trainers what they take.

    list                              trainers, releases and environments
    snapshot TRAINER… [--write]       dump the keys; --write replaces profiles/trainers/TRAINER.json
    validate TRAINER FILE…            load files with the trainer's own loader

``validate`` prints one JSON object a line, ``{"file", "values"}`` or ``{"file", "error"}``, and
exits 1 when a file is refused.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

from benchmarks.trainer_keys.environments import TRAINERS, Trainer, environments_dir, interpreter

_ROOT = Path(__file__).parents[2]
_LIMIT_S = 300  # a library that looks for the network, or compiles, does not come back sooner
PROFILES = _ROOT / "profiles" / "trainers"


def main() -> int:
    """Run one command."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.trainer_keys")
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("list")
    shared = argparse.ArgumentParser(add_help=False)
    shared.add_argument("--venv", type=Path, help="the trainer's environment, built if missing")
    one = verbs.add_parser("snapshot", parents=[shared])
    one.add_argument("trainers", nargs="+", choices=sorted(TRAINERS), metavar="TRAINER")
    one.add_argument("--write", action="store_true")
    one = verbs.add_parser("validate", parents=[shared])
    one.add_argument("trainer", choices=sorted(TRAINERS))
    one.add_argument("files", nargs="+", type=Path, help="files, or folders of them")
    one.add_argument("--role", default="config", help="which of the trainer's files it is")
    one.add_argument("--world-size", type=int, default=1, help="data-parallel ranks (deepspeed)")
    asked = parser.parse_args()
    return {"list": _list, "snapshot": _snapshot, "validate": _validate}[asked.verb](asked)


def _list(_: argparse.Namespace) -> int:
    for one in TRAINERS.values():
        place = environments_dir() / one.folder
        state = "installed" if (place / "bin" / "python").is_file() else "not built"
        print(f"{one.name:14} {one.package:14} {state:10} {place}")
    return 0


def _snapshot(asked: argparse.Namespace) -> int:
    for name in asked.trainers:
        trainer = TRAINERS[name]
        done = _work(trainer, asked.venv, "snapshot")
        if done.returncode:
            print(done.stderr, file=sys.stderr)
            return 1
        text = render(merged(trainer, json.loads(done.stdout)))
        if asked.write:
            (PROFILES / f"{name}.json").write_text(text, encoding="utf-8")
        else:
            print(text, end="")
    return 0


def _validate(asked: argparse.Namespace) -> int:
    trainer = TRAINERS[asked.trainer]
    failed = 0
    for path in asked.files:
        for file in sorted(path.iterdir()) if path.is_dir() else [path]:
            options = ["--role", asked.role, "--world-size", str(asked.world_size)]
            done = _work(trainer, asked.venv, "validate", str(file.resolve()), *options)
            print(done.stdout or json.dumps({"file": str(file), "error": done.stderr[-2000:]}))
            failed += bool(done.returncode)
    return 1 if failed else 0


def _work(trainer: Trainer, venv: Path | None, verb: str, *rest: str) -> Any:
    python = interpreter(trainer, venv)
    command = [str(python), "-m", "benchmarks.trainer_keys.worker", verb]
    environment = os.environ | {
        "PYTHONPATH": str(_ROOT),
        "HF_HUB_OFFLINE": "1",
        "DS_ACCELERATOR": "cpu",
    }
    return subprocess.run(
        [*command, trainer.name, trainer.package, *rest],
        capture_output=True,
        text=True,
        env=environment,
        timeout=_LIMIT_S,
        check=False,
    )


def merged(trainer: Trainer, dumped: dict[str, Any]) -> dict[str, Any]:
    """Return a whole snapshot: what was dumped, and what people keep by hand beside it."""
    path = PROFILES / f"{trainer.name}.json"
    kept = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    return {
        "trainer": trainer.name,
        "package": trainer.package,
        "version": dumped["version"],
        "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
        "source": dumped["source"],
        "supported": kept.get("supported", f"=={dumped['version']}"),
        "renamed": kept.get("renamed", {}),
        "since": kept.get("since", {}),
        "files": dumped["files"],
    }


def render(snapshot: dict[str, Any]) -> str:
    """Return JSON with one key a line, sorted."""
    lines = ["{"]
    for name in ("trainer", "package", "version", "date", "source", "supported"):
        lines.append(f"  {json.dumps(name)}: {json.dumps(snapshot[name])},")
    lines += [f'  "{name}": {_rows(snapshot[name], 4)},' for name in ("renamed", "since")]
    lines += ['  "files": {']
    files = []
    for role, file in snapshot["files"].items():
        opened = json.dumps(sorted(file["open"]))
        keys = _rows(file["keys"], 8)
        content = f'      "open": {opened},\n      "keys": {keys}\n'
        files.append(f"    {json.dumps(role)}: {{\n{content}    }}")
    return "\n".join(lines) + "\n" + ",\n".join(files) + "\n  }\n}\n"


def _rows(rows: dict[str, Any], indent: int) -> str:
    if not rows:
        return "{}"
    pad = " " * indent
    body = ",\n".join(f"{pad}{json.dumps(name)}: {json.dumps(rows[name])}" for name in sorted(rows))
    return "{\n" + body + "\n" + " " * (indent - 2) + "}"


if __name__ == "__main__":
    sys.exit(main())
