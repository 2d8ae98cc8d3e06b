"""One JSON document, as ``--json`` prints it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any


def to_json(document: Mapping[str, Any]) -> str:
    """Return the document as JSON text that ends with a newline; no NaN, no infinity."""
    return json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
