"""Which of torchtune's builders is a model, and the files of its checkpoint and tokenizer.

Sources: torchtune ``models/*/_model_builders.py``; files and model types as the shipped configs
have them (``recipes/configs``). A checkpoint without a config there has the files of its sibling.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

_PREFIX = "torchtune.models."
_SAFETENSORS = "model-{}-of-{}.safetensors"
_BIN = "pytorch_model-{}-of-{}.bin"
_MOST_LISTED = 6
"""Files of a checkpoint that the shipped configs list one by one."""
_PIECES = {"path": "tokenizer.model"}
_META = {"path": "original/tokenizer.model"}
_BYTE_PAIRS = {"path": "vocab.json", "merges_file": "merges.txt"}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """What the models of one module have in common."""

    model_type: str
    """Of the checkpointer."""
    tokenizer: str
    """Builder, below ``torchtune.models``."""
    tokenizer_files: Mapping[str, str]
    """Arguments of it, and the files beside the checkpoint that they take."""
    file_format: str = _SAFETENSORS
    """Of a checkpoint of several files."""
    quantizes_all: bool = True
    """QLoRA: whether layers without adapters are quantised too."""


@dataclass(frozen=True, slots=True)
class Component:
    """One model that torchtune builds."""

    builder: str
    """Below ``torchtune.models``, such as ``qwen2_5.qwen2_5_7b_base``."""
    repositories: tuple[str, ...]
    """With such weights on the Hub, the base model first."""
    num_files: int
    """Of the checkpoint."""
    is_tied: bool = False
    """Whether the head is the embedding, and so has no adapters of its own."""

    @property
    def family(self) -> Family:
        """What it has in common with others."""
        return _FAMILIES[self.builder.partition(".")[0]]

    @property
    def files(self) -> list[str] | dict[str, str]:
        """The files of the checkpoint as the checkpointer takes them: many are counted."""
        width = f"{self.num_files:05d}"
        if self.num_files == 1:
            return ["model.safetensors"]
        if self.num_files > _MOST_LISTED:
            return {"filename_format": self.family.file_format, "max_filename": width}
        numbers = range(1, self.num_files + 1)
        return [self.family.file_format.format(f"{number:05d}", width) for number in numbers]

    def path(self, *, adapts: bool) -> str:
        """Return the path of the builder, with or without adapters."""
        module, _, name = self.builder.partition(".")
        return f"{_PREFIX}{module}.{'lora_' if adapts else ''}{name}"


_LLAMA2 = Family(
    model_type="LLAMA2",
    tokenizer="llama2.llama2_tokenizer",
    tokenizer_files=_PIECES,
    file_format=_BIN,
)
_LLAMA3 = Family(model_type="LLAMA3", tokenizer="llama3.llama3_tokenizer", tokenizer_files=_META)
_FAMILIES = {
    "code_llama2": _LLAMA2,
    "llama2": _LLAMA2,
    "llama3": _LLAMA3,
    "llama3_1": _LLAMA3,
    "llama3_2": Family(
        model_type="LLAMA3_2", tokenizer="llama3.llama3_tokenizer", tokenizer_files=_META
    ),
    "llama3_3": _LLAMA3,
    "gemma": Family(model_type="GEMMA", tokenizer="gemma.gemma_tokenizer", tokenizer_files=_PIECES),
    "gemma2": Family(
        model_type="GEMMA2", tokenizer="gemma.gemma_tokenizer", tokenizer_files=_PIECES
    ),
    "mistral": Family(
        model_type="MISTRAL",
        tokenizer="mistral.mistral_tokenizer",
        tokenizer_files=_PIECES,
        file_format=_BIN,
    ),
    "phi3": Family(
        model_type="PHI3_MINI", tokenizer="phi3.phi3_mini_tokenizer", tokenizer_files=_PIECES
    ),
    "phi4": Family(
        model_type="PHI4",
        tokenizer="phi4.phi4_tokenizer",
        tokenizer_files={"vocab_path": "vocab.json", "merges_path": "merges.txt"},
    ),
    "qwen2": Family(
        model_type="QWEN2",
        tokenizer="qwen2.qwen2_tokenizer",
        tokenizer_files=_BYTE_PAIRS,
        quantizes_all=False,
    ),
    "qwen2_5": Family(
        model_type="QWEN2",
        tokenizer="qwen2_5.qwen2_5_tokenizer",
        tokenizer_files=_BYTE_PAIRS,
        quantizes_all=False,
    ),
}


def _repositories(stem: str, *endings: str) -> tuple[str, ...]:
    return tuple(f"{stem}{ending}" for ending in ("", *endings))


def _llama(name: str) -> tuple[str, ...]:
    return _repositories(f"meta-llama/{name}", "-Instruct")


def _qwen(name: str) -> tuple[str, ...]:
    return _repositories(f"Qwen/{name}", "-Instruct")


_COMPONENTS = (
    Component("code_llama2.code_llama2_7b", ("codellama/CodeLlama-7b-hf",), 3),
    Component("gemma.gemma_2b", ("google/gemma-2b", "google/gemma-2b-it"), 2, is_tied=True),
    Component("gemma.gemma_7b", ("google/gemma-7b", "google/gemma-7b-it"), 4, is_tied=True),
    Component("gemma2.gemma2_2b", ("google/gemma-2-2b",), 3, is_tied=True),
    Component("gemma2.gemma2_9b", ("google/gemma-2-9b",), 8, is_tied=True),
    Component("gemma2.gemma2_27b", ("google/gemma-2-27b",), 24, is_tied=True),
    Component("llama2.llama2_7b", ("meta-llama/Llama-2-7b-hf", "meta-llama/Llama-2-7b-chat-hf"), 2),
    Component("llama2.llama2_13b", ("meta-llama/Llama-2-13b-hf",), 3),
    Component("llama2.llama2_70b", ("meta-llama/Llama-2-70b-hf",), 15),
    Component("llama3.llama3_8b", _llama("Meta-Llama-3-8B"), 4),
    Component("llama3.llama3_70b", _llama("Meta-Llama-3-70B"), 30),
    Component("llama3_1.llama3_1_8b", _llama("Llama-3.1-8B"), 4),
    Component("llama3_1.llama3_1_70b", _llama("Llama-3.1-70B"), 30),
    Component("llama3_1.llama3_1_405b", _llama("Llama-3.1-405B"), 191),
    Component("llama3_2.llama3_2_1b", _llama("Llama-3.2-1B"), 1, is_tied=True),
    Component("llama3_2.llama3_2_3b", _llama("Llama-3.2-3B"), 2, is_tied=True),
    Component("llama3_3.llama3_3_70b", ("meta-llama/Llama-3.3-70B-Instruct",), 30),
    Component("mistral.mistral_7b", ("mistralai/Mistral-7B-v0.1",), 2),
    Component("phi3.phi3_mini", ("microsoft/Phi-3-mini-4k-instruct",), 2),
    Component("phi4.phi4_14b", ("microsoft/phi-4",), 6),
    Component("qwen2.qwen2_0_5b", _qwen("Qwen2-0.5B"), 1, is_tied=True),
    Component("qwen2.qwen2_1_5b", _qwen("Qwen2-1.5B"), 1, is_tied=True),
    Component("qwen2.qwen2_7b", _qwen("Qwen2-7B"), 4),
    Component("qwen2_5.qwen2_5_0_5b", _qwen("Qwen2.5-0.5B"), 1, is_tied=True),
    Component("qwen2_5.qwen2_5_1_5b_base", ("Qwen/Qwen2.5-1.5B",), 1, is_tied=True),
    Component("qwen2_5.qwen2_5_1_5b_instruct", ("Qwen/Qwen2.5-1.5B-Instruct",), 1, is_tied=True),
    Component("qwen2_5.qwen2_5_3b", _qwen("Qwen2.5-3B"), 2, is_tied=True),
    Component("qwen2_5.qwen2_5_7b_base", ("Qwen/Qwen2.5-7B",), 4),
    Component("qwen2_5.qwen2_5_7b_instruct", ("Qwen/Qwen2.5-7B-Instruct",), 4),
    Component("qwen2_5.qwen2_5_14b_base", ("Qwen/Qwen2.5-14B",), 8),
    Component("qwen2_5.qwen2_5_14b_instruct", ("Qwen/Qwen2.5-14B-Instruct",), 8),
    Component("qwen2_5.qwen2_5_32b_base", ("Qwen/Qwen2.5-32B",), 17),
    Component("qwen2_5.qwen2_5_32b_instruct", ("Qwen/Qwen2.5-32B-Instruct",), 17),
    Component("qwen2_5.qwen2_5_72b_base", ("Qwen/Qwen2.5-72B",), 37),
    Component("qwen2_5.qwen2_5_72b_instruct", ("Qwen/Qwen2.5-72B-Instruct",), 37),
)


def component_of(model_id: str) -> Component | None:
    """Return what builds a model, by the last part of its id or path; None where nothing does.

    >>> component_of("meta-llama/Meta-Llama-3.1-8B-Instruct").builder
    'llama3_1.llama3_1_8b'
    >>> component_of("openai-community/gpt2") is None
    True
    """
    wanted = _last_part(model_id)
    return next((one for one in _COMPONENTS if wanted in map(_last_part, one.repositories)), None)


def component_at(path: str) -> tuple[Component, bool, bool] | None:
    """Return what a builder's path is, whether it adds adapters, and whether it quantises.

    >>> component_at("torchtune.models.llama3_1.qlora_llama3_1_8b")[1:]
    (True, True)
    """
    module, _, name = path.removeprefix(_PREFIX).partition(".")
    bare = name.removeprefix("q").removeprefix("lora_") if "lora_" in name[:6] else name
    found = next((one for one in _COMPONENTS if one.builder == f"{module}.{bare}"), None)
    return None if found is None else (found, bare != name, name.startswith("qlora_"))


def repository_of(component: Component, folder: str) -> str:
    """Return the model's id, by the folder of its checkpoint where that tells one from others."""
    wanted = _last_part(folder)
    named = [name for name in component.repositories if _last_part(name) == wanted]
    return (named or component.repositories)[0]


def _last_part(name: str) -> str:
    return name.rstrip("/").rpartition("/")[2].lower().removeprefix("meta-")
