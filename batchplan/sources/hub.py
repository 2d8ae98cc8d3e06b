"""A model's config from the Hugging Face Hub, through its real client.

The client honours ``HF_ENDPOINT``, ``HF_TOKEN``, ``HF_HOME`` and ``HF_HUB_OFFLINE``, and keeps what
it downloads in its cache. We ask in two steps, because its one-step download retries a dead
connection for minutes: first for the file's metadata, with a short timeout, and only when that
answers for the file. Some of its versions retry even that, so both together have a deadline.
"""

from __future__ import annotations

import os
import re
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from batchplan.errors import SourceError, SpecError
from batchplan.sources.local_config import MAX_CONFIG_BYTES

TIMEOUT_SECONDS = 5.0
"""How long the Hub may take to answer; ``HF_HUB_ETAG_TIMEOUT`` overrides it."""

DEADLINE_TIMEOUTS = 3
"""How many timeouts all questions together may take, retries and name look-up included."""

_CONFIG = "config.json"
# A branch, tag, commit or refs/pr/1; never a way out of the cache's folder.
_REVISION = re.compile(r"(?!.*\.\.)[\w][\w./+-]{0,199}")


@dataclass(frozen=True, slots=True)
class HubConfig:
    """A config file in the client's cache, and what the Hub says it is."""

    path: Path
    commit: str
    is_fresh: bool
    """Whether the Hub was asked now; False when the cache answered alone."""


def fetch_config(
    repo_id: str, *, revision: str | None = None, offline: bool = False, hint: str = ""
) -> HubConfig:
    """Return a model's config, downloaded or from the client's cache.

    Args:
        repo_id: such as ``Qwen/Qwen2.5-7B``; ids without a slash are the Hub's oldest ones.
        revision: branch, tag or commit; None is the default branch.
        offline: use the cache alone.
        hint: added to the message when there is no such model.

    Raises:
        SpecError: when the id or the revision cannot be one.
        SourceError: when the config cannot be had; the message says why and what to try.
    """
    _check_names(repo_id, revision)
    if offline:
        cached = _from_cache(repo_id, revision)
        if cached is None:
            raise SourceError(f"{_not_cached(repo_id, revision)}, and we are offline.{hint}")
        return cached
    timeout = _timeout()
    try:
        with _quiet_downloads():
            return _within(
                DEADLINE_TIMEOUTS * timeout, lambda: _ask_hub(repo_id, revision, timeout)
            )
    except Exception as error:
        if (cached := _after_lost_connection(error, repo_id, revision)) is not None:
            return cached
        reason = _reason(error, repo_id, revision, hint)
        if reason is None:
            raise
        raise SourceError(reason) from error


def _ask_hub(repo_id: str, revision: str | None, timeout: float) -> HubConfig:
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url

    url = hf_hub_url(repo_id, _CONFIG, revision=revision)
    metadata = get_hf_file_metadata(url, timeout=timeout)
    if metadata.commit_hash is None:
        raise SourceError(
            f"{url} does not answer as a Hugging Face Hub does. Check HF_ENDPOINT and the proxy."
        )
    if metadata.size is not None and metadata.size > MAX_CONFIG_BYTES:
        raise SourceError(
            f"The config.json of {repo_id} has {metadata.size:,} bytes: that is no model config."
        )
    cached = _from_cache(repo_id, revision)
    if cached is not None and cached.commit == metadata.commit_hash:
        path = cached.path
    else:
        # By revision and not by commit, so that the cache learns which commit the branch is at.
        path = Path(hf_hub_download(repo_id, _CONFIG, revision=revision, etag_timeout=timeout))
    return HubConfig(path, metadata.commit_hash, is_fresh=True)


def _from_cache(repo_id: str, revision: str | None) -> HubConfig | None:
    """Return the cached config; even `local_files_only` may ask the Hub for other things."""
    from huggingface_hub import try_to_load_from_cache

    # What is not a path is None, or a mark that the Hub once had no such file.
    found = try_to_load_from_cache(repo_id, _CONFIG, revision=revision)
    if not isinstance(found, str):
        return None
    return HubConfig(Path(found), Path(found).parent.name, is_fresh=False)


def _after_lost_connection(
    error: Exception, repo_id: str, revision: str | None
) -> HubConfig | None:
    """Return the cached config when the Hub could not be reached, as the client itself would."""
    return _from_cache(repo_id, revision) if _is_lost_connection(error) else None


def _is_lost_connection(error: Exception) -> bool:
    from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled

    if isinstance(error, HfHubHTTPError):
        return _status(error) == 429 or _status(error) >= 500
    lost: tuple[type[Exception], ...] = (OfflineModeIsEnabled, ConnectionError, TimeoutError)
    return isinstance(error, lost + _transport_errors())


def _transport_errors() -> tuple[type[Exception], ...]:
    """Return the base errors of the HTTP library that the installed client has imported.

    It has been requests, httpx and httpx2; none of them is a dependency of ours.
    """
    bases = (("requests", "RequestException"), ("httpx", "HTTPError"), ("httpx2", "HTTPError"))
    return tuple(
        getattr(sys.modules[module], name) for module, name in bases if module in sys.modules
    )


def _reason(error: Exception, repo_id: str, revision: str | None, hint: str) -> str | None:
    """Return one line on why the config cannot be had, or None when the error is not the Hub's."""
    from huggingface_hub import errors as hub

    advice = "Give a local folder or config.json instead, or a catalog model."
    if isinstance(error, hub.OfflineModeIsEnabled):
        return f"{_not_cached(repo_id, revision)}, and HF_HUB_OFFLINE forbids asking.{hint}"
    if isinstance(error, hub.GatedRepoError):  # a RepositoryNotFoundError, so it comes first
        return (
            f"{repo_id} is gated. Accept its licence on its Hub page, then run `hf auth login` or "
            f"set HF_TOKEN. {advice}"
        )
    if isinstance(error, hub.RepositoryNotFoundError):
        return (
            f"The Hub has no model {repo_id}, or it is private. Check the spelling; for a private "
            f"one run `hf auth login` or set HF_TOKEN.{hint}"
        )
    if isinstance(error, hub.RevisionNotFoundError):
        return f"{repo_id} has no revision {revision!r}. Name a branch, tag or commit of it."
    if isinstance(error, hub.EntryNotFoundError) and not isinstance(error, FileNotFoundError):
        return (
            f"{repo_id} has no config.json at {revision or 'its default branch'}: it may hold GGUF "
            "or adapter files only. Give the model it was made from."
        )
    if isinstance(error, hub.HfHubHTTPError) and not _is_lost_connection(error):
        return (
            f"The Hub refused the config of {repo_id} with HTTP {_status(error)}. A token that has "
            f"expired or lacks rights does this: run `hf auth login`. {advice}"
        )
    if _is_lost_connection(error) or isinstance(error, hub.LocalEntryNotFoundError):
        return (
            f"The Hub cannot be reached ({_brief(error)}), and {repo_id} is not in its cache. "
            f"Check the connection, HF_ENDPOINT and the proxy.{hint} {advice}"
        )
    if isinstance(error, (OSError, UnicodeError)):  # a full disk, a cut-off file, a garbled token
        return f"The config of {repo_id} could not be downloaded ({_brief(error)}). {advice}"
    return None


def _timeout() -> float:
    try:
        return max(0.1, float(os.environ["HF_HUB_ETAG_TIMEOUT"]))
    except (KeyError, ValueError):
        return TIMEOUT_SECONDS


def _within(seconds: float, ask: Callable[[], HubConfig]) -> HubConfig:
    """Return what ``ask`` returns, or raise TimeoutError when it takes too long.

    The thread that is left behind is a daemon: it ends with the process and holds nothing up.
    """
    answers: list[HubConfig] = []
    failures: list[Exception] = []

    def run() -> None:
        try:
            answers.append(ask())
        except Exception as error:
            failures.append(error)

    thread = threading.Thread(target=run, name="batchplan-hub", daemon=True)
    thread.start()
    thread.join(seconds)
    if answers:
        return answers[0]
    if failures:
        raise failures[0]
    raise TimeoutError(f"no answer within {seconds:.0f} s")


def _check_names(repo_id: str, revision: str | None) -> None:
    from huggingface_hub import hf_hub_url
    from huggingface_hub.errors import HFValidationError

    try:
        hf_hub_url(repo_id, _CONFIG)
    except HFValidationError:
        raise SpecError(
            f"{repo_id!r} is no model: not a local path, and no Hub id such as Qwen/Qwen2.5-7B."
        ) from None
    if revision is not None and not _REVISION.fullmatch(revision):
        raise SpecError(f"{revision!r} is no revision. Give a branch, tag or commit.")


def _not_cached(repo_id: str, revision: str | None) -> str:
    at = f" at {revision}" if revision else ""
    return f"{repo_id}{at} is not in the Hub's cache here"


def _status(error: Exception) -> int:
    """Return the HTTP status that a client's error carries, or 0."""
    return int(getattr(getattr(error, "response", None), "status_code", 0))


def _brief(error: Exception) -> str:
    """Return an error's HTTP status, or its first line, at most a hundred characters of it."""
    if _status(error):
        return f"HTTP {_status(error)}"
    first = (str(error).strip() or type(error).__name__).splitlines()[0]
    return first if len(first) <= 100 else f"{first[:97]}..."


@contextmanager
def _quiet_downloads() -> Iterator[None]:
    """Hold back the client's progress bar: a config is a kilobyte, and stderr may be a log."""
    from huggingface_hub.utils.tqdm import (
        are_progress_bars_disabled,
        disable_progress_bars,
        enable_progress_bars,
    )

    was_quiet = are_progress_bars_disabled()
    with warnings.catch_warnings():
        # It warns when an environment variable has already decided.
        warnings.simplefilter("ignore")
        disable_progress_bars()
    try:
        yield
    finally:
        if not was_quiet:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                enable_progress_bars()
