"""Config files on this machine: found, read with limits, and parsed; never trusted."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any, NoReturn

from batchplan.errors import SourceError, SpecError

MAX_CONFIG_BYTES = 4 * 2**20
"""Largest config file we read; the longest published ones stay below 1 MiB."""


def find_local_config(text: str) -> Path | None:
    """Return the config file that a local path means, or None when it is no local path.

    A directory without a config is no local path when it could be a Hub id or a catalog name: a
    checkout may well hold a folder called ``gpt2``.

    Raises:
        SourceError: when the text can only be a path and holds no config.
    """
    try:
        path = Path(text).expanduser()
        is_dir, is_file = path.is_dir(), path.is_file()
    except (OSError, ValueError, RuntimeError):  # too long, a null byte, or no home directory
        return None
    only_a_path = path.is_absolute() or text.startswith((".", "~")) or text.endswith(("/", "\\"))
    if is_file and (path.suffix == ".json" or only_a_path):
        return path
    if is_dir and (path / "config.json").is_file():
        return path / "config.json"
    if is_dir and (path / "adapter_config.json").is_file():
        raise SourceError(
            f"{text} holds a LoRA adapter and no config.json. Give its base model"
            f"{_base_model(path / 'adapter_config.json')}."
        )
    config = path / "config.json" if is_dir else path
    if os.path.lexists(config) and not config.is_file() and (is_dir or only_a_path):
        raise SourceError(f"{config} is not a readable file. Check where it leads.")
    if is_dir and only_a_path:
        raise SourceError(
            f"{text} holds no config.json. Give the folder that save_pretrained made."
        )
    if only_a_path or path.suffix == ".json":
        raise SourceError(f"{text} does not exist. Check the path to the config.json.")
    return None


def read_config(path: Path, where: str) -> Any:
    """Return the parsed content of a config file, whatever JSON it is.

    Args:
        path: the file.
        where: what to call it in messages.

    Raises:
        SourceError: when the file cannot be read.
        SpecError: when it is too large or no JSON.
    """
    try:
        with path.open("rb") as file:
            raw = file.read(MAX_CONFIG_BYTES + 1)
    except OSError as error:
        raise SourceError(f"{where} cannot be read: {error.strerror or error}.") from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise SpecError(
            f"{where} is larger than {MAX_CONFIG_BYTES // 2**20} MiB: that is no model config."
        )
    return parse_config(raw, where)


def parse_config(raw: bytes, where: str) -> Any:
    """Return the JSON in ``raw``.

    Raises:
        SpecError: when it is no JSON, holds NaN or Infinity, or is nested too deeply to parse.
    """

    def refuse(constant: str) -> NoReturn:
        raise SpecError(f"{where} holds {constant}, which is no JSON and no size.")

    try:
        return json.loads(raw.decode("utf-8-sig"), parse_constant=refuse)
    except UnicodeDecodeError:
        raise SpecError(f"{where} is no text file. Give the model's config.json.") from None
    except json.JSONDecodeError as error:
        raise SpecError(
            f"{where} is no JSON: {error.msg} in line {error.lineno}, column {error.colno}. "
            "It may be cut off; fetch it again."
        ) from None
    except RecursionError:
        raise SpecError(f"{where} is nested too deeply: that is no model config.") from None
    except ValueError:  # what is left: an integer of more digits than Python converts
        raise SpecError(f"{where} holds a number with thousands of digits.") from None


def _base_model(adapter_config: Path) -> str:
    try:
        base = read_config(adapter_config, "adapter_config.json")["base_model_name_or_path"]
    except (SourceError, SpecError, KeyError, TypeError, IndexError):
        return ""
    return f" ({base})" if isinstance(base, str) and len(base) < 200 else ""
