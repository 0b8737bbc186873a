"""Checks of executables: how commands are run, and what they leave."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from rhapsody.testing._driver import Finished
from rhapsody.testing._rules import CWD, EXECUTABLES, SANDBOXES, SHARED
from rhapsody.testing._running import check
from rhapsody.testing._tasks import DONE, FAILED
from rhapsody.testing._trial import Trial


class Executables:
    """Shell commands and programs with arguments."""

    @check("a string is run by a shell, with its quoting, pipes and variables", EXECUTABLES)
    async def test_a_string_is_run_by_a_shell(self, trial: Trial) -> None:
        driver = await trial.driver()
        for command, expected in (
            ("echo hello", "hello\n"),
            ("echo 'one  two' \"three   four\"", "one  two three   four\n"),
            ("printf 'b\\na\\n' | sort | tr '\\n' ,", "a,b,"),
            ('x=\'a b\'; echo "$x" && false || echo "it\'s"', "a b\nit's\n"),
            ("echo $((6 * 7)) > out.txt; cat out.txt", "42\n"),
            ("printf '%s' 'no newline'", "no newline"),
            ("echo one\necho two", "one\ntwo\n"),
        ):
            end = await driver.run_one(driver.command(command))
            _require_output(trial, end, expected, command)

    @check("a list is run without a shell, each argument as it is", EXECUTABLES)
    async def test_a_list_is_run_without_a_shell(self, trial: Trial) -> None:
        driver = await trial.driver()
        words = ["a b", "$HOME", "*", "it's", '"', "", "a;echo no", "`id`", "\\n", "--", "ü☃"]
        end = await driver.run_one(driver.command(["printf", "<%s>", *words]))
        _require_output(trial, end, "".join(f"<{word}>" for word in words), f"printf of {words}")
        end = await driver.run_one(driver.command(["echo"]))
        _require_output(trial, end, "\n", "echo without arguments")

    @check("a non-zero exit code is FAILED, with exit_code and stderr", EXECUTABLES)
    async def test_an_exit_code_fails_the_task(self, trial: Trial) -> None:
        driver = await trial.driver()
        for command in ("echo out; echo err >&2; exit 3", ["sh", "-c", "echo err >&2; exit 3"]):
            end = await driver.run_one(driver.command(command))
            trial.require(end.state is FAILED, f"{command!r}: {end}")
            trial.require(end.exit_code == 3, f"{command!r} exits with 3: {end}")
            trial.require(end.stderr == "err\n", f"{command!r} writes 'err' to stderr: {end}")
        trial.require(end.stdout == "", f"nothing was written to stdout: {end}")

    @check("a program that a signal ended is FAILED", EXECUTABLES)
    async def test_a_signal_fails_the_task(self, trial: Trial) -> None:
        driver = await trial.driver()
        end = await driver.run_one(driver.command("kill -9 $$"))
        trial.require(end.state is FAILED and end.exit_code != 0, f"{end}")

    @check("stdout and stderr are kept apart", EXECUTABLES)
    async def test_the_two_streams_are_kept_apart(self, trial: Trial) -> None:
        driver = await trial.driver()
        end = await driver.run_one(driver.command("echo out; echo err >&2; echo more"))
        _require_output(trial, end, "out\nmore\n", "two lines to stdout")
        trial.require(end.stderr == "err\n", f"stderr is 'err\\n': {end}")
        trial.require(end.exit_code == 0, f"exit_code of a success is 0: {end}")

    @check("the environment given is added to what is there", EXECUTABLES)
    async def test_the_environment_is_added(self, trial: Trial) -> None:
        driver = await trial.driver()
        environment = {"KIT_PLAIN": "value", "KIT_ODD": "a 'b' \"c\" $d ü=\\", "KIT_EMPTY": ""}
        command = 'printf "%s|" "$KIT_PLAIN" "$KIT_ODD" "${KIT_EMPTY-unset}"; test -n "$PATH"'
        end = await driver.run_one(driver.command(command, environment=environment))
        _require_output(trial, end, "".join(f"{v}|" for v in environment.values()), command)
        trial.require("KIT_PLAIN" not in os.environ, "it was left in the engine's environment")

    @check("standard input is the text given, and empty without one", EXECUTABLES)
    async def test_standard_input_is_the_text_given(self, trial: Trial) -> None:
        driver = await trial.driver()
        text = "first\nsecond ☃\n" + "x" * 200_000
        end = await driver.run_one(driver.command(["cat"], stdin=text))
        trial.require(end.stdout == text, lambda: f"cat of {len(text)} characters: {end}")
        trial.doing("waiting for a program that reads an empty standard input to its end")
        end = await driver.run_one(driver.command("cat; echo end"))
        _require_output(trial, end, "end\n", "cat without standard input")

    @check("a program that does not read its input succeeds", EXECUTABLES)
    async def test_input_that_is_not_read_is_no_error(self, trial: Trial) -> None:
        driver = await trial.driver()
        end = await driver.run_one(driver.command(["true"], stdin="x" * 1_000_000))
        trial.require(end.state is DONE, f"{end}")

    @check("unicode comes through in commands, output and names", EXECUTABLES)
    async def test_unicode_comes_through(self, trial: Trial) -> None:
        driver = await trial.driver()
        text = "grüße ☃ 日本語"
        end = await driver.run_one(driver.command(f"echo '{text}' > 'ü.txt'; cat ü.txt"))
        _require_output(trial, end, f"{text}\n", text)

    @check("output that is not text does not lose the task", EXECUTABLES)
    async def test_output_that_is_no_text_does_not_lose_the_task(self, trial: Trial) -> None:
        driver = await trial.driver()
        end = await driver.run_one(driver.command("printf 'a\\377\\376b'"))
        trial.require(
            end.state is DONE and isinstance(end.stdout, str) and end.stdout[:1] == "a",
            f"bytes that are no UTF-8: {end}",
        )

    @check("big output is complete, on both streams at once", EXECUTABLES, times=2)
    async def test_big_output_comes_whole(self, trial: Trial) -> None:
        driver = await trial.driver()
        size = trial.kit.output_bytes
        command = (
            f"head -c {size} /dev/zero | tr '\\0' x & "
            f"head -c {size // 10} /dev/zero | tr '\\0' e >&2 & wait; printf end"
        )
        trial.doing(f"waiting for a program that writes {size} bytes")
        end = await driver.run_one(driver.command(command))
        trial.require(end.state is DONE, lambda: f"{end}")
        out, err = end.stdout or "", end.stderr or ""
        trial.require(
            len(out) == size + 3 and out.endswith("xend"),
            f"of {size + 3} characters to stdout {len(out)} came, ending in {out[-10:]!r}",
        )
        trial.require(
            len(err) == size // 10, f"of {size // 10} characters to stderr {len(err)} came"
        )

    @check("a missing program is FAILED, and the error names it", EXECUTABLES)
    async def test_a_missing_program_fails(self, trial: Trial) -> None:
        driver = await trial.driver()
        name = "no-such-program-4711"
        for command in ([name, "x"], f"{name} x"):
            end = await driver.run_one(driver.command(command))
            trial.require(end.state is FAILED, f"{command!r}: {end}")
            said = f"{end.error} {end.stderr or ''}"
            trial.require(name in said, f"{command!r}: nothing names the program: {end}")
        good = await driver.run_one(driver.command("echo fine"))
        _require_output(trial, good, "fine\n", "a task afterwards")

    @check("many executables at once each have their own output", EXECUTABLES, times=2)
    async def test_many_at_once_keep_their_output(self, trial: Trial) -> None:
        driver = await trial.driver()
        count = 50
        ends = await driver.run(*(driver.command(f"echo {number}") for number in range(count)))
        for number, end in enumerate(ends):
            _require_output(trial, end, f"{number}\n", f"task {number} of {count}")


class Sandboxes:
    """The directory that each executable runs in."""

    @check("each executable runs in a directory of its own", EXECUTABLES, SANDBOXES)
    async def test_each_executable_has_its_own_directory(self, trial: Trial) -> None:
        driver = await trial.driver()
        tasks = [driver.command("") for _ in range(5)]
        for task in tasks:
            # A backend's own files there begin with the task's uid.
            own = f"grep -cv '^{task['uid']}'"
            task["executable"] = f"ls -A | {own}; pwd; echo mine > file.txt"
        ends = await driver.run(*tasks)
        places = []
        for end in ends:
            count, _, place = (end.stdout or "").strip().partition("\n")
            trial.require(count.strip() in ("0", "1", "2"), f"it is not empty at the start: {end}")
            places.append(place)
        trial.require(all(places) and len(set(places)) == 5, f"they ran in {places}")

    @check("sandboxes are where the task says and private", EXECUTABLES, SANDBOXES, SHARED)
    async def test_a_sandbox_is_private(self, trial: Trial) -> None:
        driver = await trial.driver()
        before = os.umask(0o022)
        try:
            end = await driver.run_one(driver.command("pwd; echo made > file.txt"))
        finally:
            os.umask(before)
        sandbox = Path(end.task.get("sandbox") or "")
        place = Path((end.stdout or "").strip())
        trial.require(
            end.task.get("sandbox") and _same_place(place, sandbox),
            f"`sandbox` is {end.task.get('sandbox')!r}, it ran in {str(place)!r}",
        )
        made = text_of(sandbox / "file.txt")
        trial.require(made == "made\n", f"what it made is not in {sandbox}")
        mode = _mode(sandbox)
        trial.require(mode == 0o700, f"the mode of {sandbox} is {mode:o}, not 700")

    @check("`capture='files'` leaves the output in files", EXECUTABLES, SANDBOXES, SHARED)
    async def test_output_can_be_left_in_files(self, trial: Trial) -> None:
        driver = await trial.driver()
        end = await driver.run_one(driver.command("echo out; echo err >&2", capture="files"))
        trial.require(end.state is DONE, f"{end}")
        for key, expected in (("stdout", "out\n"), ("stderr", "err\n")):
            path = Path(end.task.get(key) or "")
            trial.require(
                path.is_absolute() and text_of(path) == expected,
                f"`{key}` is {end.task.get(key)!r}, not the path of a file with {expected!r}",
            )

    @check("an executable with `cwd` runs there, and its sandbox stays", EXECUTABLES, CWD)
    async def test_it_runs_where_it_is_told(self, trial: Trial) -> None:
        place = Path("/")  # which every machine has
        if trial.capabilities.shared_file_system:
            place = trial.work_dir / "the user's own"
            place.mkdir()
            (place / "here").write_text("")
        driver = await trial.driver()
        for command, rest in (("pwd", ""), (["sh", "-c", "pwd; cat; echo err >&2"], "in\n")):
            task = driver.command(command, cwd=str(place), stdin="in\n")
            sandbox = task.get("sandbox")
            end = await driver.run_one(task)
            where, _, more = (end.stdout or "").partition("\n")
            trial.require(
                end.state is DONE and _same_place(Path(where), place) and more == rest,
                f"{command!r} with cwd={str(place)!r}: {end}",
            )
            if trial.capabilities.shared_file_system:
                left = sorted(os.listdir(place))
                trial.require(left == ["here"], f"beside the user's file there is {left}")
                there = end.task.get("sandbox")
                trial.require(there == sandbox, f"its sandbox is {there!r}, not {sandbox!r}")
        trial.require(end.stderr == "err\n", f"it wrote 'err' to stderr: {end}")

    @check("a missing `cwd` fails the task, and the error names it", EXECUTABLES, CWD)
    async def test_a_missing_directory_fails(self, trial: Trial) -> None:
        driver = await trial.driver()
        missing = str(trial.work_dir / "no-such-directory")
        for command in ("pwd", ["pwd"]):
            end = await driver.run_one(driver.command(command, cwd=missing))
            trial.require(end.state is FAILED, f"{command!r} with cwd={missing!r}: {end}")
            said = f"{end.error} {end.stderr or ''}"
            trial.require(missing in said, f"nothing names the directory: {end}")

    @check("`capture=False` keeps no output", EXECUTABLES)
    async def test_output_need_not_be_kept(self, trial: Trial) -> None:
        driver = await trial.driver()
        end = await driver.run_one(driver.command("echo out", capture=False))
        trial.require(end.state is DONE and not end.stdout, f"{end}")


def text_of(path: Path) -> str | None:
    """The text in a file, `None` where there is none."""
    return path.read_text() if path.is_file() else None


def _same_place(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()


def _mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def _require_output(trial: Trial, end: Finished, expected: str, what: str) -> None:
    trial.require(
        end.state is DONE and end.stdout == expected,
        lambda: f"{what!r}: expected stdout {expected!r}: {end}",
    )
