"""Rows of tokens as the parent sends them, and micro-batches made of them.

A row is ``[ids, labels]``: labels are None where every token is its own label.
"""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from . import window_file
from .model import IGNORED

POLL_SECONDS = 0.01


class MicroBatch(NamedTuple):
    """What the model is fed, and what of it counts."""

    fed: dict[str, torch.Tensor]
    num_tokens: int
    """Target tokens: the first of a row is predicted by nothing."""
    num_sequences: int


def collate(rows: list[Any], device: torch.device) -> MicroBatch:
    """Return rows padded to the longest one; padding is masked, and no target."""
    length = max(len(ids) for ids, _ in rows)
    shape = (len(rows), length)
    ids = torch.zeros(shape, dtype=torch.long)
    mask = torch.zeros(shape, dtype=torch.long)
    labels = torch.full(shape, IGNORED, dtype=torch.long)
    for at, (tokens, wanted) in enumerate(rows):
        ids[at, : len(tokens)] = torch.tensor(tokens)
        mask[at, : len(tokens)] = 1
        labels[at, : len(tokens)] = torch.tensor(tokens if wanted is None else wanted)
    num_tokens = int((labels[:, 1:] != IGNORED).sum())
    fed = {"input_ids": ids, "attention_mask": mask, "labels": labels}
    return MicroBatch(
        fed={name: tensor.to(device) for name, tensor in fed.items()},
        num_tokens=num_tokens,
        num_sequences=len(rows),
    )


def windows(folder: Path) -> Iterator[list[Any]]:
    """Yield windows, lists of micro-batches of rows, as the parent writes them; ``null`` ends it.

    Every rank reads them all, which spares a second way of sending.
    """
    number = 0
    while True:
        path = window_file(folder, number)
        while not path.exists():
            time.sleep(POLL_SECONDS)
        window = json.loads(path.read_text(encoding="utf-8"))
        if window is None:
            return
        yield window
        number += 1
