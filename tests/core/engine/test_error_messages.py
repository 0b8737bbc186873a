"""A failure says which call it was, where it ran, and what it printed."""

# ruff: noqa: ASYNC221, ASYNC240 - nothing else is to run on the loop
from __future__ import annotations

import asyncio
import os
import re
import shlex
import stat
import subprocess
import sys
from pathlib import Path, PurePath
from typing import Any

import pytest

from rhapsody import (
    CapabilityError,
    DependencyFailureError,
    InputFile,
    LocalExecutionBackend,
    OutputFile,
    TaskFailedError,
    TaskFuture,
    TaskTimeoutError,
    WorkflowEngine,
)
from rhapsody.engine.core.error_messages import exit_code
from tests._support.machine import exists
from tests._support.scripted import ManualClock, until, within

pytestmark = [pytest.mark.asyncio, pytest.mark.timeout(60)]


async def failure(future: asyncio.Future[Any]) -> BaseException:
    """Return the exception of a future."""
    await within(asyncio.wait([future]))
    error = future.exception()
    assert error is not None
    return error


def notes(error: BaseException) -> list[str]:
    return list(getattr(error, "__notes__", []))


async def printed(future: TaskFuture[Any], folder: Path) -> None:
    """Wait until a task runs, and has made the file `printed` after its output."""
    await within(exists(folder / "printed"))
    await until(lambda: future.state == "RUNNING")


async def test_a_function_that_fails_says_which_call_it_was(flow: WorkflowEngine) -> None:
    @flow.function_task
    def crunch(n: int, path: str, *, table: Any) -> float:
        print("reading", path)
        print("oops", file=sys.stderr)
        return 1 / n

    @flow.function_task
    def one() -> int:
        return 1

    first = one()
    table = {"a": [first, object(), PurePath("data")]}
    error = await failure(crunch(0, "x" * 100, table=table))
    assert isinstance(error, ZeroDivisionError)
    (note,) = notes(error)
    assert note.splitlines()[:2] == [
        "rhapsody: raised in crunch(0, 'xxxxxxxxxxxxxxxxx...xxxxxxxxxxxxxxxxxx', "
        "table={'a': [<task.000001>, <object>, PurePosixPath('data')]})",
        "  task.000002, attempt 1, on 'local' (rhapsody-worker-1)",
    ]


async def test_what_it_printed_last_is_in_the_note(flow: WorkflowEngine) -> None:
    @flow.function_task
    def talk() -> None:
        for number in range(100):
            print("line", number)
        print("oops", file=sys.stderr)
        raise KeyError("gone")

    (note,) = notes(await failure(talk()))
    assert note.split("\n")[2:] == [
        "  standard output ended with:",
        *(f"    line {number}" for number in range(90, 100)),
        "  standard error ended with:",
        "    oops",
    ]


async def test_a_program_shows_both_streams_its_sandbox_and_its_exit_code_in_words(
    flow: WorkflowEngine,
) -> None:
    @flow.executable_task
    def tool(name: str) -> str:
        return f"echo said; echo went wrong >&2; {name}"

    future = tool("no-such-command")
    error = await failure(future)
    assert isinstance(error, TaskFailedError)
    assert "ended with exit code 127 (command not found): echo said;" in str(error)
    assert "went wrong" in str(error)
    (note,) = notes(error)
    assert "raised in tool('no-such-command')" in note
    assert f"  sandbox: {future.sandbox}\n" in note
    assert note.endswith("\n  standard output ended with:\n    said")
    assert "went wrong" not in note
    assert str(error).count("echo said") == 1


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (3, "3"),
        (126, "126 (the command cannot be executed)"),
        (-15, "-15 (SIGTERM)"),
        (139, "139 (SIGSEGV)"),
        (-9, "-9 (SIGKILL, which the system also sends when memory runs out)"),
        (-35, "-35 (signal 35)"),
        (300, "300"),
        (None, "None"),
    ],
)
async def test_an_exit_code_in_words(code: Any, words: str) -> None:
    assert exit_code(code) == words


async def test_a_command_that_writes_to_the_destination_leads_to_a_note(
    flow: WorkflowEngine,
) -> None:
    @flow.executable_task
    def fit(out: OutputFile) -> str:
        return "echo 1 > results/model.csv"

    (note,) = notes(await failure(fit(OutputFile("results/model.csv"))))
    assert "'results/model.csv' is the destination of the finished file" in note


async def test_a_function_that_did_not_write_its_file_leads_to_a_note(
    flow: WorkflowEngine,
) -> None:
    @flow.function_task
    def fit(out: OutputFile) -> None: ...

    error = await failure(fit(OutputFile("model.csv")))
    assert str(error).endswith("Write the file to the path that the task receives")


async def test_a_dependent_names_the_call_that_failed_first(flow: WorkflowEngine) -> None:
    @flow.function_task
    def load(path: str) -> str:
        raise OSError("no such sample")

    @flow.function_task
    def use(*values: Any) -> Any:
        return values

    error = await failure(use(use(load("a.csv"))))
    assert isinstance(error, DependencyFailureError)
    assert str(error) == (
        "task 'use' (task.000003) did not run because load('a.csv') (task.000001) failed: "
        "OSError: no such sample"
    )
    assert notes(error) == []
    assert len(notes(error.root_cause)) == 1  # type: ignore[arg-type]


async def test_an_exception_that_several_tasks_raise_has_the_note_of_the_last(
    flow: WorkflowEngine,
) -> None:
    shared = ValueError("shared")
    shared.add_note("the author's own")

    @flow.function_task
    def fail(number: int) -> None:
        raise shared

    for number in range(3):
        error = await failure(fail(number))
        assert error is shared
        own, ours = notes(shared)
        assert own == "the author's own"
        assert f"raised in fail({number})" in ours


async def test_a_dependent_names_its_own_dependency_where_others_raise_the_same_object(
    capsys: pytest.CaptureFixture[str],
) -> None:
    shared = ValueError("shared")
    async with WorkflowEngine.create(progress="lines") as flow:

        @flow.function_task
        def bad(number: int) -> None:
            raise shared

        @flow.function_task
        def dep(value: Any) -> Any:
            return value

        first, second = bad(1), bad(2)
        await within(asyncio.wait([first, second]))
        for future, call in ((first, "bad(1) (task.000001)"), (second, "bad(2) (task.000002)")):
            near = dep(future)
            assert f"because {call} failed" in str(await failure(near))
            assert f"because {call} failed" in str(await failure(dep(near)))
    account = capsys.readouterr().err.partition("failed:\n")[2]
    # The two run side by side, so either may fail first.
    group = re.search(
        r"^    (bad(?:\(\d\))? \(task.\d+\)): ValueError: shared$(?s:.*)^    the others: (.*)$",
        account,
        re.MULTILINE,
    )
    assert group, account
    uids = re.findall(r"task\.\d+", " ".join(group.groups()))
    assert sorted(uids) == ["task.000001", "task.000002"]


async def test_a_block_passes_on_the_note_of_the_task_that_failed(flow: WorkflowEngine) -> None:
    @flow.function_task
    def inner(x: int) -> None:
        raise ValueError("inside")

    @flow.block
    async def outer(own: bool) -> None:
        if own:
            raise KeyError("its own")
        await inner(7)

    (note,) = notes(await failure(outer(False)))
    assert "raised in inner(7)" in note
    (note,) = notes(await failure(outer(True)))
    assert note == "rhapsody: raised in outer(True)\n  block.000002"


async def test_what_was_never_submitted_says_so(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def tool(word: str) -> str:
        raise ValueError("no command")

    @flow.function_task(resources={"ranks": 4})
    def wide() -> None: ...

    (note,) = notes(await failure(tool("x")))
    assert note == "rhapsody: raised in tool('x')\n  task.000001, not submitted"
    error = await failure(wide())
    assert isinstance(error, CapabilityError)
    assert "does not support functions with ranks=4, as 'psij' and 'radical_pilot' do" in str(error)


async def test_what_could_not_be_started_has_one_note(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def absent() -> list[str]:
        return ["no-such-program"]

    error = await failure(absent())
    assert "task 'absent' cannot start 'no-such-program'" in str(error)
    (note,) = notes(error)
    assert note.startswith("rhapsody: raised in absent()\n  task.000001, attempt 1, on 'local'")


async def test_the_attempt_is_the_last_one(flow: WorkflowEngine) -> None:
    @flow.function_task(retries=2)
    def fail() -> None:
        raise ValueError

    (note,) = notes(await failure(fail()))
    assert "task.000001, attempt 3, on 'local'" in note


async def test_a_time_out_has_the_note_too(tmp_path: Path) -> None:
    async with WorkflowEngine.create(clock=(clock := ManualClock())) as flow:

        @flow.executable_task(timeout=10)
        def sleep() -> str:
            return f"echo started; touch {tmp_path}/printed; sleep 60"

        future = sleep()
        await printed(future, tmp_path)
        await clock.advance(11)
        error = await failure(future)
    assert isinstance(error, TaskTimeoutError)
    (note,) = notes(error)
    assert "standard output ended with:\n    started" in note


async def test_arguments_that_forbid_to_be_looked_at_hide_nothing(flow: WorkflowEngine) -> None:
    class Shy:
        def __repr__(self) -> str:
            raise AssertionError("somebody looked")

    @flow.function_task
    def fail(*values: Any) -> None:
        raise ValueError("the failure")

    (note,) = notes(await failure(fail(Shy(), 10**5000, [Shy()] * 3)))
    assert note.startswith("rhapsody: raised in fail(")
    long = await failure(fail(*range(1000)))
    assert len(notes(long)[0]) < 400


async def test_a_failed_command_can_be_run_again_by_hand(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    @flow.executable_task(environment={"WHO": "it's me"}, stdin="some text")
    def tool(where: Any, *words: Any) -> Any:
        return ["sh", "-c", 'echo "$WHO: $(cat)" "$@" >> "$0"; test -e fixed', str(where), *words]

    error = await failure(tool(tmp_path / "said", "two words"))
    (line,) = [line for line in notes(error)[0].splitlines() if "to run it again" in line]
    command = line.partition(": ")[2]
    script = Path(shlex.split(command)[1])
    assert stat.S_IMODE(script.stat().st_mode) == 0o700
    assert subprocess.run(command, shell=True, check=False).returncode == 1
    (script.parent / "fixed").touch()
    assert subprocess.run(command, shell=True, check=False).returncode == 0
    assert (tmp_path / "said").read_text() == "it's me: some text two words\n" * 3


@pytest.mark.parametrize("capture", [True, "files"])
async def test_a_failed_command_shows_no_value_of_its_environment(
    capture: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    secret = "s3cr3t-" * 30  # pragma: allowlist secret
    async with WorkflowEngine.create(progress="lines") as flow:

        @flow.executable_task(environment={"TOKEN": secret, "MODE": "fast"}, capture=capture)
        def upload(token: str, mode: str) -> str:
            twenty = "for i in $(seq 20); do echo $TOKEN; done >&2"  # more than is shown
            return f"echo {token}; {twenty}; echo {mode} {token} >&2; exit 3"

        error = await failure(upload(secret, "fast"))
    printed = [line for line in capsys.readouterr().err.splitlines() if "000001 | " not in line]
    told = "\n".join([*printed, str(error), *notes(error)])
    assert "upload('<TOKEN>', 'fast')" in told
    assert "exit code 3: echo <TOKEN>; for i in" in str(error)
    assert str(error).rstrip().endswith("\nfast <TOKEN>")
    assert "standard output ended with:\n    <TOKEN>" in notes(error)[0]
    assert "s3cr3t" not in told


async def test_a_secret_of_the_program_is_not_shown(
    flow: WorkflowEngine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SITE_API_TOKEN", "s3cr3t-word")
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "sometimes")

    @flow.executable_task
    def upload(*words: str) -> list[str]:
        return ["sh", "-c", "echo $SITE_API_TOKEN >&2; exit 3", *words]

    error = await failure(upload("s3cr3t-word", "sometimes"))
    told = "\n".join([str(error), *notes(error)])
    assert "upload('<SITE_API_TOKEN>', 'sometimes')" in told
    assert "s3cr3t" not in told


async def test_a_failed_command_asks_for_its_secrets_when_it_is_run_again(
    flow: WorkflowEngine,
) -> None:
    @flow.executable_task(environment={"API_TOKEN": "s3cr3t-word", "MODE": "fast"})
    def upload() -> str:
        return 'echo "$MODE $API_TOKEN"; exit 3'

    error = await failure(upload())
    script = Path(str(getattr(error, "sandbox", "")), ".rhapsody.again")
    assert "s3cr3t" not in script.read_text()
    asked = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
    assert "API_TOKEN: set it first: secrets are not saved" in asked.stderr
    given = {**os.environ, "API_TOKEN": "another"}
    again = subprocess.run(["sh", script], capture_output=True, text=True, check=False, env=given)
    assert (again.returncode, again.stdout) == (3, "fast another\n")


async def test_a_failed_function_shows_no_value_of_its_environment() -> None:
    async with WorkflowEngine.create(LocalExecutionBackend("process")) as flow:

        @flow.function_task(environment={"KEY": "it's a key"})
        def upload(path: PurePath, words: list[str], *, key: str) -> None:
            print(os.environ["KEY"])
            raise ValueError("refused")

        @flow.function_task
        def use(value: Any) -> None: ...

        bad = upload(PurePath("it's a key"), ["it's a key"], key="it's a key")
        (note,) = notes(await failure(bad))
        call = "upload(PurePosixPath(\"<KEY>\"), ['<KEY>'], key='<KEY>')"
        assert note.startswith(f"rhapsody: raised in {call}\n")
        assert note.endswith("standard output ended with:\n    <KEY>")
        assert f"because {call} (task.000001) failed" in str(await failure(use(bad)))


async def test_a_service_that_ends_too_early_shows_no_value_of_its_environment(
    flow: WorkflowEngine,
) -> None:
    @flow.executable_task(service=True, ready="file:up", environment={"TOKEN": "s3cr3t-word"})
    def server() -> str:
        return "echo no access with $TOKEN >&2; exit 3"

    error = await failure(server())
    assert isinstance(error, TaskFailedError)
    assert "no access with <TOKEN>" in str(error)
    assert "s3cr3t" not in str(error) + "".join(notes(error))


async def test_a_command_that_is_run_again_has_the_variables_of_its_cores() -> None:
    backend = LocalExecutionBackend(resources={"cores": 2, "gpus": 1})
    async with WorkflowEngine.create(backend) as flow:

        @flow.executable_task
        def tool() -> str:
            return "echo $OMP_NUM_THREADS $MKL_NUM_THREADS; exit 1"

        for resources, said in (({"cores": 2, "gpus": 1}, "2 2\n"), (None, "1 1\n")):
            error = await failure(tool.options(resources=resources)())
            assert isinstance(error, TaskFailedError)
            assert error.stdout == said
            script = Path(str(error.sandbox), ".rhapsody.again")
            again = subprocess.run(["sh", script], capture_output=True, text=True, check=False)
            assert again.stdout == said
            assert ("CUDA_VISIBLE_DEVICES" in script.read_text()) == (resources is not None)


async def test_a_command_that_ended_well_leaves_no_script(flow: WorkflowEngine) -> None:
    @flow.executable_task
    def tool() -> str:
        return "ls -A"

    future = tool()
    await within(future)
    assert future.sandbox is not None
    assert not [name for name in os.listdir(future.sandbox) if name.endswith("again")]


async def test_a_service_that_is_not_ready_shows_what_it_printed_and_the_pattern(
    tmp_path: Path,
) -> None:
    async with WorkflowEngine.create(clock=(clock := ManualClock())) as flow:

        @flow.executable_task(service=True, ready="stdout:serving on (.*)", ready_timeout=10.5)
        def server() -> str:
            return f"echo loading; echo no license >&2; touch {tmp_path}/printed; sleep 1000"

        future = server()
        await printed(future, tmp_path)
        await clock.advance(11)
        with pytest.raises(TaskTimeoutError) as caught:
            await within(future)
    assert "was not ready within 10.5 s: no output matched 'stdout:serving on (.*)'" in str(
        caught.value
    )
    (note,) = caught.value.__notes__
    assert "standard output ended with:\n    loading" in note
    assert "standard error ended with:\n    no license" in note


@pytest.mark.parametrize(
    ("ready", "said"),
    [
        ("tcp", "nothing listened on its port"),
        ("tcp:1", "nothing listened on port 1"),
        ("file:up.txt", "the file 'up.txt' did not appear"),
    ],
)
async def test_a_service_that_is_not_ready_says_what_was_not_there(
    flow: WorkflowEngine, ready: str, said: str
) -> None:
    @flow.executable_task(service=True, ready=ready, ready_timeout=0.2)
    def server() -> str:
        return "sleep 1000"

    assert str(await failure(server())).endswith(f"was not ready within 0.2 s: {said}")


async def test_the_sandbox_of_a_failed_task_has_its_traceback_without_secrets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("API_TOKEN", "not-to-be-shown")
    async with WorkflowEngine.create(work_dir=tmp_path) as flow:

        @flow.function_task
        def draw(out: OutputFile) -> None:
            with open(out, "w"):
                raise ValueError("no data for not-to-be-shown")

        error = await failure(draw(OutputFile("plot.png")))
    assert isinstance(error, ValueError)
    (left,) = tmp_path.rglob(".rhapsody.error")
    text = left.read_text()
    head, place, *_ = text.splitlines()
    assert head == "Traceback (most recent call last):"
    assert place.endswith(", in draw")
    assert "ValueError: no data for <API_TOKEN>\nrhapsody: raised in draw(" in text
    assert "not-to-be" not in text.replace('raise ValueError("no data for not-to-be-shown")', "")


GREP, REST = "|| [ $? = 1 ]; }", "at the first command or pipeline that fails"


@pytest.mark.parametrize(
    ("command", "hint"),
    [
        ("yes | head -n 1", "set +o pipefail"),
        ("python3 -c 'while True: print(1)' | head -n 1", "set +o pipefail"),
        ("echo a | grep b", GREP),
        ("true; LC_ALL=C /bin/grep -c b /dev/null | wc -l", GREP),
        ("for i in 1; do\n  grep b /dev/null > c\ndone", GREP),
        ("grep -c x /dev/null && exit 1", None),
        ("grep -c root /etc/passwd && python3 -c 'exit(1)'", REST),
        ("echo grep; false", REST),
        ("if grep -q x /dev/null; then :; fi; false", REST),
        ("pgrep() { false; }; pgrep x; echo", REST),
        ("ls *.gz 2>/dev/null | wc -l", REST),
        ("echo a | diff - /dev/null | wc -l", REST),
        ("((i=0))", REST),
        ("let i=0", REST),
        ("read x </dev/null", REST),
        ("echo $NOT_SET", "${NAME:-}"),
        ("grep a missing_file", None),
        ("exit 1", None),
        ("echo a; exit 3", None),
        ("\nfalse >a 2>&1\n", None),
        ("false", None),
    ],
)
async def test_a_failure_that_only_a_strict_shell_sees_has_a_hint(
    flow: WorkflowEngine, command: str, hint: str | None
) -> None:
    run = flow.executable_task(lambda: command)
    error = await failure(run())
    assert isinstance(error, TaskFailedError)
    assert str(error).count("hint: ") == (hint is not None)
    assert hint is None or hint in str(error)
    plain = await failure(run.options(shell=["sh", "-c"])()) if command == "false" else None
    assert plain is None or "hint: " not in str(plain)


async def test_the_cure_in_the_hint_for_grep_works_in_a_pipeline(flow: WorkflowEngine) -> None:
    error = await failure(flow.executable_task(lambda: "grep b /dev/null | wc -l")())
    cure = str(error).split("`")[-2].replace("grep ...", "grep b /dev/null")
    assert await within(flow.executable_task(lambda: f"{cure} | wc -l")()) == "0\n"


@pytest.mark.parametrize("form", ["string", "list"])
async def test_a_program_that_refuses_the_link_to_its_input_has_a_hint(
    flow: WorkflowEngine, tmp_path: Path, form: str
) -> None:
    (tmp_path / "data").write_text("a")

    @flow.executable_task
    def pack(file: InputFile) -> Any:
        return f"gzip -k {file}" if form == "string" else ["gzip", "-k", file]

    error = await failure(pack(InputFile(tmp_path / "data")))
    assert str(error).count("hint: ") == 1
    assert "InputFile(..., copy=True)" in str(error)
    await within(pack(InputFile(tmp_path / "data", copy=True)))


def program(folder: Path, first: str) -> str:
    """Return the path of a script with a first line."""
    path = folder / "script"
    path.write_bytes(f"{first}\necho a\n".encode())
    path.chmod(0o700)
    return str(path)


@pytest.mark.parametrize(
    ("first", "said"),
    [
        ("#!/bin/sh\r", "carriage return"),
        ("#!/usr/bin/env sh\r", "carriage return"),
        ("#!/no/such/program -x", "interpreter '/no/such/program'"),
        ("#!/usr/bin/env no-such-program", "interpreter 'no-such-program'"),
    ],
)
@pytest.mark.parametrize("form", ["list", "string", "relative", "container"])
async def test_a_script_that_cannot_be_started_names_its_interpreter(
    flow: WorkflowEngine, tmp_path: Path, first: str, said: str, form: str
) -> None:
    path = program(tmp_path, first)
    commands: dict[str, Any] = {
        "list": [path, "b"],
        "string": f"echo a | {path} b",
        "relative": f"cp {path} own; chmod +x own; ./own",
        "container": ["sh", "-c", 'exec "$@"', "x", path],  # as below scripts of environments
    }
    error = await failure(flow.executable_task(lambda: commands[form])())
    assert said in str(error)
    assert "script" in str(error) or "own" in str(error)


async def test_a_script_without_an_interpreter_is_no_program(
    flow: WorkflowEngine, tmp_path: Path
) -> None:
    path = program(tmp_path, "")
    error = await failure(flow.executable_task(lambda: [path])())
    assert isinstance(error, OSError)
    assert "first line" in str(error)


async def test_a_list_that_is_too_long_says_so(flow: WorkflowEngine) -> None:
    for command in (["true", "x" * 200_000], ["true", *["x" * 1000] * 10_000]):
        error = await failure(flow.executable_task(lambda command=command: command)())
        assert isinstance(error, OSError)
        assert "Linux accepts" in str(error)
    error = await failure(flow.executable_task(lambda: f"env true {'x ' * 2_000_000}")())
    assert isinstance(error, TaskFailedError)
    assert "hint: Linux accepts" in str(error)


async def test_the_script_sets_the_variables_that_the_program_has_set(
    flow: WorkflowEngine, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    tools = tmp_path / "tools"
    tools.mkdir()
    (tools / "solver").write_text("#!/bin/sh\necho solver $MODE ${HOME-none}\n")
    (tools / "solver").chmod(0o700)
    before = dict(os.environ)
    monkeypatch.setenv("PATH", f"{tools}:{before['PATH']}")
    monkeypatch.setenv("MODE", "a b")
    monkeypatch.setenv("API_TOKEN", "secret value")
    monkeypatch.delenv("HOME")
    future = flow.executable_task(lambda: "solver; exit 4")()
    error = await failure(future)
    assert isinstance(error, TaskFailedError)
    script = Path(str(future.sandbox), ".rhapsody.again")
    assert "secret value" not in script.read_text()
    for more, printed in (({}, ""), ({"API_TOKEN": "x"}, "solver a b none\n")):
        again = subprocess.run(
            ["sh", script], env=before | more, capture_output=True, text=True, check=False
        )
        assert again.stdout == printed
    assert again.returncode == 4
