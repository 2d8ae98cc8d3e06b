"""The trainers, the releases that their snapshots are of, and an environment for each.

An environment is a virtual environment that borrows the torch of the interpreter that builds it
(all take the same release, and it is most of their size).
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """What one trainer is installed from."""

    name: str
    package: str
    """Distribution whose version the snapshot carries."""
    requirements: tuple[str, ...]
    """Installed with their dependencies."""
    alone: tuple[str, ...] = ()
    """Installed without: pins that cannot be met here, or that no configuration needs."""
    environment: str = ""
    """Folder of the environment, where it is shared with another trainer; else ``name``."""

    @property
    def folder(self) -> str:
        """Folder name of the environment."""
        return self.environment or self.name


_HF = (
    *("transformers==5.23.0", "accelerate==1.15.0", "peft==0.21.2", "trl==1.16.0"),
    *("deepspeed==0.19.8", "datasets==5.2.0", "lightning==2.6.6", "jsonargparse[signatures]"),
)

_DEEPSPEED_NEEDS = ("hjson", "msgpack", "ninja", "py-cpuinfo")
"""Where DeepSpeed is installed alone, because a trainer only looks whether it is there."""

TRAINERS = {
    one.name: one
    for one in (
        Trainer(name="hf-trainer", package="transformers", requirements=_HF, environment="dev"),
        Trainer(name="trl", package="trl", requirements=_HF, environment="dev"),
        Trainer(name="accelerate", package="accelerate", requirements=_HF, environment="dev"),
        Trainer(name="deepspeed", package="deepspeed", requirements=_HF, environment="dev"),
        Trainer(name="lightning", package="lightning", requirements=_HF, environment="dev"),
        Trainer(
            name="axolotl",
            package="axolotl",
            # Its metadata asks for Python 3.12; the schema runs on 3.11. The pins are its own.
            requirements=(
                *("transformers==5.20.1", "trl==1.14.1", "accelerate==1.15.0", "peft==0.21.2"),
                *("datasets==5.0.1", "pydantic==2.13.5", "packaging==26.0", "kernels==0.17.2"),
                *("typer==0.25.1", "schedulefree==1.4.1", "mistral-common==1.12.0"),
                *("posthog==6.7.11", "python-dotenv==1.0.1", "nvidia-ml-py==12.560.30"),
                *("addict", "art", "colorama", "einops", "fire", "requests", "scipy", "triton"),
            ),
            alone=(
                *("axolotl==0.21.0", "axolotl-contribs-lgpl==0.0.7", "axolotl-contribs-mit==0.0.6"),
                *("bitsandbytes==0.50.2", "liger-kernel==0.8.4", "torchao==0.18.0"),
            ),
        ),
        Trainer(
            name="llamafactory",
            package="llamafactory",
            requirements=(
                *("transformers==5.6.0", "trl==0.24.0", "accelerate==1.11.0", "peft==0.18.1"),
                *("datasets==4.0.0", "torchdata==0.11.0", "av==16.0.0", "tyro<0.9.0"),
                *("einops", "fire", "hf-transfer", "matplotlib", "modelscope", "omegaconf"),
                *("pandas", "protobuf", "pydantic", "scipy", "sentencepiece", "sse-starlette"),
                *("fastapi", "tiktoken", "uvicorn"),
                *_DEEPSPEED_NEEDS,
            ),
            alone=("llamafactory==0.9.5", "liger-kernel", "bitsandbytes", "deepspeed==0.18.4"),
        ),
        Trainer(
            name="ms-swift",
            package="ms-swift",
            requirements=(
                *("transformers==5.19.0", "trl==0.29.1", "peft==0.20.0", "datasets==4.8.4"),
                *("accelerate", "addict", "aiohttp", "attrdict", "binpacking", "dacite", "einops"),
                *("fastapi", "importlib-metadata", "json-repair", "matplotlib", "modelscope"),
                *("nltk", "openai", "pandas", "pillow", "requests", "rouge", "scipy"),
                *("sentencepiece", "simplejson", "sortedcontainers", "tensorboard", "tiktoken"),
                *("transformers-stream-generator", "uvicorn", "zstandard"),
                *_DEEPSPEED_NEEDS,
            ),
            alone=("ms-swift==4.6.0", "deepspeed==0.19.8"),
        ),
        Trainer(
            name="unsloth",
            package="unsloth",
            requirements=("transformers==5.17.0", "trl==1.15.0", "datasets<5.0.0"),
            alone=("unsloth==2026.10.9",),  # its source is read: importing it wants a GPU
        ),
        Trainer(
            name="torchtune",
            package="torchtune",
            requirements=("torchtune==0.6.1", "torchao==0.10.0"),  # later torchao moved NF4
        ),
        Trainer(
            name="litgpt",
            package="litgpt",
            requirements=("litgpt==0.5.13", "requests"),  # requests: imported, not declared
        ),
        Trainer(
            name="torchtitan",
            package="torchtitan",
            requirements=("torchtitan==0.3.0", "triton"),  # triton: imported even without a GPU
        ),
    )
}

_TORCH = ("torch", "torchgen", "functorch")


def environments_dir() -> Path:
    """Return where environments lie; ``BATCHPLAN_ENVIRONMENTS`` moves it."""
    override = os.environ.get("BATCHPLAN_ENVIRONMENTS")
    return Path(override) if override else Path.home() / ".cache" / "batchplan" / "environments"


def interpreter(trainer: Trainer, folder: Path | None = None) -> Path:
    """Return the interpreter of a trainer's environment, which is built when it is not there yet.

    Args:
        trainer: which one.
        folder: the environment itself; None is ``environments_dir()`` / its folder's name.

    Raises:
        subprocess.CalledProcessError: when pip cannot install it.
    """
    place = folder or environments_dir() / trainer.folder
    python = place / "bin" / "python"
    if not python.is_file():
        _build(trainer, place)
    return python


def _build(trainer: Trainer, place: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", str(place)], check=True)
    _borrow_torch(place)
    install = [str(place / "bin" / "python"), "-m", "pip", "install", "--quiet"]
    for requirements, options in (
        (trainer.alone, ["--no-deps", "--ignore-requires-python"]),
        (trainer.requirements, []),
    ):
        if requirements:
            subprocess.run([*install, *options, *requirements], check=True)


def _borrow_torch(place: Path) -> None:
    """Link our torch and its metadata, so that pip counts it as installed."""
    spec = importlib.util.find_spec("torch")
    if spec is None or spec.origin is None:
        return  # pip installs one
    ours = Path(spec.origin).parent.parent
    (theirs,) = place.glob("lib/python*/site-packages")
    for one in (*(ours / name for name in _TORCH), *ours.glob("torch-*.dist-info")):
        if one.exists():
            (theirs / one.name).symlink_to(one)
