"""What a probe may take of a device that others use: asked of the driver, never of the device."""

# ruff: noqa: N802 -- FakeNvml has the names of the driver's library

from __future__ import annotations

from types import SimpleNamespace

import pytest

from batchplan.errors import ProbeError, SpecError
from batchplan.prober.politeness import look, room
from batchplan.prober.trial import Device
from batchplan.sources.local_amd import AmdCard, amd_cards
from batchplan.units import GIB, MIB


class FakeNvml:
    """Stands in for the driver's library: the calls we make, over a list of devices."""

    class NVMLError(Exception):
        pass

    def __init__(self, *devices, fails=False):
        self.devices = devices
        self.fails = fails
        self.is_open = False

    def nvmlInit(self):
        if self.fails:
            raise self.NVMLError("Driver Not Loaded")
        self.is_open = True

    def nvmlShutdown(self):
        self.is_open = False

    def nvmlSystemGetDriverVersion(self):
        return b"570.86.15"

    def nvmlDeviceGetCount(self):
        return len(self.devices)

    def nvmlDeviceGetHandleByIndex(self, index):
        return self.devices[index]

    def nvmlDeviceGetName(self, handle):
        return handle["name"]

    def nvmlDeviceGetMemoryInfo(self, handle):
        total, used = handle["total"] * MIB, handle.get("used", 600) * MIB
        return SimpleNamespace(total=total, used=used, free=total - used)

    def nvmlDeviceGetComputeRunningProcesses(self, handle):
        if "processes" not in handle:
            raise self.NVMLError("Not Supported")
        return [
            SimpleNamespace(pid=pid, usedGpuMemory=None if mib is None else mib * MIB)
            for pid, mib in handle["processes"]
        ]

    def nvmlDeviceGetDisplayMode(self, handle):
        return self._display(handle, "attached")

    def nvmlDeviceGetDisplayActive(self, handle):
        return self._display(handle, "active")

    def _display(self, handle, name):
        if name not in handle:
            raise self.NVMLError("Not Supported")
        return handle[name]


IDLE = {"name": "NVIDIA A100-SXM4-80GB", "total": 81920, "processes": []}
GAMER = {"name": "NVIDIA GeForce RTX 4090", "total": 24564, "used": 1500}


@pytest.fixture(autouse=True)
def _only_the_fakes(monkeypatch):
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr("batchplan.prober.politeness.amd_cards", tuple)


def cuda(*devices, **asked):
    return look(Device.CUDA, nvml=FakeNvml(*devices), **asked)


def test_an_idle_gpu_is_taken_up_to_what_torch_sees():
    nvml = FakeNvml(IDLE)
    state = look(Device.CUDA, nvml=nvml)
    assert not nvml.is_open
    assert (state.total_bytes, state.free_bytes) == (81920 * MIB, 81320 * MIB)
    assert (state.processes, state.reserve_bytes) == ((), 0)
    assert room(state, None) == state.gpu.usable_bytes < state.free_bytes
    assert room(state, 24 * GIB) == 24 * GIB


@pytest.mark.parametrize("sign", [{"attached": 1}, {"active": 1, "attached": 0}])
def test_a_display_keeps_room_to_grow(sign):
    state = cuda(GAMER | sign)
    assert state.drives_display
    assert room(state, None) == (24564 - 1500) * MIB - GIB
    assert not cuda(GAMER | dict.fromkeys(sign, 0)).drives_display
    assert not cuda(GAMER).drives_display


def test_a_small_neighbour_keeps_what_it_has_and_a_twentieth_of_the_device():
    state = cuda(IDLE | {"used": 9000, "processes": [(4321, 8400)]})
    assert state.reserve_bytes == 81920 * MIB // 20
    assert room(state, None) == (81920 - 9000) * MIB - state.reserve_bytes


@pytest.mark.parametrize(
    ("processes", "who"),
    [
        ([(11, 2000), (4321, 60000)], "process 4321 with 58.59 GiB and 1 more"),
        ([(4321, None)], "process 4321. "),
        ([], "processes that the driver does not show"),
    ],
)
def test_a_gpu_that_others_fill_is_left_alone(processes, who):
    state = cuda(IDLE | {"used": 63000, "processes": processes})
    with pytest.raises(ProbeError) as caught:
        room(state, None)
    said = str(caught.value)
    assert who in said
    assert "61.52 GiB of 80.00 GiB" in said
    assert "--memory-limit" in said
    assert "CUDA_VISIBLE_DEVICES" in said
    assert "\n" not in said
    assert caught.value.exit_code == 4
    assert room(state, 10 * GIB) == 10 * GIB


def test_half_of_a_device_is_not_most_of_it():
    half = IDLE | {"used": 40960, "processes": [(1, 40000)]}
    assert room(cuda(half), None) > 0
    with pytest.raises(ProbeError):
        room(cuda(half | {"used": 40961}), None)


def test_more_than_is_free_is_refused_with_the_numbers():
    with pytest.raises(ProbeError, match=r"80\.00 GiB.* has 18\.48 GiB free, 4\.00 GiB of which"):
        room(cuda(IDLE | {"used": 63000, "processes": [(1, 60000)]}), 80 * GIB)
    nearly_full = GAMER | {"used": 24000, "active": 1}
    with pytest.raises(ProbeError, match="may take 0"):
        room(cuda(nearly_full), GIB)


def test_only_visible_gpus_are_asked_and_the_fullest_of_those_that_train_decides():
    assert cuda(IDLE, GAMER, visible_devices="1").gpu.name == "NVIDIA GeForce RTX 4090"
    assert cuda(IDLE, GAMER).gpu.name == "NVIDIA A100-SXM4-80GB"
    busy = IDLE | {"used": 70000}
    assert cuda(IDLE, busy, num_devices=2).free_bytes == (81920 - 70000) * MIB
    with pytest.raises(ProbeError, match=r"--devices 3: this machine shows 2.*--as-rank-of 3"):
        cuda(IDLE, GAMER, num_devices=3)


@pytest.mark.parametrize("nvml", [FakeNvml(fails=True), FakeNvml()], ids=["driver", "gpu"])
def test_without_a_gpu_the_message_says_what_else_there_is(nvml):
    with pytest.raises(ProbeError, match="--device cpu --memory-limit") as caught:
        look(Device.CUDA, nvml=nvml)
    assert caught.value.exit_code == 4
    assert "\n" not in str(caught.value)


def drm(root, *cards):
    """A folder as /sys/class/drm, with (vendor, total, used, connector's status) of each card."""
    for number, (vendor, total, used, status) in enumerate(cards):
        device = root / f"card{number}" / "device"
        device.mkdir(parents=True)
        (device / "vendor").write_text(f"{vendor}\n")
        if total:
            (device / "mem_info_vram_total").write_text(f"{total}\n")
            (device / "mem_info_vram_used").write_text(f"{used}\n")
        connector = root / f"card{number}-DP-1"
        connector.mkdir()
        (connector / "status").write_text(f"{status}\n")
    return root


AMD, INTEL = "0x1002", "0x8086"


def test_amd_cards_are_read_from_the_drivers_files(tmp_path, monkeypatch):
    monkeypatch.delenv("HIP_VISIBLE_DEVICES", raising=False)
    root = drm(
        tmp_path,
        (INTEL, 0, 0, "connected"),
        (AMD, 16 * GIB, GIB, "connected"),
        (AMD, 48 * GIB, 2 * GIB, "disconnected"),
    )
    first, second = amd_cards(root)
    assert (first.total_bytes, first.used_bytes, first.drives_display) == (16 * GIB, GIB, True)
    assert (second.name, second.drives_display) == ("AMD GPU 2", False)
    assert amd_cards(root, "1") == (second,)
    assert amd_cards(root, "1,0") == (second, first)
    assert amd_cards(root, "-1") == ()
    monkeypatch.setenv("HIP_VISIBLE_DEVICES", "0")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "1")
    assert amd_cards(root) == (first,)
    assert amd_cards(tmp_path / "none") == ()


def test_an_amd_card_stands_in_where_nvidia_has_none(monkeypatch):
    card = AmdCard(name="MI", total_bytes=64 * GIB, used_bytes=GIB, drives_display=False)
    monkeypatch.setattr("batchplan.prober.politeness.amd_cards", lambda: (card,))
    state = look(Device.CUDA, nvml=FakeNvml(fails=True))
    assert (state.gpu.name, room(state, None), state.is_ours) == ("MI", 63 * GIB, True)
    assert cuda(IDLE).gpu.name == "NVIDIA A100-SXM4-80GB"


def test_a_device_is_ours_alone_when_nothing_but_the_driver_holds_any_of_it():
    assert cuda(IDLE).is_ours
    assert not cuda(IDLE | {"used": 3000}).is_ours  # by processes that are not shown
    assert not cuda(IDLE | {"processes": [(1, 10)]}).is_ours
    assert not cuda(IDLE | {"attached": 1}).is_ours


@pytest.fixture
def host(tmp_path):
    path = tmp_path / "meminfo"
    path.write_text("MemTotal:       16777216 kB\nMemFree: 100 kB\nMemAvailable:    8388608 kB\n")
    return look(Device.CPU, meminfo=path)


def test_the_cpu_trains_in_what_the_host_can_spare(host):
    assert (host.total_bytes, host.free_bytes) == (16 * GIB, 8 * GIB)
    assert room(host, 2 * GIB) == 2 * GIB
    with pytest.raises(ProbeError, match=r"CPU has 8\.00 GiB free.*Give a smaller"):
        room(host, 7800 * MIB)
    with pytest.raises(SpecError, match="--memory-limit SIZE"):
        room(host, None)
    assert (host.gpu.context_bytes, host.gpu.bf16_tflops) == (0, None)


def test_where_nobody_tells_what_is_free_the_limit_counts(tmp_path):
    for state in (look(Device.MPS), look(Device.CPU, meminfo=tmp_path / "none")):
        assert state.free_bytes is None
        assert room(state, 3 * GIB) == 3 * GIB
        with pytest.raises(SpecError, match="--memory-limit SIZE"):
            room(state, None)


def test_the_driver_s_version_goes_into_what_is_saved():
    assert cuda(IDLE).driver == "570.86.15"
