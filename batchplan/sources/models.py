"""A model's name turned into its config: local path, then catalog, then Hub."""

from __future__ import annotations

import csv
import difflib
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from batchplan.errors import BatchplanError, SpecError
from batchplan.sources.config_check import check_config, needs_remote_code
from batchplan.sources.local_config import find_local_config, read_config
from batchplan.sources.model_info import model_info
from batchplan.sources.profiles_dir import profile_file
from batchplan.spec import ModelInfo


@dataclass(frozen=True, slots=True, kw_only=True)
class ResolvedModel:
    """A model that was found, and its config."""

    info: ModelInfo
    config: dict[str, Any]
    """Content of ``config.json``, checked but otherwise as it was found."""
    needs_remote_code: bool
    """Whether the config names code of the model's own repository (``auto_map``)."""
    num_params: int | None = None
    """What the catalog says; None from elsewhere."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CatalogModel:
    """One row of ``profiles/models/index.csv``."""

    id: str
    file: str
    aliases: tuple[str, ...]
    num_params: int | None
    num_params_exact: bool
    num_params_source: str
    config_source: str
    checked: str


def resolve_model(
    text: str,
    *,
    revision: str | None = None,
    trust_remote_code: bool = False,
    offline: bool = False,
) -> ResolvedModel:
    """Return the model that a path, a catalog name or a Hub id means.

    Args:
        text: what the user wrote.
        revision: branch, tag or commit on the Hub; with one the catalog is not asked.
        trust_remote_code: whether the model's own code may run later.
        offline: never ask the network.

    Raises:
        SpecError: when the text can be no model, or its config makes no sense.
        SourceError: when the config cannot be had.
    """
    text = text.strip()
    if not text:
        raise SpecError("The model is empty. Give a Hub id such as Qwen/Qwen2.5-7B, or a path.")
    if (path := find_local_config(text)) is not None:
        if revision is not None:
            raise SpecError(f"{text} is a local path and has no revisions. Leave out --revision.")
        found = _resolved(text, read_config(path, text), f"local: {path}", trust=trust_remote_code)
    elif revision is None and (row := find_catalog_model(text)) is not None:
        found = _from_catalog(row, trust=trust_remote_code)
    else:
        found = _from_hub(text, revision, offline=offline, trust=trust_remote_code)
    return found


def find_catalog_model(text: str) -> CatalogModel | None:
    """Return the catalog's model of that id or alias, whatever its case; None without one."""
    return _models_by_name().get(text.strip().lower())


@cache
def list_models() -> tuple[CatalogModel, ...]:
    """Return every model of the catalog, in its order.

    Raises:
        BatchplanError: when the index is missing or broken.
    """
    path = profile_file("models", "index.csv")
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return tuple(_row(fields) for fields in csv.DictReader(file))
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise BatchplanError(f"{path} is broken: {error!r}") from error


@cache
def _models_by_name() -> dict[str, CatalogModel]:
    models = list_models()
    aliases = {alias.lower(): model for model in models for alias in model.aliases}
    # An id wins over another model's alias.
    return aliases | {model.id.lower(): model for model in models}


def _row(fields: dict[str, str]) -> CatalogModel:
    return CatalogModel(
        id=fields["id"],
        file=fields["file"],
        aliases=tuple(alias.strip() for alias in fields["aliases"].split(";") if alias.strip()),
        num_params=int(fields["num_params"]) if fields["num_params"] else None,
        num_params_exact=fields["num_params_exact"] == "yes",
        num_params_source=fields["num_params_source"],
        config_source=fields["config_source"],
        checked=fields["checked"],
    )


def _from_catalog(row: CatalogModel, *, trust: bool) -> ResolvedModel:
    path = profile_file("models", row.file)
    source = f"catalog: {row.config_source}, checked {row.checked}"
    config = read_config(path, f"catalog file {row.file}")
    return _resolved(row.id, config, source, trust=trust, num_params=row.num_params)


def _from_hub(text: str, revision: str | None, *, offline: bool, trust: bool) -> ResolvedModel:
    from batchplan.sources.hub import fetch_config

    fetched = fetch_config(text, revision=revision, offline=offline, hint=_nearest(text))
    source = f"hub: {text} at {fetched.commit}{'' if fetched.is_fresh else ' (cached)'}"
    config = read_config(Path(fetched.path), f"config.json of {text}")
    return _resolved(text, config, source, trust=trust, revision=fetched.commit)


def _resolved(
    text: str,
    config: Any,
    source: str,
    *,
    trust: bool,
    revision: str | None = None,
    num_params: int | None = None,
) -> ResolvedModel:
    check_config(config, f"config of {text}")
    remote = needs_remote_code(config)
    if remote and "model_type" not in config and not trust:
        raise SpecError(
            f"{text} has no model_type: it runs only with code from its own repository. Read that "
            "code, then allow it with --trust-remote-code."
        )
    return ResolvedModel(
        info=model_info(config, model_id=text, source=source, revision=revision),
        config=config,
        needs_remote_code=remote,
        num_params=num_params,
    )


def _nearest(text: str) -> str:
    """Return a sentence with the catalog's nearest names, or nothing."""
    wanted = text.lower()
    by_name = _models_by_name()
    names = difflib.get_close_matches(wanted, by_name, n=8, cutoff=0.6)
    ids = list(dict.fromkeys(by_name[name].id for name in names))[:4]
    return f" Nearest in the catalog: {', '.join(ids)}." if ids else ""
