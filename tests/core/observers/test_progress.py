"""Tests of the progress of a run, and of the summary at its end."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from rhapsody import InputFile, LocalExecutionBackend, WorkflowEngine
from rhapsody.builtin.progress import observer as progress
from rhapsody.builtin.progress.account import Counts, Row, account
from rhapsody.cli import main
from rhapsody.data import SavedFile
from rhapsody.plugins.specs import Stats, Summary
from tests._support.scripted import Inline, Scripted, within

Run = Callable[..., "subprocess.CompletedProcess[str]"]

PIPELINE = """
import os
async def main(flow):
    @flow.function_task
    def load(n):
        print(f"loading {n}\\n", end="")  # in one piece, as others print, too
        return n

    @flow.executable_task
    def simulate(n):
        return f"echo simulated {n}; test {n} != 2 || {{ echo not two >&2; exit 1; }}"

    @flow.function_task
    def summary(*texts):
        return len(texts)

    print("from main")
    print("summary", await summary(*[simulate(load(n)) for n in range(int(os.environ["SIZE"]))]))
"""


class Terminal:
    """A program on a terminal of our own."""

    def __init__(self, process: subprocess.Popen[bytes], descriptor: int) -> None:
        self.process = process
        self._descriptor = descriptor
        self.data = b""
        self.text = ""

    def read_until(self, *words: str) -> str:
        """Reads until all of the words were seen, or with none to the end."""
        while not words or not all(word in self.text for word in words):
            ready, _, _ = select.select([self._descriptor], [], [], 60)
            assert ready, f"nothing came for a minute after: {self.text}"
            try:
                data = os.read(self._descriptor, 1 << 16)
            except OSError:  # the other end is closed, as Linux says it
                data = b""
            if not data:
                assert not words, f"no {words} in: {self.text}"
                break
            self.data += data  # and a character, or a sequence, may come in two parts
            plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", self.data.decode(errors="replace"))
            self.text = plain.replace("\r", "\n")
        return self.text


@contextmanager
def on_terminal(
    directory: Path, script: str, *arguments: str, size: int = 2, columns: int = 80
) -> Iterator[Terminal]:
    """Run a script on a terminal with 24 lines."""
    (directory / "script.py").write_text(textwrap.dedent(script))
    ours, theirs = pty.openpty()
    environment = {"TERM": "xterm", "COLUMNS": str(columns), "LINES": "24", "SIZE": str(size)}
    process = subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "run", "script.py", *arguments],
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
        cwd=directory,
        env={**os.environ, **environment},
        start_new_session=True,
    )
    os.close(theirs)
    try:
        yield Terminal(process, ours)
        process.wait(60)
    finally:
        process.kill()
        process.wait()
        os.close(ours)


def test_a_terminal_has_a_table_and_above_it_what_tasks_and_main_print(tmp_path: Path) -> None:
    with on_terminal(tmp_path, PIPELINE) as terminal:
        text = terminal.read_until()
    assert terminal.process.returncode == 0
    assert re.search(r"task +waiting +running +done +failed", text)
    assert re.search(r"of 5, .* a second, . of .* cores in use", text)
    for line in ("from main", "summary 2", "simulate 000002 | simulated 0"):
        assert re.search(rf"^{re.escape(line)}$", text, re.MULTILINE), text
    assert text.count("| loading 1\n") == text.count("loading 1") == 1
    assert re.search(r"\nrhapsody: 5 done in .* s\n", text)


def test_the_summary_is_broken_between_words(tmp_path: Path) -> None:
    words = "a message that is much longer than a line of a narrow terminal can be"
    script = f"""
    async def main(flow):
        @flow.function_task
        def fails():
            raise ValueError("{words}")
        fails()
    """
    with on_terminal(tmp_path, script, columns=60) as terminal:
        text = terminal.read_until()
    summary = text[text.index("\nfailed:\n") :]
    assert all(len(line) <= 60 for line in summary.splitlines())
    assert words in " ".join(summary.split())


COLOR = re.compile(rb"\x1b\[([0-9]+;)*[349][0-9][;m]")


@pytest.mark.parametrize("variable", ["NO_COLOR", "FORCE_COLOR"])
def test_the_table_has_colors_unless_the_user_wants_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    monkeypatch.delenv("NO_COLOR", raising=False)
    monkeypatch.setenv(variable, "1")
    with on_terminal(tmp_path, PIPELINE) as terminal:
        terminal.read_until()
    assert b"of 5" in terminal.data
    assert bool(COLOR.search(terminal.data)) is (variable != "NO_COLOR")


def test_forced_colors_draw_no_table_in_a_pipe(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZE", "2")
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert re.fullmatch(r"rhapsody: 5 done in .* s\n", run(PIPELINE).stderr)


def test_worker_processes_print_above_the_table_as_well(tmp_path: Path) -> None:
    with on_terminal(tmp_path, PIPELINE, "-b", "local", "-o", "executor=process") as terminal:
        text = terminal.read_until()
    assert text.count("| loading 1\n") == text.count("loading 1") == 1


def test_an_engine_in_a_task_of_another_process_draws_no_table_over_the_other(
    tmp_path: Path,
) -> None:
    script = """
    async def main(flow):
        @flow.function_task
        def outer():
            import asyncio
            from rhapsody import WorkflowEngine
            async def run():
                async with WorkflowEngine.create(progress=True) as flow:
                    await flow.function_task(lambda: None, name="inner")()
            asyncio.run(run())
        await outer()
    """
    arguments = ("-b", "local", "-o", "executor=process")
    with on_terminal(tmp_path, script, *arguments) as terminal:
        text = terminal.read_until()
    assert re.search(r"^outer 000001 \| rhapsody: 1 done in .* s$", text, re.MULTILINE)
    assert not re.search(r"^inner +\d", text, re.MULTILINE)


def test_elsewhere_there_is_no_table_and_the_account_is_on_standard_error(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIZE", "2")
    done = run(PIPELINE)
    assert sorted(done.stdout.splitlines()) == ["from main", "loading 0", "loading 1", "summary 2"]
    assert re.fullmatch(r"rhapsody: 5 done in .* s\n", done.stderr)


def test_nothing_is_shown_where_that_is_asked_for(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIZE", "2")
    assert run(PIPELINE, "-q").stderr == ""


def test_failures_that_are_not_awaited_are_printed_even_with_quiet(run: Run) -> None:
    script = """
    async def main(flow):
        @flow.function_task
        def fails():
            raise ValueError("too small")
        fails()
    """
    done = run(script, "-q")
    assert "1 failed task not awaited" in done.stderr
    assert "ValueError: too small" in done.stderr
    assert "rhapsody: 0 done" not in done.stderr


def test_more_is_shown_where_that_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SIZE", "1")
    lines = run(PIPELINE, "-v").stderr.splitlines()
    begins, done = (line.split(" ", 1)[1] for line in lines if "task.000001 load" in line)
    assert re.fullmatch(r"task\.000001 load\(0\): begins on local \(\S+\)", begins)
    assert re.fullmatch(r"task\.000001 load\(0\): done after \d+ ms", done)


def test_what_programs_print_is_among_the_lines_and_what_functions_print_comes_once(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIZE", "3")
    done = run(PIPELINE, "-v")
    lines = done.stderr.splitlines()
    for number, uid in enumerate(("000002", "000004", "000006")):
        assert lines.count(f"simulate {uid} | simulated {number}") == 1, done.stderr
    assert lines.count("simulate 000006 | not two") == 1
    assert (done.stdout + done.stderr).count("loading 1") == 1
    assert " | " not in run(PIPELINE, "-v", "--dry-run").stderr


WARNS = """
async def main(flow):
    await flow.executable_task(lambda: "echo careful >&2", name="warn")()
"""


def test_the_standard_error_of_a_command_that_succeeded_is_shown(
    run: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert "warn 000001 | careful" in run(WARNS, "-v").stderr.splitlines()
    assert main(["show", "1"]) == 0
    assert "careful" in capsys.readouterr().out


def test_the_account_names_what_failed_with_its_sandbox_after_the_traceback(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SIZE", "3")
    done = run(PIPELINE)
    assert done.returncode == 1
    *_, failed, error, said, sandbox, again, files, last, kept = done.stderr.splitlines()
    assert failed == "failed:"
    assert error.startswith("  simulate(<task.000005>) (task.000006): ended with exit code 1: ")
    assert said == "    not two"
    assert (tmp_path / sandbox.removeprefix("    sandbox: ")).is_dir()
    command = again.removeprefix("    to run it again: ")
    assert subprocess.run(command, shell=True, cwd=tmp_path, check=False).returncode == 1
    assert (tmp_path / files.removeprefix("the run's files: ")).is_dir()
    assert re.fullmatch(r"rhapsody: 5 done, 1 failed, 1 skipped in .* s", last)
    assert kept == "rhapsody: results are kept; run the same command again to continue"


def test_the_account_shows_standard_output_where_there_is_nothing_else_and_the_attempt(
    run: Run,
) -> None:
    done = run(
        """
        async def main(flow):
            @flow.executable_task(retries=1)
            def solve():
                return "echo no convergence; exit 3"
            solve()
        """
    )
    _, error, label, said, *_ = done.stderr.splitlines()
    assert error.startswith("  solve() (task.000001), attempt 2: ended with exit code 3: ")
    assert label == "    standard output ended with:"
    assert said == "      no convergence"


def test_the_account_names_stale_and_missing_results_and_a_large_disk_use(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    counts = Counts()
    counts.rows["make"] = Row()
    files = [SavedFile(tmp_path / f"{n}.txt", "make", f"task.{n:06d}") for n in range(22)]
    directory = tmp_path / ".rhapsody/20261121T041233-program-7f3a/engine.12345678"
    lost = (SavedFile(tmp_path / "lost.txt", "make", "task.000030"),)
    summary = Summary("engine", Stats(), 1.0, stale=tuple(files), missing=lost, disk_use=3 * 10**9)
    lines = account(summary, counts, directory)
    assert lines[0] == "stale, from an earlier run (22):"
    assert "(make, task.000019)" in lines[20]
    assert lines[21:-1] == [
        "  ... and 2 more",
        "missing, of reused tasks; --rerun writes them again (1):",
        "  lost.txt  (make, task.000030)",
        "3.0 GB in .rhapsody: rhapsody clean removes old files except results",
    ]


def test_of_a_chain_that_fails_the_traceback_shows_the_failure_and_the_end(run: Run) -> None:
    done = run(
        """
        async def main(flow):
            @flow.function_task
            def first():
                raise ValueError("no data")
            @flow.function_task
            def then(x): ...
            await then(then(then(first())))
        """
    )
    assert done.returncode == 1
    assert done.stderr.count("Traceback") == 2
    assert done.stderr.count("did not run because first() (task.000001) failed") == 1


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [(signal.SIGINT, 130, "interrupted"), (signal.SIGTERM, 143, "ended by SIGTERM")],
)
def test_a_run_that_is_interrupted_gives_its_account(
    tmp_path: Path, number: signal.Signals, code: int, said: str
) -> None:
    script = """
    async def main(flow):
        await flow.executable_task(lambda: "echo started; sleep 1000", name="endless")()
    """
    with on_terminal(tmp_path, script) as terminal:
        terminal.read_until("cores in use", "endless")
        terminal.process.send_signal(number)
        text = terminal.read_until()
    assert terminal.process.returncode == code
    assert re.search(r"\nrhapsody: 0 done, 1 canceled in .* s\n", text)
    assert f"\nrhapsody: {said}\n" in text


def test_a_terminal_that_takes_nothing_holds_up_no_task(tmp_path: Path) -> None:
    script = """
    async def main(flow):
        @flow.function_task
        def talk(n):
            print("x" * 1000)
        for n in range(1000):
            await talk(n)
        open("done.txt", "w").close()
    """
    with on_terminal(tmp_path, script) as terminal:
        deadline = select.poll()
        deadline.register(os.pidfd_open(terminal.process.pid), select.POLLIN)
        while not (tmp_path / "done.txt").exists():
            assert not deadline.poll(100), "it ended before it was done"
        assert terminal.read_until().count("xxxx | ") == 0
    assert terminal.process.returncode == 0


def test_all_that_a_task_prints_is_shown_however_much_that_is(tmp_path: Path) -> None:
    script = """
    async def main(flow):
        @flow.function_task
        def talk():
            for n in range(15000):
                print("line", n, "of many")
        await talk()
    """
    with on_terminal(tmp_path, script) as terminal:
        text = terminal.read_until()
    assert text.count("talk 000001 | line ") == 15000


def test_a_line_that_is_written_over_itself_is_shown_as_it_was_in_the_end(tmp_path: Path) -> None:
    script = """
    import sys
    def count(word):
        for n in range(20):
            print(f"\\r{word} {n}", end="", file=sys.stderr)
        print(file=sys.stderr)
    async def main(flow):
        await flow.function_task(count)("step")
        count("part")
    """
    with on_terminal(tmp_path, script) as terminal:
        text = terminal.read_until()
    assert sorted(re.findall(r"(?:step|part) \d+", text)) == ["part 19", "step 19"]


def test_forked_processes_print_past_the_table(tmp_path: Path) -> None:
    script = """
    import os
    def fork(whose):
        child = os.fork()
        if child == 0:
            print(f"child of {whose}\\n", end="", flush=True)
            os._exit(0)
        os.waitpid(child, 0)
    async def main(flow):
        await flow.function_task(fork)("a task")
        fork("main")
    """
    with on_terminal(tmp_path, script) as terminal:
        text = terminal.read_until()
    assert text.count("child of a task") == text.count("child of main") == 1


def test_output_after_an_unfinished_run_is_shown(tmp_path: Path) -> None:
    script = """
    import asyncio
    from rhapsody import WorkflowEngine
    async def run():
        flow = await WorkflowEngine.create()
        await flow.function_task(lambda: print("from a task"))()
        print("from the program")
        return flow
    flow = asyncio.run(run())
    print("the end", end="")
    """
    with on_terminal(tmp_path, script) as terminal:
        text = terminal.read_until()
    for printed in ("| from a task", "from the program", "the end"):
        assert text.count(printed) == 1


def test_a_picture_that_cannot_be_drawn_takes_no_text_with_it(tmp_path: Path) -> None:
    script = """
    import asyncio, threading
    from rhapsody.builtin.progress import display
    drawn = threading.Event()
    def draw(self):
        if made:
            drawn.set()
            raise LookupError("no picture")
        made.append(self)
        return ""
    made = []
    display.Picture.draw = draw
    async def main(flow):
        print("before")
        await asyncio.to_thread(drawn.wait, 30)
        await flow.function_task(lambda: print("from a task"), name="part")()
        print("after")
    """
    with on_terminal(tmp_path, script) as terminal:
        text = terminal.read_until()
    assert terminal.process.returncode == 0
    for words in ("before", "part 000001 | from a task", "after"):
        assert text.count(words) == 1, text  # a line may have the warning in it, from its thread
    assert "progress display stopped: LookupError" in text


def test_a_picture_whose_thread_cannot_start_takes_no_text_with_it(tmp_path: Path) -> None:
    script = """
    import threading
    start = threading.Thread.start
    def no_more(self):
        if "progress" in self.name:
            raise RuntimeError("can't start new thread")
        start(self)
    threading.Thread.start = no_more
    async def main(flow):
        await flow.function_task(lambda: print("from a task"), name="part")()
        print("from the program")
    """
    with on_terminal(tmp_path, script) as terminal:
        text = terminal.read_until()
    assert terminal.process.returncode == 0
    for words in ("from a task", "from the program", "can't start new thread", "1 done"):
        assert words in text


def test_an_engine_that_cannot_be_made_leaves_the_terminal_to_the_next(tmp_path: Path) -> None:
    script = """
    import asyncio
    from rhapsody import WorkflowEngine
    async def run():
        try:
            await WorkflowEngine.create(observers=3)
        except TypeError:
            pass
        async with WorkflowEngine.create() as flow:
            await flow.function_task(lambda: None)()
    asyncio.run(run())
    """
    with on_terminal(tmp_path, script) as terminal:
        assert "cores in use" in terminal.read_until()


@pytest.mark.parametrize("place", ["full", "closed"])
def test_an_account_that_cannot_be_written_fails_no_run(tmp_path: Path, place: str) -> None:
    script = "async def main(flow):\n    await flow.function_task(lambda: None)()\n"
    if place == "closed":
        script = f"import sys\nsys.stderr.close()\n{script}"
    (tmp_path / "script.py").write_text(script)
    with open("/dev/full", "w") as full:
        command = [sys.executable, "-m", "rhapsody", "run", "script.py"]
        stderr = full if place == "full" else subprocess.PIPE
        done = subprocess.run(command, cwd=tmp_path, stderr=stderr, timeout=60)
    assert done.returncode == 0


@pytest.mark.asyncio
async def test_a_program_may_ask_for_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    told = asyncio.Event()
    write = progress._write
    monkeypatch.setattr(progress, "LINE_INTERVAL", 0.01)

    def tell(lines: Sequence[str]) -> None:
        write(lines)
        told.set()

    monkeypatch.setattr(progress, "_write", tell)
    async with WorkflowEngine.create(backend := Scripted(), progress=True) as flow:

        @flow.function_task
        def part() -> None: ...

        futures = [part(), part()]
        await within(told.wait())  # although nothing happens
        for _ in futures:
            backend.done(await backend.next())
        await within(futures[0])
        await within(futures[1])
    lines = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"rhapsody: 0 done, 0 running, 2 waiting after .* s", lines[0])
    assert re.fullmatch(r"rhapsody: 2 done in .* s", lines[-1])


@pytest.mark.asyncio
async def test_an_attempt_that_is_followed_by_another_is_no_failure(
    capsys: pytest.CaptureFixture[str],
) -> None:
    attempts = []
    async with WorkflowEngine.create(Inline(), progress=True) as flow:

        @flow.function_task(retries=1)
        def flaky() -> str:
            attempts.append(1)
            if len(attempts) == 1:
                raise OSError("once")
            return "well"

        assert await flaky() == "well"
    assert re.fullmatch(r"rhapsody: 1 done, 1 retried in .* s\n", capsys.readouterr().err)


@pytest.mark.asyncio
async def test_a_task_whose_attempts_all_failed_is_named_once(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with WorkflowEngine.create(Inline(), progress=True) as flow:

        @flow.function_task(retries=2)
        def broken() -> None:
            raise LookupError("each time")

        broken()
    *failed, _, _, place, line, last = capsys.readouterr().err.splitlines()
    assert failed == ["failed:", "  broken() (task.000001), attempt 3: LookupError: each time"]
    assert re.fullmatch(r'    File ".*test_progress\.py", line \d+, in broken', place)
    assert line == '      raise LookupError("each time")'
    assert re.fullmatch(r"rhapsody: 0 done, 1 failed, 2 retried in .* s", last)


@pytest.mark.asyncio
async def test_tasks_that_are_not_awaited_are_reported_once(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    backend = LocalExecutionBackend(resources={"cores": 1})
    async with WorkflowEngine.create(backend, work_dir=tmp_path, progress=True) as flow:

        @flow.function_task
        def broken() -> None:
            raise LookupError("first line\nsecond line")

        broken()
    account = capsys.readouterr().err
    assert "  broken() (task.000001): LookupError: first line\n    File " in account
    assert "\n    second line\n" in account
    assert "not awaited" not in caplog.text


@pytest.mark.asyncio
async def test_equal_failures_are_one_entry_with_their_place_and_the_first_in_full(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "stats.py").write_text(
        textwrap.dedent(
            """
            def mean(row):
                return row["temp"] / 2

            def clean(number):
                if number < 2:
                    raise ValueError(f"bad {number}")
                return mean({})

            def exits(number):
                return f"exit {number}"
            """
        )
    )
    monkeypatch.syspath_prepend(tmp_path)
    import stats  # type: ignore[import-not-found]

    one_by_one = LocalExecutionBackend(resources={"cores": 1})
    async with WorkflowEngine.create(one_by_one, progress=True) as flow:
        await asyncio.wait(flow.map(flow.function_task(stats.clean), range(30)))
        await asyncio.wait(flow.map(flow.executable_task(stats.exits), [3, 4]))
    lines = capsys.readouterr().err.splitlines()
    lines = [line for line in lines if "sandbox" not in line and ".rhapsody" not in line]
    lines[-1] = re.sub(r" in .* s", "", lines[-1])
    assert lines == [
        "failed:",
        "  2 \N{MULTIPLICATION SIGN} ValueError in clean (stats.py:7); the first:",
        "    clean(0) (task.000001): ValueError: bad 0",
        '      File "stats.py", line 7, in clean',
        '        raise ValueError(f"bad {number}")',
        "    the others: clean(1) (task.000002)",
        "  28 \N{MULTIPLICATION SIGN} KeyError: 'temp' in clean (stats.py:3); the first:",
        "    clean(2) (task.000003): KeyError: 'temp'",
        '      File "stats.py", line 8, in clean',
        "        return mean({})",
        '      File "stats.py", line 3, in mean',
        '        return row["temp"] / 2',
        "    the others: clean(3) (task.000004), clean(4) (task.000005), clean(5) (task.000006) "
        "and 24 more",
        "  exits(3) (task.000031): ended with exit code 3: exit 3",
        "  exits(4) (task.000032): ended with exit code 4: exit 4",
        "rhapsody: 0 done, 32 failed",
    ]


@pytest.mark.asyncio
async def test_a_long_message_that_failures_share_is_shortened_in_their_summary(
    capsys: pytest.CaptureFixture[str],
) -> None:
    async with WorkflowEngine.create(Inline(), progress=True) as flow:

        @flow.function_task
        def broken(number: int) -> None:
            raise ValueError("x" * 1000)

        await asyncio.wait(flow.map(broken, range(2)))
    _, summary, first, *_ = capsys.readouterr().err.splitlines()
    assert len(summary) < 250
    assert "xxx... in broken (test_progress.py:" in summary
    assert "x" * 1000 in first


@pytest.mark.asyncio
async def test_the_log_has_the_place_of_every_failure_and_the_frames_once(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level("INFO", "rhapsody.task")
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def broken(number: int) -> None:
            raise LookupError(number)

        flow.map(broken, range(2))
    texts = [record.getMessage() for record in caplog.records if record.name == "rhapsody.task"]
    begins, first, _, second = texts
    assert begins == "task.000001 broken(0): begins on inline"
    place = r"\(test_progress\.py:\d+\)"
    frames = r'\n  File .*\n .*\n  File ".*test_progress\.py", line \d+, in broken\n    raise .*'
    failed = r"task\.00000{0} broken\({1}\): failed on inline after \d+ ms: LookupError: {1} "
    assert re.fullmatch(failed.format(1, 0) + place + frames, first)
    assert re.fullmatch(failed.format(2, 1) + place, second)
    (unawaited,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    assert "2 failed tasks not awaited:\n  2 \N{MULTIPLICATION SIGN} LookupError" in unawaited
    assert "    raise LookupError(number)" in unawaited


@pytest.mark.asyncio
async def test_skipped_tasks_are_reported_with_their_first_failure(
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with WorkflowEngine.create(Inline()) as flow:

        @flow.function_task
        def clean(row: dict[str, int]) -> int:
            return row["temp"]

        @flow.function_task
        def other() -> int:
            raise LookupError("other")

        @flow.function_task
        def after(*values: int) -> int:
            return sum(values)

        first = [clean({}) for _ in range(30)]
        for each in first:
            after(after(each), first[0])
        after(first[1], other())
        del first
    (text,) = (r.getMessage() for r in caplog.records if r.levelname == "ERROR")
    head, *lines = text.splitlines()
    assert head.endswith(": 31 failed tasks not awaited, and 31 that did not run because of them:")
    group = r"  30 \N{MULTIPLICATION SIGN} KeyError: 'temp' in clean \(test_progress\.py:\d+\); .*"
    assert re.fullmatch(group, lines[0])
    assert '        return row["temp"]' in lines
    assert any("other() (task." in line for line in lines)
    assert "DependencyFailureError" not in text


@pytest.mark.asyncio
@pytest.mark.parametrize("way", ["cancel", "shutdown"])
async def test_a_service_that_was_ready_counts_as_done_in_code_and_in_the_account(
    way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    async with WorkflowEngine.create(progress=True) as flow:

        @flow.executable_task(service=True, ready="stdout:up")
        def server() -> str:
            return "echo up; sleep 1000"

        service = server()
        assert await within(service) == "up"
        if way == "cancel":
            assert service.cancel()
            await within(service.ended())
    assert (flow.stats.done, flow.stats.cancelled) == (1, 0)
    assert re.search(r"^rhapsody: 1 done in .* s$", capsys.readouterr().err, re.MULTILINE)


@pytest.mark.asyncio
async def test_an_input_file_is_the_program_of_a_list_command(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scripts").mkdir()
    script = tmp_path / "scripts/run.sh"
    script.write_text("#!/bin/sh\necho got $1\n")
    script.chmod(0o755)
    async with WorkflowEngine.create(progress=True) as flow:

        @flow.executable_task
        def given(program: InputFile) -> list[str | os.PathLike[str]]:
            return [program, "3"]

        @flow.executable_task
        def undeclared() -> list[str]:
            return ["scripts/run.sh", "3"]

        assert await given(InputFile("scripts/run.sh")) == "got 3\n"
        undeclared()
    account = capsys.readouterr().err
    assert "cannot start 'scripts/run.sh'" in account
    assert account.count("hint: the sandbox of the command does not contain 'scripts/run.sh'") == 1
    assert "pass InputFile('scripts/run.sh') to the task" in account
