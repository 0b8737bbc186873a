"""The shells of commands that are strings."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody import CapabilityError, InputFile, TaskFailedError, WorkflowEngine, shells
from rhapsody.backends.base import BaseExecutionBackend
from tests._support.engine_fixtures import on_machines
from tests._support.environments import Podman, make_module, needs_modules, working_podman
from tests._support.scripted import within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(120)]

Machines = Callable[[], BaseExecutionBackend]
LONG = f"# {'x' * 200_000}\n"
PLAIN = ["sh", "-c"]


async def outcome(task: Any, command: object) -> str | int | None:
    """The output of a command, or the exit code with which it failed."""
    try:
        text: str = await within(task(command))
    except TaskFailedError as error:
        return error.exit_code
    return text


def runner(flow: WorkflowEngine, **settings: Any) -> Any:
    @flow.executable_task(**settings)
    def run(command: Any) -> Any:
        return command

    return run


@pytest.fixture
def no_bash(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """A PATH without bash."""
    place = tmp_path / "programs"
    place.mkdir()
    for name in ("sh", "cat", "uname"):
        (place / name).symlink_to(shutil.which(name) or "")
    monkeypatch.setenv("PATH", str(place))
    shells._local_bash.cache_clear()
    yield
    shells._local_bash.cache_clear()


# Failures inside of a command.


@on_machines
async def test_a_command_fails_if_any_of_its_parts_fails(machine: Machines) -> None:
    async with WorkflowEngine.create(machine()) as flow:
        run = runner(flow)
        assert await outcome(run, "no-such-program | cat") == 127
        assert await outcome(run, "false; true") == 1
        assert await outcome(run, "echo $NOT_SET | cat") == 1
        assert await outcome(run, "echo $((1 + 1)) | cat && [[ a == a ]]") == "2\n"
        assert await outcome(run, "if false; then :; fi; false || echo $? ${NOT_SET:-}") == "1\n"


@on_machines
async def test_the_shell_can_be_chosen_for_an_engine_and_a_task(machine: Machines) -> None:
    async with WorkflowEngine.create(machine(), shell="sh") as flow:
        run = runner(flow)
        assert await outcome(run, "false; true") == 1
        assert await outcome(run, "false | echo $NOT_SET") == 2
        assert await outcome(run, "false | echo sh") == "sh\n"
        assert await outcome(run.options(shell="bash"), "false | echo bash") == 1
        plain = run.options(shell=PLAIN)
        assert await outcome(plain, "false; echo plain $NOT_SET") == "plain\n"
        assert await outcome(plain.options(shell=None), "false; true") == 1
        assert await outcome(run.options(shell=["bash", "-euc"]), "echo $-; false; :") == 1
        assert await outcome(run, ["echo", "a", "$b"]) == "a $b\n"


async def test_a_profile_sets_the_shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rhapsody.toml").write_text(
        '[defaults]\nshell = ["sh", "-c"]\n[tasks.strict]\nshell = "bash"\n'
    )
    async with WorkflowEngine.create() as flow:
        assert await outcome(runner(flow), "false; echo plain") == "plain\n"
        assert await outcome(runner(flow, name="strict"), "false; echo plain") == 1
        assert (
            await within(flow.function_task(lambda: 1)()) == 1
        )  # the default is for commands only


@pytest.mark.parametrize(
    ("value", "error"),
    [
        ("zsh", ValueError),
        ("bash -c", ValueError),
        (["zsh"], ValueError),
        (["zsh", "-e"], ValueError),
        ([], TypeError),
        (1, TypeError),
        (["sh", 1], TypeError),
    ],
)
async def test_other_values_are_refused(value: Any, error: type[Exception]) -> None:
    with pytest.raises(error, match=r'shell must be "bash", "sh", or words'):
        WorkflowEngine.create(shell=value)
    async with WorkflowEngine.create() as flow:
        with pytest.raises(error):
            flow.executable_task(shell=value)(str)
        with pytest.raises(TypeError, match="applies only to commands"):
            flow.function_task(shell="sh")(str)


@on_machines
async def test_files_that_bash_reads_first_may_use_variables_that_are_not_set(
    machine: Machines, tmp_path: Path
) -> None:
    (tmp_path / "init").write_text("echo init $NOT_SET; false\n")
    async with WorkflowEngine.create(machine()) as flow:
        run = runner(flow, environment={"BASH_ENV": str(tmp_path / "init")})
        assert await outcome(run, "echo done") == "init\ndone\n"


@needs_modules
@on_machines
async def test_a_module_is_loaded_before_the_shell_is_strict(
    machine: Machines, tmp_path: Path
) -> None:
    make_module(tmp_path, "tool")
    async with WorkflowEngine.create(machine()) as flow:
        run = runner(flow, modules=["tool"], environment={"MODULEPATH": str(tmp_path)})
        assert await outcome(run, "echo $TOOL") == "tool/1.0\n"
        assert await outcome(run, "false | echo $TOOL") == 1


# Conditions that fail because a program stops reading.


EARLY = [
    "if cat a | grep -q x; then echo bad; else echo good; fi",
    "cat a | LC_ALL=C grep -Eiq 'x' && echo bad",
    "cat a | /bin/zgrep x --quiet || echo good",
    "cat a |\n  grep -q x",
    "cat a 2>&1 | sort |& grep -m 1 x >&2 | cat || echo none",
    "while ! cat a | head -n 1; do sleep 1; done",
    'line=$(cat a | head -n 1) || line=""',
    "echo | cat; if cat a | head -1 | cmp b; then echo same; fi",
]
HARMLESS = [
    "grep -q x a || echo good",
    "false || grep -q x a",
    "if cat a | grep x > /dev/null; then echo bad; fi",
    "cat a | sort | grep -c x || echo none",
    "cat a | head -n 1; true || true",
    'if [ -n "$(cat a | head -n 1)" ]; then echo some; fi',
    'true && cat a | head -n 1 > b; if true; then [ "$(cat a | grep -m1 x)" ] && echo c; fi',
    "cat a | grep -m 1 x > b",
    "cat a | headings || echo none",
]


@pytest.mark.parametrize("command", EARLY)
async def test_a_condition_that_depends_on_the_size_of_a_file_is_found(command: str) -> None:
    assert shells.stops_reading(command)


@pytest.mark.parametrize("command", HARMLESS)
async def test_other_pipelines_are_not_reported(command: str) -> None:
    assert not shells.stops_reading(command)


async def test_each_task_with_such_a_condition_is_reported_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "a").write_text("x\n" * 1_000_000)
    file, plain = InputFile(tmp_path / "a"), "if cat a | grep -q x; then echo bad; fi"
    async with WorkflowEngine.create(retries=1) as flow:

        @flow.executable_task
        def search(file: InputFile) -> str:
            return f"if cat {file} | grep -q x; then echo bad; else echo good; fi"

        assert await within(search(file)) == "good\n"  # the wrong branch, which is why
        await within(search(file))
        with pytest.raises(TaskFailedError):
            await within(runner(flow, name="other")("cat /dev/zero | grep -qm 1 ''"))
        assert await within(search.options(shell=PLAIN, name="plain")(file)) == "bad\n"
        await within(runner(flow, name="words")(["echo", plain]))
    reports = [each.getMessage() for each in caplog.records if "grep -q" in each.getMessage()]
    assert len(reports) == 2
    assert "'search'" in reports[0]
    assert "'other'" in reports[1]


# Machines and containers without bash.


@on_machines
async def test_a_machine_without_bash_uses_sh(
    machine: Machines, no_bash: None, caplog: pytest.LogCaptureFixture
) -> None:
    async with WorkflowEngine.create(machine()) as flow:
        run = runner(flow)
        assert await outcome(run, "false; true") == 1
        assert await outcome(run, "echo $NOT_SET") == 2
        future = run("echo a | cat")
        assert await within(future) == "a\n"
        assert "no bash on" in str(future.stderr)
        assert await outcome(run, f"{LONG}echo long") == "long\n"
    warnings = [record for record in caplog.records if "no bash" in record.getMessage()]
    assert len(warnings) == (machine.__name__ != "Machine")


@pytest.fixture(scope="module")
def podman() -> Iterator[Podman]:
    with working_podman() as podman:
        yield podman


@on_machines
async def test_a_container_without_bash_uses_its_own_shell(
    machine: Machines, podman: Podman, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in podman.environment.items():
        monkeypatch.setenv(name, value)
    (tmp_path / "data.txt").write_text("data\n")
    async with WorkflowEngine.create(machine(), work_dir=tmp_path / "work") as flow:
        run = runner(flow, container=podman.root)
        assert await outcome(run, "false; true") == 1
        assert await outcome(run, "false | true") == 1  # busybox knows pipefail
        assert await outcome(run, "echo $NOT_SET") == 2
        assert await outcome(run.options(shell=PLAIN), "false; echo plain") == "plain\n"

        @flow.executable_task(container=podman.root)
        def read(file: InputFile) -> str:
            return f"{LONG}cat {file}"

        assert await within(read(InputFile(tmp_path / "data.txt"))) == "data\n"


# Long commands.


@on_machines
async def test_a_command_may_be_longer_than_the_system_allows_for_an_argument(
    machine: Machines,
) -> None:
    async with WorkflowEngine.create(machine(), retries=1) as flow:
        run = runner(flow)
        assert await outcome(run, f"{LONG}echo ä; cat") == "ä\n"
        assert await outcome(run, f"{LONG}false | true") == 1
        assert await outcome(run, f"{LONG * 20}echo $((1 + 1))") == "2\n"
        assert await outcome(run.options(shell=["bash", "-euc"]), f"{LONG}echo $-") == "ehuB\n"
        future = run(f"{LONG}ls -A; stat -c %a {shells.COMMAND_FILE}")
        assert "600" in (await within(future)).split()


@on_machines
async def test_a_failed_long_command_can_be_run_again(machine: Machines) -> None:
    async with WorkflowEngine.create(machine()) as flow:
        future = runner(flow)(f"{LONG}echo a; exit 4")
        with pytest.raises(TaskFailedError):
            await within(future)
        again = runner(flow, shell=PLAIN)(f"sh {future.sandbox}/.rhapsody.again; echo $?")
        assert await within(again) == "a\n4\n"


@on_machines
async def test_a_long_command_with_a_standard_input_is_refused(machine: Machines) -> None:
    async with WorkflowEngine.create(machine()) as flow:
        with pytest.raises(CapabilityError, match="too long for a task that has a stdin"):
            await within(runner(flow, stdin="text")(f"{LONG}cat"))


async def test_a_long_command_has_its_file_in_the_sandbox_if_it_runs_elsewhere(
    tmp_path: Path,
) -> None:
    async with WorkflowEngine.create() as flow:
        run = runner(flow, cwd=tmp_path)
        assert await outcome(run, f"{LONG}pwd") == f"{tmp_path}\n"
    assert os.listdir(tmp_path) == []


# Recorded results.


async def test_a_result_is_not_reused_for_another_shell(tmp_path: Path) -> None:
    async def runs(**settings: Any) -> list[bool]:
        async with WorkflowEngine.create(journal=tmp_path / "journal", resume=True) as flow:
            run = runner(flow, **settings)
            text, words = run("echo a | cat"), run(["echo", "a"])
            await within(text)
            await within(words)
            return [future.sandbox is not None for future in (text, words)]

    assert await runs(shell=PLAIN) == [True, True]
    assert await runs(shell=PLAIN) == [False, False]
    assert await runs() == [True, False]
    assert await runs(shell="bash") == [False, False]
