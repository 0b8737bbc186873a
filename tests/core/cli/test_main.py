"""The command line: commands and their errors, and its start."""

from __future__ import annotations

import logging
import os
import re
import shlex
import subprocess
import sys
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

import pytest

import rhapsody
import rhapsody_guard
import rhapsody_guard.command
from rhapsody.cli import main
from rhapsody.plugins.manager import install_command
from tests._support.distributions import install, install_backend, python, unique

# Commands.


def test_without_a_command_the_commands_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    text = capsys.readouterr().err
    for command in ("run", "backends", "doctor"):
        assert command in text


def test_the_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out.startswith(f"rhapsody-core {rhapsody.__version__}\n")


def test_the_version_of_each_plugin_is_printed(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_backend(site, "toys", "toy")
    with pytest.raises(SystemExit):
        main(["--version"])
    assert "toys 1.0" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("arguments", [["--help"], ["run", "--help"]])
def test_help_has_colors_if_they_are_wanted(
    arguments: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def shown(**variables: str) -> str:
        for name in ("FORCE_COLOR", "NO_COLOR"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("TERM", "xterm")
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(SystemExit) as caught:
            main(arguments)
        assert caught.value.code == 0
        return capsys.readouterr().out

    plain, colored = shown(), shown(FORCE_COLOR="1")
    assert "\x1b" not in plain
    assert "\x1b[36m--help\x1b[0m" in colored
    assert "\x1b[1musage:\x1b[0m" in colored
    assert re.sub(r"\x1b\[\d+m", "", colored) == plain
    assert "\x1b[36m" not in shown(FORCE_COLOR="1", NO_COLOR="1")


def test_an_unknown_command_gives_the_closest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["backend"]) == 2
    assert capsys.readouterr().err == (
        "rhapsody: unknown command 'backend'; did you mean 'backends'?\n"
    )
    assert main(["zzz"]) == 2
    assert "the commands are run, runs, " in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "what", "distribution"),
    [
        ("report", "command 'report'", "rhapsody-report"),
        ("replay run.json", "command 'replay'", "rhapsody-wfcommons"),
        ("run --dashboard wf.py", "option --dashboard", "rhapsody-report"),
        ("run --dashboard-port=8787 wf.py", "option --dashboard-port", "rhapsody-report"),
        ("export", "format 'ro-crate'", "rhapsody-report"),
        ("export --format wfcommons", "format 'wfcommons'", "rhapsody-wfcommons"),
    ],
)
def test_the_command_that_installs_a_missing_distribution_is_shown(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: str,
    what: str,
    distribution: str,
) -> None:
    monkeypatch.setenv("RHAPSODY_DISABLE_PLUGINS", "all")
    assert main(arguments.split()) == 1
    error = capsys.readouterr().err.rstrip()
    assert error.startswith(f"rhapsody: {what} not found: it is part of {distribution}.")
    assert error.endswith(install_command(distribution))


@pytest.mark.parametrize("arguments", [["backends", "local", "extra"], ["doctor", "--nonsense"]])
def test_wrong_arguments_are_usage_errors(arguments: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2


@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_goes_away_is_no_error_worth_a_traceback(unbuffered: str) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "backends"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
    )
    assert child.stdout is not None
    child.stdout.close()
    _, errors = child.communicate(timeout=60)
    assert errors == b""
    assert child.returncode == 141


PRINTS = """
async def main(flow):
    @flow.function_task(capture=False)
    def show(x):
        print(x, flush=True)

    @flow.function_task
    def use(x):
        return x

    await use(show(1))
"""


def test_a_task_whose_reader_goes_away_ends_the_run_without_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "prints.py").write_text(PRINTS)
    child = subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "run", "-q", "prints.py"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    assert child.stdout is not None
    child.stdout.close()
    _, errors = child.communicate(timeout=60)
    assert b"Traceback" not in errors
    assert child.returncode == 141


@pytest.mark.parametrize("command", ["--help", "--version", "run --help", "run -q exits.py"])
def test_help_and_programs_that_exit_end_quietly_if_nothing_reads_their_output(
    tmp_path: Path, command: str
) -> None:
    (tmp_path / "exits.py").write_text("import rhapsody, sys\nrhapsody.run(print)\nsys.exit()")
    child = subprocess.Popen(
        [sys.executable, "-m", "rhapsody", *command.split()],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    assert child.stdout is not None
    child.stdout.close()
    _, errors = child.communicate(timeout=60)
    assert (child.returncode, errors) == (141, b"")


def test_a_failure_keeps_its_exit_code_if_nothing_reads_the_output(tmp_path: Path) -> None:
    (tmp_path / "fails.py").write_text("import sys\nprint('text')\nsys.exit(7)")
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run(
        [sys.executable, "-m", "rhapsody", "run", "fails.py"],
        stdout=writer,
        stderr=writer,
        cwd=tmp_path,
        env={**os.environ, "PYTHONUNBUFFERED": ""},
    )
    os.close(writer)
    assert done.returncode == 7


# Commands of plugins.

GREET = """
from rhapsody import hookimpl
from rhapsody.errors import JournalError

def configure(parser):
    parser.add_argument("name")

def run(arguments):
    if arguments.name == "no-one":
        raise JournalError("there is no such name")
    print("hello", arguments.name)
    return 3 if arguments.name == "three" else None

@hookimpl
def rhapsody_commands(cli):
    cli.add_command("greet", "says hello", configure, run)
"""


def test_a_plugin_adds_a_command(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    module = unique("greeting")
    install(site, "greeter", plugins={"greeter": module}, modules={module: GREET})
    assert main(["greet", "you"]) == 0
    assert capsys.readouterr().out == "hello you\n"
    assert main(["greet", "three"]) == 3
    assert main(["greet", "no-one"]) == 1
    assert capsys.readouterr().err == "rhapsody: there is no such name\n"
    assert main(["--plugins"]) == 0
    assert "says hello" in capsys.readouterr().out


@pytest.mark.parametrize(
    "words", ["--help", "--version", "", "completion bash", "status", "runs", "config", "clean"]
)
def test_commands_that_need_no_plugin_import_none(
    site: Path, here: Path, capsys: pytest.CaptureFixture[str], words: str
) -> None:
    module = unique("imported")
    source = "raise SystemExit('imported')"
    install(site, "importer", plugins={"importer": module}, modules={module: source})
    with suppress(SystemExit):
        main(words.split())
    assert module not in sys.modules
    captured = capsys.readouterr()
    assert "skipping plugin" not in captured.err
    assert "importer" in captured.out + captured.err or words not in ("--help", "--version")


@pytest.mark.parametrize("name", ["backends", "", "-x", "two words"])
def test_a_plugin_with_an_impossible_command_is_reported_and_the_others_work(
    site: Path,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    name: str,
) -> None:
    good, bad = unique("greeting"), unique("taking")
    install(site, "greeter", plugins={"greeter": good}, modules={good: GREET})
    source = GREET.replace('"greet"', repr(name))
    install(site, "a-taker", plugins={"taker": bad}, modules={bad: source})
    with caplog.at_level(logging.ERROR, "rhapsody.plugins"):
        assert main(["greet", "you"]) == 0
    assert "a-taker" in caplog.text
    assert "rhapsody_commands" in caplog.text


# The clash with rhapsody-py, and the start.


def clash(site: Path, info: str = "rhapsody_py-0.2.1.dist-info") -> None:
    (site / info).mkdir()


@pytest.mark.parametrize(
    "info",
    [
        "rhapsody_py-0.2.1.dist-info",
        "rhapsody.py-0.2.1.dist-info",
        "rhapsody_py-0.2.1-py3.11.egg-info",
        "Rhapsody_Py.egg-info",
    ],
)
def test_the_clash_is_seen_and_the_message_ends_with_what_mends_it(site: Path, info: str) -> None:
    clash(site, info)
    message = rhapsody_guard.conflict()
    assert message is not None
    assert str(site) in message
    assert message.splitlines()[-2:] == [
        "  pip uninstall -y rhapsody-py",
        "  pip install --force-reinstall --no-deps rhapsody-core",
    ]
    with pytest.raises(ImportError, match="rhapsody-py"):
        rhapsody_guard.check()


@pytest.mark.parametrize(
    "info", ["rhapsody_pyx-1.dist-info", "rhapsody_python-1.dist-info", "rhapsody-1.dist-info"]
)
def test_other_distributions_are_no_clash(site: Path, info: str) -> None:
    clash(site, info)
    assert rhapsody_guard.conflict() is None
    rhapsody_guard.check()


def test_the_command_refuses_to_start_over_overwritten_files(site: Path) -> None:
    clash(site)
    code = """
    from rhapsody_guard.command import main
    code = main()
    assert "rhapsody" not in sys.modules, "its files may be another distribution's"
    sys.exit(code)
    """
    done = python(code, site)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.endswith("--no-deps rhapsody-core\n")


def test_the_guard_is_quick_and_uses_the_standard_library_only() -> None:
    code = """
    before = set(sys.modules)
    import rhapsody_guard
    rhapsody_guard.check()
    print(sorted({name.split(".")[0] for name in set(sys.modules) - before}))
    """
    modules = set(eval(python(code).stdout))
    assert modules - sys.stdlib_module_names == {"rhapsody_guard"}
    assert "importlib_metadata" not in modules


def test_the_version_is_printed_without_importing_a_command() -> None:
    code = """
    from rhapsody.cli import COMMANDS, main
    try:
        main(["--version"])
    except SystemExit:
        print("imported:", [name for name in COMMANDS if f"rhapsody.cli.{name}" in sys.modules])
    """
    assert "imported: []\n" in python(code).stdout


def test_the_module_and_the_console_script_are_the_same_command() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rhapsody", "--version"],
        capture_output=True,
        text=True,
        timeout=60,
        check=True,
    )
    assert done.stdout.startswith(f"rhapsody-core {rhapsody.__version__}\n")
    (script,) = [one for one in entry_points(group="console_scripts") if one.name == "rhapsody"]
    assert script.load() is rhapsody_guard.command.main


@pytest.mark.parametrize(("command", "closed", "code"), [("backends", 1, 0), ("run none.py", 2, 2)])
def test_standard_streams_may_be_closed(command: str, closed: int, code: int) -> None:
    shell = f"{shlex.quote(sys.executable)} -m rhapsody {command} {closed}>&-"
    done = subprocess.run(["/bin/sh", "-c", shell], capture_output=True)
    assert (done.returncode, done.stdout, done.stderr) == (code, b"", b"")
