"""Tests of the resources of the machine, and of their order of assignment."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends.local import jobs
from rhapsody.backends.local.jobs import (
    HostResources,
    LocalJob,
    Queue,
    Request,
    Slots,
    available_cores,
    available_gpus,
    available_memory,
    host_resources,
)
from rhapsody.sdk.executables import V2, MemoryGroup
from tests._support.memory_group import write


def job(name: str, request: Request) -> LocalJob:
    task: Any = {"uid": name}
    runner: Any = None
    return LocalJob(task, name, request, runner)


class Line:
    """A queue on a small machine, and what is running."""

    def __init__(self, cores: int = 4, gpus: int = 0, memory: int = 100, workers: int = 4) -> None:
        self.slots = Slots(HostResources(cores, tuple(map(str, range(gpus))), memory, workers))
        self.queue: Queue = Queue(self.slots)
        self.items: dict[str, LocalJob] = {}

    def push(self, name: str, **request: Any) -> LocalJob:
        item = self.items[name] = job(name, Request(**request))
        self.queue.push(item)
        return item

    def started(self) -> list[str]:
        names = []
        while (item := self.queue.pop()) is not None:
            names.append(item.uid)
        return names

    def end(self, *names: str) -> list[str]:
        for name in names:
            self.slots.release(self.items[name])
        return self.started()


def test_fractions_of_cores_add_up_without_rounding_errors() -> None:
    line = Line(cores=2, workers=30)
    for number in range(30):
        line.push(str(number), cores=0.1)
    assert len(line.started()) == 20
    line.push("whole", cores=2)
    assert line.end(*map(str, range(20))) == [str(number) for number in range(20, 30)]
    assert line.slots.cores_in_use == 1
    assert line.end(*map(str, range(20, 30))) == ["whole"]


def test_tasks_start_in_the_order_they_came() -> None:
    line = Line(cores=2)
    for name in "abcd":
        line.push(name)
    assert line.started() == ["a", "b"]
    assert line.end("b") == ["c"]
    assert line.end("a", "c") == ["d"]
    assert not line.queue


def test_a_big_task_is_not_starved_by_small_ones() -> None:
    line = Line(cores=4)
    line.push("small")
    assert line.started() == ["small"]
    line.push("big", cores=4)
    line.push("late")
    assert line.started() == []
    assert line.end("small") == ["big"]
    assert line.end("big") == ["late"]


def test_what_only_a_service_holds_up_lets_others_pass() -> None:
    line = Line(cores=4)
    line.push("service", endless=True)
    assert line.started() == ["service"]
    line.push("all", cores=4)
    line.push("small")
    line.push("most", cores=3)
    assert line.started() == ["small"]
    assert line.end("small") == ["most"]
    line.push("after")
    assert line.end("service") == []  # "all" is waited for from now on
    assert line.end("most") == ["all"]
    assert line.end("all") == ["after"]


def test_functions_that_wait_for_a_worker_let_executables_pass() -> None:
    line = Line(cores=4, workers=1)
    for name in ("first", "second", "third"):
        line.push(name, workers=1)
    line.push("program")
    assert line.started() == ["first", "program"]
    assert line.end("first") == ["second"]


def test_executables_do_not_starve_functions_of_cores() -> None:
    line = Line(cores=2, workers=2)
    line.push("p1")
    line.push("p2")
    assert line.started() == ["p1", "p2"]
    line.push("function", workers=1)
    line.push("p3")
    assert line.end("p1") == ["function"]


def test_a_cancelled_task_in_the_queue_is_left_out() -> None:
    line = Line(cores=1)
    line.push("a")
    gone = line.push("gone", cores=1)
    line.push("b")
    assert line.started() == ["a"]
    assert line.queue.withdraw(gone)
    assert line.end("a") == ["b"]


def test_a_worker_takes_over_the_next_function_that_needs_the_same() -> None:
    one, two = Request(workers=1), Request(cores=2, workers=1)
    line = Line(cores=1)
    gone, next_, other, last = (
        job("gone", one),
        job("next", one),
        job("other", two),
        job("last", one),
    )
    for item in (gone, next_, other, last):
        line.queue.push(item)
    assert line.queue.withdraw(gone)
    assert line.queue.take_over(two) is None  # it is not its turn
    assert line.queue.take_over(one) is next_
    assert not line.queue.withdraw(next_)
    assert line.queue.take_over(one) is None
    assert line.queue.take_over(two) is other
    line.push("program")
    assert line.queue.take_over(one) is None  # whose turn it is, `pop` says
    assert [line.queue.pop(), line.queue.pop()] == [last, None]
    line.end("program")
    assert line.queue.take_over(one) is None


def test_clear_gives_what_waits_in_order() -> None:
    line = Line(cores=2, workers=1)
    line.push("service", cores=1, endless=True)
    line.started()
    line.push("passed", cores=2)
    line.push("program", cores=1)
    assert line.started() == ["program"]
    line.push("function", workers=1)
    line.push("next")
    gone = line.push("gone")
    assert line.queue.withdraw(gone)
    assert line.started() == []
    assert [item.uid for item in line.queue.clear()] == ["passed", "function", "next"]
    assert not line.queue


def test_gpus_are_given_by_index_and_never_twice() -> None:
    line = Line(gpus=3)
    a = line.push("a", cores=0, gpus=2)
    b = line.push("b", cores=0, gpus=1)
    c = line.push("c", cores=0, gpus=2)
    assert line.started() == ["a", "b"]
    assert (a.gpus, b.gpus) == (("0", "1"), ("2",))
    assert line.end("a") == ["c"]
    assert c.gpus == ("0", "1")


def test_memory_is_counted() -> None:
    line = Line(memory=100)
    line.push("a", memory=60)
    line.push("b", memory=60)
    assert line.started() == ["a"]
    assert line.end("a") == ["b"]


def test_unknown_memory_is_not_counted() -> None:
    slots = Slots(HostResources(1, (), None, 1))
    assert slots.missing(Request(memory=10**15)) is None
    assert slots.take(job("big", Request(memory=10**15)))


@pytest.mark.parametrize(
    ("request_", "asked", "there"),
    [
        (Request(cores=9), "9 cores", "4"),
        (Request(gpus=1), "1 gpus", "0"),
        (Request(memory=101), "101 bytes", "100"),
    ],
)
def test_requests_above_the_machine_are_refused(request_: Request, asked: str, there: str) -> None:
    missing = Line().slots.missing(request_)
    assert missing is not None
    assert asked in missing
    assert missing.endswith(f"(available: {there})")


def test_a_task_without_cores_needs_no_free_core() -> None:
    line = Line(cores=1)
    line.push("a")
    line.push("free", cores=0)
    assert line.started() == ["a", "free"]


# The machine.


def test_the_machine_is_what_this_process_may_use() -> None:
    found = host_resources(None)
    assert found.cores == found.workers == available_cores()
    if hasattr(os, "sched_getaffinity"):
        assert found.cores == len(os.sched_getaffinity(0))
    assert found.memory == available_memory()


def test_the_user_has_the_last_word() -> None:
    found = host_resources({"cores": 3, "gpus": 2, "memory": "2 GiB", "workers": 7})
    assert (found.cores, found.memory, found.workers) == (3, 2 * 1024**3, 7)
    assert len(found.gpus) == 2


def test_workers_follow_the_cores() -> None:
    assert host_resources({"cores": 5}).workers == 5
    assert host_resources({"cores": 5}, workers=2).workers == 2
    assert host_resources({"cores": 5, "workers": 1}, workers=2).workers == 1


def test_so_many_workers_can_be_used_at_once() -> None:
    many = available_cores() + 3
    assert host_resources({"workers": many}).cores == many
    assert host_resources(None, workers=many).cores == many
    assert host_resources({"workers": 1}).cores == available_cores()
    assert host_resources({"cores": 1, "workers": many}).cores == 1


def test_gpus_may_be_named() -> None:
    assert host_resources({"gpus": ["3", "GPU-1f"]}).gpus == ("3", "GPU-1f")


@pytest.mark.parametrize(
    ("visible", "gpus"),
    [
        ("", ()),
        ("0,1", ("0", "1")),
        ("2", ("2",)),
        ("-1", ()),
        ("1,-1,0", ("1",)),
        ("NoDevFiles", ()),
        ("GPU-1f, MIG-2a/1/0", ("GPU-1f", "MIG-2a/1/0")),
    ],
)
def test_gpus_are_those_that_cuda_may_see(
    monkeypatch: pytest.MonkeyPatch, visible: str, gpus: tuple[str, ...]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert available_gpus() == gpus
    assert host_resources(None).gpus == gpus


def test_a_number_of_gpus_takes_the_first_visible_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,6")
    assert host_resources({"gpus": 2}).gpus == ("4", "5")


def test_gpus_are_found_by_their_devices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("nvidia0", "nvidia10", "nvidia2", "nvidiactl", "nvidia-uvm"):
        (tmp_path / name).touch()
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(jobs, "DEVICES", tmp_path)
    assert available_gpus() == ("0", "2", "10")


def test_the_smallest_limit_of_the_control_groups_counts(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "own").write_text("0::/job/step\n")
    write(tmp_path / "job", V2, 0, 12345, 0)
    write(tmp_path / "job" / "step", V2, 0, 99999, 0)
    group = MemoryGroup(tmp_path / "own", tmp_path)
    monkeypatch.setattr(jobs, "memory_group", lambda: group)
    assert available_memory() == 12345


@pytest.mark.parametrize(
    ("resources", "kind", "said"),
    [
        ({"core": 2}, TypeError, "did you mean 'cores'"),
        ({"threads": 2}, TypeError, "accepted keys: cores, gpus, memory, workers"),
        ({"cores": "2"}, TypeError, "cores must be a whole number, got '2'"),
        ({"cores": True}, TypeError, "cores"),
        ({"cores": 0}, ValueError, "cores must be at least 1, got 0"),
        ({"workers": 0}, ValueError, "workers"),
        ({"gpus": -1}, ValueError, "gpus"),
        ({"memory": "lots"}, ValueError, "'lots'"),
        ([("cores", 2)], TypeError, "must be a dict"),
    ],
)
def test_bad_resources_are_named(resources: Any, kind: type[Exception], said: str) -> None:
    with pytest.raises(kind) as error:
        host_resources(resources)
    assert said in str(error.value)
