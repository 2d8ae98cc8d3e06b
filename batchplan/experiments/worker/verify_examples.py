"""Micro-batches to compare with: equal ones, very unequal ones, and all of them as one batch."""

from __future__ import annotations

import random
from typing import Any

import torch
from torch import nn

from batchplan.tracer.worker.built import RequestError, WorkerError

from .model import IGNORED, base_of

EQUAL_TARGETS = 48
UNEQUAL_TARGETS = (10, 300, 100, 30, 200)
"""Of the longest sequence of successive micro-batches. Five in a row and all different: no rank and
no place in a window always gets the short ones, so that every mistake has weights of its own."""
_NEAREST = 8
"""Rows of the user's to draw one of a length from."""
MASKED_SHARE = 0.5
"""Of tokens that are targets of a masked model; more than in training, so that none has none."""

Batch = Any  # of tensors by name, as the model takes it


class Examples:
    """Draws micro-batches for a model and counts their targets as its loss does."""

    def __init__(self, model: nn.Module, request: dict[str, Any], device: torch.device) -> None:
        base = base_of(model)
        self.config = base.config
        self._inputs = getattr(base, "main_input_name", "input_ids")
        if self._inputs not in ("input_ids", "pixel_values"):
            raise RequestError(
                f"{type(base).__name__} takes {self._inputs}; examples can be made of tokens and "
                "images only."
            )
        self._device = device
        self._rng = random.Random(request["seed"])
        self._rows = [row for row in request["rows"] if len(row[0]) > 2]
        self._per_micro_batch = request["micro_batch"]
        name = type(base).__name__
        self._is_masked = name.endswith("ForMaskedLM")
        self._has_classes = name.endswith("ForTokenClassification")
        self._is_seq2seq = bool(getattr(self.config, "is_encoder_decoder", False))
        self._takes_tokens = self._inputs == "input_ids"
        self.has_lengths = self._takes_tokens and not name.endswith("ForSequenceClassification")
        """Whether the number of targets follows from the length; else every example has one."""
        if self._takes_tokens:
            if not self.has_lengths and getattr(self._text_config, "pad_token_id", None) is None:
                # A decoder looks for the last token that is no padding.
                self._text_config.pad_token_id = 0
            special = {
                value
                for part in (self.config, self._text_config)
                for name, value in vars(part).items()
                if name.endswith(("_token_id", "_token_index")) and isinstance(value, int)
            }
            self._ordinary = [
                token for token in range(self._text_config.vocab_size) if token not in special
            ]
        self._shifts = (
            self.has_lengths and not self._has_classes and self._ignores_first_label(model)
        )

    def equal(self, count: int) -> list[Batch]:
        """Return micro-batches whose sequences are all of one length."""
        return [
            self.collate(
                [self._example(EQUAL_TARGETS, all_count=True) for _ in range(self._per_micro_batch)]
            )
            for _ in range(count)
        ]

    def unequal(self, count: int) -> list[Batch]:
        """Return micro-batches of very unequal lengths, unequal also inside of each."""
        found = []
        for number in range(count):
            targets = UNEQUAL_TARGETS[number % len(UNEQUAL_TARGETS)]
            lengths = [max(4, targets // (1 + row % 2)) for row in range(self._per_micro_batch)]
            found.append(self.collate([self._example(length) for length in lengths]))
        return found

    def of_length(self, length: int) -> Batch:
        """Return a batch of one sequence."""
        return self.collate([self._example(length)])

    def targets(self, batch: Batch) -> int:
        """Return the number of labels that the loss is a mean over."""
        labels = batch["labels"]
        if self._shifts:
            labels = labels[..., 1:]
        return int(labels.ne(IGNORED).sum())

    def together(self, batches: list[Batch]) -> Batch:
        """Return one batch of the same examples in the same order."""
        return self.collate([row for batch in batches for row in self.rows(batch)])

    def rows(self, batch: Batch) -> list[Batch]:
        """Return the examples of a batch, without its padding."""
        if not self._takes_tokens:
            return [
                {name: value[i] for name, value in batch.items()}
                for i in range(len(batch["labels"]))
            ]
        found = []
        for i, mask in enumerate(batch["attention_mask"]):
            length = int(mask.sum())
            labels = batch["labels"][i]
            if self.has_lengths:
                end = int(labels.ne(IGNORED).nonzero().max()) + 1 if self._is_seq2seq else length
                labels = labels[:end]
            found.append({"input_ids": batch["input_ids"][i, :length], "labels": labels})
        return found

    def collate(self, rows: list[Batch]) -> Batch:
        """Return a batch, padded on the right to its longest example."""
        if not self._takes_tokens:
            return {name: torch.stack([row[name] for row in rows]) for name in rows[0]}
        labels = [row["labels"] for row in rows]
        return {
            "input_ids": _padded([row["input_ids"] for row in rows], self._padding),
            "attention_mask": _padded([torch.ones_like(row["input_ids"]) for row in rows], 0),
            "labels": _padded(labels, IGNORED) if self.has_lengths else torch.stack(labels),
        }

    @property
    def _padding(self) -> int:
        known = getattr(self._text_config, "pad_token_id", None)
        return known if isinstance(known, int) and known >= 0 else 0

    @property
    def _text_config(self) -> Any:
        get = getattr(self.config, "get_text_config", None)
        return get() if get else self.config

    def _example(self, num_targets: int, *, all_count: bool = False) -> Batch:
        """Return an example; ``all_count`` makes targets of tokens that the user's data masks."""
        if not self._takes_tokens:
            return self._image()
        length = num_targets + (not self._is_seq2seq and not self._is_masked)
        limit = getattr(self._text_config, "max_position_embeddings", None)
        if limit is not None and limit > 0:  # XLNet, without any, says -1; RoBERTa's start at 2
            length = max(3, min(length, limit - 2))
        ids, labels = self._tokens(length)
        if not self.has_lengths:
            return {"input_ids": torch.tensor(ids, device=self._device), "labels": self._class()}
        if self._has_classes:
            classes = self.config.num_labels
            labels = [each if each == IGNORED else each % classes for each in labels]
        elif self._is_masked:
            labels = [
                token if position == length - 1 or self._rng.random() < MASKED_SHARE else IGNORED
                for position, token in enumerate(ids)
            ]
        elif self._is_seq2seq:
            ids, labels = self._tokens(length)[0], ids
        elif all_count or all(label == IGNORED for label in labels[1:]):
            labels = ids
        return {
            "input_ids": torch.tensor(ids, device=self._device),
            "labels": torch.tensor(labels, device=self._device),
        }

    def _tokens(self, length: int) -> tuple[list[int], list[int]]:
        """Return ids and labels: drawn, or one of the user's rows whose length is near.

        It is cut or repeated to exactly ``length``: lengths are what the checks are about.
        """
        if not self._rows:
            ids = [self._plain(self._rng.randrange(1 << 30)) for _ in range(length)]
            return ids, ids
        nearest = sorted(self._rows, key=lambda row: abs(len(row[0]) - length))
        ids, labels = self._rng.choice(nearest[:_NEAREST])
        times = -(-length // len(ids))
        plain = [self._plain(token) for token in (ids * times)[:length]]
        if labels is None:
            return plain, plain
        marks = (labels * times)[:length]
        return plain, [m if m == IGNORED else self._plain(m) for m in marks]

    def _plain(self, token: int) -> int:
        """Return a token of the small vocabulary without a meaning of its own."""
        return self._ordinary[token % len(self._ordinary)]

    def _image(self) -> Batch:
        size = getattr(self.config, "image_size", None) or 64
        height, width = size if isinstance(size, (list, tuple)) else (size, size)
        channels = getattr(self.config, "num_channels", 3)
        generator = torch.Generator().manual_seed(self._rng.randrange(2**31))
        pixels = torch.randn(channels, height, width, generator=generator)
        return {"pixel_values": pixels.to(self._device), "labels": self._class()}

    def _class(self) -> torch.Tensor:
        """Return the one label of an example; with one label alone it is regression's number."""
        count = self.config.num_labels
        label = self._rng.randrange(count) if count > 1 else self._rng.random()
        return torch.tensor(label, device=self._device)

    def _ignores_first_label(self, model: nn.Module) -> bool:
        """Return whether the first label is no target: then the loss shifts them by one."""
        batch = self.collate([self._example(EQUAL_TARGETS)])
        batch["labels"] = batch["input_ids"].clone()
        without = {**batch, "labels": batch["labels"].clone()}
        without["labels"][:, 0] = IGNORED
        with torch.no_grad():
            return bool(torch.equal(loss_of(model, batch), loss_of(model, without)))


def loss_of(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Return the model's own loss of a batch.

    Raises:
        WorkerError: when it has none.
    """
    outputs = model(**batch)
    loss = outputs["loss"] if isinstance(outputs, dict) else outputs[0]
    if not isinstance(loss, torch.Tensor) or loss.ndim:
        raise WorkerError(f"{type(model).__name__} returns no loss for labels.")
    return loss


def _padded(rows: list[torch.Tensor], value: int) -> torch.Tensor:
    return nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=value)
