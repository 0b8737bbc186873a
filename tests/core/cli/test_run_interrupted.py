"""Runs that a signal ends in the middle: what is left, what is said, and how they go on."""

from __future__ import annotations

import re
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from rhapsody.builtin.journal.store import opened
from tests._support.machine import gone, working_in
from tests._support.programs import Program

pytestmark = pytest.mark.timeout(120)

RUN = ("-m", "rhapsody", "run")
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
ENDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "ended by SIGTERM"}
ENDS[signal.SIGHUP] = "ended by SIGHUP"
GOES_ON = "rhapsody: results are kept; run the same command again to continue"

TASKS = '''
from rhapsody import InputFile, OutputFile

SIZE, KINDS = int(sys.argv[1]), sys.argv[2]
LOG = os.path.abspath("log.txt")

def note(text):
    """Append a line with one write, which others cannot interrupt."""
    file = os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, (text + "\\n").encode())
    os.close(file)

async def work(flow):
    gate = asyncio.get_running_loop().create_future()
    if os.path.exists("go on"):
        gate.set_result(None)

    @flow.function_task
    def function(number):
        note(f"ran {number}")
        return number

    @flow.executable_task
    def program(number):
        return f"sleep 1000 & echo ran {number} >> {LOG}; sleep 0.02; echo {number}"

    @flow.executable_task
    def write(number, file):
        return f"echo {number} > {file}"

    @flow.function_task
    def read(number, written, file: InputFile):
        note(f"ran {number}")
        with open(file) as text:
            return int(text.read())

    def call(number, kind):
        if kind == "f":
            return function(number)
        if kind == "p":
            return program(number)
        name = f"file{number}.txt"
        reader = read.options(after=[gate]) if number == SIZE - 1 else read
        return reader(number, write(number, OutputFile(name)), InputFile(name))

    async def see(number, future):
        value = int(await future)
        note(f"seen {number}")
        say("seen", number)
        return value

    calls = [call(number, KINDS[number % len(KINDS)]) for number in range(SIZE)]
    values = await asyncio.gather(*[see(*each) for each in enumerate(calls)])
    say("right", values == list(range(SIZE)))
'''
"""A program with functions, programs with a child, and files that one task hands to another.

Its last task waits for a file: no run ends before it is interrupted.
"""

GIVEN = "\nasync def main(flow):\n    await work(flow)\n"
OWN = """
async def main():
    async with WorkflowEngine.create(journal=True, progress=True) as flow:
        await work(flow)
asyncio.run(main())
"""

Start = Callable[..., Program]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    programs: list[Program] = []

    def start_one(text: str, command: tuple[str, ...] = RUN, *arguments: str) -> Program:
        programs.append(Program(tmp_path / "program.py", text, command, arguments))
        return programs[-1]

    yield start_one
    for program in programs:
        program.close()


def take_up(start: Start, place: Path, *given: Any) -> Program:
    """Start the program again; its last task no longer waits."""
    (place / "go on").touch()
    return start(*given)


def until_seen(program: Program, count: int) -> None:
    """Reads until a program has seen so many results."""
    while count:
        count -= program.line().startswith("seen ")


def check_interrupted(
    program: Program, number: signal.Signals, place: Path, tasks: int | None = None
) -> str:
    """Holds what is so of each run that one signal has ended; returns its standard error."""
    code, _, err = program.end()
    assert code in (CODES[number], -number), err
    assert gone(process.pid for process in working_in(place)), working_in(place)
    check_whole(place)
    for complaint in ("Exception in callback", "never awaited", "never retrieved", "was destroyed"):
        assert complaint not in err
    if tasks is not None:
        (account,) = re.findall(r"^rhapsody: (\d+) done, (\d+) canceled in", err, re.MULTILINE)
        assert sum(map(int, account)) == tasks
    return err


def check_whole(place: Path) -> None:
    """Holds that all that is in the journal of a directory is as it was written."""
    (path,) = place.glob(".rhapsody/journals/*.sqlite")
    with opened(path) as reader:
        assert reader.damage() == []


def check_goes_on(program: Program, place: Path, said: str) -> None:
    """Holds that the next run ends well, and that no task ran after its result was seen."""
    code, lines, err = program.end()
    assert (code, lines[-1]) == (0, "right True"), err
    assert said in err
    seen: set[str] = set()
    ran: Counter[str] = Counter()
    for line in (place / "log.txt").read_text().splitlines():
        what, _, number = line.partition(" ")
        if what == "seen":
            seen.add(number)
        else:
            ran[number] += 1
            assert number not in seen
    assert set(ran) == seen


@pytest.mark.parametrize(
    ("number", "options"),
    [
        (signal.SIGINT, ()),
        (signal.SIGTERM, ("-b", "local", "-o", "executor=process")),
        (signal.SIGHUP, ()),
    ],
)
def test_a_signal_ends_a_run_that_the_same_command_takes_up(
    start: Start, tmp_path: Path, number: signal.Signals, options: tuple[str, ...]
) -> None:
    given = (TASKS + GIVEN, RUN, *options, "--", "80", "fpfd")
    until_seen(program := start(*given), 20)
    program.send(number)
    err = check_interrupted(program, number, tmp_path, tasks=100)
    assert err.endswith(f"{GOES_ON}\nrhapsody: {ENDS[number]}\n")
    check_goes_on(take_up(start, tmp_path, *given), tmp_path, "the last run was interrupted")


def test_ten_thousand_tasks_are_interrupted_and_taken_up(start: Start, tmp_path: Path) -> None:
    given = (TASKS + GIVEN, RUN, "--", "10000", "f" * 99 + "d")
    until_seen(program := start(*given), 1000)
    program.send(signal.SIGTERM)
    err = check_interrupted(program, signal.SIGTERM, tmp_path, tasks=10_100)
    assert GOES_ON in err
    check_goes_on(take_up(start, tmp_path, *given), tmp_path, "the last run was interrupted")


@pytest.mark.parametrize("number", CODES)
def test_a_program_that_makes_its_own_engine_ends_and_goes_on_in_the_same_way(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    given = (TASKS + OWN, (), "40", "fpfd")
    until_seen(program := start(*given), 10)
    program.send(number)
    check_interrupted(program, number, tmp_path, tasks=50)
    check_goes_on(take_up(start, tmp_path, *given), tmp_path, "of them reused")


def test_a_signal_that_is_sent_twice_is_one(start: Start, tmp_path: Path) -> None:
    """As `timeout` does, and the system when a terminal is closed."""
    program = start("""
        class Slow(Inline):
            async def stop(self):
                os.kill(os.getpid(), signal.SIGTERM)
                await asyncio.sleep(0)
                await super().stop()
        async def main():
            async with WorkflowEngine.create(Slow()):
                say("ready")
                await asyncio.sleep(1000)
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGTERM)
    check_interrupted(program, signal.SIGTERM, tmp_path)
    assert program.lines[-1] == "stopped inline"


def test_a_second_signal_ends_programs_that_do_not_want_to(start: Start, tmp_path: Path) -> None:
    text = """
        async def main(flow):
            @flow.function_task
            def function(number):
                return number

            @flow.executable_task
            def stubborn():
                # No further programs, which the signal would end, and with them the shell.
                wait = "while :; do wait || :; done"
                return f"trap ': > told' TERM; sleep 1000 & : > started; {wait}"

            await function(1)
            call = stubborn()
            while not (here := call.sandbox) or not os.path.exists(f"{here}/started"):
                await asyncio.sleep(0.01)
            say("ready")
            while not os.path.exists(f"{here}/told"):
                await asyncio.sleep(0.01)
            say("told")
            await call
    """
    program = start(text, RUN, "-b", "local", "-o", "grace=600")
    program.until("ready")
    program.send(signal.SIGTERM)
    program.until("told")
    program.goes_on()
    program.send(signal.SIGTERM)
    err = check_interrupted(program, signal.SIGTERM, tmp_path)
    assert GOES_ON in err


CATCHES = """
    class Observer:
        @rhapsody.hookimpl
        def rhapsody_workflow_started(self):
            wait("started")
        @rhapsody.hookimpl
        def rhapsody_workflow_finished(self):
            wait("finished")

    def wait(where):
        if where == sys.argv[1]:
            say("ready")
            try:
                hold_loop()
            except BaseException:
                pass

    async def main():
        async with WorkflowEngine.create(Inline(), observers=[Observer()]) as flow:
            await flow.function_task(wait)("task")
            await flow.function_task(int)()
        say("goes on")

    asyncio.run(main())
"""


@pytest.mark.parametrize("where", ["started", "finished", "task"])
def test_a_second_signal_is_not_lost_where_its_exception_is_caught(
    start: Start, tmp_path: Path, where: str
) -> None:
    program = start(CATCHES, RUN, "--", where)
    program.until("ready")
    program.send(signal.SIGTERM)
    program.until("received")
    program.goes_on()
    program.send(signal.SIGTERM)
    check_interrupted(program, signal.SIGTERM, tmp_path)
    assert "goes on" not in program.lines


@pytest.mark.parametrize("number", CODES)
def test_a_signal_before_there_is_an_engine_ends_the_run(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    program = start("say('ready'); time.sleep(1000)\nasync def main(flow): pass")
    program.until("ready")
    program.send(number)
    code, _, err = program.end()
    assert code in (CODES[number], -number), err
    assert not (tmp_path / ".rhapsody").exists()


@pytest.mark.parametrize("command", [RUN, ()])
def test_a_signal_while_worker_processes_start_leaves_none(
    start: Start, tmp_path: Path, command: tuple[str, ...]
) -> None:
    program = start(
        """
        from rhapsody import LocalExecutionBackend

        class Backend(LocalExecutionBackend):
            async def _start_processes(self):
                asyncio.get_running_loop().call_soon(say, "ready")
                await super()._start_processes()

        async def main():
            async with WorkflowEngine.create(Backend("process"), journal=True):
                await asyncio.sleep(1000)

        asyncio.run(main())
        """,
        command,
    )
    program.until("ready")
    program.send(signal.SIGTERM)
    check_interrupted(program, signal.SIGTERM, tmp_path)
