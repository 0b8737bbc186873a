"""Scripts for shell completion, in the shells that are installed."""

from __future__ import annotations

import os
import pty
import select
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from rhapsody.cli import main
from tests._support.distributions import install, install_backend, unique
from tests._support.programs import PATIENCE

pytest.importorskip("shtab")

COMPLETIONS = {
    "rhapsody doc": "doctor",
    "rhapsody run --dry": "--dry-run",
    "rhapsody run -b no": "noop",
    "rhapsody backends no": "noop",
    "rhapsody journal pru": "prune",
    "rhapsody run wor": "workflow.py",
    "rhapsody completion fi": "fish",
}

BASH = """
source "$1"; read -ra COMP_WORDS <<< "$2"; COMP_CWORD=$(( ${#COMP_WORDS[@]} - 1 ))
complete -p rhapsody | grep -q _shtab_rhapsody && _shtab_rhapsody && echo "${COMPREPLY[@]}"
"""


def has(shell: str) -> pytest.MarkDecorator:
    return pytest.mark.skipif(shutil.which(shell) is None, reason=f"{shell} is not installed")


@pytest.fixture
def there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "workflow.py").touch()
    monkeypatch.chdir(tmp_path)
    return tmp_path


def script(shell: str, path: Path, capsys: pytest.CaptureFixture[str]) -> Path:
    """Write the script of a shell, and return its path."""
    assert main(["completion", shell]) == 0
    captured = capsys.readouterr()
    assert captured.err == ""
    path.write_text(captured.out)
    return path


def words(*command: str) -> list[str]:
    return subprocess.check_output(command, text=True, timeout=PATIENCE).split()


def bash(path: Path, typed: str) -> list[str]:
    return words("bash", "-c", BASH, "bash", str(path), typed)


def test_bash_completes_commands_options_and_values(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("bash", there / "script", capsys)
    assert {typed: bash(path, typed) for typed in COMPLETIONS} == {
        typed: [word] for typed, word in COMPLETIONS.items()
    }


@has("fish")
def test_fish_completes_commands_options_and_values(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = script("fish", there / "script", capsys)
    for typed, word in COMPLETIONS.items():
        assert words("fish", "-c", f"source {path}; complete -C '{typed}'")[0] == word


@has("zsh")
def test_zsh_completes_commands_options_and_values(
    there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    script("zsh", there / "_rhapsody", capsys)
    pid, terminal = pty.fork()
    if pid == 0:
        os.environ["TERM"] = "dumb"
        os.execvp("zsh", ["zsh", "-f", "-i"])
    try:
        start = f"fpath=('{there}' $fpath); autoload -Uz compinit; compinit -u -D; print DO''NE\n"
        os.write(terminal, start.encode())
        wait_for(terminal, "DONE")
        for typed, word in COMPLETIONS.items():
            os.write(terminal, f"\x15{typed}\t".encode())
            wait_for(terminal, f"{typed.rpartition(' ')[0]} {word}")
    finally:
        os.kill(pid, 9)
        os.waitpid(pid, 0)
        os.close(terminal)


def wait_for(terminal: int, text: str) -> None:
    """Read from a terminal until a text has appeared."""
    shown, end = "", time.monotonic() + PATIENCE
    while text not in shown:
        assert select.select([terminal], [], [], end - time.monotonic())[0], shown
        shown += os.read(terminal, 65536).decode()


PLUGIN = """
from rhapsody import hookimpl

def configure(parser):
    parser.add_argument("--verbosity", choices=("low", "high"))
    parser.add_argument("--input", metavar="FILE").complete = "directory"

def broken(parser):
    parser.add_argument("--first")
    raise RuntimeError("no options today")

@hookimpl
def rhapsody_commands(cli):
    cli.add_command("greet", "say hello", configure, print)
    cli.add_command("fails", "fail", broken, print)
"""


def test_commands_and_backends_of_plugins_are_completed(
    site: Path, there: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    module = unique("greeting")
    install(site, "greeter", plugins={"greeter": module}, modules={module: PLUGIN})
    install_backend(site, "toys", "toy")
    (there / "directory").mkdir()
    assert main(["completion", "bash", "--plugins"]) == 0
    captured = capsys.readouterr()
    path = there / "script"
    path.write_text(captured.out)
    assert bash(path, "rhapsody gre") == ["greet"]
    assert bash(path, "rhapsody greet --verb") == ["--verbosity"]
    assert bash(path, "rhapsody greet --verbosity hi") == ["high"]
    assert bash(path, "rhapsody greet --input d") == ["directory"]
    assert bash(path, "rhapsody run -b to") == ["toy"]
    assert bash(path, "rhapsody fails --fir") == ["--first"]
    assert captured.err == (
        "rhapsody: cannot complete the arguments of 'fails': RuntimeError: no options today\n"
    )


def test_a_missing_shtab_is_reported_with_its_installation(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert main(["completion", "bash"]) == 1
    assert "pip install 'rhapsody-core[completion]'" in capsys.readouterr().err


@pytest.mark.parametrize("given", [[], ["powershell"]])
def test_an_unknown_shell_is_a_usage_error(
    given: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["completion", *given])
    assert caught.value.code == 2
    assert "SHELL" in capsys.readouterr().err
