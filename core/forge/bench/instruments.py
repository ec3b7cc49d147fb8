"""Looks at a Triton and at the GPUs while a load runs: /metrics over HTTP, NVML where its bindings and a driver are here."""

import threading
from collections.abc import Generator, Iterator
from contextlib import contextmanager, suppress
from http.client import HTTPException
from importlib import import_module
from typing import Any

import msgspec

from forge.bench import readings
from forge.bench.readings import COUNTERS, GpuReading, Scrape, Seen
from forge.schema.values import Ports
from forge.serve.ready import asked

_PATIENCE = 5.0
_PERIOD = 1.0
"""Seconds between two looks. A look costs a few milliseconds of this process."""
_PREFIXES = ("nv_inference_pending", "nv_trt_llm", "nv_energy", "nv_gpu", "nv_cpu", "nv_pinned")


class _Server(msgspec.Struct):
    """KServe's server metadata."""

    version: str = ""


class ServerInstruments:
    """The Instruments over one server's ports."""

    def __init__(self, ports: Ports) -> None:
        self._ports = ports

    def version(self) -> str:
        try:
            return msgspec.json.decode(_get(self._ports.at(self._ports.http), "/v2"), type=_Server).version
        except (OSError, HTTPException, ValueError):
            return ""

    @contextmanager
    def look(self) -> Generator[Seen]:
        """Counters from before to after, gauges and GPUs every second in a thread of their own."""
        seen = Seen()
        with _nvml() as (nvml, missing):
            watcher = _Watcher(self._ports.at(self._ports.metrics), nvml)
            watcher.start()
            try:
                yield seen
            finally:
                watcher.end()
        if len(watcher.scrapes) > 1:
            seen.triton = readings.times(watcher.scrapes[0], watcher.scrapes[-1])
            seen.gauges = readings.gauges(watcher.scrapes)
        seen.gpus = readings.gpus(watcher.readings)
        seen.notes = tuple(note for note in (watcher.problem, missing) if note)


class _Watcher:
    """Reads at once, every second, and a last time at the end."""

    def __init__(self, address: str, nvml: Any) -> None:
        self._address = address
        self._nvml = nvml
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self.scrapes: list[Scrape] = []
        self.readings: list[GpuReading] = []
        self.problem = ""

    def start(self) -> None:
        self._read()
        self._thread.start()

    def end(self) -> None:
        self._over.set()
        self._thread.join()
        self._read()

    def _run(self) -> None:
        while not self._over.wait(_PERIOD):
            self._read()

    def _read(self) -> None:
        try:
            self.scrapes.append(parse(_get(self._address, "/metrics")))
        except ImportError:
            self.problem = "Triton's metrics: prometheus-client is not installed (pip install 'triton-forge[bench]')"
        except (OSError, HTTPException, ValueError) as error:
            self.problem = f"Triton's metrics could not be read at {self._address}: {error}"
        if self._nvml:
            self.readings += _readings(self._nvml)


def parse(text: str) -> Scrape:
    """Triton's counters and gauges out of Prometheus' text, models' versions and GPUs added up; ValueError where it is none."""
    from prometheus_client.parser import text_string_to_metric_families

    try:
        families = list(text_string_to_metric_families(text))
    except (IndexError, KeyError, TypeError) as error:  # the library looks before it has checked
        raise ValueError(f"this is no text of Prometheus: {error!r}") from error
    counters: dict[tuple[str, str], float] = {}
    gauges: dict[str, float] = {}
    for family in families:
        for sample in family.samples:
            name = sample.name.removesuffix("_total") if sample.name.removesuffix("_total") in COUNTERS else sample.name
            if name in COUNTERS:
                place = (name, sample.labels.get("model", ""))
                counters[place] = counters.get(place, 0.0) + sample.value
            elif family.type == "gauge" and name.startswith(_PREFIXES):
                labels = ",".join(f'{label}="{value}"' for label, value in sorted(sample.labels.items()) if label != "version")
                gauges[f"{name}{{{labels}}}" if labels else name] = sample.value
    return Scrape(counters, gauges)


def _get(address: str, path: str) -> str:
    return asked(address, path, _PATIENCE)[1].decode()


@contextmanager
def _nvml() -> Generator[tuple[Any, str]]:
    """NVML and nothing, or nothing and why."""
    try:
        nvml: Any = import_module("pynvml")
    except ImportError:
        yield None, "the GPUs were not looked at: nvidia-ml-py is not installed (pip install 'triton-forge[bench]')"
        return
    try:
        nvml.nvmlInit()
    except nvml.NVMLError:
        yield None, "no GPU was looked at: this machine has no NVIDIA driver"
        return
    try:
        yield nvml, ""
    finally:
        nvml.nvmlShutdown()


def _readings(nvml: Any) -> Iterator[GpuReading]:
    for index in range(nvml.nvmlDeviceGetCount()):
        handle = nvml.nvmlDeviceGetHandleByIndex(index)
        power: float | None = None
        heat: float | None = None
        with suppress(nvml.NVMLError):
            power = nvml.nvmlDeviceGetPowerUsage(handle) / 1000
        with suppress(nvml.NVMLError):
            heat = float(nvml.nvmlDeviceGetTemperature(handle, nvml.NVML_TEMPERATURE_GPU))
        try:
            used = nvml.nvmlDeviceGetMemoryInfo(handle).used
            rate = nvml.nvmlDeviceGetUtilizationRates(handle).gpu / 100
        except nvml.NVMLError:
            continue
        yield GpuReading(index, nvml.nvmlDeviceGetName(handle), rate, float(used), power, heat)
