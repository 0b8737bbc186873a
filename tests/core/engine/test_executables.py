"""Executable tasks: commands, their builders, their results and failures."""

# ruff: noqa: ASYNC240 - looking at a file takes no time here

from __future__ import annotations

import asyncio
import os
import pickle
import shlex
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import pytest

from rhapsody import LocalExecutionBackend, NoopExecutionBackend, TaskFailedError, WorkflowEngine
from tests._support.engine_fixtures import engine, on_machines
from tests._support.scripted import Scripted, outcome, until, within

pytestmark = pytest.mark.asyncio

ARGV = [sys.executable, "-c", "import sys; print(sys.argv[1:])"]

AWKWARD = [
    "plain",
    "two words",
    "",
    "it's",
    'say "hi"',
    "$HOME",
    "`id`",
    "$(id)",
    "a;b",
    "a|b",
    "a>b",
    "*",
    "~",
    "back\\slash",
    "new\nline",
    "tab\t",
    "-n",
    "ünï",
    "{}",
    "%s",
    "&&",
]


# The command.


@on_machines
@pytest.mark.parametrize(
    ("command", "output"),
    [
        ("echo one; echo two", "one\ntwo\n"),
        ("printf 'b\\na\\n' | sort", "a\nb\n"),
        ("echo out > file && cat file", "out\n"),
        ("true && echo yes || echo no", "yes\n"),
        ("echo 'it''s' \"a  b\"", "its a  b\n"),
        ('x=3; echo "$x" $((x + 1))', "3 4\n"),
        ("echo a\\ b", "a b\n"),
        ("for i in 1 2; do echo $i; done", "1\n2\n"),
        ("cat <<'END'\n$HOME\nEND", "$HOME\n"),
    ],
)
async def test_a_string_is_run_by_a_shell(machine: Any, command: str, output: str) -> None:
    async with engine(machine()) as flow:
        assert await flow.executable_task(lambda: command)() == output


@on_machines
async def test_a_list_is_run_without_a_shell_and_every_word_arrives(machine: Any) -> None:
    async with engine(machine()) as flow:
        assert await flow.executable_task(lambda: [*ARGV, *AWKWARD])() == f"{AWKWARD}\n"


@on_machines
async def test_a_list_of_one_word_is_a_program(machine: Any) -> None:
    async with engine(machine()) as flow:
        assert await flow.executable_task(lambda: ["true"])() == ""
        program = Path("my program")
        program.write_text("#!/bin/sh\necho here\n")
        program.chmod(0o755)
        assert await flow.executable_task(lambda: [str(program.absolute())])() == "here\n"


async def test_the_backend_gets_a_string_as_one_argument_of_a_shell_and_a_list_in_parts() -> None:
    backend = Scripted()
    async with engine(backend) as flow:
        flow.executable_task(name="text")(lambda: "a 'b  c' | d")()
        flow.executable_task(name="words")(lambda: ["a", "b  c"])()
        text, words = await backend.given("text"), await backend.given("words")
        assert text["arguments"][-1].endswith("a 'b  c' | d")
        assert (words["executable"], words["arguments"]) == ("a", ["b  c"])
        assert text["function"] is words["function"] is None


async def test_the_backend_gets_a_list_of_its_own() -> None:
    backend = Scripted()
    command = ["a", "b"]
    async with engine(backend) as flow:
        flow.executable_task(name="words")(lambda: command)()
        (await backend.given("words"))["arguments"].append("c")
    assert command == ["a", "b"]


# The result.


@on_machines
async def test_the_result_is_standard_output_with_its_trailing_newline(machine: Any) -> None:
    async with engine(machine()) as flow:
        assert await flow.executable_task(lambda: "echo hello")() == "hello\n"
        assert await flow.executable_task(lambda: "printf hello")() == "hello"
        assert await flow.executable_task(lambda: "printf 'a\\n\\n'")() == "a\n\n"
        assert await flow.executable_task(lambda: "true")() == ""
        assert await flow.executable_task(lambda: "echo grün")() == "grün\n"


@on_machines
async def test_output_that_is_no_text_is_shown_as_well_as_can_be(machine: Any) -> None:
    async with engine(machine()) as flow:
        assert await flow.executable_task(lambda: "printf 'a\\377b\\n'")() == "a\ufffdb\n"


@on_machines
async def test_much_output_on_both_streams_is_all_there(machine: Any) -> None:
    async with engine(machine()) as flow:
        future = flow.executable_task(lambda: "seq 300000 >&2 & seq 300000; wait")()
        assert (await future).count("\n") == 300_000


@on_machines
async def test_the_future_knows_the_streams_the_exit_code_and_the_sandbox(machine: Any) -> None:
    async with engine(machine(), work_dir="work", keep_sandboxes="all") as flow:
        future = flow.executable_task(lambda: "echo out; echo err >&2; echo x > left")()
        assert future.exit_code is None
        assert await future == "out\n"
        assert future.stdout == "out\n"
        assert future.stderr == "err\n"
        assert future.exit_code == 0
        assert future.sandbox is not None
        assert os.path.dirname(future.sandbox) == os.path.abspath("work")
        assert Path(future.sandbox, "left").read_text() == "x\n"
        assert os.stat(future.sandbox).st_mode & 0o077 == 0


@on_machines
async def test_each_executable_runs_in_a_sandbox_of_its_own(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def command(number: int) -> str:
            return f"ls | wc -l; echo {number} > same; cat same; pwd"

        futures = flow.map(command, range(3))
        outputs = [result.split() for result in await asyncio.gather(*futures)]
        assert [output[:2] for output in outputs] == [["0", "0"], ["0", "1"], ["0", "2"]]
        assert len({output[2] for output in outputs}) == 3
        for output, future in zip(outputs, futures, strict=True):
            assert future.sandbox is not None
            assert output[2] == os.path.realpath(future.sandbox)


@on_machines
async def test_capture_in_files_makes_the_result_the_path_of_the_output(machine: Any) -> None:
    async with engine(machine()) as flow:
        future = flow.executable_task(capture="files")(lambda: "echo out; echo err >&2")()
        path = await future
        assert os.path.isabs(path)
        assert Path(path).read_text() == "out\n"
        assert future.stdout == path
        assert Path(str(future.stderr)).read_text() == "err\n"


@on_machines
async def test_a_program_reads_the_environment_and_the_input_it_is_given(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task(environment={"MINE": "a b"}, stdin="from\nme\n")
        def command() -> str:
            return 'echo "$MINE"; test -n "$PATH" && cat'

        assert await command() == "a b\nfrom\nme\n"

        @flow.executable_task
        def without() -> str:
            return 'echo "${MINE-unset}"; cat'

        assert await without() == "unset\n"


@on_machines
async def test_an_executables_output_is_a_value_for_its_dependents(machine: Any) -> None:
    async with engine(machine()) as flow:

        @flow.executable_task
        def first() -> str:
            return "echo 4"

        @flow.function_task
        def second(text: str) -> int:
            return int(text) + 1

        assert await second(first()) == 5


# Failure.


FAILING = "echo out; echo why >&2; exit 3"


@on_machines
@pytest.mark.parametrize("command", [FAILING, ["sh", "-c", FAILING]])
async def test_a_non_zero_exit_is_an_error_with_all_details(machine: Any, command: Any) -> None:
    async with engine(machine()) as flow:
        future = flow.executable_task(name="failing")(lambda: command)()
        error = await outcome(future)
        assert isinstance(error, TaskFailedError)
        assert isinstance(error, RuntimeError)
        assert error.exit_code == 3
        assert error.stderr == "why\n"
        assert error.command is not None
        if isinstance(command, list):
            assert shlex.split(error.command) == command
        else:
            assert error.command == command
        for part in ("failing", "3", "why"):
            assert part in str(error)
        assert (future.exit_code, future.stdout, future.stderr) == (3, "out\n", "why\n")
        copy = pickle.loads(pickle.dumps(error))
        assert (copy.exit_code, copy.stderr, copy.command) == (3, "why\n", error.command)
        assert (copy.stdout, copy.sandbox) == ("out\n", future.sandbox)


@on_machines
async def test_of_a_long_command_the_message_shows_the_beginning(machine: Any) -> None:
    command = f"echo {'many words ' * 1000}; exit 3"
    async with engine(machine()) as flow:
        error = await outcome(flow.executable_task(lambda: command)())
        assert isinstance(error, TaskFailedError)
        assert error.command == command
        assert "echo many words" in str(error)
        assert "more characters]" in str(error)
        assert len(str(error)) < 700


@on_machines
async def test_the_end_of_standard_error_is_in_the_error_where_it_went_to_a_file(
    machine: Any,
) -> None:
    async with engine(machine()) as flow:
        future = flow.executable_task(capture="files")(lambda: f"seq 9999 >&2; {FAILING}")()
        error = await outcome(future)
        assert isinstance(error, TaskFailedError)
        assert error.stderr.endswith("9998\n9999\nwhy\n")
        assert Path(str(future.stderr)).read_text().endswith("why\n")


@on_machines
async def test_of_a_long_standard_error_the_end_is_kept(machine: Any) -> None:
    async with engine(machine()) as flow:
        error: Any = await outcome(
            flow.executable_task(lambda: "seq 200000 >&2; echo the end >&2; exit 1")()
        )
        assert error.stderr.endswith("the end\n")
        assert len(error.stderr) < 100_000
        assert len(str(error)) < 100_000


@on_machines
async def test_a_program_that_a_signal_ended_says_which(machine: Any) -> None:
    async with engine(machine()) as flow:
        error: Any = await outcome(flow.executable_task(lambda: ["sh", "-c", "kill -9 $$"])())
        assert isinstance(error, TaskFailedError)
        assert error.exit_code == -9


@on_machines
async def test_a_program_that_is_not_there_fails_its_task_only(machine: Any) -> None:
    async with engine(machine()) as flow:
        error = await outcome(flow.executable_task(lambda: ["no-such-program-here", "x"])())
        assert isinstance(error, FileNotFoundError | TaskFailedError)
        assert "no-such-program-here" in str(error)
        assert await flow.executable_task(lambda: "echo on")() == "on\n"
        shell = await outcome(flow.executable_task(lambda: "no-such-program-here x")())
        assert isinstance(shell, TaskFailedError)
        assert shell.exit_code == 127


async def test_a_command_of_something_else_says_which_word_it_is() -> None:
    words: Any = ["echo", Path("x"), 1]
    async with engine(NoopExecutionBackend()) as flow:
        error = await outcome(flow.executable_task(lambda: words)())
        assert isinstance(error, ValueError)
        assert str(error).endswith(f"got {words!r}: make {words[2]!r} a string")


@on_machines
async def test_the_sandbox_of_a_failed_one_stays_to_be_looked_at(machine: Any) -> None:
    async with engine(machine(), work_dir="work") as flow:
        good = flow.executable_task(lambda: "echo x > trace")()
        bad = flow.executable_task(lambda: "echo x > trace; exit 1")()
        await asyncio.wait([good, bad])
        assert isinstance(bad.exception(), TaskFailedError)
        places = good.sandbox, bad.sandbox
        del good
    assert not os.path.exists(str(places[0]))
    assert Path(str(places[1]), "trace").exists()


async def test_the_output_of_a_running_program_can_be_followed(tmp_path: Path) -> None:
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        def talk() -> str:
            return f"echo started; echo > {tmp_path}/started; cat {tmp_path}/gate; echo over"

        for name in ("started", "gate"):
            os.mkfifo(tmp_path / name)
        before = time.time()
        future = talk()
        await within(asyncio.to_thread((tmp_path / "started").read_text))
        await until(lambda: future.host)  # the program may write before its start is reported
        assert future.stdout_path is not None
        assert future.sandbox == os.path.dirname(future.stdout_path)
        path = Path(future.stdout_path)
        assert str(future.host).startswith("process ")
        assert future.started_at is not None
        assert before <= future.started_at <= time.time()
        assert path.read_text() == "started\n"
        (tmp_path / "gate").write_text("")
        assert await within(future) == "started\nover\n"
        assert future.stdout_path == str(path)
        assert str(future.host).startswith("process ")
        assert future.started_at is None


async def test_no_quoting_is_lost_between_a_command_and_the_shell() -> None:
    words = [
        "two words",
        'a "quoted" one',
        "it's",
        "$HOME",
        "*",
        "back\\slash",
        "",
        "new\nline",
        "ü",
    ]
    async with WorkflowEngine.create() as flow:

        @flow.executable_task
        async def shell() -> str:
            return 'printf \'<%s>\' "two  words" \'a "b"\' "it\'s" \'$HOME\' a\\ b; echo "$((1+1))"'

        @flow.executable_task
        async def listed() -> list[str]:
            return [sys.executable, "-c", "import sys; print(repr(sys.argv[1:]))", *words]

        assert await within(shell()) == '<two  words><a "b"><it\'s><$HOME><a b>2\n'
        assert await within(listed()) == f"{words!r}\n"


@pytest.mark.asyncio
@pytest.mark.parametrize(
    ("command", "kind"),
    [
        (["/nonexistent/tool"], FileNotFoundError),
        (["/tmp"], PermissionError),
        ("echo a\0b", ValueError),
    ],
)
async def test_a_command_that_cannot_start_names_its_task(
    command: str | list[str], kind: type[Exception]
) -> None:
    async with WorkflowEngine.create(LocalExecutionBackend()) as flow:

        @flow.executable_task
        def align() -> str | list[str]:
            return command

        async with asyncio.timeout(30):
            with pytest.raises(kind) as raised:
                await align()
    text = "".join(traceback.format_exception_only(raised.value))
    assert "'align'" in text
