"""The page of ``batchplan estimate``."""

from __future__ import annotations

from collections.abc import Mapping
from typing import IO, Any

from batchplan.render.bill import print_bill, print_fit, print_peak
from batchplan.render.lengths import print_data
from batchplan.render.page import Page
from batchplan.units import format_count


def print_estimate(
    document: Mapping[str, Any],
    *,
    file: IO[str],
    explain: bool = False,
    verbose: bool = False,
    width: int | None = None,
) -> None:
    """Print the bill of one configuration."""
    page = Page(file, width)
    print_subject(page, document)
    print_setting(page, document)
    page.title("Memory of one device")
    print_bill(page, document["memory"], explain=explain, verbose=verbose)
    print_peak(page, document["peak"], explain=explain)
    print_fit(page, document, document["headroom_bytes"])
    print_data(page, document)
    page.caveats(document["caveats"])


def print_setting(page: Page, document: Mapping[str, Any]) -> None:
    """Print the batch and the recipe."""
    batch, inputs = document["batch"], document["inputs"]
    page.line(
        f"Batch: {split(batch)} "
        f"(micro-batch × K × devices) = {sequences(batch['global_batch_size'])} "
        f"= {batch['global_batch_tokens']:,} tokens a step, {batch['seq_len']:,} tokens each"
    )
    page.line(
        f"Recipe: {inputs['method']}, {document['numerics']}, {inputs['optimizer']}, "
        f"{inputs['sharding']}, checkpointing {inputs['checkpointing']}, "
        f"offload {inputs['offload']}, attention {inputs['attention']}, loss {inputs['loss']}"
    )


def split(batch: Mapping[str, Any]) -> str:
    """Return micro-batch × accumulation steps × devices.

    >>> split({"micro_batch": 2, "accum_steps": 1024, "num_ranks": 8})
    '2 × 1,024 × 8'
    """
    return f"{batch['micro_batch']:,} × {batch['accum_steps']:,} × {batch['num_ranks']:,}"


def sequences(count: int) -> str:
    """Return a number of sequences in words.

    >>> sequences(1), sequences(2048)
    ('1 sequence', '2,048 sequences')
    """
    return f"{count:,} sequence{'' if count == 1 else 's'}"


def print_subject(page: Page, document: Mapping[str, Any]) -> None:
    """Print the model and the device."""
    model, device = document["model"], document["device"]
    parameters = f"{format_count(model['num_params'])} parameters"
    if model["num_trainable_params"] != model["num_params"]:
        parameters += f", {format_count(model['num_trainable_params'])} trainable"
    name = model["id"] if model["source"] == "--params" else f"{model['id']}, {parameters}"
    page.line(f"{name} ({model['architecture']}) on {device['name']}", style="bold")
    versions = ", ".join(f"{name} {text}" for name, text in document["versions"].items())
    if versions:
        page.line(f"Traced with {versions}; config from {model['source']}.", style="dim")
