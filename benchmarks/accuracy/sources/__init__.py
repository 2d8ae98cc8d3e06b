"""One mapping per source: from its rows to keyword arguments of ``batchplan.estimate``."""

from __future__ import annotations

from collections.abc import Callable

from benchmarks.accuracy.case import Case, NotScoredError
from benchmarks.accuracy.rows import Row
from benchmarks.accuracy.sources import (
    axolotl,
    fms,
    galvatron,
    hf_blog,
    hf_docs,
    lightning_docs,
    litgpt,
    llmq,
    ms_swift,
    nemo,
    rasbt,
    thunder,
    torchao,
)

_MAPPINGS: dict[str, Callable[[Row], Case]] = {
    "axolotl-examples": axolotl.case,
    "fms-acceleration": fms.case,
    "galvatron": galvatron.case,
    "hf-blog-4bit": hf_blog.case,
    "hf-transformers-docs": hf_docs.case,
    "lightning-docs": lightning_docs.case,
    "lightning-thunder": thunder.case,
    "litgpt": litgpt.case,
    "llmq-llamafactory": llmq.case,
    "ms-swift": ms_swift.case,
    "nemo-automodel": nemo.case,
    "rasbt": rasbt.case,
    "torchao-optim": torchao.case,
}


def case_of(row: Row) -> Case:
    """Return the question that a row answers.

    Raises:
        NotScoredError: with the reason, when ``estimate`` cannot be asked about it.
    """
    if row.scope != "train_step":
        raise NotScoredError("a component, no peak of a training step")
    mapping = _MAPPINGS.get(row.source_group)
    if mapping is None:
        raise NotScoredError("no mapping of this source")
    return mapping(row)
