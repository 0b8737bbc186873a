"""`rhapsody run`: scripts, functions, and what ends with which exit code."""

from __future__ import annotations

import shlex
import signal
import subprocess
import sys
from pathlib import Path
from textwrap import dedent

import pytest

from rhapsody.builtin.journal.store import opened
from rhapsody.cli import main, scripts
from rhapsody.history.reader import read_run
from rhapsody.plugins.specs import UsageError
from tests._support.command_line import SIMPLE, Run, check_mistake
from tests._support.programs import PATIENCE

# What runs.


def test_main_runs_on_the_local_backend_by_default(run: Run) -> None:
    done = run(SIMPLE)
    assert (done.returncode, done.stdout) == (0, "result 4\n")


def test_a_script_gets_its_own_arguments(run: Run) -> None:
    script = """
        import sys
        async def main(flow):
            print(sys.argv)
    """
    done = run(script, "-b", "noop", "--", "--alpha", "3", "--", "-b")
    assert done.stdout.endswith("script.py', '--alpha', '3', '--', '-b']\n"), done.stderr


@pytest.mark.parametrize(
    ("given", "command"),
    [
        (("--alpha", "3"), "rhapsody run SCRIPT -- --alpha 3"),
        (("a file", "-b", "noop"), "rhapsody run SCRIPT -- 'a file'"),
    ],
)
def test_misplaced_options_of_run_are_reported_with_their_place(
    run: Run, given: tuple[str, ...], command: str
) -> None:
    done = run(SIMPLE, *given)
    check_mistake(done, "unrecognized arguments: ")
    assert done.stderr.endswith(f"put the script's own arguments after --: {command}\n")


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        (("--dry_run",), "did you mean --dry-run? "),
        (("--resum",), "did you mean --resume? "),
        (("--max-failure=3",), "did you mean --max-failures? "),
        (("3", "--fail_fast"), "did you mean --fail-fast? "),
        (("--model", "-x", "resume", "--n"), ""),
    ],
)
def test_a_misspelt_option_is_asked_for(run: Run, given: tuple[str, ...], meant: str) -> None:
    done = run(SIMPLE, *given)
    said = f"unrecognized arguments: {' '.join(given)}; {meant}put the script's own"
    check_mistake(done, said)


def test_a_misspelt_option_before_the_script_is_asked_for(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["run", "--resum", "prog.py"]) == 2
    assert "; did you mean --resume? put" in capsys.readouterr().err


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_a_class_of_the_script_is_named_as_if_python_ran_the_script(
    run: Run, executor: str
) -> None:
    script = """
        class OddError(Exception):
            pass

        async def main(flow):
            @flow.function_task
            def fail():
                raise OddError("odd")
            await fail()
    """
    done = run(script, "-o", f"executor={executor}")
    assert "\nOddError: odd\n" in done.stderr
    assert "__rhapsody_script__" not in done.stderr


def test_control_characters_in_texts_of_tasks_do_not_reach_the_terminal(run: Run) -> None:
    script = r"""
        async def main(flow):
            @flow.executable_task
            def command():
                return "printf '\\033]0;title\\007' >&2; exit 3"

            @flow.function_task
            def function(text):
                raise ValueError(f"clear {text}")

            command()
            await function("\033[2J\u202e")
    """
    done = run(script, "-v")
    assert "clear \\x1b[2J\\u202e" in done.stderr
    assert "\\x1b]0;title\\x07" in done.stderr
    assert not set("\x1b\x07\u202e") & set(done.stderr)


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_an_exception_whose_text_is_never_complete_does_not_stop_the_run(
    run: Run, executor: str
) -> None:
    script = """
        class StuckError(Exception):
            def __str__(self):
                while True:
                    pass

        async def main(flow):
            @flow.function_task
            def stuck():
                raise StuckError

            await stuck()
    """
    done = run(script, "-o", f"executor={executor}")
    assert done.returncode == 1
    assert "StuckError: (str() of the exception did not return within" in done.stderr


def test_the_end_says_which_files_there_are(run: Run, tmp_path: Path) -> None:
    done = run("""
        from rhapsody import OutputDir, OutputFile

        async def main(flow):
            @flow.executable_task
            def write(out):
                return f"echo made > {out}"

            @flow.executable_task
            def draw(plots):
                return f"mkdir {plots}; touch {plots}/one {plots}/two"

            await draw(OutputDir("out/plots"))
            for number in range(1, 21):
                write(OutputFile(f"out/{number:02}.txt"))
    """)
    assert (done.returncode, done.stdout) == (0, "")
    first, *listed, more, _ = done.stderr.splitlines()
    assert (first, len(listed), more) == ("results (21):", 20, "  ... and 1 more")
    assert listed[0] == "  out/plots/  (draw, task.000001)"
    assert "  out/01.txt  (write, task.000002)" in listed
    assert (tmp_path / "out/20.txt").read_text() == "made\n"


def test_after_a_failure_only_what_no_task_has_read_is_a_result(run: Run) -> None:
    done = run("""
        from rhapsody import InputFile, OutputFile

        async def main(flow):
            @flow.executable_task
            def write(out, *files):
                return f"echo made > {out}"

            @flow.executable_task
            def fail(_):
                return "echo one; echo two; exit 3"

            first = write(OutputFile("first.txt"))
            second = write.options(after=[first])(OutputFile("second.txt"), InputFile("first.txt"))
            await second
            await fail(1)
    """)
    assert done.returncode == 1
    account = done.stderr[done.stderr.index("results (") :]
    assert account.startswith("results (1):\n")
    assert "second.txt  (write, task.000002)\nfailed:\n" in account
    assert "\n    standard output ended with:\n      one\n      two\n    sandbox: " in account


@pytest.mark.parametrize(("saved", "more"), [(1, 0), (19, 1)])
def test_files_without_a_place_are_listed_after_those_that_were_saved(
    run: Run, tmp_path: Path, saved: int, more: int
) -> None:
    done = run(f"""
        from rhapsody import OutputFile

        async def main(flow):
            @flow.executable_task
            def write(out):
                return f"echo made > {{out}}"

            await write(OutputFile("one.csv"))
            await write(OutputFile("two.csv"))
            for number in range({saved}):
                write(OutputFile(f"out/{{number}}.txt"))
    """)
    first, *lines = done.stderr.splitlines()
    assert first == f"results ({saved + 2}):"
    assert all(line.startswith("  out/") for line in lines[:saved])
    path, task, uid = lines[saved].split()
    assert path.endswith("/one.csv")
    assert (task, uid) == ("(write,", "task.000001)")
    assert (tmp_path / path).read_text() == "made\n"
    if more:
        assert lines[saved + 1] == "  ... and 1 more"
    else:
        assert lines[saved + 1].endswith("/two.csv  (write, task.000002)")


def test_another_function_runs(run: Run) -> None:
    done = run("async def other(flow): print(type(flow).__name__)", function=":other")
    assert (done.returncode, done.stdout) == (0, "WorkflowEngine\n")


def test_the_script_is_no_main_module_and_sees_itself_as_a_program_does(run: Run) -> None:
    script = """
    import os, sys
    if __name__ == "__main__":
        print("the guard fired")
    assert sys.argv == [os.path.abspath("script.py")] == [__file__]
    assert sys.path[0] == os.getcwd()
    import dataclasses

    @dataclasses.dataclass
    class Value:
        number: "int"

    async def main(flow):
        print("guarded")
    """
    done = run(script)
    assert (done.returncode, done.stdout, done.stderr) == (0, "guarded\n", "")


def test_functions_and_classes_of_the_script_travel_to_worker_processes_and_back(run: Run) -> None:
    script = """
    import os
    from dataclasses import dataclass
    print("loaded")
    OFFSET = 10

    @dataclass(frozen=True)
    class Point:
        x: int

    def shifted(x):
        return Point(x + OFFSET)

    async def main(flow):
        @flow.function_task
        def where(x):
            return shifted(x), os.getpid()

        point, pid = await where(1)
        assert pid != os.getpid()
        assert isinstance(point, Point)
        print(point)
    """
    done = run(script, "-o", "executor=process", "-o", "workers=1")
    assert (done.returncode, done.stdout) == (0, "loaded\nPoint(x=11)\n"), done.stderr


@pytest.mark.parametrize("executor", ["thread", "process"])
def test_recorded_objects_are_of_the_scripts_classes(executor: str, tmp_path: Path) -> None:
    script = """
    from dataclasses import dataclass

    factor = 1

    @dataclass(slots=True)
    class Point:
        x: int

        def size(self):
            return factor * self.x

    @dataclass(slots=True, frozen=True)
    class Frozen:
        x: int

    async def main(flow):
        global factor

        @flow.function_task
        def make(x):
            with open("ran.txt", "a") as log:
                print(x, file=log)
            return [Point(x), Frozen(x), lambda: x]  # pickle does not accept the function

        size = Point.size
        point, frozen, function = await make(1)
        factor = 10
        assert (type(point), type(frozen), Point.size) == (Point, Frozen, size)
        print(point, frozen, function(), point.size(), Point(2).size())
    """
    (tmp_path / "script.py").write_text(dedent(script))
    for arguments in ((), ("--resume",)):
        command = [sys.executable, "-m", "rhapsody", "run", "script.py", *arguments]
        command += ["-o", f"executor={executor}"]
        printed = subprocess.check_output(command, cwd=tmp_path, text=True, timeout=60)
        assert printed == "Point(x=1) Frozen(x=1) 1 10 20\n"
    assert (tmp_path / "ran.txt").read_text() == "1\n"


def test_a_plain_main_is_called_with_an_engine(run: Run) -> None:
    script = """
    import rhapsody

    def main(flow):
        @flow.function_task
        def double(x):
            return 2 * x

        print("result", rhapsody.wait(double(double(1))))
        return double(1) + "text"
    """
    done = run(script, "-b", "local")
    assert (done.returncode, done.stdout) == (1, "result 4\n")
    assert 'script.py", line' in done.stderr
    assert "TypeError" in done.stderr


# The user's mistakes: no traceback, exit code 2.


@pytest.mark.parametrize("function", ["", ":main"])
def test_a_missing_file_is_a_mistake(tmp_path: Path, function: str) -> None:
    with pytest.raises(UsageError, match=r"file 'missing\.py' does not exist"):
        scripts.split_target(f"missing.py{function}")
    with pytest.raises(UsageError, match="is not a file"):
        scripts.split_target(f"{tmp_path}{function}")


def test_a_file_name_may_have_a_colon(tmp_path: Path) -> None:
    path = tmp_path / "a:b.py"
    path.touch()
    assert scripts.split_target(str(path)) == (str(path), None)
    assert scripts.split_target(f"{path}:other") == (str(path), "other")
    with pytest.raises(UsageError, match=r"'1x' .* is not a function name"):
        scripts.split_target(f"{path}:1x")


@pytest.mark.parametrize(
    ("script", "function", "expected"),
    [
        ("async def main(flow): ...", ":mian", "did you mean 'main'?"),
        ("async def work(flow): ...", ":main", "; the asynchronous functions are work"),
        ("x = 1", ":main", "add `def main(flow): ...` or `async def main(flow): ...`"),
        ("def main(flow, x): ...", "", "must take one argument, the workflow engine"),
        ("main = 3", "", "main in script.py is not a function"),
        ("async def main(): ...", ":main", "must take one argument, the workflow engine"),
        ("async def main(a, b): ...", "", "must take one argument, the workflow engine"),
    ],
)
def test_a_script_without_the_function_is_a_mistake(
    run: Run, script: str, function: str, expected: str
) -> None:
    check_mistake(run(script, "-b", "noop", function=function), expected)


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("x = 1\nasync def main(flow)\n    pass", ("SyntaxError", "script.py", "line 2")),
        ("x = 1\nimport no_such_library", ("script.py, line 2", "'no_such_library'")),
        ("from os import nonsense", ("script.py, line 1", "'nonsense'")),
        ("import helper", ("helper.py, line 2", "'no_such_library'")),
        ("import wrong", ("SyntaxError", "wrong.py", "line 1")),
    ],
)
def test_a_script_that_cannot_be_loaded_is_a_mistake(
    run: Run, tmp_path: Path, script: str, expected: tuple[str, ...]
) -> None:
    (tmp_path / "helper.py").write_text("x = 1\nimport no_such_library\n")
    (tmp_path / "wrong.py").write_text("def\n")
    done = run(f"{script}\nasync def main(flow): ...", "-b", "noop")
    check_mistake(done, "script.py cannot be loaded", *expected)


# The user's own errors: their traceback, exit code 1.


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        ("def inner():\n    1 / 0\nasync def main(flow):\n    inner()", "ZeroDivisionError"),
        ("1 / 0", "ZeroDivisionError"),
        (
            "async def main(flow):\n    import no_such_library",
            "No module named 'no_such_library'",
        ),
        ("async def main(flow):\n    raise ValueError('mine')", "ValueError: mine"),
        ("async def main(flow):\n    raise TypeError('mine')", "TypeError: mine"),
        (
            "from rhapsody import BackendUnavailableError\n"
            "async def main(flow):\n    raise BackendUnavailableError('mine')",
            "BackendUnavailableError: mine",
        ),
        (
            "import asyncio\nasync def main(flow):\n    raise asyncio.CancelledError",
            "CancelledError",
        ),
    ],
)
def test_an_error_in_the_user_s_code_has_a_traceback_that_begins_there(
    run: Run, script: str, expected: str
) -> None:
    done = run(script, "-b", "noop")
    assert done.returncode == 1
    assert expected in done.stderr
    files = [line for line in done.stderr.splitlines() if line.strip().startswith("File ")]
    assert all("script.py" in file for file in files)
    assert files


def test_a_failed_task_fails_the_workflow_with_its_own_exception(run: Run) -> None:
    script = """
    async def main(flow):
        @flow.function_task
        def fails():
            raise LookupError("nothing there")
        await fails()
    """
    done = run(script)
    assert done.returncode == 1
    assert "LookupError: nothing there" in done.stderr


def test_a_failed_task_that_is_not_awaited_fails_the_workflow(run: Run) -> None:
    script = """
    import asyncio
    async def main(flow):
        @flow.function_task
        def fails():
            raise LookupError("nothing there")
        future = fails()
        await asyncio.wait([future])
        if {seen}:
            future.exception()
    """
    done = run(script.format(seen=False))
    assert done.returncode == 1
    assert "LookupError: nothing there" in done.stderr
    assert "Traceback" not in done.stderr
    assert run(script.format(seen=True)).returncode == 0


OUTLIVES = """
    import asyncio

    async def study(part, opened):
        await part()
        await opened.wait()
        await part()

    async def main(flow):
        part = flow.function_task(print)
        opened = asyncio.Event()
        task = asyncio.create_task(study(part, opened))
"""


def test_a_coroutine_that_main_does_not_await_is_named(run: Run) -> None:
    done = run(OUTLIVES, "-b", "noop")
    assert done.returncode == 0
    assert "study() (" in done.stderr
    assert "TaskGroup" in done.stderr


def test_calls_that_come_after_the_end_of_main_fail_the_run(run: Run) -> None:
    late = """
        shutdown = flow.shutdown
        async def open_first():
            await shutdown()
            opened.set()
            await asyncio.wait([task])
        flow.shutdown = open_first
    """
    done = run(dedent(OUTLIVES) + dedent(late).replace("\n", "\n    "), "-b", "noop")
    assert done.returncode == 1
    assert "1 call did not run, because `main` had ended" in done.stderr


def test_tasks_that_the_program_itself_shuts_down_are_no_failure(run: Run) -> None:
    done = run("""
        import asyncio

        async def main(flow):
            @flow.function_task
            async def endless():
                await asyncio.sleep(3600)

            endless()
            await flow.shutdown()
    """)
    assert done.returncode == 0, done.stderr
    assert "'endless'" in done.stderr


def test_an_exit_code_of_the_user_s_own_is_kept(run: Run) -> None:
    assert run("import sys\nasync def main(flow): sys.exit(7)", "-b", "noop").returncode == 7
    assert run("import sys\nsys.exit(8)", "-b", "noop").returncode == 8


def test_what_does_not_depend_on_a_failure_runs_unless_it_is_to_fail_fast(
    run: Run, tmp_path: Path
) -> None:
    script = """
    import asyncio, os
    async def main(flow):
        @flow.function_task
        async def bad():
            raise ValueError("bad sample")
        @flow.function_task
        async def good(before=None):
            while not os.path.exists(WAITS_FOR):
                await asyncio.sleep(0.01)
            open("done.txt", "w").close()
        good.options(name="after")(failing := bad())
        failing.add_done_callback(lambda _: open("failed.txt", "w").close())
        good()
        await failing
    """
    kept = run(script.replace("WAITS_FOR", "'failed.txt'"))
    assert kept.returncode == 1
    assert (tmp_path / "done.txt").exists()
    assert "\nrhapsody: 1 done, 1 failed, 1 skipped in " in kept.stderr
    assert "\n  bad() (task.000001): ValueError: bad sample\n" in kept.stderr
    (tmp_path / "done.txt").unlink()
    assert run(script.replace("WAITS_FOR", "'never.txt'"), "--fail-fast").returncode == 1
    assert not (tmp_path / "done.txt").exists()


# Signals.

WAITING = """
import asyncio

async def main(flow):
    print("ready", flush=True)
    await asyncio.Event().wait()
"""

WAITING_PROGRAM = """
import asyncio
from rhapsody import WorkflowEngine

async def main():
    async with WorkflowEngine.create():
        print("ready", flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


@pytest.mark.parametrize("script", [WAITING, WAITING_PROGRAM], ids=["main", "program"])
@pytest.mark.parametrize(
    ("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["int", "term"]
)
def test_a_signal_ends_the_workflow_with_its_exit_code(
    tmp_path: Path, number: signal.Signals, code: int, script: str
) -> None:
    (tmp_path / "script.py").write_text(script)
    child = subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "run", "script.py", "-b", "noop"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    try:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        child.send_signal(number)
        _, errors = child.communicate(timeout=60)
    finally:
        child.kill()
    assert child.returncode == code
    assert "Traceback" not in errors


def test_final_results_are_listed_before_intermediate_ones(run: Run) -> None:
    script = """
        from rhapsody import InputFile, OutputFile

        async def main(flow):
            @flow.executable_task
            def make(out, *files):
                return f"echo made > {out}"

            make(OutputFile("work/first.txt"))
            second = make(OutputFile("second.txt", save="out/"), InputFile("work/first.txt"))
            make(OutputFile("last.txt", save="out/"), second.file("second.txt"))
            make(OutputFile("alone.txt"))
    """
    for arguments in ((), ("--resume",)):
        done = run(script, *arguments)
        listed = [line for line in done.stderr.splitlines() if line.endswith(")")]
        assert [line.rpartition("/")[2] for line in listed[-4:]] == [
            "last.txt  (make, task.000003)",
            "alone.txt  (make, task.000004)",
            "first.txt  (make, task.000001)",
            "second.txt  (make, task.000002)",
        ], done.stderr


# Where nothing reads, and where there is no directory.


def test_a_run_whose_output_nothing_reads_any_more_ends_quietly_and_is_not_failed(
    tmp_path: Path,
) -> None:
    script = """
import sys

async def main(flow):
    @flow.function_task
    def part(number):
        print("part", number, flush=True)

    print("first", flush=True)
    sys.stdin.readline()
    await part(1)
    print("second", flush=True)
"""
    (tmp_path / "script.py").write_text(script)
    with subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "run", "script.py"],
        cwd=tmp_path,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "first\n"
        process.stdout.close()
        process.stdout = None
        _, stderr = process.communicate("go on\n", timeout=PATIENCE)
    assert process.returncode == 128 + signal.SIGPIPE
    account, kept = stderr.splitlines()
    assert account.startswith("rhapsody: 1 done in ")
    assert kept == "rhapsody: results are kept; run the same command again to continue"
    (journal,) = (tmp_path / ".rhapsody" / "journals").glob("*.sqlite")
    with opened(journal) as reader:
        assert [run.how for run in reader.runs()] == ["interrupted"]


ENDLESS = {
    "coroutine": """
        async def main(flow):
            @flow.function_task
            def part(number):
                return number

            while True:
                print("line", await part(1))
    """,
    "function": """
        def main(flow):
            while True:
                print("line")
    """,
    "own engine": """
        import asyncio
        from rhapsody import WorkflowEngine

        async def main():
            async with WorkflowEngine.create():
                while True:
                    print("line")

        asyncio.run(main())
    """,
    "command": """
        async def main(flow):
            @flow.executable_task(capture=False)
            def lines():
                return "exec yes line"

            await lines()
    """,
}


@pytest.mark.parametrize("script", ENDLESS.values(), ids=ENDLESS)
def test_a_run_is_interrupted_quietly_when_head_has_read_enough(
    tmp_path: Path, script: str
) -> None:
    (tmp_path / "script.py").write_text(dedent(script))
    run = f"{shlex.quote(sys.executable)} -m rhapsody run -q script.py | head -1; "
    shell = ["bash", "-c", f"{run} exit ${{PIPESTATUS[0]}}"]
    done = subprocess.run(shell, cwd=tmp_path, capture_output=True, text=True, timeout=PATIENCE)
    assert done.stdout.startswith("line")
    assert done.returncode == 128 + signal.SIGPIPE, done.stderr
    assert "Traceback" not in done.stderr
    (journal,) = (tmp_path / ".rhapsody" / "journals").glob("*.sqlite")
    with opened(journal) as reader:
        assert [run.how for run in reader.runs()] == ["interrupted"]
    history = read_run(tmp_path / ".rhapsody" / "latest")
    assert history.run.outcome == "interrupted"
    assert [engine.outcome for engine in history.engines.values()] == ["interrupted"]


@pytest.mark.parametrize(
    "command",
    ["run wf.py", "run -m wf", "backends", "doctor", "clean", "journal show", "journal explain x",
     "new-backend x"],
)  # fmt: skip
def test_a_current_directory_that_was_removed_is_a_mistake_of_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
    command: str,
) -> None:  # fmt: skip
    gone = tmp_path / "gone"
    gone.mkdir()
    monkeypatch.chdir(gone)
    gone.rmdir()
    assert main(command.split()) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("rhapsody: the current directory no longer exists; ")


def test_a_script_whose_name_begins_with_a_dash_follows_two(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "-x.py").write_text("import sys\nasync def main(flow):\n    print(sys.argv[1:])\n")
    monkeypatch.chdir(tmp_path)
    assert main(["run", "-q", "--no-journal", "--", "-x.py", "--", "-b", "--"]) == 0
    assert capsys.readouterr().out == "['-b', '--']\n"
    assert main(["run", "-q", "--no-journal", "--", "-x.py:main", "3"]) == 0
    assert capsys.readouterr().out == "['3']\n"
    assert main(["run", "-x.py"]) == 2
    assert "unrecognized arguments: -x.py; put the" in capsys.readouterr().err
    assert main(["run", "-q"]) == 2
    assert "rhapsody: no script given: write rhapsody run SCRIPT" in capsys.readouterr().err
