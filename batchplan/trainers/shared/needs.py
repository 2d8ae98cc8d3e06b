"""Packages that a run takes beside its trainer's own, and under which recipes."""

from __future__ import annotations

from batchplan.spec import Attention, Loss, Method
from batchplan.trainers.format import ADAPTERS, FSDP, ZERO
from batchplan.trainers.releases import Needs
from batchplan.trainers.shared.optimizer_classes import BITSANDBYTES

DEEPSPEED = Needs(package="deepspeed", when={"sharding": ZERO})
PEFT = Needs(package="peft", when={"method": ADAPTERS})
QUANTISED = (
    Needs(package="bitsandbytes", when={"method": (Method.QLORA,)}),
    Needs(package="bitsandbytes", when={"optimizer": BITSANDBYTES}),
)
LIGER = Needs(package="liger-kernel", when={"loss": (Loss.FUSED,)})
FLASH = Needs(package="flash-attn", when={"attention": (Attention.FLASH,)})
BESIDE_TRANSFORMERS = (DEEPSPEED, PEFT, *QUANTISED, LIGER, FLASH)

LOADS_BY_DTYPE = Needs(package="transformers", releases=">=4.56")
"""The first whose ``from_pretrained`` takes ``dtype``; before, it was ``torch_dtype``."""
FSDP_ARGUMENTS = Needs(package="transformers", releases=">=5.10", when={"sharding": FSDP})
"""The first whose ``fsdp_config`` takes it all; before 5.0 that runs FSDP 1, whatever it says."""
