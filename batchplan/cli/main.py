"""The entry point: the app, and the only place that turns errors into lines and exit codes."""

from __future__ import annotations

import os
import signal
import sys
import traceback
from collections.abc import Sequence
from typing import Annotated, Any

import typer

from batchplan import __version__
from batchplan.cli.check import check
from batchplan.cli.estimate import estimate
from batchplan.cli.gpus import gpus
from batchplan.cli.lengths import lengths
from batchplan.cli.lr import lr
from batchplan.cli.models import models
from batchplan.cli.noise import noise
from batchplan.cli.output import silence_stdout
from batchplan.cli.probe import probe
from batchplan.cli.recommend import recommend
from batchplan.cli.runs import runs
from batchplan.cli.trace import trace
from batchplan.cli.verify import verify
from batchplan.errors import BatchplanError

INTERRUPTED = 130
TERMINATED = 143
BUG = 1

app = typer.Typer(
    name="batchplan",
    help="Plan memory and batch configuration for transformer training before the run.",
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
_COMMANDS = (
    *(recommend, estimate, check, trace, probe, noise, verify),
    *(gpus, models, runs, lr, lengths),
)
for _command in _COMMANDS:
    app.command(short_help=(_command.__doc__ or "").partition("\n")[0])(_command)


@app.callback(invoke_without_command=True)
def batchplan(
    context: typer.Context,
    version: Annotated[  # noqa: FBT002
        bool, typer.Option("--version", help="Print the version and stop.")
    ] = False,
) -> None:
    """Plan memory and batch configuration for transformer training before the run.

    Example: batchplan recommend Qwen/Qwen2.5-7B --gpu a100-80gb --devices 8 --target-tokens 1M
    """
    if version:
        print(f"batchplan {__version__}")
        raise typer.Exit
    if context.invoked_subcommand is None:
        print(context.get_help())


class _Terminated(BaseException):
    """SIGTERM, raised where the program was, so that children end and files are removed."""


def main() -> None:
    """Run the command line and exit with its code."""
    signal.signal(signal.SIGTERM, _terminate)
    sys.exit(run(sys.argv[1:]))


def _terminate(*_: object) -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # asked twice, it ends at once
    raise _Terminated


def run(arguments: Sequence[str]) -> int:
    """Run one command; every error becomes one line on stderr and an exit code."""
    _prepare_streams()
    try:
        code = app(args=list(arguments), prog_name="batchplan", standalone_mode=False)
        sys.stdout.flush()
    except BatchplanError as error:
        return _failed(error, error.exit_code)
    except (BrokenPipeError, SystemExit):
        # typer exits by itself only when it meets a closed stdout, as in printing help.
        silence_stdout()
        return 0
    except _Terminated:
        _say("terminated")
        return TERMINATED
    except (KeyboardInterrupt, typer.Abort):
        _say("interrupted")
        return INTERRUPTED
    except Exception as error:  # the one place where everything ends
        if _is_usage_error(error):
            message = error.format_message().replace("Value error, ", "")  # type: ignore[attr-defined]
            return _failed(message, error.exit_code)  # type: ignore[attr-defined]
        return _bug(error, arguments)
    if code == INTERRUPTED:
        _say("interrupted")
    return code if isinstance(code, int) else 0


def _prepare_streams() -> None:
    """Make stdout and stderr exist and take every character."""
    for name in ("stdout", "stderr"):
        stream: Any = getattr(sys, name)
        if stream is None:
            setattr(sys, name, open(os.devnull, "w", encoding="utf-8"))  # noqa: PTH123, SIM115
        elif hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def _is_usage_error(error: Exception) -> bool:
    # typer raises click's own exceptions, from click or from its copy of it, by release.
    return hasattr(error, "format_message") and hasattr(error, "exit_code")


def _failed(message: object, code: int) -> int:
    _say(f"error: {message}")
    return code


def _bug(error: Exception, arguments: Sequence[str]) -> int:
    if os.environ.get("BATCHPLAN_DEBUG") or not {"-v", "--verbose"}.isdisjoint(arguments):
        traceback.print_exc()
    _say(
        f"error: a bug: {type(error).__name__}: {error}; please report it with the command "
        "(-v shows the traceback)"
    )
    return BUG


def _say(text: str) -> None:
    """Print one line on stderr, however many the message had."""
    try:
        print(" ".join(text.split()), file=sys.stderr, flush=True)
    except OSError:
        return
