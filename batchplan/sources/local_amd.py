"""AMD GPUs of this machine, as the amdgpu driver shows them in files; ROCm is not needed.

Source: the kernel's documentation of amdgpu (driver-misc: ``mem_info_vram_total``,
``mem_info_vram_used``) and of DRM connectors (``status``).
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_DRM = Path("/sys/class/drm")
_VENDOR = "0x1002"
_CARD = re.compile(r"card(\d+)")
VISIBLE = ("HIP_VISIBLE_DEVICES", "CUDA_VISIBLE_DEVICES")
"""What ROCm's torch reads, the first that is set."""


@dataclass(frozen=True, slots=True, kw_only=True)
class AmdCard:
    """One card's memory, in bytes."""

    name: str
    total_bytes: int
    used_bytes: int
    drives_display: bool


def amd_cards(root: Path = _DRM, visible_devices: str | None = None) -> tuple[AmdCard, ...]:
    """Return the cards that torch would show, in the driver's order; none without the driver.

    Args:
        root: where the kernel lists graphics devices.
        visible_devices: indices joined by commas; None reads the environment.
    """
    if visible_devices is None:
        visible_devices = next((os.environ[name] for name in VISIBLE if name in os.environ), None)
    cards = tuple(_cards(root))
    if visible_devices is None:
        return cards
    chosen = []
    for entry in (part.strip() for part in visible_devices.split(",")):
        if not entry.isdecimal() or int(entry) >= len(cards):
            break
        chosen.append(cards[int(entry)])
    return tuple(chosen)


def _cards(root: Path) -> Iterator[AmdCard]:
    numbers = (_CARD.fullmatch(path.name) for path in root.glob("card*"))
    for number in sorted(int(match[1]) for match in numbers if match):
        device = root / f"card{number}" / "device"
        if _text(device / "vendor") != _VENDOR:
            continue
        total, used = (_text(device / f"mem_info_vram_{name}") for name in ("total", "used"))
        if not (total.isdecimal() and used.isdecimal()):
            continue
        connectors = root.glob(f"card{number}-*/status")
        yield AmdCard(
            name=_text(device / "product_name") or f"AMD GPU {number}",
            total_bytes=int(total),
            used_bytes=int(used),
            drives_display=any(_text(path) == "connected" for path in connectors),
        )


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
