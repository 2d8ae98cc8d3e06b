"""Where measurements are kept; quick to ask, because every answer for a device asks."""

from __future__ import annotations

import os
from pathlib import Path

from batchplan.sources.profiles_dir import profiles_dir

CONTRIBUTED = ("measured", "probes")
"""Where the catalog keeps measurements that users gave."""


def data_dir() -> Path:
    """Return where measurements are kept: below ``BATCHPLAN_DATA`` or the user's data folder."""
    override = os.environ.get("BATCHPLAN_DATA")
    if override:
        return Path(override) / "measurements"
    from platformdirs import user_data_path

    return user_data_path("batchplan") / "measurements"


def contributed_dir() -> Path:
    """Return the catalog's folder of measurements."""
    return profiles_dir().joinpath(*CONTRIBUTED)


def measurement_files(folder: Path) -> list[Path]:
    """Return the files of a folder by name; none where it cannot be read."""
    try:
        return sorted(path for path in folder.glob("*.json") if path.name[0] != ".")
    except OSError:
        return []


def has_measurements() -> bool:
    """Whether anything was ever saved or contributed."""
    return any(measurement_files(folder) for folder in (data_dir(), contributed_dir()))
