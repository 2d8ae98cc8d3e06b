"""Lightning: the YAML of a ``LightningCLI`` program."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from benchmarks.trainer_keys import shapes

SOURCE = "signatures of lightning.pytorch.Trainer and of the strategies, as LightningCLI takes them"

_STRATEGIES = ("DDPStrategy", "DeepSpeedStrategy", "FSDPStrategy", "ModelParallelStrategy")
_OBJECTS = ("callbacks", "logger", "plugins", "profiler", "strategy")
_OWN = ("data", "lr_scheduler", "model", "optimizer")
"""Sections whose keys are the user's classes'."""


def snapshot() -> dict[str, Any]:
    """Return the keys of the file, and those of each strategy's ``init_args``."""
    from lightning.pytorch import Trainer, strategies

    keys = {
        "seed_everything": shapes.key(bool | int, default=True),
        "ckpt_path": shapes.key(str, None),
    }
    trainer = shapes.of_signature(Trainer.__init__)
    keys |= shapes.under("trainer", trainer)
    keys |= {name: shapes.key(dict, None) for name in _OWN}
    opened = [*_OWN, *(f"trainer.{name}" for name in _OBJECTS)]
    files = {"config": {"keys": keys, "open": opened}}
    for name in _STRATEGIES:
        found = shapes.of_signature(getattr(strategies, name).__init__)
        files[name] = {"keys": found, "open": []}
    return files


def validate(path: Path, **_: Any) -> dict[str, Any]:
    """Parse the file as the program's parser does, with a model and data that have no options."""
    from lightning.pytorch.cli import LightningCLI
    from lightning.pytorch.demos.boring_classes import BoringDataModule, BoringModel

    class Parse(LightningCLI):
        """Stops where objects would be made."""

        def before_instantiate_classes(self) -> None:
            pass

        def instantiate_classes(self) -> None:
            pass

    cli = Parse(BoringModel, BoringDataModule, run=False, args=["--config", str(path)])
    return dict(cli.config.as_dict())
