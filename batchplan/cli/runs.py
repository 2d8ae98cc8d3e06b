"""``batchplan runs``."""

from __future__ import annotations

from typing import IO, Annotated, Any

import typer

from batchplan.cli.options import JSON_ONLY, takes


@takes(JSON_ONLY)
def runs(
    query: Annotated[
        str | None,
        typer.Argument(
            help="Words of a run's name; one match shows its facts and their sources.",
            show_default=False,
            metavar="QUERY",
        ),
    ] = None,
    **options: Any,
) -> int:
    """List published training runs with their batch and learning rate.

    Example: batchplan runs llama
    """
    from batchplan.api import catalog
    from batchplan.cli.output import deliver

    document = catalog.runs(query)

    def show(file: IO[str]) -> None:
        from batchplan.render.catalog import print_runs

        print_runs(document, file=file)

    return deliver(document, as_json=options["json"], show=show, code=0)
