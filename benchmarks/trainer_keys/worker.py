"""Runs inside a trainer's environment: ``python -m benchmarks.trainer_keys.worker VERB TRAINER``.

Writes one JSON document to the stream that was stdout; what the library prints goes to stderr.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.metadata
import io
import json
import os
import sys
from pathlib import Path
from typing import Any


def main() -> int:
    """Answer one question; exit 1 with the library's message when it refuses the file."""
    parser = argparse.ArgumentParser()
    parser.add_argument("verb", choices=("snapshot", "validate"))
    parser.add_argument("trainer")
    parser.add_argument("package")
    parser.add_argument("files", nargs="*", type=Path)
    parser.add_argument("--role", default="config")
    parser.add_argument("--world-size", type=int, default=1)
    asked = parser.parse_args()
    answer_stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)  # what a library prints while it loads is no answer
    module = importlib.import_module(
        f"benchmarks.trainer_keys.trainers.{asked.trainer.replace('-', '_')}"
    )
    if asked.verb == "snapshot":
        version = importlib.metadata.version(asked.package)
        answer: Any = {"source": module.SOURCE, "version": version, "files": module.snapshot()}
    else:
        answer = _validate(module, asked)
    json.dump(answer, answer_stream, default=_text)
    answer_stream.write("\n")
    answer_stream.close()
    return 1 if asked.verb == "validate" and "error" in answer else 0


def _validate(module: Any, asked: argparse.Namespace) -> dict[str, Any]:
    path = asked.files[0].resolve()
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            values = module.validate(path, role=asked.role, world_size=asked.world_size)
    except SystemExit:  # a command-line parser, which has printed why
        text = said.getvalue()
        return {"file": str(path), "error": text[max(text.rfind("error:"), 0) :].strip()}
    except Exception as error:  # whatever the library raises
        return {"file": str(path), "error": f"{type(error).__name__}: {error}"}
    return {"file": str(path), "values": values}


def _text(value: Any) -> Any:
    plain = getattr(value, "value", None)  # an enum
    return plain if isinstance(plain, (str, int)) else str(value)


if __name__ == "__main__":
    sys.exit(main())
