"""Tasks as jobs of a real Slurm."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from rhapsody import (
    CapabilityError,
    SubmissionError,
    TaskFailedError,
    TasksMainStates,
    TaskTimeoutError,
    WorkflowEngine,
)
from rhapsody.history.reader import read_run
from rhapsody_psij import PsijExecutionBackend
from rhapsody_testing._tools import python_environment
from tests._support.slurm import until_no_jobs

pytestmark = [pytest.mark.asyncio, pytest.mark.slurm, pytest.mark.usefixtures("cluster")]


@pytest_asyncio.fixture
async def flow(tmp_path: Path) -> AsyncIterator[WorkflowEngine]:
    """An engine on the cluster."""
    async with asyncio.timeout(100):
        async with WorkflowEngine.create(
            PsijExecutionBackend("slurm", queue="debug", poll_interval=1)
        ) as engine:
            yield engine


async def test_functions_and_executables_run_as_jobs(flow: WorkflowEngine) -> None:
    @flow.executable_task(resources={"cores": 2, "memory": "200 MiB", "walltime": "2 min"})
    def job() -> str:
        return "scontrol show job $SLURM_JOB_ID; echo threads=$OMP_NUM_THREADS"

    @flow.function_task
    def lines(text: str) -> list[str]:
        return text.split()

    said = await lines(job())
    expected = {"NumCPUs=2", "MinMemoryNode=200M", "TimeLimit=00:02:00", "Partition=debug"}
    assert expected | {"threads=2"} <= set(said)


async def test_a_function_with_an_environment_has_its_cores_and_gpus(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    path = python_environment(tmp_path / "env")

    @flow.function_task(venv=path, resources={"cores": 2, "gpus": 1})
    def look() -> tuple[str, ...]:
        names = ("SLURM_CPUS_PER_TASK", "OMP_NUM_THREADS", "CUDA_VISIBLE_DEVICES")
        return sys.prefix, *(os.environ[name] for name in names)

    assert await look() == (str(path), "2", "2", "0")


async def test_ranks_are_started_by_srun(flow: WorkflowEngine, tmp_path: Path) -> None:
    @flow.executable_task(resources={"ranks": 2}, environment={"GREETING": "a b"}, stdin="text\n")
    def rank() -> str:
        return 'echo "rank $SLURM_PROCID of $SLURM_NTASKS: $GREETING"; exit $SLURM_PROCID'

    @flow.executable_task(resources={"ranks": 2}, cwd=tmp_path)
    def place() -> list[str]:
        return ["pwd"]

    failing, placed = rank(), place()
    assert await placed == f"{tmp_path}\n" * 2
    with pytest.raises(Exception, match="exit code 1"):
        await failing
    text = Path(failing.stdout_path or "").read_text()  # noqa: ASYNC240
    assert sorted(text.splitlines()) == ["rank 0 of 2: a b", "rank 1 of 2: a b"]
    assert failing.host == socket.gethostname()


async def test_functions_run_on_the_ranks_that_srun_starts(flow: WorkflowEngine) -> None:
    pytest.importorskip("mpi4py")

    def rank(number: int) -> Any:
        from mpi4py import MPI

        return MPI.COMM_WORLD.rank, MPI.COMM_WORLD.allreduce(number)

    without = flow.function_task(resources={"ranks": 2})(rank)
    with_pmi = without.options(environment={"SLURM_MPI_TYPE": "pmi2"})
    assert await with_pmi(4) == [(0, 8), (1, 8)]
    with pytest.raises(CapabilityError, match="1 ranks instead of 2"):
        await without(4)


async def test_canceled_tasks_leave_the_queue(flow: WorkflowEngine) -> None:
    @flow.executable_task(resources={"cores": 2})
    def wait() -> str:
        return "sleep 100"

    running, waiting = wait(), wait()
    while running.state is not TasksMainStates.RUNNING:  # noqa: ASYNC110
        await asyncio.sleep(0.05)
    running.cancel()
    waiting.cancel()
    await asyncio.gather(running.ended(), waiting.ended())
    until_no_jobs()


async def test_jobs_have_the_names_of_their_tasks(flow: WorkflowEngine) -> None:
    task = flow.executable_task(name="align reads")(lambda: "echo $SLURM_JOB_NAME")
    assert await task() == "align_reads\n"


async def test_a_job_that_is_killed_is_lost_and_repeated(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    @flow.executable_task
    def once(marker: Path) -> str:
        return f"[ -e {marker} ] && echo again || (touch {marker}; scancel $SLURM_JOB_ID; sleep 60)"

    flow.backend.patience = 1.0  # type: ignore[attr-defined]
    assert await once(tmp_path / "marker") == "again\n"


async def test_slurm_does_not_start_a_job_again(flow: WorkflowEngine) -> None:
    exclusive = {"attributes": {"slurm.exclusive": True}}

    @flow.executable_task(task_description=exclusive)
    def append() -> str:
        again = "scontrol requeue $SLURM_JOB_ID && sleep 60 || cat lines"
        return f"echo line >>lines; {again}; scontrol show job $SLURM_JOB_ID | grep -o OverSub.*"

    assert (await append()).split()[:2] == ["line", "OverSubscribe=NO"]
    assert flow.stats.lost == 0


@pytest.mark.parametrize(
    ("resources", "reason"),
    [
        ({"memory": "100 TB"}, "node configuration"),
        ({"gpus": 3}, "node configuration"),
        ({"cores": 3}, "no node of 'slurm' has more than 2: lower its resource `cores`"),
        ({"ranks": 3}, "no node of 'slurm' has more than 2: .* the option `nodes`"),
    ],
    ids=["memory", "GPUs", "cores", "ranks"],
)
async def test_what_no_node_has_is_refused(
    flow: WorkflowEngine, resources: dict[str, Any], reason: str
) -> None:
    @flow.executable_task(resources=resources)
    def big() -> str:
        return "true"

    with pytest.raises(CapabilityError, match=reason):
        await big()


async def test_tasks_and_ranks_see_their_gpus(flow: WorkflowEngine, tmp_path: Path) -> None:
    @flow.executable_task(resources={"gpus": 1})
    def program(me: str, other: str) -> str:
        meet = f"touch {me}; until [ -e {other} ]; do sleep 0.1; done"
        return f"cd {tmp_path}; {meet}; echo GPU $CUDA_VISIBLE_DEVICES"

    @flow.executable_task(resources={"ranks": 2, "gpus": 1})
    def rank() -> str:
        return "echo GPU $CUDA_VISIBLE_DEVICES"

    at_once = await asyncio.gather(program("a", "b"), program("b", "a"))
    assert sorted(at_once) == ["GPU 0\n", "GPU 1\n"]
    assert sorted((await rank()).splitlines()) == ["GPU 0", "GPU 1"]


async def test_a_job_that_slurm_rejects_fails_its_task(flow: WorkflowEngine) -> None:
    @flow.executable_task(task_description={"queue": "nonexistent"})
    def job() -> str:
        return "true"

    with pytest.raises(SubmissionError, match="nvalid partition"):
        await job()


LINGER = """
import atexit, sys, time
if "rhapsody_psij.job" in sys.orig_argv:
    atexit.register(time.sleep, 1)
"""


async def test_the_last_job_ends_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "sitecustomize.py").write_text(LINGER)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    async with asyncio.timeout(100):
        async with WorkflowEngine.create(PsijExecutionBackend("slurm")) as flow:

            @flow.function_task
            def number() -> str:
                return os.environ["SLURM_JOB_ID"]

            job = await number()
    until_no_jobs()
    words = ["scontrol", "show", "job", job]
    shown = subprocess.check_output(words, text=True)  # noqa: ASYNC221
    assert {"JobState=COMPLETED", "ExitCode=0:0"} <= set(shown.split())


async def test_tasks_share_a_job() -> None:
    backend = PsijExecutionBackend("slurm", queue="debug", tasks_per_job=3, poll_interval=1)
    async with asyncio.timeout(100):
        async with WorkflowEngine.create(backend) as flow:

            @flow.executable_task(resources={"walltime": "1 min"})
            def job() -> str:
                return "echo $SLURM_JOB_ID $(squeue -h -j $SLURM_JOB_ID -o %l)"

            said = await asyncio.gather(*(job() for _ in range(3)))
    assert len(set(said)) == 1
    assert said[0].split()[1] == "3:00"


async def test_short_tasks_share_a_job_by_default(
    flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    @flow.executable_task
    def job() -> str:
        return "sleep 0.1; echo $SLURM_JOB_ID"

    async def jobs(number: int) -> int:
        return len(set(await asyncio.gather(*(job() for _ in range(number)))))

    monkeypatch.setattr("rhapsody_psij.backend.GROUP_SECONDS", 200)
    assert await jobs(5) == 5  # whose run times were not known
    assert await jobs(12) == 1
    assert "share jobs" in caplog.text
    monkeypatch.setattr("rhapsody_psij.backend.GROUP_SECONDS", 0.5)
    assert await jobs(10) == 10


async def test_a_command_needs_neither_python_nor_files_of_its_own(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def command() -> str:
        return "cat /proc/$PPID/comm; exit 3"

    task = command()
    with pytest.raises(TaskFailedError, match="exit code 3") as caught:
        await task
    assert caught.value.stdout == "slurm_script\n"
    assert task.host == socket.gethostname()
    assert (task.usage or {}).keys() == {"cpu_seconds"}
    with pytest.raises(FileNotFoundError, match="cannot start 'nonexistent'"):
        await flow.executable_task(lambda: ["nonexistent"])()
    (directory,) = Path().glob("**/psij-*")  # noqa: ASYNC240
    files = {path.name for path in directory.rglob("*") if path.suffix not in ("", ".sh")}
    assert files == {"client.log", f"{task.host}.log"}


@pytest.mark.parametrize("refused", [False, True], ids=["accepted", "refused"])
async def test_equal_jobs_are_submitted_as_an_array(
    refused: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, array = tmp_path / "sbatch", "*--array*) echo refused; exit 1 ;;" if refused else ""
    program.write_text(
        f'#!/bin/sh\necho "$@" >>{tmp_path}/calls\ncase "$*" in {array} esac\n'
        f'exec {shutil.which("sbatch")} "$@"\n'
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    backend = PsijExecutionBackend("slurm", poll_interval=1)
    async with asyncio.timeout(100), WorkflowEngine.create(backend) as flow:

        @flow.executable_task
        def command(index: int) -> str:
            return f"echo {index} ${{SLURM_ARRAY_TASK_ID:-}}"

        @flow.function_task
        def call(index: int) -> tuple[int, str | None]:
            return index, os.environ.get("SLURM_ARRAY_TASK_ID")

        missing = flow.executable_task(lambda: ["nonexistent"])
        commands = asyncio.gather(*(command(index) for index in range(4)))
        calls = asyncio.gather(*(call(index) for index in range(2)))
        failing = asyncio.gather(*(missing() for _ in range(2)), return_exceptions=True)
        assert await commands == [f"{index}\n" for index in range(4)]
        assert await calls == [(index, None) for index in range(2)]
        assert [type(error) for error in await failing] == [FileNotFoundError] * 2
    sent = (tmp_path / "calls").read_text().splitlines()
    arrays = [line for line in sent if "--array=0-" in line]
    assert arrays
    assert len(sent) - len(arrays) == 8 if refused else len(sent) < 8


async def test_many_jobs_are_canceled_with_few_commands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("scancel", "squeue"):
        program = tmp_path / name
        program.write_text(
            f'#!/bin/sh\necho "$@" >>{tmp_path}/{name}.log\nexec {shutil.which(name)} "$@"\n'
        )
        program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with asyncio.timeout(100):
        async with WorkflowEngine.create(PsijExecutionBackend("slurm", poll_interval=1)) as flow:
            tasks = [flow.executable_task(lambda: "sleep 100")() for _ in range(20)]
            while sum(task.state is TasksMainStates.RUNNING for task in tasks) < 2:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            for task in tasks:
                task.cancel()
            await asyncio.gather(*(task.ended() for task in tasks))
    calls = (tmp_path / "scancel.log").read_text().splitlines()
    assert len(calls) <= 3
    assert len({word for call in calls for word in call.split() if word[0].isdigit()}) == 20
    polls = (tmp_path / "squeue.log").read_text().splitlines()
    assert polls
    assert all(re.search(r" -j [\d,_]+$", poll) for poll in polls)
    until_no_jobs()


SQUEUE = """#!/bin/sh
echo . >>{place}/calls
[ ! -e {place}/down ] || exit 1
exec {squeue} "$@"
"""


async def test_tasks_survive_a_queue_that_does_not_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program, calls, down = (tmp_path / name for name in ("squeue", "calls", "down"))
    calls.touch()  # the task may run before the first call
    program.write_text(SQUEUE.format(place=tmp_path, squeue=shutil.which("squeue")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    backend = PsijExecutionBackend("slurm", poll_interval=1)
    backend.poll_interval, backend.patience = 0.2, 0.5
    async with asyncio.timeout(100):
        async with WorkflowEngine.create(backend, lost_retries=0) as flow:

            @flow.executable_task
            def wait() -> str:
                return f"while [ ! -e {tmp_path}/end ]; do sleep 0.1; done; echo done"

            task = wait()
            while task.state is not TasksMainStates.RUNNING:  # noqa: ASYNC110
                await asyncio.sleep(0.05)
            down.touch()
            before = calls.stat().st_size
            while calls.stat().st_size < before + 40:  # noqa: ASYNC110 - two bytes per call
                await asyncio.sleep(0.1)
            assert task.state is TasksMainStates.RUNNING
            down.unlink()
            (tmp_path / "end").touch()
            assert await task == "done\n"


SBATCH = """#!/bin/sh
[ -e {place}/refused ] && exec {sbatch} "$@"
touch {place}/refused
echo 'sbatch: error: AssocMaxSubmitJobLimit' >&2
exit 1
"""


async def test_a_refusal_that_can_pass_is_tried_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    program = tmp_path / "sbatch"
    program.write_text(SBATCH.format(place=tmp_path, sbatch=shutil.which("sbatch")))
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    async with asyncio.timeout(100):
        async with WorkflowEngine.create(
            PsijExecutionBackend("slurm", poll_interval=1), retries=0
        ) as flow:
            assert await flow.executable_task(lambda: "echo done")() == "done\n"
    assert any("AssocMaxSubmitJobLimit; trying" in each.getMessage() for each in caplog.records)


async def test_reasons_that_cannot_pass_fail_the_task(flow: WorkflowEngine) -> None:
    def partition(name: str, setting: str) -> Any:
        words = ["scontrol", "create", f"partitionname={name}", "nodes=ALL", setting]
        subprocess.run(words, check=True)
        task = flow.executable_task(
            resources={"walltime": "5 min"}, task_description={"queue": name}
        )
        return task(lambda: "true")

    short, down = partition("short", "maxtime=1")(), partition("down", "state=down")()
    with pytest.raises(SubmissionError, match=r"Partition(TimeLimit|Config).*`queue`"):
        await short
    with pytest.raises(SubmissionError, match=r"PartitionDown.*`queue`"):
        await down
    await asyncio.to_thread(until_no_jobs)


RELEASE = 'scontrol release "$(squeue -h -o %i | paste -sd,)"'


async def test_a_reason_that_can_pass_is_said_once_and_recorded(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    held = {"attributes": {"slurm.hold": True}}

    def reason() -> str | None:
        task = read_run(tmp_path / "record").tasks.get("task.000001")
        return None if task is None or task.last is None else task.last.waits_for

    async with asyncio.timeout(100):
        async with WorkflowEngine.create(
            PsijExecutionBackend("slurm", poll_interval=1), record=tmp_path / "record"
        ) as flow:
            task = flow.executable_task(task_description=held)(lambda: "echo $SLURM_JOB_ID")
            tasks = [task(), task()]
            while not (tmp_path / "record").exists() or reason() is None:  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            assert reason() == "JobHeldUser"
            await asyncio.to_thread(subprocess.run, RELEASE, shell=True, check=True)
            assert len({*await asyncio.gather(*tasks)}) == 2
    said = [each.getMessage() for each in caplog.records if "JobHeldUser" in each.getMessage()]
    assert len(said) == 1


LATE = "scontrol update jobid=$SLURM_JOB_ID endtime=now+1; sleep 300"


@pytest.mark.long
async def test_a_task_that_reaches_the_limit_of_its_job_fails_at_once(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    counted = f"echo . >>{tmp_path}/starts; {LATE}"
    command = flow.executable_task(resources={"walltime": "5 min"})(lambda: counted)
    ranks = flow.executable_task(resources={"walltime": "5 min", "ranks": 2})(
        lambda: ["sh", tmp_path / "late"]
    )
    (tmp_path / "late").write_text(LATE)

    @flow.function_task(task_description={"attributes": {"duration": "4 min"}})
    def function() -> None:
        subprocess.run(LATE, shell=True, check=False)

    for future, said in (
        (command(), "300 s.*`walltime`"),
        (ranks(), "300 s"),
        (function(), "240 s.*`duration`"),
    ):
        with pytest.raises(TaskTimeoutError, match=said):
            await future
    assert (tmp_path / "starts").read_text() == ".\n"
    assert flow.stats.lost == 0
