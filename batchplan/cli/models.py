"""``batchplan models``."""

from __future__ import annotations

from typing import IO, Annotated, Any

import typer

from batchplan.cli.options import JSON_ONLY, takes


@takes(JSON_ONLY)
def models(
    query: Annotated[
        str | None,
        typer.Argument(
            help="Words of a model's name; one match shows its facts and their sources.",
            show_default=False,
            metavar="QUERY",
        ),
    ] = None,
    **options: Any,
) -> int:
    """List the models that work offline, or show one with its sources.

    Example: batchplan models qwen2.5-7b
    """
    from batchplan.api import catalog
    from batchplan.cli.output import deliver

    document = catalog.models(query)

    def show(file: IO[str]) -> None:
        from batchplan.render.catalog import print_models

        print_models(document, file=file)

    return deliver(document, as_json=options["json"], show=show, code=0)
