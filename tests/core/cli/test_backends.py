"""`rhapsody backends`: the table of backends, and one backend in detail."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rhapsody.cli import main
from tests._support.distributions import declaration, install, install_backend, unique

# The table of backends.


def test_the_table_has_a_line_for_each_backend(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_backend(site, "toys", "toy", ", requires=['no-such-library>=2']")
    assert main(["backends"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["NAME", "USABLE", "FROM", "SUMMARY"]
    rows = {line.split()[0]: line for line in lines[1 : lines.index("")]}
    assert rows["noop"].split()[1:3] == ["yes", "rhapsody-core"]
    assert rows["toy"].split()[1:4] == ["no", "toys", "1.0"]
    columns = {line.index("rhapsody-core") for line in lines if "rhapsody-core" in line}
    assert columns == {lines[0].index("FROM")}
    text = "\n".join(lines)
    assert "toy cannot be used: no-such-library>=2 is not installed" in text
    assert "to fix it: pip install 'no-such-library>=2'" in text


def test_the_table_as_json(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_backend(site, "toys", "toy")
    install_backend(site, "impostor", "noop")
    assert main(["backends", "--json"]) == 0
    listed = {one["name"]: one for one in json.loads(capsys.readouterr().out)}
    assert listed["toy"]["usable"] is True
    assert listed["toy"]["distribution"] == "toys"
    assert listed["noop"]["distribution"] == "rhapsody-core"
    assert "impostor" in listed["noop"]["conflicts"][0]
    assert "capabilities" in listed["noop"]


def test_one_backend_is_shown_with_what_it_enforces_and_what_it_only_counts(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["backends", "Local"]) == 0
    lines = [line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if line]
    shown = {words[0]: words[-1] for words in lines}
    assert "noop" not in shown
    assert shown["cancel_executables"] == "running"
    assert shown["files"] == "yes"
    assert shown["binds"] == "cores, gpus (enforced; only counted: memory)"
    assert main(["backends", "locl"]) == 2
    error = capsys.readouterr().err
    assert "Backend 'locl' not found. Available: " in error
    assert "Did you mean 'local'?" in error


def test_the_options_of_a_backend_are_shown(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = (
        ", options=[BackendOption('speed', int, 3, 'Steps per second, ' + 9 * 'as a number, '), "
        "BackendOption('first'), BackendOption('second'), BackendOption('no', instead='x')]"
    )
    install_backend(site, "toys", "toy", options)
    assert main(["backends", "toy"]) == 0
    shown = capsys.readouterr().out.partition("\nOPTIONS, for -o and for profiles\n")[2]
    lines = shown.splitlines()
    assert lines[0] == "  speed (int, default 3)"
    assert lines[1].startswith("      Steps per second, as a number, ")
    assert max(map(len, lines)) <= 79
    assert lines[-1] == "  and first, second"
    assert main(["backends", "toy", "--json"]) == 0
    listed = json.loads(capsys.readouterr().out)[0]["options"]
    assert [each["name"] for each in listed] == ["speed", "first", "second"]
    assert listed[0]["type"] == "int"
    assert main(["backends", "noop"]) == 0
    assert "OPTIONS" not in capsys.readouterr().out


def test_a_backend_whose_class_cannot_be_imported_is_not_usable(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    light, heavy = unique("light"), unique("heavy")
    spec = f"name='toy', import_path='{heavy}:Backend', install_hint='pip install there'"
    modules = {
        light: declaration(spec),
        heavy: "print('importing')\nfrom there import missing",
        "there": "",
    }
    install(site, "toys", backends={"toy": light}, modules=modules)
    assert main(["backends"]) == 0
    assert "rhapsody doctor" in capsys.readouterr().out
    assert main(["backends", "toy"]) == 0
    printed = capsys.readouterr().out
    assert printed.splitlines()[1].split()[:2] == ["toy", "no"]
    assert "cannot import name 'missing' from 'there'" in printed
    assert "pip install --force-reinstall toys" in printed
    assert "pip install there" not in printed
    assert main(["backends", "toy", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)[0]["usable"] is False
