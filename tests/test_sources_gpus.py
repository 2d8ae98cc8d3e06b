"""GPUs: every row loads, names are looked up exactly, sizes need units, the driver is believed."""

# ruff: noqa: N802, N815 -- FakeNvml has the names of the driver's library

from __future__ import annotations

import subprocess
import sys
from types import SimpleNamespace

import pytest

from batchplan.errors import BatchplanError, ProbeError, SpecError, UnknownNameError
from batchplan.sources.gpus import find_gpu, load_gpus, match_device_name
from batchplan.sources.local_gpu import local_gpu
from batchplan.sources.profiles_dir import profile_file, profiles_dir
from batchplan.sources.runs import load_runs
from batchplan.units import GIB, MIB

ROWS = load_gpus()
WITH_SIZE = [row for row in ROWS if row.usable_bytes is not None]
WITHOUT_SIZE = [row for row in ROWS if row.usable_bytes is None]


def test_the_catalog_has_all_gpus_and_only_apples_lack_a_single_size():
    assert len(ROWS) == 69
    assert {row.vendor for row in WITHOUT_SIZE} == {"Apple"}


@pytest.mark.parametrize("row", WITH_SIZE, ids=lambda row: row.alias)
def test_every_name_of_a_row_resolves_to_that_row(row):
    gpu = row.to_gpu()
    for name in (*row.names, row.name, row.alias.upper(), row.alias.replace("-", " ")):
        assert find_gpu(name) == gpu, name


@pytest.mark.parametrize("row", WITH_SIZE, ids=lambda row: row.alias)
def test_every_row_is_plausible_and_keeps_its_sources(row):
    gpu = row.to_gpu()
    assert 0.85 * row.nominal_gb * 1e9 <= gpu.usable_bytes <= row.nominal_gb * GIB
    assert row.smi_mib is None or gpu.usable_bytes <= row.smi_mib * MIB
    assert 100 * MIB < gpu.context_bytes <= 1000 * MIB
    assert gpu.bf16_tflops is not None
    assert gpu.bf16_tflops > 10
    assert gpu.bandwidth_gb_per_s is not None
    assert row.mem_source
    assert row.flops_source
    assert row.bandwidth_source
    assert row.context_source
    assert row.confidence in {"high", "medium", "low"}
    assert row.checked == "2026-11-22"


def test_no_name_denotes_two_rows():
    names = [name for row in ROWS for name in row.names]
    own = {row.alias: set(row.names) for row in ROWS}
    assert len(set().union(*own.values())) == sum(len(each) for each in own.values())
    assert all(name == name.lower() and " " not in name for name in names)


def test_a_figure_taken_from_memory_says_so():
    text = profile_file("gpus", "gpus.csv").read_text(encoding="utf-8")
    assert text.count("from memory") > 40
    assert text.count("from memory") == text.count("from memory, not re-verified")


@pytest.mark.parametrize(
    ("name", "gib", "tflops"),
    [
        ("a100-80gb", 79.15, 312),
        ("a100-40gb", 39.494, 312),
        ("h100-sxm", 79.1, 989.4),
        ("rtx-4090", 23.51, 165.2),
        ("4090", 23.51, 165.2),
        ("rtx4090", 23.51, 165.2),
        ("NVIDIA GeForce RTX 4090", 23.51, 165.2),
        ("l4", 21.95, 121),
        ("l40s", 44.39, 362),
        ("mi300x", 191.688, 1307),
        ("t4", 14.56, 65),
        ("v100-16gb", 15.77, 125),
    ],
)
def test_known_cards_have_the_published_figures(name, gib, tflops):
    gpu = find_gpu(name)
    assert gpu.usable_bytes == int(gib * GIB)
    assert gpu.bf16_tflops == tflops


def test_cards_before_ampere_have_no_bf16():
    assert not find_gpu("t4").has_bf16
    assert not find_gpu("v100-32gb").has_bf16
    assert find_gpu("a10g").has_bf16


def test_a_bridge_that_may_not_be_there_is_no_link():
    assert find_gpu("rtx-3090").link_gb_per_s is None
    assert find_gpu("a100-80gb").link_gb_per_s == 300


@pytest.mark.parametrize(
    ("text", "num_bytes"),
    [("24GiB", 24 * GIB), ("80 GB", 80 * 10**9), ("0.5gib", GIB // 2), ("1e3MiB", 1000 * MIB)],
)
def test_a_size_with_a_unit_is_a_device_of_exactly_that_memory(text, num_bytes):
    gpu = find_gpu(text)
    assert gpu.usable_bytes == num_bytes
    assert gpu.context_bytes == 1000 * MIB
    assert gpu.bf16_tflops is None
    assert "unknown" in gpu.context_source


@pytest.mark.parametrize("text", ["80", "24", "1e9", "3.5"])
def test_a_bare_number_is_refused_for_its_missing_unit(text):
    with pytest.raises(SpecError, match="no unit"):
        find_gpu(text)


@pytest.mark.parametrize("text", ["24G", "24 Gi", "80g"])
def test_half_a_unit_is_refused_with_the_units_there_are(text):
    with pytest.raises(SpecError, match="unknown unit"):
        find_gpu(text)


@pytest.mark.parametrize(
    ("text", "nearest"),
    [
        ("h100", "h100-sxm"),
        ("H100", "h100-pcie"),
        ("a100", "a100-80gb"),
        ("a100-pci-80gb", "a100-pcie-80gb"),
        ("rtx4060ti", "rtx-4060-ti-16gb"),
        ("rtx-4091", "rtx-4090"),
        ("l40ss", "l40s"),
    ],
)
def test_an_unknown_or_ambiguous_name_lists_the_nearest(text, nearest):
    with pytest.raises(UnknownNameError, match="Unknown GPU") as caught:
        find_gpu(text)
    assert nearest in caught.value.nearest
    assert caught.value.exit_code == 2


@pytest.mark.parametrize("text", ["", " ", "-5GiB", "5090 ti", "xl40s", "nvidia", "a" * 10_000])
def test_nonsense_is_an_unknown_gpu_and_never_a_guess(text):
    with pytest.raises(UnknownNameError, match="Unknown GPU"):
        find_gpu(text)


def test_a_model_of_several_sizes_asks_for_one():
    with pytest.raises(SpecError, match="--gpu 64GiB"):
        find_gpu("m2-ultra")


DRIVER_NAMES = [
    ("NVIDIA A100-SXM4-80GB", "A100 SXM 80GB"),
    ("NVIDIA A100 80GB PCIe", "A100 PCIe 80GB"),
    ("NVIDIA H100 80GB HBM3", "H100 SXM 80GB"),
    ("NVIDIA H100 PCIe", "H100 PCIe 80GB"),
    ("Tesla T4", "T4"),
    ("NVIDIA L4", "L4"),
    ("NVIDIA L40", "L40"),
    ("NVIDIA L40S", "L40S"),
    ("NVIDIA A10", "A10"),
    ("NVIDIA A10G", "A10G"),
    ("NVIDIA RTX A4000", "RTX A4000"),
    ("NVIDIA GeForce RTX 4070 Ti SUPER", "RTX 4070 Ti SUPER"),
    ("NVIDIA GB200", "GB200 (per GPU)"),
    ("NVIDIA B200", "B200 SXM"),
    ("Tesla V100-SXM2-16GB", "V100 SXM2 16GB"),
    ("AMD Instinct MI300X", "MI300X"),
]


@pytest.mark.parametrize(("driver_name", "name"), DRIVER_NAMES)
def test_a_drivers_name_matches_exactly_one_row(driver_name, name):
    gpu = match_device_name(driver_name)
    assert gpu is not None
    assert gpu.name == name


@pytest.mark.parametrize(
    "driver_name", ["NVIDIA GeForce RTX 4090 Laptop GPU", "Imaginary 9000", "", "NVIDIA L400"]
)
def test_an_unknown_drivers_name_matches_nothing(driver_name):
    assert match_device_name(driver_name) is None


class FakeNvml:
    """Stands in for the driver's library: the calls we make, over a list of devices."""

    class NVMLError(Exception):
        pass

    nvmlMemory_v2 = 2

    def __init__(self, devices, *, has_v2=True, fails=False):
        self.devices = devices
        self.has_v2 = has_v2
        self.fails = fails
        self.is_open = False

    def nvmlInit(self):
        if self.fails:
            raise self.NVMLError("Driver Not Loaded")
        self.is_open = True

    def nvmlShutdown(self):
        self.is_open = False

    def nvmlDeviceGetCount(self):
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.devices[index]

    def nvmlDeviceGetHandleByUUID(self, uuid):
        for device in self.devices:
            if device["uuid"] == uuid:
                return device
        raise self.NVMLError("Not Found")

    def nvmlDeviceGetName(self, handle):
        return handle["name"]

    def nvmlDeviceGetMemoryInfo(self, handle, version=None):
        if version is not None and not self.has_v2:
            raise self.NVMLError("Function Not Found")
        reserved = handle["reserved"] * MIB if version else 0
        return SimpleNamespace(total=handle["total"] * MIB, reserved=reserved)


A100 = {"name": "NVIDIA A100-SXM4-80GB", "total": 81920, "reserved": 870, "uuid": "GPU-a"}
L4 = {"name": b"NVIDIA L4", "total": 23034, "reserved": 341, "uuid": "GPU-b"}
NEW = {"name": "NVIDIA Z9000", "total": 65536, "reserved": 600, "uuid": "GPU-c"}
MIG = {"name": "NVIDIA A100-SXM4-80GB MIG 3g.40gb", "total": 40192, "reserved": 62, "uuid": "MIG-d"}


@pytest.fixture(autouse=True)
def _all_devices_visible(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_the_local_gpu_has_the_drivers_memory_and_the_catalogs_rates():
    nvml = FakeNvml([A100])
    gpu = local_gpu(nvml)
    assert gpu.name == "NVIDIA A100-SXM4-80GB"
    assert gpu.usable_bytes == (81920 - 870) * MIB
    assert gpu.usable_bytes / GIB == pytest.approx(79.15, abs=0.01)
    assert gpu.bf16_tflops == 312
    assert gpu.context_bytes == find_gpu("a100-80gb").context_bytes
    assert "the driver's total less its own reserve" in gpu.source
    assert not nvml.is_open


def test_an_old_driver_loses_the_reserve_that_we_know_of():
    gpu = local_gpu(FakeNvml([A100], has_v2=False))
    assert gpu.usable_bytes == 81920 * MIB - int(0.9 * GIB)


def test_a_gpu_outside_the_catalog_is_known_by_its_memory_alone():
    gpu = local_gpu(FakeNvml([NEW]))
    assert gpu.name == "NVIDIA Z9000"
    assert gpu.usable_bytes == (65536 - 600) * MIB
    assert gpu.bf16_tflops is None


def test_a_mig_slice_has_its_own_memory():
    assert local_gpu(FakeNvml([MIG]), "MIG-d").usable_bytes == (40192 - 62) * MIB


def test_of_several_gpus_the_smallest_counts():
    assert local_gpu(FakeNvml([A100, L4])).name == "NVIDIA L4"


@pytest.mark.parametrize(
    ("visible", "name"),
    [("0", "NVIDIA A100-SXM4-80GB"), ("0,1", "NVIDIA L4"), ("GPU-a", "NVIDIA A100-SXM4-80GB")],
)
def test_only_visible_devices_count(visible, name):
    assert local_gpu(FakeNvml([A100, L4]), visible).name == name


@pytest.mark.parametrize("visible", ["", "-1", "7", "nonsense"])
def test_hidden_devices_are_a_clear_failure(visible):
    with pytest.raises(ProbeError, match="hides every one of the 2 GPUs"):
        local_gpu(FakeNvml([A100, L4]), visible)


@pytest.mark.parametrize("nvml", [FakeNvml([], fails=True), FakeNvml([])], ids=["driver", "gpu"])
def test_without_driver_or_gpu_the_message_says_what_to_do(nvml):
    with pytest.raises(ProbeError, match="--gpu a100-80gb") as caught:
        local_gpu(nvml)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def test_an_unknown_uuid_is_a_clear_failure():
    with pytest.raises(ProbeError, match="could not be asked"):
        local_gpu(FakeNvml([A100]), "GPU-z")


def _has_nvidia_driver() -> bool:
    import pynvml

    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return False
    pynvml.nvmlShutdown()
    return True


@pytest.mark.skipif(_has_nvidia_driver(), reason="this machine has an NVIDIA driver")
def test_the_real_library_without_a_driver_is_a_clear_failure():
    with pytest.raises(ProbeError, match="No NVIDIA driver answers"):
        find_gpu("local")


@pytest.mark.gpu
@pytest.mark.skipif(not _has_nvidia_driver(), reason="needs an NVIDIA driver")
def test_the_real_driver_agrees_with_torch():
    import torch

    gpu = find_gpu("local")
    total = torch.cuda.get_device_properties(0).total_memory
    assert gpu.usable_bytes == pytest.approx(total, rel=0.01)


def test_the_data_is_found_in_a_wheel_first_and_in_the_repository_second(tmp_path):
    package = tmp_path / "batchplan"
    package.mkdir()
    with pytest.raises(BatchplanError, match="Reinstall"):
        profiles_dir(package)
    (tmp_path / "profiles" / "gpus").mkdir(parents=True)
    assert profiles_dir(package) == tmp_path / "profiles"
    (package / "_profiles" / "gpus").mkdir(parents=True)
    assert profiles_dir(package) == package / "_profiles"


def test_published_runs_match_their_sources():
    runs = {run.run: run for run in load_runs()}
    assert runs["GPT-3 175B"].global_batch_tokens == 3_200_000
    assert runs["GPT-3 175B"].peak_lr == 6e-5
    chinchilla = runs["Chinchilla 70B"]
    assert chinchilla.global_batch_tokens == 1_500_000
    assert chinchilla.global_batch_tokens_end == 3_000_000
    assert runs["DeepSeek LLM 7B"].global_batch_tokens == 9_437_184
    assert runs["DeepSeek LLM 67B"].global_batch_tokens == 18_874_368
    for run in runs.values():
        assert run.source.startswith("https://")
        assert "memory" not in run.note or "not re-verified" in run.note
        assert run.peak_lr is None or 1e-6 < run.peak_lr < 1e-2


def test_finding_a_gpu_loads_nothing_heavy():
    code = (
        "import sys; from batchplan.sources import find_gpu; find_gpu('a100-80gb')\n"
        "print(*sorted({name.split('.')[0] for name in sys.modules}))"
    )
    loaded = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    heavy = {"torch", "transformers", "huggingface_hub", "pynvml", "rich", "typer", "numpy"}
    assert heavy.isdisjoint(loaded.stdout.split())
