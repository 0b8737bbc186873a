"""Utilization of the GPUs of the program's machine, read with NVIDIA's library `pynvml`."""

from __future__ import annotations

import importlib
from collections.abc import Iterator
from typing import Any
from weakref import WeakSet

from opentelemetry.metrics import CallbackOptions, Meter, Observation

_meters: WeakSet[Meter] = WeakSet()


def observe_gpus(meter: Meter) -> None:
    """Add the metric `hw.gpu.utilization` to a meter, if pynvml is installed and finds GPUs.

    The GPUs are looked for once per meter. Their utilization is read when metrics are exported, on
    the exporter's thread.
    """
    if meter in _meters:
        return
    _meters.add(meter)
    try:
        nvml: Any = importlib.import_module("pynvml")
        nvml.nvmlInit()
        gpus = [_gpu(nvml, index) for index in range(nvml.nvmlDeviceGetCount())]
    except ImportError:
        return
    except nvml.NVMLError:  # for example, there is no driver
        return

    def read(_: CallbackOptions) -> Iterator[Observation]:
        for gpu, attributes in gpus:
            try:
                percent = nvml.nvmlDeviceGetUtilizationRates(gpu).gpu
            except nvml.NVMLError:  # not supported by this GPU
                continue
            yield Observation(percent / 100, attributes)

    if gpus:
        description = "Fraction of time in which a GPU has been busy."
        meter.create_observable_gauge("hw.gpu.utilization", [read], "1", description)


def _gpu(nvml: Any, index: int) -> tuple[Any, dict[str, str]]:
    gpu = nvml.nvmlDeviceGetHandleByIndex(index)
    uid, name = nvml.nvmlDeviceGetUUID(gpu), nvml.nvmlDeviceGetName(gpu)
    return gpu, {"hw.id": uid, "hw.name": name}
