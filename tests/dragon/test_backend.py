"""Behavior of the Dragon backend that the conformance kit does not check."""

from __future__ import annotations

import asyncio
import glob
import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest

from rhapsody import CapabilityError, TaskLostError, WorkflowEngine, get_backend
from rhapsody.plugins import NodeSample
from rhapsody_dragon import DragonExecutionBackend, runtime
from rhapsody_dragon.backend import DragonNode, DragonRequest
from rhapsody_dragon.runtime import MARK, NodeDescription
from rhapsody_dragon.templates import processes_of

pytestmark = [pytest.mark.timeout(150)]

SHARED = "/dev/shm/DD*"


def of_dragon() -> set[int]:
    """Return the ids of the processes of all runtimes of this user."""
    found = set()
    for process in psutil.process_iter():
        try:
            if MARK in process.environ() and process.status() != psutil.STATUS_ZOMBIE:
                found.add(process.pid)
        except (psutil.Error, OSError):
            continue
    return found


@pytest.fixture
def nothing_left() -> Iterator[None]:
    """Check that no process, file or directory of Dragon is left."""
    places = SHARED, os.path.join(tempfile.gettempdir(), "rhapsody-dragon-*")

    def found() -> set[object]:
        return {*of_dragon(), *(path for place in places for path in glob.glob(place))}

    before = found()
    yield
    deadline = time.monotonic() + 60
    while left := found() - before:
        assert time.monotonic() < deadline, left
        time.sleep(0.05)


def wait_for(path: Path) -> int:
    """Wait until a file exists, and return the number in it."""
    deadline = time.monotonic() + 120
    while not path.exists():
        assert time.monotonic() < deadline
        time.sleep(0.02)
    return int(path.read_text())


def parents(pid: int) -> list[psutil.Process]:
    """Return the launcher and the agent of a function's process, in this order."""
    agents = [
        each
        for each in psutil.process_iter()
        if each.pid in of_dragon() and "rhapsody_dragon.agent" in each.cmdline()
    ]
    (launcher,) = [each for each in agents if any("bin/dragon" in word for word in each.cmdline())]
    (agent,) = [each for each in agents if each != launcher]
    return [launcher, agent]


@pytest.mark.parametrize("victim", ["program", "launcher", "agent", "all"])
@pytest.mark.usefixtures("nothing_left")
def test_nothing_is_left_after_a_kill(tmp_path: Path, victim: str) -> None:
    script = Path(__file__).with_name("victim.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stderr=subprocess.DEVNULL, cwd=tmp_path
    ) as program:
        function, command = (wait_for(tmp_path / name) for name in ("function", "program"))
        launcher, agent = parents(function)
        if victim in ("program", "all"):
            program.kill()
        if victim in ("launcher", "all"):
            launcher.kill()
        if victim == "agent":
            agent.kill()
        assert program.wait(100) != 0
    deadline = time.monotonic() + 60
    while psutil.pid_exists(function) or psutil.pid_exists(command):
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.mark.usefixtures("nothing_left")
def test_nothing_is_left_if_the_launcher_is_killed_after_its_agent_has_ended(
    tmp_path: Path,
) -> None:
    script = Path(__file__).with_name("victim.py")
    with subprocess.Popen(
        [sys.executable, str(script), str(tmp_path)], stderr=subprocess.DEVNULL, cwd=tmp_path
    ) as program:
        function, _ = (wait_for(tmp_path / name) for name in ("function", "program"))
        launcher, agent = parents(function)
        program.kill()
        program.wait(100)  # otherwise, the system would hang up the agent with the next signal
        launcher.suspend()
        deadline = time.monotonic() + 60
        while agent.status() != psutil.STATUS_ZOMBIE:
            assert time.monotonic() < deadline
            time.sleep(0.02)
        launcher.kill()


@pytest.mark.usefixtures("nothing_left")
class TestLosses:
    """A worker, an agent or the launcher is killed while tasks run."""

    pytestmark = pytest.mark.asyncio

    @pytest.mark.parametrize("victim", ["worker", "launcher", "agent"])
    async def test_lost_tasks_fail_and_others_run(self, tmp_path: Path, victim: str) -> None:
        def wait(path: Path) -> None:
            (path / "part").write_text(str(os.getpid()))
            (path / "part").rename(path / "pid")
            time.sleep(600)

        async with WorkflowEngine.create(await DragonExecutionBackend(cores=1)) as flow:
            lost = flow.function_task(lost_retries=0)(wait)(tmp_path)
            other = flow.function_task(lambda: 3)()
            pid = await asyncio.to_thread(wait_for, tmp_path / "pid")
            if victim == "worker":
                os.kill(pid, signal.SIGKILL)
            else:
                launcher, agent = parents(pid)
                (launcher if victim == "launcher" else agent).kill()
            with pytest.raises(TaskLostError):
                await lost
            wide = flow.function_task(resources={"cores": 99})(lambda: 4)()
            with pytest.raises(CapabilityError, match="99 cores"):
                await wide
            assert await other == 3

    async def test_the_second_agent_runs_tasks(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(runtime, "AGENT", "tests.dragon.two_agents")
        monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
        async with WorkflowEngine.create(await DragonExecutionBackend(cores=1)) as flow:
            both = tmp_path / "0", tmp_path / "1"

            @flow.function_task
            def meet(here: Path, there: Path) -> int:
                here.touch()
                while not there.exists():  # only if both run at the same time
                    time.sleep(0.01)
                return os.getppid()

            @flow.executable_task
            def command(text: str) -> str:
                return f"echo {text}"

            @flow.executable_task(service=True, ready="tcp")
            def serve() -> str:
                return f"{sys.executable} -m http.server {{port}}"

            service = serve()
            address: Any = await service
            assert address[0] in (socket.gethostname(), "localhost")
            service.cancel()
            await asyncio.gather(meet(*both), meet(*both[::-1]))
            assert await asyncio.gather(*map(command, "abcd")) == [f"{each}\n" for each in "abcd"]

            @flow.function_task
            def endless(path: Path) -> None:
                (path.parent / f"{path.name}.part").write_text(str(os.getpid()))
                (path.parent / f"{path.name}.part").rename(path)
                time.sleep(600)

            calls = [endless(tmp_path / name) for name in "ab"]
            for name in "ab":
                await asyncio.to_thread(wait_for, tmp_path / name)
            for call in calls:
                call.cancel()
            await asyncio.wait(calls)
            assert all(call.cancelled() for call in calls)

    async def test_worker_values_are_built_once_in_each_worker(self) -> None:
        async with WorkflowEngine.create(await DragonExecutionBackend(cores=2)) as flow:

            @flow.worker_value
            def model(scale: int) -> list[int]:
                return [os.getpid(), scale]

            @flow.function_task
            def use(model: list[int], number: int) -> tuple[bool, int]:
                model.append(0)
                return model[0] == os.getpid(), len(model)

            handle = model(3)
            results = await asyncio.gather(*(use(handle, n) for n in range(20)))
        assert all(own for own, _ in results)
        assert max(length for _, length in results) >= 12

    async def test_the_load_of_nodes_is_reported(self) -> None:
        samples: asyncio.Queue[NodeSample] = asyncio.Queue()
        backend = await DragonExecutionBackend()
        backend.watch_nodes(samples.put_nowait)
        async with asyncio.timeout(60):
            sample = await samples.get()
        await backend.shutdown()
        assert sample.node == socket.gethostname()
        assert 0 < sample.memory < 1

    async def test_programs_of_the_sibling_project_run(self, tmp_path: Path) -> None:
        async with WorkflowEngine.create(await DragonExecutionBackend()) as flow:
            single: dict[str, Any] = {"process_template": {"env": {"WORD": "hello"}}}
            several: dict[str, Any] = {"process_templates": [(2, {}), (2, {})]}

            @flow.executable_task
            async def one(*args: Any, task_description: Any = single) -> str:
                return "/bin/bash -c 'echo $WORD'"

            @flow.executable_task
            async def four(*args: Any, task_description: Any = several) -> str:
                return "/bin/bash -c 'echo $((1 + 1))'"

            @flow.function_task
            async def function(task_description: Any = single) -> str:
                return os.environ["WORD"]

            @flow.function_task
            async def functions(task_description: Any = several) -> str:
                return "done"

            @flow.executable_task
            async def fails(task_description: Any = several) -> str:
                return "exit 3"

            @flow.function_task
            async def unknown(task_description: Any = {"process_template": {"policy": 1}}) -> str:  # noqa: B006
                return ""

            results: Any = await asyncio.gather(one(), four(), function(), functions())
            assert results == ["hello\n", "2\n" * 4, "hello", ["done"] * 4]
            with pytest.raises(Exception, match="exit code 3"):
                await fails()
            with pytest.raises(ValueError, match="unknown key 'policy'"):
                await unknown()


@pytest.mark.usefixtures("nothing_left")
def test_a_program_started_by_dragon_uses_its_runtime(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, os, multiprocessing
            from rhapsody.backends import DragonExecutionBackendV3
            from rhapsody import WorkflowEngine
            from dragon.data.ddict import DDict

            def put(shared, key):
                shared[key] = os.getpid()
                return os.environ["DRAGON_RT_UID"]

            async def main():
                multiprocessing.set_start_method("dragon")
                shared = DDict(1, 1, 64 * 2**20)
                async with WorkflowEngine.create(await DragonExecutionBackendV3()) as flow:
                    task = flow.function_task(put)
                    uids = await asyncio.gather(task(shared, "a"), task(shared, "b"))
                    assert set(uids) == {os.environ["DRAGON_RT_UID"]}
                    assert shared["a"] != os.getpid()
                    print("both:", sorted(shared.keys()))
                shared.destroy()

            if __name__ == "__main__":
                asyncio.run(main())
            """
        )
    )
    command: list[Any] = [Path(sys.executable).with_name("dragon"), "-s", script]
    search = f"{os.environ['PATH']}:{Path(sys.executable).parent}"
    ran = subprocess.run(
        command, capture_output=True, text=True, cwd=tmp_path, timeout=200,
        env={**os.environ, "PATH": search},
    )  # fmt: skip
    assert "both: ['a', 'b']" in ran.stdout, ran.stdout + ran.stderr


def test_services_hold_back_only_what_needs_their_resources() -> None:
    node = DragonNode(NodeDescription("here", 2, ["0", "1"], 100))
    service, wide = DragonRequest(1, 1, 50, 0, True), DragonRequest(2, 0, 0, 1, False)
    assert node.take(service) == ["0"]
    assert not node.can_fit(wide)
    assert node.can_fit(DragonRequest(1, 1, 50, 1, False))
    assert node.take(DragonRequest(1, 1, 0, 1, False)) == ["1"]
    node.release(service, ["0"])
    assert node.can_fit(wide)
    assert not node.fits(wide)
    assert node.cores_in_use == 1


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({"process_template": {"cwd": "/"}}, ValueError),
        ({"process_templates": []}, TypeError),
        ({"process_templates": [(0, {})]}, TypeError),
        ({"process_templates": [(1, {}), (1, {"env": {"A": "1"}})]}, ValueError),
        ({"process_template": {}, "process_templates": [(1, {})]}, ValueError),
    ],
)
def test_invalid_templates_are_refused(settings: Any, kind: type[Exception]) -> None:
    task: Any = {"name": "t", "function": print, "task_backend_specific_kwargs": settings}
    with pytest.raises(kind, match="task 't'"):
        processes_of(task)


@pytest.mark.parametrize(
    ("options", "kind"),
    [
        ({"cores": 0}, ValueError),
        ({"cores": 1.5}, TypeError),
        ({"gpus": "0"}, TypeError),
        ({"gpus": -1}, ValueError),
        ({"grace": -1}, ValueError),
    ],
)
def test_invalid_options_are_refused(options: Any, kind: type[Exception]) -> None:
    with pytest.raises(kind, match=next(iter(options))):
        DragonExecutionBackend(**options)


def test_batch_kwargs_are_accepted_with_a_warning(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        DragonExecutionBackend(batch_kwargs={"num_nodes": 2})
    assert "num_nodes" in caplog.text


@pytest.mark.asyncio
async def test_it_is_found_by_its_names() -> None:
    for name in ("dragon", "dragon_v3"):
        assert isinstance(get_backend(name), DragonExecutionBackend)
