"""``batchplan check``."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Annotated, Any

import typer

from batchplan.cli.options import JSON_ONLY, SUBJECT, Options, option, takes
from batchplan.errors import SpecError

_CONFIGS = Annotated[
    list[str],
    typer.Argument(
        help="Files of one run: trainer, accelerate, DeepSpeed, launch script, training script.",
        show_default=False,
        metavar="CONFIG...",
    ),
]
_ASKED: Options = {
    "trainer": option(
        str, "Trainer whose files these are. Default: as their keys tell.", metavar="NAME"
    ),
    "gpu": option(
        str,
        "Judge memory on this GPU: catalog name (a100-80gb), size (24GiB), local. Default: none.",
        metavar="NAME|SIZE",
    ),
    "devices": option(
        str, "Devices over all nodes. Default: what the files say, or 1.", metavar="N"
    ),
    "nodes": option(str, "Machines. Default: what the files say.", metavar="N"),
    "model": option(
        str, "Hub id, local folder or catalog name. Default: what the files say.", metavar="MODEL"
    ),
    "seq_len": option(
        str,
        "Tokens per sequence. Default: what the files say, or the trainer's own.",
        metavar="TOKENS",
    ),
    **{name: SUBJECT[name] for name in ("python", "revision", "trust_remote_code", "offline")},
}
_OUTPUT: Options = {
    "fix": option(bool, "Mend what can be mended; -o says where to. Default: off.", "--fix"),
    "output": option(
        Path,
        "With --fix: the mended copy of the main file, or a folder for copies of all.",
        "-o",
        "--output",
        metavar="FILE|FOLDER",
    ),
    "sarif": option(bool, "Print SARIF 2.1.0, for code scanning in CI.", "--sarif"),
    **JSON_ONLY,
}


@takes(_ASKED, _OUTPUT)
def check(configs: _CONFIGS, **options: Any) -> int:
    """Read a trainer's config: effective batch, memory, and mistakes with their fixes.

    Nothing in a file is executed. Exit code 6 when there is an error.

    Example: batchplan check train.yaml accelerate.yaml --gpu a100-80gb --devices 8
    """
    from batchplan.api import check as answer_check
    from batchplan.cli.output import Progress, deliver, refuse_unwritable

    as_json, quiet = options.pop("json"), options.pop("quiet")
    as_sarif, fix, output = options.pop("sarif"), options.pop("fix"), options.pop("output")
    if fix is not (output is not None):
        raise SpecError("--fix and -o FILE go together: mend, and where to.")
    if as_json and as_sarif:
        raise SpecError("--json and --sarif: one of them.")
    is_folder = output is not None and _is_folder(output)
    refuse_unwritable(output / Path(configs[0]).name if output and output.is_dir() else output)
    given = {name: value for name, value in options.items() if value is not None}
    with Progress(quiet=quiet) as progress:
        answer = answer_check(configs, on_progress=progress, **given)
        mended = answer.fix(every_file=is_folder) if fix else None
    document, code = answer.to_dict(), answer.exit_code
    if mended is not None:
        paths = mended.written_to(output, is_folder=is_folder)
        _write([(path, mended.texts[name]) for name, path in paths.items()])
        names = {name: str(path) for name, path in paths.items()}
        document["fixed"] = {
            "file": next(iter(names.values())),
            "files": list(names.values()),
            **mended.to_dict(names),
        }
        code = mended.after.exit_code
    if as_sarif:
        from batchplan import __version__
        from batchplan.api.check_rules import rules
        from batchplan.render.sarif import to_sarif

        document = to_sarif(document["findings"], rules(), version=__version__)

    def show(file: IO[str]) -> None:
        from batchplan.render.check import print_check

        print_check(document, file=file)

    return deliver(document, as_json=as_json or as_sarif, show=show, code=code)


def _is_folder(output: Path) -> bool:
    """Whether ``-o`` names a folder: one that is there, or a new name without a suffix."""
    return output.is_dir() or not (output.suffix or output.exists())


def _write(files: list[tuple[Path, str]]) -> None:
    from batchplan.cli.output import write_files

    for path, _ in files:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise SpecError(f"Cannot write {path}: {error.strerror or error}.") from None
    write_files(files)
