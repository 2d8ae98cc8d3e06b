"""Everything that ``check`` may find, as a list for SARIF and the page."""

from __future__ import annotations

from batchplan.api.check_files import MISSING_FILE
from batchplan.api.check_memory import DOES_NOT_FIT
from batchplan.checker import RULES
from batchplan.checker.loop import LOOP_RULES

_OWN_RULES = (
    {
        "code": DOES_NOT_FIT,
        "severity": "error",
        "title": "The run does not fit on the device",
        "help": "Source: the bill of batchplan estimate.",
    },
    {
        "code": MISSING_FILE,
        "severity": "error",
        "title": "A file that another one names is not there",
        "help": "Looked for beside the file that names it, and in the current folder.",
    },
)


def rules() -> list[dict[str, str]]:
    """Return everything that may be found: code, usual severity, title and help text."""
    return [
        *_OWN_RULES,
        *(
            {
                "code": rule.code,
                "severity": rule.severity.value,
                "title": rule.title,
                "help": f"Source: {rule.source}.",
            }
            for rule in RULES
        ),
        *(
            {
                "code": rule.code,
                "severity": rule.severity.value,
                "title": rule.title,
                "help": "Read in the training loop of a Python file.",
            }
            for rule in LOOP_RULES
        ),
    ]
