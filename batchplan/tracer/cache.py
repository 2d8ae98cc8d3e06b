"""Profiles on disk, by content hash: locked, written atomically, never trusted blindly.

An entry is one JSON file that carries its own key and a checksum of its profile. One that is
truncated, edited, of another version or under the wrong name is rebuilt. A cache that cannot be
read or written costs time, never an answer.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from batchplan.errors import TraceError
from batchplan.profile import SCHEMA_VERSION, ActivationProfile

LOCK_SECONDS = 600
MAX_ENTRY_BYTES = 16 * 2**20


def cache_dir() -> Path:
    """Return where profiles are kept: ``BATCHPLAN_CACHE``, or the platform's cache folder."""
    from platformdirs import user_cache_path

    override = os.environ.get("BATCHPLAN_CACHE")
    return Path(override) if override else user_cache_path("batchplan") / "profiles"


def cache_key(parts: dict[str, Any]) -> str:
    """Return the hash of everything a profile depends on."""
    text = json.dumps({"schema_version": SCHEMA_VERSION, **parts}, sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()


def load_or_build(
    key: str,
    build: Callable[[], ActivationProfile],
    *,
    directory: Path | None = None,
    on_warning: Callable[[str], None] | None = None,
) -> ActivationProfile:
    """Return the cached profile of ``key``, or build it once and keep it.

    Two processes that ask for the same key at once build it once: the second waits for the first.
    """
    path = (directory or cache_dir()) / f"{key}.json"
    found = _read(path, key)
    if found is not None:
        return found
    with _locked(path, on_warning):
        found = _read(path, key)
        if found is not None:
            return found
        profile = build()
        try:
            _write(path, key, profile)
        except OSError as error:
            _warn(on_warning, f"The profile could not be cached in {path.parent}: {error}")
        return profile


def _read(path: Path, key: str) -> ActivationProfile | None:
    try:
        if path.stat().st_size > MAX_ENTRY_BYTES:
            return None
        entry = json.loads(path.read_text(encoding="utf-8"))
        if entry["key"] != key or entry["sha256"] != _checksum(entry["profile"]):
            return None
        return ActivationProfile.from_dict(entry["profile"])
    except (OSError, ValueError, KeyError, TypeError, RecursionError, TraceError):
        return None


def _write(path: Path, key: str, profile: ActivationProfile) -> None:
    data = profile.to_dict()
    text = json.dumps({"key": key, "sha256": _checksum(data), "profile": data})
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".writing-", suffix=".json")
    try:
        with os.fdopen(handle, "w", encoding="utf-8") as stream:
            stream.write(text)
        Path(temporary).replace(path)
    except BaseException:
        with contextlib.suppress(OSError):
            Path(temporary).unlink()
        raise


def _checksum(profile: Any) -> str:
    return hashlib.sha256(json.dumps(profile, sort_keys=True).encode()).hexdigest()


@contextlib.contextmanager
def _locked(path: Path, on_warning: Callable[[str], None] | None) -> Iterator[None]:
    from filelock import FileLock, Timeout

    lock = FileLock(f"{path}.lock", timeout=LOCK_SECONDS)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except (OSError, Timeout) as error:
        _warn(on_warning, f"The profile cache {path.parent} cannot be used: {error}")
        yield
        return
    try:
        yield
    finally:
        lock.release()  # The lock file stays: removing it would race with who waits for it.


def _warn(on_warning: Callable[[str], None] | None, text: str) -> None:
    if on_warning is not None:
        on_warning(text)
