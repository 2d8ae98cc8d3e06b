"""The catalog as documents: GPUs, models and published runs, all or those a query names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from batchplan.api.documents import SCHEMA_VERSION, plain
from batchplan.errors import UnknownNameError


def gpus(query: str | None = None) -> dict[str, Any]:
    """Return the GPUs whose name holds every word of ``query``; all without one.

    Raises:
        UnknownNameError: when there is none.
    """
    from batchplan.sources import load_gpus

    rows = load_gpus()
    names = [(row.alias, row.name, *row.aliases) for row in rows]
    found = [rows[index] for index in _matches("GPU", query, names)]
    return _document("gpus", query, [_gpu(row) for row in found])


def _gpu(row: Any) -> dict[str, Any]:
    gpu = row.to_gpu() if row.torch_total_gib_min or row.smi_mib else None
    facts: dict[str, Any] = plain(row)
    return facts | {"usable_bytes": None if gpu is None else gpu.usable_bytes}


def models(query: str | None = None) -> dict[str, Any]:
    """Return the models whose id or alias holds every word of ``query``; all without one.

    Raises:
        UnknownNameError: when there is none.
    """
    from batchplan.sources import list_models

    rows = list_models()
    found = _matches("model", query, [(row.id, *row.aliases) for row in rows])
    return _document("models", query, [plain(rows[index]) for index in found])


def runs(query: str | None = None) -> dict[str, Any]:
    """Return the published runs whose name holds every word of ``query``; all without one.

    Raises:
        UnknownNameError: when there is none.
    """
    from batchplan.sources import load_runs

    rows = load_runs()
    found = _matches("run", query, [(row.run,) for row in rows])
    return _document("runs", query, [plain(rows[index]) for index in found])


def _matches(kind: str, query: str | None, names: Iterable[tuple[str, ...]]) -> list[int]:
    """Return the positions that match: one that has exactly that name, or all that hold it."""
    names = [tuple(name.lower() for name in row) for row in names]
    if query is None:
        return list(range(len(names)))
    wanted = query.strip().lower()
    exact = [index for index, row in enumerate(names) if wanted in row]
    if exact:
        return exact
    words = wanted.split()
    found = [
        index
        for index, row in enumerate(names)
        if any(all(word in name for word in words) for name in row)
    ]
    if not found or not words:
        known = [name for row in names for name in row]
        raise UnknownNameError(kind, query, known, f"`batchplan {kind.lower()}s` lists all.")
    return found


def _document(command: str, query: str | None, rows: list[Any]) -> dict[str, Any]:
    return {
        "schema_version": SCHEMA_VERSION,
        "command": command,
        "inputs": {"query": query},
        command: rows,
    }
