"""``batchplan gpus``."""

from __future__ import annotations

from typing import IO, Annotated, Any

import typer

from batchplan.cli.options import JSON_ONLY, takes


@takes(JSON_ONLY)
def gpus(
    query: Annotated[
        str | None,
        typer.Argument(
            help="Words of a GPU's name; one match shows all its facts and their sources.",
            show_default=False,
            metavar="QUERY",
        ),
    ] = None,
    **options: Any,
) -> int:
    """List the GPUs that --gpu knows, or show one with its sources.

    Example: batchplan gpus a100-80gb
    """
    from batchplan.api import catalog
    from batchplan.cli.output import deliver

    document = catalog.gpus(query)

    def show(file: IO[str]) -> None:
        from batchplan.render.catalog import print_gpus

        print_gpus(document, file=file)

    return deliver(document, as_json=options["json"], show=show, code=0)
