"""GPUs through a stand-in for NVML: what is read, and that nothing is said where there is none."""

from __future__ import annotations

import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from walled.adapters.gpu import GpuProbe, GpuSample


class NVMLError(Exception):
    pass


def stand_in(gpus: int, *, broken: str = "", lost: int = -1) -> Any:
    """`broken`: the call that fails; `lost`: the GPU that cannot be read any more."""
    module: Any = ModuleType("pynvml")

    def call(name: str, value: Any) -> Any:
        def made(*arguments: Any) -> Any:
            if name == broken or (name == "nvmlDeviceGetMemoryInfo" and arguments[0] == lost):
                raise NVMLError(name)
            return value(*arguments) if callable(value) else value

        return made

    calls = {
        "nvmlInit": None,
        "nvmlShutdown": None,
        "nvmlDeviceGetCount": gpus,
        "nvmlDeviceGetHandleByIndex": lambda index: index,
        "nvmlDeviceGetMemoryInfo": lambda index: SimpleNamespace(used=1000 + index, total=8000),
        "nvmlDeviceGetUtilizationRates": SimpleNamespace(gpu=75, memory=10),
    }
    for name, value in calls.items():
        setattr(module, name, call(name, value))
    return module


def test_every_gpu_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(2))
    probe = GpuProbe()
    assert probe.sample() == [GpuSample(0, 1000, 8000, 0.75), GpuSample(1, 1001, 8000, 0.75)]
    probe.close()


@pytest.mark.parametrize("broken", ["nvmlInit", "nvmlDeviceGetCount", "nvmlDeviceGetHandleByIndex"])
def test_a_driver_that_fails_is_no_gpu(monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(1, broken=broken))
    probe = GpuProbe()
    assert probe.sample() == []
    probe.close()


def test_no_package_is_no_gpu_and_one_that_is_lost_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert GpuProbe().sample() == []
    monkeypatch.setitem(sys.modules, "pynvml", stand_in(2, lost=0))
    assert [sample.number for sample in GpuProbe().sample()] == [1]
