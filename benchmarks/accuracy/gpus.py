"""Names that the rows give their devices, as names of the GPU catalog."""

from __future__ import annotations

_CATALOG = {
    "A100-40GB": "a100-40gb",
    "A100-80GB": "a100-80gb",
    "A100-SXM-80GB": "a100-80gb",
    "A100-SXM4-40GB": "a100-40gb",
    "NVIDIA A100-SXM4-80GB": "a100-80gb",
    "A10G-24GB": "a10g",
    "H100-80GB": "h100-sxm",
    "H20-96GB": "h20",
    "RTX 4070Ti SUPER 16GB": "rtx-4070-ti-super",
    "RTX 4090": "rtx-4090",
    "T4-16GB": "t4",
    "V100-SXM2-16GB": "v100-16gb",
}

UNSTATED = "a100-80gb"
"""Taken where a row names no device: only the cuBLAS workspace and the context depend on it."""


def catalog_gpu(name: str | None) -> tuple[str, bool]:
    """Return the catalog's name of a row's device, and whether the row really named one.

    >>> catalog_gpu("T4-16GB"), catalog_gpu(None)
    (('t4', True), ('a100-80gb', False))
    """
    known = _CATALOG.get(name or "")
    return (known, True) if known else (UNSTATED, False)
