"""Samples of the load of nodes: their values, and the way from a backend to plugins and records."""

from __future__ import annotations

import asyncio
import socket
import sys
import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest

from rhapsody import WorkflowEngine
from rhapsody.backends import ManagedBackend
from rhapsody.engine.core import node_samples
from rhapsody.history import read_run
from rhapsody.plugins import NodeSample, hookimpl
from rhapsody.sdk import NodeSampler

pytest.importorskip("psutil")


def sampled(count: int) -> list[NodeSample]:
    """Return samples of this node, and a last one."""
    found: list[NodeSample] = []
    enough = threading.Event()

    def take(sample: NodeSample) -> None:
        found.append(sample)
        if len(found) == count:
            enough.set()

    sampler = NodeSampler(take, interval=0.01, delay=0)
    sampler.start()
    assert enough.wait(60)
    last = sampler.stop()
    return [*found, *([] if last is None else [last])]


def test_a_sample_contains_the_load_of_this_node() -> None:
    for sample in sampled(3):
        assert sample.node == socket.gethostname()
        assert sample.seconds > 0
        assert 0 <= sample.cpu <= 1
        assert 0 < sample.memory < 1
        assert sample.memory_size > 2**20
        assert min(sample.read, sample.written, sample.received, sample.sent) >= 0


def test_nothing_is_sampled_while_there_is_nothing_to_do() -> None:
    found: list[NodeSample] = []
    asked, sampled = threading.Event(), threading.Semaphore(0)

    def take(sample: NodeSample) -> None:
        found.append(sample)
        sampled.release()

    def is_busy() -> bool:
        asked.set()
        return False

    sampler = NodeSampler(take, interval=0.001, delay=0, is_busy=is_busy)
    for number in (1, 2, 3):
        sampler.wake()
        assert sampled.acquire(timeout=60)
        assert asked.wait(60)
        asked.clear()
        assert len(found) == number
    assert sampler.stop() is not None
    assert "rhapsody node samples" not in {thread.name for thread in threading.enumerate()}


def test_gpus_are_sampled_with_pynvml(monkeypatch: pytest.MonkeyPatch) -> None:
    library: Any = ModuleType("pynvml")
    library.NVMLError = OSError
    library.nvmlInit = lambda: None
    library.nvmlDeviceGetCount = lambda: 2
    library.nvmlDeviceGetHandleByIndex = lambda index: index
    library.nvmlDeviceGetUtilizationRates = lambda gpu: SimpleNamespace(gpu=50 + gpu)
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert sampled(1)[0].gpus == (0.5, 0.51)


def test_a_node_without_a_driver_has_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise OSError("no driver")

    library: Any = ModuleType("pynvml")
    library.nvmlInit = fail
    monkeypatch.setitem(sys.modules, "pynvml", library)
    assert sampled(1)[0].gpus == ()


def test_counters_that_cannot_be_read_end_the_samples(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def fail() -> None:
        raise FileNotFoundError("/proc/meminfo")

    monkeypatch.setattr("psutil.virtual_memory", fail)
    caplog.set_level("INFO", "rhapsody.engine")
    sampler = NodeSampler(lambda sample: pytest.fail(str(sample)), interval=0, delay=0)
    sampler._work()
    assert sampler.stop() is None
    assert "/proc/meminfo" in caplog.text


def test_without_psutil_there_are_no_samples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "psutil", None)
    sampler = NodeSampler(lambda sample: pytest.fail(str(sample)), interval=0, delay=0)
    sampler._work()
    assert sampler.stop() is None


class WithNodes(ManagedBackend):
    """Backend on another node."""

    name = "with-nodes"

    def __init__(self) -> None:
        super().__init__()
        self.report: Callable[[NodeSample], object] | None = None

    def watch_nodes(self, report: Callable[[NodeSample], object] | None) -> None:
        """Keep the function."""
        self.report = report


class Observer:
    def __init__(self) -> None:
        self.samples: list[NodeSample] = []
        self.received = asyncio.Event()

    @hookimpl
    def rhapsody_node_samples(self, samples: Sequence[NodeSample]) -> None:
        self.samples += samples
        self.received.set()


NODE = NodeSample("node17", 5.0, 0.5, 0.25, 2**34, 1.0, 2.0, 3.0, 4.0, (0.75,))


async def report(backend: WithNodes, observer: Observer) -> None:
    """Report a sample on a thread, and wait until the observer has received it."""
    assert backend.report is not None
    observer.received.clear()
    await asyncio.to_thread(backend.report, NODE)
    await asyncio.wait_for(observer.received.wait(), 60)


@pytest.mark.asyncio
async def test_samples_of_a_backend_reach_plugins_and_the_record(tmp_path: Path) -> None:
    backend, observer = WithNodes(), Observer()
    record = tmp_path / "run.jsonl"
    async with WorkflowEngine.create(backend, observers=[observer], record=record):
        await report(backend, observer)
    assert backend.report is None
    (sample,) = [each for each in observer.samples if each.node == "node17"]
    assert sample._replace(time=0.0) == NODE
    assert sample.time > 0
    (recorded,) = [each for each in read_run(record).nodes if each.node == "node17"]
    assert recorded._replace(time=0.0) == NODE


@pytest.mark.asyncio
async def test_several_samples_of_a_node_at_the_same_time_are_one(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    backend, observer = WithNodes(), Observer()
    async with WorkflowEngine.create(backend, observers=[observer]):
        await report(backend, observer)
        assert backend.report is not None
        backend.report(NODE)
        await asyncio.sleep(0)
        monkeypatch.setattr(node_samples, "APART", 0)
        await report(backend, observer)
    assert [each.node for each in observer.samples].count("node17") == 2


@pytest.mark.asyncio
async def test_nothing_is_sampled_unless_a_plugin_wants_it() -> None:
    backend = WithNodes()
    async with WorkflowEngine.create(backend, record=False):
        assert backend.report is None
        names = {thread.name for thread in threading.enumerate()}
        assert "rhapsody node samples" not in names


def test_damaged_lines_of_nodes_are_skipped(tmp_path: Path) -> None:
    record = tmp_path / "run.jsonl"

    async def run() -> None:
        async with WorkflowEngine.create(record=record):
            pass

    asyncio.run(run())
    with record.open("a") as file:
        file.write('{"event":"node","node":7,"cpu":0.5,"time":1.0}\n')
        file.write('{"event":"node","node":"a","cpu":"much","time":1.0}\n')
        file.write('{"event":"node","node":"a","cpu":0.5,"time":1.0}\n')
    history = read_run(record)
    assert [each.cpu for each in history.nodes] == [0.5]
    assert len(history.problems) == 2
