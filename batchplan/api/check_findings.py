"""One finding as a document."""

from __future__ import annotations

from typing import Any

from batchplan.configfile import Finding


def finding_document(finding: Finding) -> dict[str, Any]:
    """Return one finding; ``is_fixable`` says whether ``--fix`` mends it."""
    return {
        "code": finding.code,
        "severity": finding.severity.value,
        "file": finding.file,
        "line": finding.line,
        "key": finding.key,
        "text": finding.text,
        "fix": finding.fix,
        "is_fixable": bool(finding.edits),
    }
