"""Findings as SARIF 2.1.0, which code scanning reads.

Source: https://docs.oasis-open.org/sarif/sarif/v2.1.0/sarif-v2.1.0.html, sections 3.13 to 3.30.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any
from urllib.parse import quote

SCHEMA = "https://json.schemastore.org/sarif-2.1.0.json"


def to_sarif(
    findings: Sequence[Mapping[str, Any]], rules: Sequence[Mapping[str, str]], *, version: str
) -> dict[str, Any]:
    """Return one run with a rule for each code and a result for each finding.

    Args:
        findings: as ``batchplan check --json`` prints them.
        rules: ``code``, ``title``, ``help`` and ``severity`` of everything that may be found.
        version: ours.
    """
    known = {rule["code"]: place for place, rule in enumerate(rules)}
    return {
        "$schema": SCHEMA,
        "version": "2.1.0",
        "runs": [
            {
                "tool": {
                    "driver": {
                        "name": "batchplan",
                        "version": version,
                        "rules": [_rule(rule) for rule in rules],
                    }
                },
                "columnKind": "unicodeCodePoints",
                "results": [_result(finding, known) for finding in findings],
            }
        ],
    }


def _rule(rule: Mapping[str, str]) -> dict[str, Any]:
    return {
        "id": rule["code"],
        "shortDescription": {"text": rule["title"]},
        "help": {"text": rule["help"]},
        "defaultConfiguration": {"level": rule["severity"]},
    }


def _result(finding: Mapping[str, Any], known: Mapping[str, int]) -> dict[str, Any]:
    text = f"{finding['text']} {finding['fix']}".strip()
    found: dict[str, Any] = {
        "ruleId": finding["code"],
        "level": finding["severity"],
        "message": {"text": text},
    }
    if finding["code"] in known:
        found["ruleIndex"] = known[finding["code"]]
    if finding["file"]:
        found["locations"] = [{"physicalLocation": _place(finding)}]
    return found


def _place(finding: Mapping[str, Any]) -> dict[str, Any]:
    place: dict[str, Any] = {"artifactLocation": {"uri": _uri(finding["file"])}}
    if finding["line"] is not None:
        place["region"] = {"startLine": finding["line"]}
    return place


def _uri(name: str) -> str:
    """Return a file name as a URI reference, relative where the name is.

    >>> _uri("configs/my run.yaml")
    'configs/my%20run.yaml'
    """
    path = PurePath(name)
    return path.as_uri() if path.is_absolute() else quote(path.as_posix())
