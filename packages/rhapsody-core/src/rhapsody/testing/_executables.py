"""Checks of executables: how commands run, what they leave, and their directories."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from rhapsody.testing._suite import Suite, check
from rhapsody.testing._tasks import DONE, FAILED, text_of

if TYPE_CHECKING:
    from rhapsody.testing._driver import Driver


class Executables(Suite):
    """Shell commands and programs with arguments, and the directory in which each of them runs."""

    @check("executables", "executables")
    async def test_a_string_is_run_by_a_shell(self, driver: Driver) -> None:
        cases = {
            "echo 'one  two' \"three   four\"": "one  two three   four\n",
            "printf 'b\\na\\n' | sort | tr '\\n' ,": "a,b,",
            'x=\'a b\'; echo "$x" && false || echo "it\'s"': "a b\nit's\n",
            "echo $((6 * 7)) > out.txt; cat out.txt": "42\n",
            "printf '%s' 'no newline'": "no newline",
            "echo one\necho two": "one\ntwo\n",
            "echo 'grüße ☃ 日本語' > 'ü.txt'; cat ü.txt": "grüße ☃ 日本語\n",
        }
        ends = await driver.run(*map(driver.command, cases))
        assert {c: end.stdout for c, end in zip(cases, ends, strict=True)} == cases
        assert all(end.state is DONE and end.exit_code == 0 for end in ends)

    @check("executables", "executables")
    async def test_a_list_is_run_without_a_shell(self, driver: Driver) -> None:
        words = ["a b", "$HOME", "*", "it's", '"', "", "a;echo no", "`id`", "\\n", "--", "ü☃"]
        end, bare = await driver.run(
            driver.command(["printf", "<%s>", *words]), driver.command(["echo"])
        )
        assert end.stdout == "".join(f"<{word}>" for word in words)
        assert bare.stdout == "\n"

    @check("executables", "executables")
    @pytest.mark.parametrize("command", ["a string", "a list", "a signal"])
    async def test_an_exit_code_fails_the_task(self, driver: Driver, command: str) -> None:
        given: Any = {
            "a string": "echo out; echo err >&2; echo more; exit 3",
            "a list": ["sh", "-c", "echo out; echo err >&2; echo more; exit 3"],
            "a signal": "kill -9 $$",
        }[command]
        end = await driver.run_one(driver.command(given))
        assert end.state is FAILED, str(end)
        if command == "a signal":
            assert end.exit_code != 0
        else:
            assert (end.exit_code, end.stdout, end.stderr) == (3, "out\nmore\n", "err\n")

    @check("executables", "executables")
    async def test_the_environment_is_added(self, driver: Driver) -> None:
        environment = {"KIT_PLAIN": "value", "KIT_ODD": "a 'b' \"c\" $d ü=\\", "KIT_EMPTY": ""}
        command = 'printf "%s|" "$KIT_PLAIN" "$KIT_ODD" "${KIT_EMPTY-unset}"; test -n "$PATH"'
        end = await driver.run_one(driver.command(command, environment=environment))
        assert end.state is DONE and end.stdout == "".join(f"{v}|" for v in environment.values())
        assert "KIT_PLAIN" not in os.environ, "it was left in the program's environment"

    @check("executables", "executables")
    async def test_standard_input_is_the_text_given(self, driver: Driver) -> None:
        text = "first\nsecond ☃\n" + "x" * 200_000
        full, empty, unread = await driver.run(
            driver.command(["cat"], stdin=text),
            driver.command("cat; echo end"),
            driver.command(["true"], stdin="x" * 1_000_000),
        )
        assert full.stdout == text
        assert empty.stdout == "end\n", "without text, standard input must be empty"
        assert unread.state is DONE, f"a program that does not read its input: {unread}"

    @check("executables", "executables", times=2)
    async def test_output_is_whole(self, driver: Driver) -> None:
        size = self.output_bytes
        big = (
            f"head -c {size} /dev/zero | tr '\\0' x & "
            f"head -c {size // 10} /dev/zero | tr '\\0' e >&2 & wait; printf end"
        )
        end, odd = await driver.run(driver.command(big), driver.command("printf 'a\\377\\376b'"))
        assert end.state is DONE, str(end)
        out, err = end.stdout or "", end.stderr or ""
        assert (len(out), out[-4:], len(err)) == (size + 3, "xend", size // 10)
        assert odd.state is DONE, f"output that is not UTF-8: {odd}"
        assert isinstance(odd.stdout, str) and odd.stdout[:1] == "a"

    @check("executables", "executables")
    async def test_a_missing_program_fails(self, driver: Driver) -> None:
        name = "no-such-program-4711"
        *ends, good = await driver.run(
            driver.command([name, "x"]), driver.command(f"{name} x"), driver.command("echo fine")
        )
        for end in ends:
            assert end.state is FAILED, str(end)
            assert name in f"{end.error} {end.stderr or ''}", f"nothing names the program: {end}"
        assert good.stdout == "fine\n"

    @check("executables", "executables", times=2)
    async def test_many_at_once_keep_their_output(self, driver: Driver) -> None:
        ends = await driver.run(*(driver.command(f"echo {number}") for number in range(50)))
        assert [end.stdout for end in ends] == [f"{number}\n" for number in range(50)]

    @check("executables", "executables")
    async def test_output_need_not_be_kept(self, driver: Driver) -> None:
        end = await driver.run_one(driver.command("echo out", capture=False))
        assert end.state is DONE and not end.stdout, str(end)

    @check("sandboxes", "executables", "sandboxes")
    async def test_each_executable_has_its_own_directory(self, driver: Driver) -> None:
        tasks = [driver.command("") for _ in range(5)]
        for task in tasks:
            # The backend's own files there begin with the task's uid.
            task["executable"] = f"ls -A | grep -cv '^{task['uid']}'; pwd; echo mine > file.txt"
        places = set()
        for end in await driver.run(*tasks):
            count, _, place = (end.stdout or "").strip().partition("\n")
            assert count.strip() in ("0", "1", "2"), f"not empty at the start: {end}"
            places.add(place)
        assert len(places) == 5 and "" not in places, f"they ran in {places}"

    @check("sandboxes", "executables", "sandboxes", "shared_file_system")
    async def test_a_sandbox_is_private(self, driver: Driver) -> None:
        before = os.umask(0o022)
        try:
            end = await driver.run_one(driver.command("pwd; echo made > file.txt"))
        finally:
            os.umask(before)
        assert end.task.get("sandbox"), f"`sandbox` is {end.task.get('sandbox')!r}"
        sandbox = Path(end.task["sandbox"])
        assert Path((end.stdout or "").strip()).resolve() == sandbox.resolve()
        assert text_of(sandbox / "file.txt") == "made\n"
        mode = stat.S_IMODE(sandbox.stat().st_mode)
        assert mode == 0o700, f"the mode of {sandbox} is {mode:o}, not 700"

    @check("sandboxes", "executables", "sandboxes", "shared_file_system")
    async def test_output_can_be_left_in_files(self, driver: Driver) -> None:
        end = await driver.run_one(driver.command("echo out; echo err >&2", capture="files"))
        assert end.state is DONE, str(end)
        for path, text in ((end.stdout, "out\n"), (end.stderr, "err\n")):
            assert path and os.path.isabs(path), f"{path!r} is not an absolute path"
            assert text_of(Path(path)) == text

    @check("sandboxes", "executables", "cwd")
    async def test_it_runs_in_the_given_directory(self, driver: Driver) -> None:
        directory = Path("/")  # which every machine has
        if self.capabilities.shared_file_system:
            directory = self.place / "the user's own"
            directory.mkdir()
            (directory / "here").touch()
        for command, rest in (("pwd", ""), (["sh", "-c", "pwd; cat; echo err >&2"], "in\n")):
            task = driver.command(command, cwd=str(directory), stdin="in\n")
            sandbox = task.get("sandbox")
            end = await driver.run_one(task)
            where, _, more = (end.stdout or "").partition("\n")
            assert end.state is DONE and more == rest, str(end)
            assert Path(where).resolve() == directory.resolve()
            if self.capabilities.shared_file_system:
                assert os.listdir(directory) == ["here"], "files next to the user's"
                assert end.task.get("sandbox") == sandbox
        assert end.stderr == "err\n"

    @check("sandboxes", "executables", "cwd")
    async def test_a_missing_directory_fails(self, driver: Driver) -> None:
        missing = str(self.place / "no-such-directory")
        for command in ("pwd", ["pwd"]):
            end = await driver.run_one(driver.command(command, cwd=missing))
            assert end.state is FAILED, f"{command!r} with cwd={missing!r}: {end}"
            assert missing in f"{end.error} {end.stderr or ''}", f"the error must name it: {end}"
