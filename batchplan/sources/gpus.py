"""GPUs: the catalog's rows, and a user's or driver's name turned into a ``Gpu``.

A user's name is looked up exactly, never by substring: "l40" must not answer as an L4.
"""

from __future__ import annotations

import csv
import re
from dataclasses import dataclass
from functools import cache

from batchplan.errors import BatchplanError, SpecError, UnknownNameError
from batchplan.sources.profiles_dir import profile_file
from batchplan.spec import Gpu
from batchplan.units import GIB, MIB, parse_bytes

DRIVER_RESERVE_GIB = 0.9
"""What nvidia-smi's total may exceed torch's total by; the largest gap seen is 0.85 GiB."""

UNKNOWN_CONTEXT_MIB = 1000
"""CUDA context of a device we know nothing about: the largest figure of the catalog (H100)."""

_VENDOR = re.compile(r"(nvidia|amd|intel)-")
# "24GiB", "80", "24G": a number alone or before a letter that starts a memory unit.
_LOOKS_LIKE_SIZE = re.compile(r"[0-9][0-9_,.]*(e\+?[0-9]+)?\s*([kmg]i?b?|ti?b|b)?", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class GpuRow:
    """One row of ``gpus.csv``."""

    alias: str
    name: str
    aliases: tuple[str, ...]
    match: str
    """Regular expression on the lower-cased name that the driver reports."""
    vendor: str
    arch: str
    compute_capability: str
    has_bf16: bool
    nominal_gb: float
    """What the box says; for display only."""
    smi_mib: int | None
    torch_total_gib_min: float | None
    torch_total_gib_max: float | None
    bf16_tflops: float | None
    fp16_tflops: float | None
    bandwidth_gb_per_s: float | None
    link: str
    link_gb_per_s: float | None
    pcie_gb_per_s: float | None
    context_mib: int | None
    context_source: str
    mem_source: str
    flops_source: str
    bandwidth_source: str
    confidence: str
    note: str
    checked: str

    @property
    def names(self) -> tuple[str, ...]:
        """Every spelling that look-up accepts, normalised."""
        return (self.alias, _normal(self.name), *self.aliases)

    @property
    def usable_bytes(self) -> int | None:
        """Least total memory torch reports; None when the model comes in several sizes."""
        if self.torch_total_gib_min is not None:
            return int(self.torch_total_gib_min * GIB)
        if self.smi_mib is not None:
            return usable_from_driver_total(self.smi_mib * MIB)
        return None

    def to_gpu(self) -> Gpu:
        """Return the spec of this device model.

        Raises:
            SpecError: when the model has no single memory size.
        """
        if self.usable_bytes is None:
            raise SpecError(
                f"{self.name} comes in several memory sizes (up to {self.nominal_gb:g} GB) and "
                "how much of it a GPU may use is set by the system. Give a size, such as "
                "--gpu 64GiB."
            )
        return Gpu(
            name=self.name,
            usable_bytes=self.usable_bytes,
            context_bytes=(self.context_mib or 0) * MIB,
            context_source=self.context_source,
            bf16_tflops=self.bf16_tflops or self.fp16_tflops,
            bandwidth_gb_per_s=self.bandwidth_gb_per_s,
            # A bridge is an extra that joins two cards; without it they talk over PCIe.
            link_gb_per_s=None if "bridge" in self.link else self.link_gb_per_s,
            pcie_gb_per_s=self.pcie_gb_per_s,
            has_bf16=self.has_bf16,
            compute_capability=self.compute_capability,
            arch=self.arch,
            source=(
                f"memory: {self.mem_source}; rate: {self.flops_source}; bandwidth: "
                f"{self.bandwidth_source}; checked {self.checked}"
            ),
            confidence=self.confidence,
        )


@cache
def load_gpus() -> tuple[GpuRow, ...]:
    """Return every row of the catalog, in its order.

    Raises:
        BatchplanError: when the file is missing or broken.
    """
    path = profile_file("gpus", "gpus.csv")
    with path.open(encoding="utf-8", newline="") as file:
        try:
            return tuple(_row(fields) for fields in csv.DictReader(file))
        except (KeyError, TypeError, ValueError) as error:
            raise BatchplanError(f"{path} is broken: {error!r}") from error


def find_gpu(text: str) -> Gpu:
    """Return the device meant by a catalog name, ``local``, or a memory size with its unit.

    >>> find_gpu("A100 SXM 80GB") == find_gpu("a100-80gb")
    True
    >>> find_gpu("24GiB").usable_bytes
    25769803776

    Raises:
        UnknownNameError: when no row has that name.
        SpecError: when a size lacks its unit, or the model has no single memory size.
        ProbeError: for ``local`` without an NVIDIA driver.
    """
    wanted = _normal(text)
    if wanted == "local":
        from batchplan.sources.local_gpu import local_gpu

        return local_gpu()
    rows = _rows_by_name()
    row = rows.get(wanted) or rows.get(_VENDOR.sub("", wanted, count=1))
    if row is not None:
        return row.to_gpu()
    # After the names, because "4090" is one.
    if _LOOKS_LIKE_SIZE.fullmatch(text.strip()):
        return gpu_of_size(parse_bytes(text), name=text.strip())
    raise UnknownNameError(
        "GPU",
        text,
        _candidates(wanted),
        "`batchplan gpus` lists all; a memory size such as 24GiB and `local` work too.",
    )


MOST_LARGER = 3
"""Next sizes that are named; more would only be larger."""
_STEP = 1.2
"""A device counts as larger from here on."""


def larger_gpus(gpu: Gpu) -> tuple[Gpu, ...]:
    """Return catalog devices of the next sizes up, one for each size, smallest first.

    Of one size the fastest; of the same maker where the catalog knows it.
    """
    rows = [row for row in load_gpus() if row.usable_bytes is not None]
    vendors = {row.vendor for row in rows if row.name == gpu.name}
    larger = sorted(
        (row.to_gpu() for row in rows if not vendors or row.vendor in vendors),
        key=lambda other: (other.usable_bytes, -(other.bf16_tflops or 0)),
    )
    found: list[Gpu] = []
    least = gpu.usable_bytes * _STEP
    for other in larger:
        if other.usable_bytes >= least and len(found) < MOST_LARGER:
            found.append(other)
            least = other.usable_bytes * _STEP
    return tuple(found)


def gpu_of_size(usable_bytes: int, *, name: str) -> Gpu:
    """Return a device of which only the memory is known.

    Its usable memory is exactly that size; its rates are unknown.
    """
    return Gpu(
        name=name,
        usable_bytes=usable_bytes,
        context_bytes=UNKNOWN_CONTEXT_MIB * MIB,
        context_source=(
            f"{UNKNOWN_CONTEXT_MIB} MiB, the largest of the catalog (H100, estimated), because "
            "the device is unknown"
        ),
        source="memory: as given",
        confidence="low",
    )


def match_device_name(driver_name: str) -> Gpu | None:
    """Return the catalog's device for a driver's name such as ``NVIDIA A100-SXM4-80GB``.

    None when no row's pattern matches, or more than one does: no guess is better than a wrong one.
    """
    row = match_row(driver_name)
    return None if row is None or row.usable_bytes is None else row.to_gpu()


def match_row(driver_name: str) -> GpuRow | None:
    """Return the only row whose pattern matches a driver's name, or None."""
    lowered = driver_name.lower()
    found = [row for row in load_gpus() if re.search(row.match, lowered)]
    return found[0] if len(found) == 1 else None


def usable_from_driver_total(driver_total_bytes: int) -> int:
    """Return what a plan may use of the total that the driver (nvidia-smi) reports.

    Always on the safe side of what torch reports: the driver keeps 0.25 to 0.85 GiB for itself.
    A device of less than twice the reserve loses half instead, so that the answer stays positive.
    """
    reserve = int(DRIVER_RESERVE_GIB * GIB)
    return max(driver_total_bytes - reserve, driver_total_bytes // 2)


@cache
def _rows_by_name() -> dict[str, GpuRow]:
    return {name: row for row in load_gpus() for name in row.names}


def _candidates(wanted: str) -> list[str]:
    """Return the names to suggest from: those that begin with the one given, otherwise all."""
    aliases = [row.alias for row in load_gpus()]
    start = wanted.replace("-", "")
    begin = [alias for alias in aliases if start and alias.replace("-", "").startswith(start)]
    return begin or aliases


def _normal(text: str) -> str:
    """Return a name in lower case, with blanks and underscores as single dashes."""
    return re.sub(r"[\s_-]+", "-", text.strip().lower())


def _row(fields: dict[str, str]) -> GpuRow:
    return GpuRow(
        alias=fields["alias"],
        name=fields["name"],
        aliases=tuple(name for name in fields["aliases"].split(";") if name),
        match=fields["match"],
        vendor=fields["vendor"],
        arch=fields["arch"],
        compute_capability=fields["compute_capability"],
        has_bf16=fields["bf16_native"] == "yes",
        nominal_gb=float(fields["mem_nominal_gb"]),
        smi_mib=int(fields["smi_mib"]) if fields["smi_mib"] else None,
        torch_total_gib_min=_number(fields["torch_total_gib_min"]),
        torch_total_gib_max=_number(fields["torch_total_gib_max"]),
        bf16_tflops=_number(fields["bf16_dense_tflops"]),
        fp16_tflops=_number(fields["fp16_dense_tflops"]),
        bandwidth_gb_per_s=_number(fields["mem_bw_gbs"]),
        link=fields["gpu_link"],
        link_gb_per_s=_number(fields["gpu_link_uni_gbs"]),
        pcie_gb_per_s=_number(fields["pcie_uni_gbs"]),
        context_mib=int(fields["context_mib"]) if fields["context_mib"] else None,
        context_source=fields["context_source"],
        mem_source=fields["mem_source"],
        flops_source=fields["flops_source"],
        bandwidth_source=fields["bw_source"],
        confidence=fields["confidence"],
        note=fields["note"],
        checked=fields["checked"],
    )


def _number(text: str) -> float | None:
    return float(text) if text else None
