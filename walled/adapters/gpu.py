"""GPUs, read through NVIDIA's management library: the only door to pynvml.

May live here: samples of memory and use. May not: what they mean. Without the package (extra `gpu`), the
driver or a GPU there is nothing to read, and nothing is said.
"""

from __future__ import annotations

import contextlib
import importlib
from typing import Any, NamedTuple


class GpuSample(NamedTuple):
    number: int
    used_bytes: float
    total_bytes: float
    busy_ratio: float
    """Share of the last sampling period in which something ran."""


class GpuProbe:
    """Opened once; a GPU that falls off later is left out."""

    def __init__(self) -> None:
        self._nvml: Any = None
        self._handles: list[Any] = []
        # Whatever the library throws, of its own making or the driver's: a GPU is no condition to run.
        with contextlib.suppress(Exception):
            nvml = importlib.import_module("pynvml")
            nvml.nvmlInit()
            self._nvml = nvml
            self._handles = [nvml.nvmlDeviceGetHandleByIndex(n) for n in range(nvml.nvmlDeviceGetCount())]

    def sample(self) -> list[GpuSample]:
        found = []
        for index, handle in enumerate(self._handles):
            with contextlib.suppress(Exception):
                memory = self._nvml.nvmlDeviceGetMemoryInfo(handle)
                busy = self._nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
                found.append(GpuSample(index, float(memory.used), float(memory.total), busy))
        return found

    def close(self) -> None:
        if self._nvml is not None:
            with contextlib.suppress(Exception):
                self._nvml.nvmlShutdown()
