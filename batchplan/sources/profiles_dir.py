"""Where the catalog's data lies: inside an installed wheel, or in the repository."""

from __future__ import annotations

from pathlib import Path

from batchplan.errors import BatchplanError


def profiles_dir(package_dir: Path | None = None) -> Path:
    """Return the folder that holds ``gpus/``, ``models/`` and ``runs/``.

    A wheel carries the data as ``batchplan/_profiles``. An editable install does not get that
    mapping, so the repository's ``profiles/`` is looked for second.

    Args:
        package_dir: folder of the package; None is the one that was imported.

    Raises:
        BatchplanError: when neither is there, which means a broken installation.
    """
    package = package_dir or Path(__file__).parent.parent
    for folder in (package / "_profiles", package.parent / "profiles"):
        if (folder / "gpus").is_dir():
            return folder
    raise BatchplanError(
        f"The catalog's data is missing: no _profiles in {package} and no profiles beside it. "
        "Reinstall batchplan."
    )


def profile_file(*parts: str) -> Path:
    """Return the path of one data file of the catalog.

    Raises:
        BatchplanError: when the file is missing, which means a broken installation.
    """
    path = profiles_dir().joinpath(*parts)
    if not path.is_file():
        raise BatchplanError(f"The catalog's file {path} is missing. Reinstall batchplan.")
    return path
