"""SIGINT, SIGTERM and SIGHUP, sent to real programs."""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests._support.machine import gone
from tests._support.programs import Program

GRACEFUL = {signal.SIGINT: -signal.SIGINT, signal.SIGTERM: 143, signal.SIGHUP: 129}
SEEN = {
    signal.SIGINT: "KeyboardInterrupt None",
    signal.SIGTERM: "SystemExit 143",
    signal.SIGHUP: "SystemExit 129",
}
Start = Callable[[str], Program]


def assert_quiet(err: str) -> None:
    """Asserts that neither asyncio nor the engine has complained of anything."""
    complaints = ("never retrieved", "was destroyed", "Exception in callback", "internal error")
    for complaint in complaints:
        assert complaint not in err


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    programs: list[Program] = []

    def start_one(text: str) -> Program:
        programs.append(Program(tmp_path / f"program{len(programs)}.py", text))
        return programs[-1]

    yield start_one
    for program in programs:
        program.close()


@pytest.mark.parametrize("number", GRACEFUL)
def test_a_signal_ends_the_work_and_then_the_main_coroutine(
    start: Start, tmp_path: Path, number: signal.Signals
) -> None:
    program = start("""
        async def main():
            async with WorkflowEngine.create() as flow:
                @flow.executable_task
                async def sleeper(n):
                    return f"sleep 1000 & echo $$ $! > {os.getcwd()}/pids{n}.tmp; " \\
                        f"mv {os.getcwd()}/pids{n}.tmp {os.getcwd()}/pids{n}; wait"
                futures = [sleeper(n) for n in range(2)]
                while not all(os.path.exists(f"pids{n}") for n in range(2)):
                    await asyncio.sleep(0.01)
                say("ready")
                try:
                    await asyncio.gather(*futures)
                except BaseException as error:
                    say(type(error).__name__, getattr(error, "code", None))
                    raise
                finally:
                    say("cleaned up after", int(flow.backend.session.signal))
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(number)
    code, lines, err = program.end()
    said = [SEEN[number], f"cleaned up after {int(number)}"]
    assert (code, lines[1:]) == (GRACEFUL[number], said), err
    pids = [int(pid) for n in range(2) for pid in (tmp_path / f"pids{n}").read_text().split()]
    assert len(pids) == 4
    assert gone(pids)


@pytest.mark.parametrize("number", GRACEFUL)
@pytest.mark.parametrize(
    "waits",
    [
        "await asyncio.sleep(1000)",
        "await task()",
        "await asyncio.shield(task())",
        "await block()",
        "await sync_block()",
        "await asyncio.create_task(other())",
        "await in_group()",
        "async for _ in flow.imap(item, range(5)): pass",
        "await flow.run()",
    ],
)
def test_a_signal_reaches_the_main_coroutine_wherever_it_waits(
    start: Start, number: signal.Signals, waits: str
) -> None:
    program = start(f"""
        async def main():
            async with WorkflowEngine.create(Inline()) as flow:
                @flow.function_task
                async def task():
                    await asyncio.Event().wait()
                @flow.function_task
                async def item(n):
                    await asyncio.Event().wait()
                @flow.block
                async def block():
                    await task()
                @flow.block
                def sync_block():
                    rhapsody.wait(task())
                async def other():
                    await task()
                async def in_group():
                    async with asyncio.TaskGroup() as group:
                        group.create_task(other())
                        group.create_task(other())
                asyncio.get_running_loop().call_later(0.05, say, "ready")
                try:
                    {waits}
                except BaseException as error:
                    say("inside", type(error).__name__)
                    raise
        try:
            asyncio.run(main())
        except BaseException as error:
            say(type(error).__name__, getattr(error, "code", None))
            raise
    """)
    program.until("ready")
    program.send(number)
    code, lines, err = program.end()
    # Where main waits for a task of its own, asyncio leaves no way but cancelling it.
    inside = "CancelledError" if "create_task" in waits else SEEN[number].split()[0]
    expected = ["stopped inline", f"inside {inside}", SEEN[number]]
    assert (code, lines[1:]) == (GRACEFUL[number], expected), err
    assert_quiet(err)


@pytest.mark.parametrize("number", GRACEFUL)
@pytest.mark.parametrize(
    "create",
    ["await WorkflowEngine.create(Slow())", "await asyncio.create_task(in_another())"],
)
def test_a_signal_ends_a_start_which_cleans_up(
    start: Start, number: signal.Signals, create: str
) -> None:
    program = start(f"""
        class Slow(Inline):
            async def start(self):
                say("ready")
                try:
                    await asyncio.Event().wait()
                finally:
                    await asyncio.sleep(0)
                    say("start undone")
        async def in_another():
            await WorkflowEngine.create(Slow())
        async def main():
            try:
                {create}
            finally:
                say("main")
        try:
            asyncio.run(main())
        except BaseException as error:
            say(type(error).__name__, getattr(error, "code", None))
            raise
    """)
    program.until("ready")
    program.send(number)
    code, lines, err = program.end()
    expected = ["start undone", "stopped inline", "main", SEEN[number]]
    assert (code, lines[1:]) == (GRACEFUL[number], expected), err
    assert_quiet(err)


def test_the_main_coroutine_sees_its_exception_where_it_waits(start: Start) -> None:
    program = start("""
        async def main():
            flow = await WorkflowEngine.create(Inline())
            @flow.function_task
            async def task():
                await asyncio.Event().wait()
            future, other = task(), task()
            say("ready")
            try:
                await future
            except KeyboardInterrupt:
                say("interrupted")
            await flow.shutdown()
            say(future.done(), other.cancelled())
            return "result"
        say(asyncio.run(main()))
    """)
    program.until("ready")
    program.send(signal.SIGINT)
    code, lines, err = program.end()
    assert lines[1:] == ["stopped inline", "interrupted", "True True", "result"], err
    assert code == 0


def test_ctrl_c_is_not_swallowed_by_a_program_that_tries_again_for_ever(start: Start) -> None:
    program = start("""
        async def main():
            async with WorkflowEngine.create(Inline()) as flow:
                @flow.function_task
                async def task():
                    await asyncio.sleep(1000)
                say("ready")
                while True:
                    try:
                        await task()
                    except Exception:
                        pass
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGINT)
    code, _, err = program.end()
    assert code == -signal.SIGINT
    assert "KeyboardInterrupt" in err


def test_ctrl_c_is_not_swallowed_by_a_coroutine_that_ignores_its_cancellation(start: Start) -> None:
    program = start("""
        async def main():
            async with WorkflowEngine.create() as flow:
                @flow.function_task
                async def forever():
                    say("ready")
                    while True:
                        try:
                            await asyncio.sleep(1000)
                        except asyncio.CancelledError:
                            pass
                while True:
                    try:
                        await forever()
                    except Exception:
                        pass
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGINT)
    code, _, _ = program.end()
    assert code == -signal.SIGINT


def test_a_signal_that_is_ignored_stays_ignored(start: Start) -> None:
    """`nohup program &` continues when its terminal is closed."""
    program = start("""
        for number in (signal.SIGHUP, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)

        async def main():
            async with WorkflowEngine.create() as flow:
                os.kill(os.getpid(), signal.SIGHUP)
                os.kill(os.getpid(), signal.SIGINT)
                say(await flow.function_task(pow)(2, 3))
            say(signal.getsignal(signal.SIGHUP) is signal.SIG_IGN)

        asyncio.run(main())
    """)
    assert program.end() == (0, ["8", "True"], "")


@pytest.mark.parametrize("number", GRACEFUL)
def test_a_second_signal_ends_at_once(start: Start, number: signal.Signals) -> None:
    program = start("""
        class Hanging(Inline):
            async def stop(self):
                say("stopping")
                await asyncio.Event().wait()
        async def main():
            async with WorkflowEngine.create(Hanging()) as flow:
                say("ready")
                await asyncio.sleep(1000)
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(number)
    program.until("stopping")
    program.goes_on()
    program.send(number)
    began = time.monotonic()
    code, _, err = program.end()
    assert time.monotonic() - began < 10
    assert code in (-number, 128 + number)
    assert "interrupted; stopping 'inline' (unfinished tasks: 0). Interrupt again" in err


def test_a_second_signal_ends_a_program_whose_loop_is_blocked(start: Start) -> None:
    program = start("""
        async def main():
            async with WorkflowEngine.create(Inline()) as flow:
                say("ready")
                hold_loop()
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGINT)
    program.until("received")
    program.goes_on()
    program.send(signal.SIGINT)
    code, _, err = program.end()
    assert code in (-signal.SIGINT, 128 + signal.SIGINT)
    assert_quiet(err)


def test_a_thread_that_cannot_be_stopped_does_not_hold_up_the_end(start: Start) -> None:
    program = start("""
        async def main():
            async with WorkflowEngine.create() as flow:
                @flow.function_task
                def long():
                    say("ready")
                    time.sleep(1000)
                await long()
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGTERM)
    code, _, err = program.end()
    assert code == 143
    assert "task.000001" in err


def test_observers_receive_the_end_last(start: Start) -> None:
    program = start("""
        class Observer:
            @rhapsody.hookimpl
            def rhapsody_task_events(self, events):
                for event in events:
                    say(event.uid, event.state)
                    if event.state == "RUNNING":
                        say("ready")
            @rhapsody.hookimpl
            def rhapsody_workflow_finished(self, summary):
                stats = summary.stats
                say("finished", stats.tasks, stats.done, stats.failed, stats.cancelled)
                return self.send(summary)
            async def send(self, summary):
                await asyncio.sleep(0.01)
                say("sent", summary.outcome)
        async def main():
            async with WorkflowEngine.create(Inline(), observers=[Observer()]) as flow:
                @flow.function_task
                async def task(x=None):
                    await asyncio.Event().wait()
                first = task()
                second = task(first)
                await asyncio.sleep(1000)
        try:
            asyncio.run(main())
        except SystemExit:
            pass
    """)
    program.until("ready")
    program.send(signal.SIGTERM)
    code, lines, err = program.end()
    lines = lines[lines.index("ready") + 1 :]
    assert code == 0, err
    assert lines[-2:] == ["finished 2 0 0 2", "sent interrupted"], lines
    assert sorted(lines[:-2]) == ["stopped inline", "task.000001 CANCELED", "task.000002 CANCELED"]


@pytest.mark.parametrize("number", GRACEFUL)
def test_a_signal_that_interrupts_no_wait_of_the_loop_wakes_it(
    start: Start, number: signal.Signals
) -> None:
    """As one that comes just before the loop begins to wait, here one that another thread gets."""
    program = start(f"""
        signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
        def get():
            signal.sigwait([signal.SIGUSR1])
            signal.pthread_kill(threading.get_ident(), {int(number)})
        async def main():
            async with WorkflowEngine.create(Inline()) as flow:
                threading.Thread(target=get, daemon=True).start()
                say("ready")
                await asyncio.Event().wait()
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGUSR1)
    assert program.end()[0] == GRACEFUL[number]


def test_a_signals_file_descriptor_that_a_program_set_is_left(start: Start) -> None:
    program = start("""
        async def main():
            loop = asyncio.get_running_loop()
            for before in (True, False):
                async with WorkflowEngine.create(Inline()) as flow:
                    pass
                if before:
                    loop.add_signal_handler(signal.SIGUSR1, lambda: None)
                    theirs = signal.set_wakeup_fd(-1)
                    signal.set_wakeup_fd(theirs)
            say(signal.set_wakeup_fd(-1) == theirs != -1)
        asyncio.run(main())
    """)
    code, lines, err = program.end()
    assert (code, lines[-1]) == (0, "True"), err


def test_where_every_signal_is_ignored_engines_leave_nothing_open(start: Start) -> None:
    program = start("""
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        async def main():
            open_files = []
            for _ in range(3):
                async with WorkflowEngine.create(Inline()) as one:
                    async with WorkflowEngine.create(Inline()) as two:
                        pass
                open_files.append(len(os.listdir("/proc/self/fd")))
            say(len(set(open_files)) == 1)
        asyncio.run(main())
    """)
    code, lines, err = program.end()
    assert (code, lines[-1]) == (0, "True"), err


def test_one_signal_ends_several_engines(start: Start) -> None:
    program = start("""
        async def main():
            async with WorkflowEngine.create(Inline("one")) as one:
                gone = await WorkflowEngine.create(Inline("gone"))
                two = await WorkflowEngine.create(Inline("two"))
                await gone.shutdown()
                futures = []
                for flow in (one, two):
                    @flow.function_task
                    async def task():
                        await asyncio.Event().wait()
                    futures.append(task())
                say("ready")
                try:
                    await asyncio.gather(*futures)
                finally:
                    await two.shutdown()
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGTERM)
    code, lines, err = program.end()
    assert code == 143, err
    assert lines[:2] == ["stopped gone", "ready"]
    assert sorted(lines[2:]) == ["stopped one", "stopped two"]


def test_a_program_that_installed_a_handler_has_it_back(start: Start) -> None:
    program = start("""
        signal.signal(signal.SIGTERM, lambda *_: say("mine"))
        async def main():
            async with WorkflowEngine.create(Inline()) as flow:
                pass
            os.kill(os.getpid(), signal.SIGTERM)
            say("goes on")
        asyncio.run(main())
    """)
    code, lines, err = program.end()
    assert (code, lines) == (0, ["stopped inline", "mine", "goes on"]), err


def test_with_handle_signals_off_a_signal_does_what_it_did_before(start: Start) -> None:
    program = start("""
        async def main():
            async with WorkflowEngine.create(Inline(), handle_signals=False) as flow:
                say("ready")
                await asyncio.sleep(1000)
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGTERM)
    assert program.end()[0] == -signal.SIGTERM


def test_with_handle_signals_off_ctrl_c_is_asyncios_own(start: Start) -> None:
    program = start("""
        async def main():
            async with WorkflowEngine.create(Inline(), handle_signals=False) as flow:
                @flow.function_task
                async def task():
                    await asyncio.Event().wait()
                say("ready")
                await task()
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGINT)
    code, lines, _ = program.end()
    assert code == -signal.SIGINT
    assert lines[1:] == ["stopped inline"]


def test_an_interruption_while_the_engine_starts_ends_the_program(start: Start) -> None:
    program = start("""
        class Slow(Inline):
            async def start(self):
                say("ready")
                await asyncio.Event().wait()
        async def main():
            async with WorkflowEngine.create(Slow()):
                pass
        asyncio.run(main())
    """)
    program.until("ready")
    program.send(signal.SIGINT)
    code, lines, _ = program.end()
    assert code == -signal.SIGINT
    assert lines[1:] == ["stopped inline"]


@pytest.mark.parametrize("number", GRACEFUL)
def test_a_signal_while_the_engine_closes_is_not_swallowed(
    start: Start, number: signal.Signals
) -> None:
    program = start("""
        class Slow(Inline):
            async def stop(self):
                came = threading.Event()
                signal.signal(signal.SIGUSR1, lambda *_: came.set())
                say("closing")
                await asyncio.get_running_loop().run_in_executor(None, came.wait)
                await super().stop()
        async def main():
            async with WorkflowEngine.create(Slow()):
                pass
            say("goes on")
        asyncio.run(main())
    """)
    program.until("closing")
    program.send(number)
    program.send(signal.SIGUSR1)
    code, lines, err = program.end()
    assert (code, lines) == (GRACEFUL[number], ["closing", "stopped inline"]), err
