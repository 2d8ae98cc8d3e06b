"""A tokenizer, loaded through transformers from a folder, the cache or the Hub."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from batchplan.errors import SourceError, SpecError

_ANY_LENGTH = 10**12
"""Above every text, so that no length is warned of."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenizerName:
    """Which tokenizer, and where it may be looked for."""

    text: str
    """A Hub id, a folder, or a file in it."""
    revision: str | None = None
    offline: bool = False
    trust_remote_code: bool = False

    def load(self) -> Tokenizer:
        """Return the tokenizer; what the cache holds is not asked for again.

        Raises:
            SourceError: when it cannot be had, or is none.
        """
        path = Path(self.text).expanduser()
        if path.exists():
            return self._loaded(str(path.parent if path.is_file() else path), local=True)
        try:
            return self._loaded(self.text, local=True)
        except SourceError as error:
            if self.offline:
                raise SourceError(
                    f"The tokenizer of {self.text} is not in the cache, and we are offline. Give a "
                    "folder with --tokenizer, or a column of lengths with --length-column."
                ) from error
        from batchplan.sources.hub import fetch_config

        # Says within seconds, and in one line, why a Hub cannot be asked; transformers retries.
        fetch_config(self.text, revision=self.revision)
        return self._loaded(self.text, local=False)

    def _loaded(self, where: str, *, local: bool) -> Tokenizer:
        from transformers import AutoTokenizer
        from transformers.utils import logging

        logging.set_verbosity_error()
        try:
            tokenizer = AutoTokenizer.from_pretrained(
                where,
                revision=self.revision or "main",
                local_files_only=local,
                trust_remote_code=self.trust_remote_code,
            )
        except Exception as error:  # whatever its files make it raise
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise SourceError(
                f"The tokenizer of {self.text} cannot be loaded: {reason}."
            ) from error
        tokenizer.model_max_length = _ANY_LENGTH
        return Tokenizer(self.text, tokenizer)


@dataclass(frozen=True, slots=True)
class Tokenizer:
    """A loaded tokenizer."""

    name: str
    _inner: Any

    def lengths(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[int]:
        """Return the number of tokens of each text."""
        return [len(ids) for ids in self.ids(texts, add_special_tokens=add_special_tokens)]

    def ids(self, texts: Sequence[str], *, add_special_tokens: bool) -> list[list[int]]:
        """Return the tokens of each text."""
        if not texts:
            return []
        found = self._inner(
            list(texts),
            add_special_tokens=add_special_tokens,
            return_attention_mask=False,
            return_token_type_ids=False,
        )
        return list(found["input_ids"])

    def chat(self, messages: Sequence[Mapping[str, Any]], place: str) -> str:
        """Return chat messages as the text that the tokenizer's template makes of them.

        Raises:
            SpecError: when it has no template, or the template refuses them.
        """
        if not self._inner.chat_template:
            raise SpecError(
                f"{place} is a chat, and the tokenizer of {self.name} has no chat template. Name "
                "one that has (--tokenizer), or a column of text (--text-column)."
            )
        try:
            return str(self._inner.apply_chat_template(list(messages), tokenize=False))
        except Exception as error:  # templates are programs, and raise what they like
            reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
            raise SpecError(f"{place}: the chat template refuses it: {reason}.") from None
