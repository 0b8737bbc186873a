"""The backend on a real pilot: behavior that the conformance kit does not test."""

from __future__ import annotations

import asyncio
import os
import shlex
import socket
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

import rhapsody_radical
from rhapsody import InputFile, OutputFile, StateMapper, WorkflowEngine
from rhapsody.data import OUTPUT_FILES
from rhapsody.errors import (
    CapabilityError,
    DataError,
    InsufficientWalltimeError,
    TaskFailedError,
    TaskTimeoutError,
)
from rhapsody.states import TasksMainStates
from rhapsody_radical import RadicalExecutionBackend, service_ready_callback
from rhapsody_radical.pilot import rp
from rhapsody_testing import Driver
from tests._support.direct import check_direct_use
from tests._support.environments import PREFIX, make_environment, working_podman
from tests._support.machine import alive
from tests.radical.busy import BUSY, six, sleeping
from tests.radical.pilots import resources
from tests.radical.shared_pilot.conftest import VARIABLES

pytestmark = [pytest.mark.asyncio(loop_scope="package"), pytest.mark.timeout(300)]


def own(task: Any, **settings: Any) -> Any:
    """Return the task with settings of RADICAL-Pilot."""
    task["task_backend_specific_kwargs"] = settings
    return task


async def test_the_backend_runs_tasks_without_an_engine(made: RadicalExecutionBackend) -> None:
    await check_direct_use(made)


async def test_functions_run_if_packages_are_on_another_file_system(
    made: RadicalExecutionBackend, driver: Driver
) -> None:
    if os.stat(str(made._work_dir)).st_dev == os.stat(rhapsody_radical.__file__).st_dev:
        pytest.skip("there is no other file system")
    assert (await driver.run_one(driver.call(abs, -1))).value == 1


async def test_functions_report_the_resources_that_they_use(driver: Driver) -> None:
    task = driver.call(sum, range(10**6))
    assert (await driver.run_one(task)).state is TasksMainStates.DONE
    assert task["usage"]["cpu_seconds"] > 0
    assert task["usage"]["peak_memory"] > 1_000_000


async def test_attributes_represent_objects_in_the_client(
    made: RadicalExecutionBackend, driver: Driver
) -> None:
    await driver.run_one(driver.command("true"))
    assert repr(made.session) == f"<RADICAL-Pilot's {made.session.uid}, None>"
    assert repr(made.resource_pilot) == "<RADICAL-Pilot's pilot.0000, PMGR_ACTIVE>"
    assert made.pilot_manager.list_pilots() == ["pilot.0000"]
    assert made.resource_pilot.state == "PMGR_ACTIVE"
    assert made.pilot_state == "PMGR_ACTIVE"
    assert made.state() == "running"
    assert made.tasks == {}
    nodes = made.get_nodelist().nodes
    assert len(nodes) == 1
    assert len(nodes[0].cores) == 8
    assert Path(made.session.path).is_relative_to(str(made._work_dir))


async def test_the_pilots_states_and_utilization_are_reported(
    made: RadicalExecutionBackend, driver: Driver, pilot_states: list[tuple[str, str]]
) -> None:
    await driver.run_one(driver.command("sleep 0.5"))
    states = [state for uid, state in pilot_states if uid == "pilot.0000"]
    assert states[-2:] == ["PMGR_ACTIVE_PENDING", "PMGR_ACTIVE"]
    (pilot,) = made.account()["pilots"]
    assert pilot["resource"] == "local.localhost"
    assert list(pilot["states"]) == states
    assert 0 < pilot["utilization"] < 1


async def test_a_task_that_would_outlast_the_pilot_is_rejected(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def say(what: str) -> str:
        return f"echo {what}"

    with pytest.raises(InsufficientWalltimeError, match="its walltime is 1800 s"):
        await say.options(resources={"walltime": 1800})("too late")
    quick = say.options(resources={"walltime": 10}, timeout=1800)("in time")
    assert await quick == "in time\n"
    runtime = 60 * resources()["runtime"]
    late = say.options(timeout=runtime)("for a pilot that is active")
    with pytest.raises(InsufficientWalltimeError, match="its timeout is") as caught:
        await late
    assert caught.value.left < runtime


async def test_a_sandbox_that_scripts_cannot_quote_is_rejected_for_programs(
    made: RadicalExecutionBackend, tmp_path: Path
) -> None:
    async with Driver(made, work_dir=tmp_path / 'it\'s a $HOME of "ours"') as driver:
        task, call = driver.command("true"), driver.call(os.getcwd)
        call["sandbox"] = str(tmp_path / "it's ours")
        shell, function = await driver.run(task, call)
    assert isinstance(shell.error, DataError), str(shell)
    assert "work_dir=" in str(shell.error)
    assert function.value == call["sandbox"], str(function)


async def test_sandboxes_are_accessible_below_the_pilots_sandbox(driver: Driver) -> None:
    first = driver.command("echo one > made")
    end = await driver.run_one(first)
    assert end.state == "DONE", str(end)
    source = f"pilot:///{first['uid']}/made"
    staged = own(
        driver.command("cat got"),
        input_staging=[{"source": source, "target": "task:///got", "action": rp.LINK}],
    )
    copied = own(
        driver.command("cat got"),
        pre_exec=[f'cp "$RP_PILOT_SANDBOX/{first["uid"]}/made" got'],
    )
    direct = driver.command(f'cat "$RP_PILOT_SANDBOX/{first["uid"]}/made"')
    ends = await driver.run(staged, copied, direct)
    assert [end.stdout for end in ends] == ["one\n"] * 3


async def test_standard_input_is_passed_to_the_program(driver: Driver) -> None:
    task = driver.command("pwd; cat")
    task["stdin"] = "given\n"
    end = await driver.run_one(task)
    assert end.stdout == f"{task['sandbox']}\ngiven\n", str(end)


async def test_native_states_are_reported_in_order(
    made: RadicalExecutionBackend, driver: Driver
) -> None:
    task = driver.command("true")
    await driver.run_one(task)
    native = [report.native for report in driver.of(task)]
    assert native == ["AGENT_STAGING_INPUT_PENDING", "AGENT_EXECUTING", StateMapper(made).DONE]


async def test_an_unknown_setting_fails_with_a_suggestion(
    driver: Driver,
) -> None:
    end = await driver.run_one(own(driver.command("true"), cores_per_rnk=2))
    assert isinstance(end.error, TypeError)
    assert "did you mean 'cores_per_rank'" in str(end.error)


async def test_settings_of_radical_pilot_take_effect(driver: Driver) -> None:
    task = own(
        driver.command("echo $ONE $TWO; cat made; echo $RP_CORES_PER_RANK"),
        environment={"ONE": "$HOME"},
        pre_exec=["echo made > made", "export TWO=2"],
        cores_per_rank=3,
    )
    end = await driver.run_one(task)
    assert end.stdout == f"{Path.home()} 2\nmade\n3\n", str(end)


async def test_tasks_see_the_programs_variables_except_secrets(driver: Driver) -> None:
    program, call = await driver.run(
        driver.command("env -0", environment={"PLAIN": "$own"}),
        driver.call(lambda: dict(os.environ)),
    )
    lines = str(program.stdout).split("\0")
    seen = {name: value for name, _, value in (line.partition("=") for line in lines)}
    for name in ("PATH", "PYTHONPATH", "VIRTUAL_ENV", "PYTHONNOUSERSITE", "MAKEFLAGS", "HOME"):
        assert seen.get(name) == os.environ.get(name), name
    assert {name: seen[name] for name in VARIABLES} == {**VARIABLES, "PLAIN": "$own"}
    assert call.value["PLAIN"] == VARIABLES["PLAIN"]
    assert call.value["PATH"].endswith(os.environ["PATH"])
    assert call.value["PYTHONPATH"] == os.environ.get("PYTHONPATH", "")
    for each in seen, call.value:
        assert each["AT_FIRST"] == "done"
        assert "RHAPSODY_TEST_TOKEN" not in each


async def test_functions_receive_variables_that_pre_exec_exports(
    driver: Driver,
) -> None:
    def seen() -> tuple[str | None, bool]:
        return os.environ.get("Q"), "RP_TASK_NAME" in os.environ

    exported = own(driver.call(seen), pre_exec="export Q=9")
    launched = own(driver.call(seen), pre_exec=["export Q=8"], pre_launch=["true"])
    ranked = own(driver.call(seen), pre_exec=[{"0": "export Q=7"}])
    here, program, for_a_rank = await driver.run(exported, launched, ranked)
    assert for_a_rank.value == ("7", True), str(for_a_rank)
    assert here.value is not None, str(here)
    assert here.value[0] == "9"
    assert program.value == ("8", True), str(program)


async def test_an_unknown_pilot_is_rejected(driver: Driver) -> None:
    end = await driver.run_one(own(driver.command("true"), pilot="pilot.0007"))
    assert isinstance(end.error, ValueError), str(end)
    assert "the pilots are pilot.0000" in str(end.error)


async def test_several_ranks_without_mpi_are_rejected(
    driver: Driver, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("shutil.which", lambda name: None)
    end = await driver.run_one(own(driver.command("true"), ranks=2))
    assert isinstance(end.error, CapabilityError), str(end)
    assert "openmpi-bin" in str(end.error)


async def test_a_timeout_of_radical_pilot_is_reported_as_a_timeout(driver: Driver) -> None:
    ends = await driver.run(
        own(driver.command("sleep 60"), timeout=1.0),
        own(driver.call(time.sleep, 60), timeout=1.0),
        own(driver.call(time.sleep, 60), timeout=1.0, pre_launch=["true"]),
    )
    assert [end.state for end in ends] == ["FAILED"] * 3
    assert [type(end.error) for end in ends] == [TaskTimeoutError] * 3, str(ends)


async def test_an_invalid_setting_fails_only_its_task(driver: Driver) -> None:
    bad = own(driver.command("true"), input_staging=[{"sauce": "a"}])
    ends = await driver.run(driver.command("true"), bad, driver.command("true"))
    assert [end.state for end in ends] == ["DONE", "FAILED", "DONE"]
    assert "sauce" in str(ends[1].error)


async def test_the_users_directory_is_kept_after_a_function(driver: Driver, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "data").write_text("precious")
    end = await driver.run_one(own(driver.call(os.getcwd), sandbox=str(tmp_path / "mine")))
    assert end.value == str(tmp_path / "mine"), str(end)
    assert (tmp_path / "mine" / "data").read_text() == "precious"


async def test_an_error_of_the_readiness_callable_fails_the_service(flow: WorkflowEngine) -> None:
    def look(_: Any) -> None:
        raise KeyError("the port")

    @flow.executable_task(service=True, ready=look)
    async def serve() -> str:
        return "sleep 600"

    with pytest.raises(KeyError, match="the port"):
        await serve()


async def test_the_value_of_the_readiness_callable_is_not_pickled(flow: WorkflowEngine) -> None:
    class Found:
        """Value of a type that exists only here and cannot be pickled."""

        def __init__(self) -> None:
            self.lock = threading.Lock()

    @flow.executable_task(service=True, ready=lambda _: Found())
    async def serve() -> str:
        return "sleep 600"

    @flow.executable_task
    async def after() -> str:
        return "echo after"

    assert isinstance(await serve(), Found)
    assert await after() == "after\n", "the client goes on"


async def test_a_blocking_method_in_a_state_callback_is_rejected(
    made: RadicalExecutionBackend, driver: Driver
) -> None:
    said: list[BaseException] = []

    def report(task: Any, state: Any, service_callback: Any = None) -> None:
        try:
            made.resource_pilot.as_dict()
        except RuntimeError as error:
            said.append(error)

    made.register_callback(report)
    try:
        await driver.run_one(driver.command("true"))
    finally:
        made.unregister_callback(report)
    assert "call them on another thread" in str(said[0])


async def test_a_missing_input_fails_the_task(driver: Driver, tmp_path: Path) -> None:
    task = own(
        driver.command("true"),
        input_staging=[
            {"source": str(tmp_path / "absent"), "target": "task:///a", "action": rp.TRANSFER}
        ],
    )
    end = await driver.run_one(task)
    assert isinstance(end.error, DataError)
    assert "absent" in str(end.error)


async def test_a_missing_link_fails_the_task(driver: Driver) -> None:
    task = own(
        driver.command("true"),
        input_staging=[{"source": "pilot:///nobody/a", "target": "task:///a", "action": rp.LINK}],
    )
    end = await driver.run_one(task)
    assert isinstance(end.error, DataError), str(end)


async def test_a_missing_output_fails_the_task(driver: Driver, tmp_path: Path) -> None:
    def staging(name: str) -> list[dict[str, str]]:
        target = f"file://localhost{tmp_path}/{name}"
        return [{"source": f"task:///{name}", "target": target, "action": rp.TRANSFER}]

    bad = own(driver.command("true"), output_staging=staging("absent"))
    good = own(driver.command("echo made > made"), output_staging=staging("made"))
    missing, found = await driver.run(bad, good)
    assert isinstance(missing.error, DataError)
    assert "absent" in str(missing.error)
    assert found.state == "DONE"
    assert (tmp_path / "made").read_text() == "made\n"


async def test_resources_that_no_node_has_are_rejected(driver: Driver) -> None:
    end = await driver.run_one(own(driver.command("true"), cores_per_rank=1000))
    assert isinstance(end.error, CapabilityError)
    assert "has 8" in str(end.error)


async def test_functions_can_run_as_programs(made: RadicalExecutionBackend, driver: Driver) -> None:
    made.functions = "executable"
    try:
        good, bad, killed = await driver.run(
            driver.call(lambda: print("said") or os.getppid()),
            driver.call(lambda: 1 // 0),
            driver.call(lambda: os.kill(os.getpid(), 9)),
        )
    finally:
        made.functions = "raptor"
    assert isinstance(good.value, int)
    assert good.stdout == "said\n"
    assert isinstance(bad.error, ZeroDivisionError)
    assert "137" in str(killed.error)


async def test_the_master_selector_cycles_through_the_masters(
    made: RadicalExecutionBackend, driver: Driver
) -> None:
    await driver.run_one(driver.call(int))
    (master,) = made.masters
    assert next(made.master_selector) == master.uid
    assert next(made.master_selector) == master.uid
    assert len(made.workers) == 1


async def test_radical_pilot_receives_the_readiness_of_a_service(
    made: RadicalExecutionBackend, driver: Driver
) -> None:
    service = driver.service("echo 'at host:4711'; sleep 600", ready=r"stdout:at (\S+)")
    service["uid"] = "known.service.1"  # which can be part of a variable's name
    await driver.submit(service)
    assert await driver.ready(service) == "host:4711"
    handle = await asyncio.to_thread(made.task_manager.get_tasks, service["uid"])
    assert await asyncio.to_thread(handle.wait_info) == "host:4711"
    name = "RP_INFO_" + service["uid"].replace(".", "_").upper()
    user = own(driver.command(f"echo ${name}"), services=[service["uid"]])
    assert (await driver.run_one(user)).stdout == "host:4711\n"
    await driver.cancel(service)
    await driver.finished(service)


async def test_a_service_receives_a_free_port_of_its_node(driver: Driver) -> None:
    listen = f"exec {shlex.quote(sys.executable)} -m http.server {{port}} --bind 127.0.0.1"
    service = driver.service(f'test "$PORT" = "{{port}}" && {listen}', ready="tcp")
    await driver.submit(service)
    address = await driver.ready(service)
    socket.create_connection(address, timeout=10).close()
    await driver.cancel(service)
    await driver.finished(service)


async def test_a_program_can_replace_its_output_files(driver: Driver) -> None:
    out, err = OUTPUT_FILES
    swap = f"rm {out} {err}; mkfifo {out}; ln -s /etc/passwd {err}"
    done = await driver.run_one(driver.command(swap))
    assert (done.state, done.stdout, done.stderr) == (TasksMainStates.DONE, "", "")


async def test_host_and_output_of_a_running_program_are_available(
    flow: WorkflowEngine, made: RadicalExecutionBackend, tmp_path: Path
) -> None:
    @flow.executable_task
    def talk() -> str:
        return f"echo started; echo > {tmp_path}/started; cat {tmp_path}/gate; echo over"

    for name in ("started", "gate"):
        os.mkfifo(tmp_path / name)
    future = talk()
    async with asyncio.timeout(60):
        await asyncio.to_thread((tmp_path / "started").read_text)
        while str(future.state) != "RUNNING":  # noqa: ASYNC110 - the report comes after the start
            await asyncio.sleep(0.05)
        assert (tmp_path / str(future.stdout_path)).read_text() == "started\n"
        assert future.host == socket.gethostname()
        assert made.cores_in_use() == (1, 8)
        (tmp_path / "gate").write_text("")
        assert await future == "started\nover\n"
        assert future.host == socket.gethostname()
    await flow.shutdown(skip_execution_backend=True)
    assert made.cores_in_use() == (0, 8)


def left_of(*paths: str) -> list[str]:
    """Return the paths that exist, including broken links."""
    return [path for path in paths if os.path.lexists(path)]


async def test_a_task_canceled_before_its_start_leaves_no_sandbox(
    flow: WorkflowEngine, made: RadicalExecutionBackend
) -> None:
    @flow.executable_task(resources={"cores": 5})
    def wait() -> str:
        return "sleep 600"

    futures = [wait(), wait()]
    async with asyncio.timeout(60):
        while sorted(str(future.state) for future in futures) != ["RUNNING", "SUBMITTED"]:  # noqa: ASYNC110
            await asyncio.sleep(0.05)
        # RADICAL-Pilot starts the second task first if the cores become free after the submission.
        running, waiting = sorted(futures, key=lambda future: str(future.state))
        assert waiting.task is not None
        places = [str(waiting.sandbox), f"{made.pilots[0].sandbox}/{waiting.task['uid']}"]
        assert left_of(*places) == places
        for future in (waiting, running):
            future.cancel()
            await asyncio.wait([future])
    await flow.shutdown(skip_execution_backend=True)
    assert left_of(*places) == []


async def test_the_error_of_a_program_names_its_host(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def fail() -> str:
        return "false"

    with pytest.raises(TaskFailedError) as error:
        await fail()
    assert f"on 'radical_pilot' ({socket.gethostname()})" in error.value.__notes__[-1]


async def test_outputs_of_tasks_in_one_directory_are_separate(
    driver: Driver, tmp_path: Path
) -> None:
    ends = await driver.run(
        *(own(driver.command(f"echo {n}"), sandbox=str(tmp_path / "one")) for n in range(3)),
        own(driver.command("echo named"), stdout="printed"),
    )
    assert [end.stdout for end in ends] == ["0\n", "1\n", "2\n", "named\n"]
    sandbox = str(ends[3].task.get("sandbox"))
    assert (tmp_path / sandbox / "printed").read_text() == "named\n"


async def test_info_pattern_detects_the_readiness_of_a_service(driver: Driver) -> None:
    service = own(driver.service("echo READY 17; sleep 600"), info_pattern="stdout:READY (.*)")
    await driver.submit(service)
    assert await driver.ready(service) == "17"
    await driver.cancel(service)
    await driver.finished(service)


async def test_the_ready_callback_accepts_objects_with_wait_info() -> None:
    class Waits:
        def wait_info(self) -> str:
            return "here"

    class Fails:
        def wait_info(self) -> str:
            raise RuntimeError("no service info")

    loop = asyncio.get_running_loop()

    class Setter:
        def __init__(self) -> None:
            self.future: asyncio.Future[Any] = loop.create_future()

        def set_result(self, value: Any) -> None:
            loop.call_soon_threadsafe(self.future.set_result, value)

        def set_exception(self, error: BaseException) -> None:
            loop.call_soon_threadsafe(self.future.set_exception, error)

    good, bad = Setter(), Setter()
    service_ready_callback(good, Waits(), "AGENT_EXECUTING")
    service_ready_callback(bad, Fails(), "AGENT_EXECUTING")
    async with asyncio.timeout(10):
        assert await good.future == "here"
        with pytest.raises(RuntimeError, match="no service info"):
            await bad.future


async def test_an_engine_runs_functions_and_executables(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    @flow.function_task
    def double(number: int) -> int:
        return 2 * number

    @flow.executable_task
    async def show(number: int) -> list[str]:
        return ["echo", str(number), "$HOME"]

    future = show(double(21))
    assert await future == "42 $HOME\n"
    assert future.sandbox is not None
    assert Path(future.sandbox).is_relative_to(tmp_path / "flow")


# Cancelled tasks: what works in the same directory goes on, what they started ends.


@pytest.mark.parametrize("who", ["the task's settings", "the engine"])
async def test_cancellation_ends_the_processes_of_the_task_only(
    driver: Driver, tmp_path: Path, who: str
) -> None:
    here = tmp_path / "shared"

    def placed(task: Any, **settings: Any) -> Any:
        if who == "the engine":
            task["sandbox"] = str(here)
        else:
            settings["sandbox"] = str(here)
        task["task_backend_specific_kwargs"] = settings
        return task

    names = ("neighbour", "cancelled", "timed")
    pids = {name: tmp_path / f"{name}.pids" for name in names}
    neighbour, cancelled = (
        placed(driver.command(BUSY.format(pids=pids[name]))) for name in names[:2]
    )
    timed = placed(driver.command(BUSY.format(pids=pids["timed"])), timeout=8.0)
    with sleeping(here) as one, sleeping(here, "nohup") as two, sleeping(here / "below") as three:
        await driver.submit(neighbour, cancelled, timed)
        others = [one.pid, two.pid, three.pid, *await six(pids["neighbour"])]
        theirs, its = await six(pids["timed"]), await six(pids["cancelled"])
        await driver.cancel(cancelled)
        assert (await driver.finished(cancelled)).state == "CANCELED"
        assert [pid for pid in its if alive(pid)] == []
        end = await driver.finished(timed)
        assert isinstance(end.error, TaskTimeoutError), str(end)
        assert [pid for pid in theirs if alive(pid)] == []
        assert all(map(alive, others))
        await driver.cancel(neighbour)
        assert (await driver.finished(neighbour)).state == "CANCELED"
        assert [pid for pid in others if alive(pid)] == [one.pid, two.pid, three.pid]


async def test_background_processes_of_a_finished_task_continue(driver: Driver) -> None:
    task = driver.command("setsid sleep 600 > /dev/null 2>&1 & echo $!")
    end = await driver.run_one(task)
    assert end.state == "DONE", str(end)
    assert alive(int(str(end.stdout)))


async def test_commands_run_in_environments(flow: WorkflowEngine, tmp_path: Path) -> None:
    path = make_environment(tmp_path / "env")
    (tmp_path / "in.txt").write_text("from outside\n")
    async with asyncio.timeout(200):

        @flow.executable_task(venv=path)
        def show(command: Any) -> Any:
            return command

        assert await show([*PREFIX, "$HOME", "a 'b'"]) == f"{path} $HOME a 'b'\n"
        assert await show("echo $VIRTUAL_ENV | cat") == f"{path}\n"
        with working_podman() as podman:

            @flow.executable_task(container=podman.root, environment=podman.environment)
            def copy(source: InputFile, target: OutputFile) -> list[Any]:
                return ["cp", source, target]

            await copy(InputFile(tmp_path / "in.txt"), OutputFile("out.txt", save=f"{tmp_path}/"))
    assert (tmp_path / "out.txt").read_text() == "from outside\n"
