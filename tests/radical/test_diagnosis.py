"""Findings of `rhapsody doctor` about the installation of RADICAL-Pilot."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody_radical import connection, diagnosis


def found(word: str) -> tuple[str, str, str]:
    """Return the only finding whose text contains a word."""
    (finding,) = [finding for finding in diagnosis.findings() if word in finding[1]]
    return finding


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home directory."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RADICAL_CONFIG_USER_DIR", raising=False)
    return tmp_path


def test_the_doctor_reports_version_programs_and_resources() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "rhapsody", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    findings = json.loads(done.stdout)["findings"]
    texts = [each["text"] for each in findings if each["subject"] == "backend radical_pilot"]
    assert any("programs in" in text for text in texts), texts
    assert any("local.localhost" in text and "ncsa.delta" in text for text in texts), texts


def test_the_doctor_leaves_no_files(home: Path) -> None:
    lines = [
        "import sys",
        "from rhapsody_radical.diagnosis import findings",
        "texts = [text for _, text, _ in findings()]",
        "assert any('local.localhost' in text for text in texts), texts",
        "assert not [name for name in sys.modules if name.split('.')[0] == 'radical']",
    ]
    temporary = home / "tmp"
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", "\n".join(lines)],
        capture_output=True,
        text=True,
        timeout=100,
        env={**os.environ, "TMPDIR": str(temporary)},
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert list(home.rglob("*")) == [temporary]


@pytest.mark.parametrize(
    ("question", "words"),
    [
        ("import radical.pilot_absent", "cannot be imported: ModuleNotFoundError: No module"),
        ("raise SystemExit(3)", "cannot be imported: exit code 3"),
        ("input()", "cannot be imported: EOFError"),
        ("import time; time.sleep(600)", "cannot be imported: it did not answer within 1 s"),
    ],
)
def test_a_library_that_cannot_be_imported_is_reported_as_broken(
    monkeypatch: pytest.MonkeyPatch, question: str, words: str
) -> None:
    monkeypatch.setattr(diagnosis, "PROBE_SCRIPT", question)
    if "sleep" in question:
        monkeypatch.setattr(diagnosis, "IMPORT_TIMEOUT", 1.0)
    level, text, remedy = found("cannot be imported")
    assert (level, remedy) == ("broken", diagnosis.REINSTALL)
    assert words in text


def test_resources_that_cannot_be_listed_are_reported_as_broken(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(diagnosis, "PROBE_SCRIPT", "print('version', 1); raise ValueError('odd')")
    assert found("programs in")[0] == "ok"
    level, text, _ = found("cannot list its resources")
    assert (level, text.rpartition(": ")[2]) == ("broken", "odd")


def test_a_login_shell_without_output_is_ok(home: Path) -> None:
    assert found("login shell")[0] == "ok"


def test_output_of_the_login_shell_is_reported_as_a_note(home: Path) -> None:
    (home / ".bash_profile").write_text("echo welcome\n")
    level, text, remedy = found("login shell")
    assert level == "note"
    assert "welcome" in text
    assert ".bash_profile" in remedy


def test_a_failing_login_shell_is_reported_as_broken(home: Path) -> None:
    (home / ".bash_profile").write_text("exit 3\n")
    level, text, _ = found("login shell")
    assert level == "broken"
    assert "exit code 3" in text


def test_an_invalid_resource_file_is_reported_as_broken(home: Path) -> None:
    configs = home / ".radical/pilot/configs"
    configs.mkdir(parents=True)
    (configs / "resource_mine.json").write_text('{\n# mine\n"cluster": {]}')
    level, text, _ = found("resource_mine.json")
    assert level == "broken"
    assert "not valid JSON" in text


def test_missing_programs_and_tools_are_reported(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    monkeypatch.setattr(connection, "COMPONENT", "radical-pilot-absent")
    level, text, remedy = found("programs")
    assert (level, remedy) == ("broken", "pip install --force-reinstall radical.pilot")
    assert "radical-pilot-absent" in text
    assert found("bash")[0] == "broken"
    assert found("no mpirun")[2].endswith("openmpi-bin")


def test_an_encoding_other_than_utf8_is_reported_as_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "ANSI_X3.4-1968")
    assert found("ANSI")[2] == "export LANG=C.UTF-8"


@pytest.mark.parametrize(
    ("script", "level", "text"),
    [
        (
            "echo 'debug up 3 idle'; echo 'debug up 1 down*'; echo 'gpu inact 2 mixed'",
            "ok",
            "debug (up): 3 idle, 1 down*; gpu (inact): 2 mixed",
        ),
        ("echo no controller >&2; exit 1", "note", "no controller"),
        ("exec sleep 60", "note", "did not answer within 1 s"),
    ],
)
def test_the_partitions_of_slurm_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, level: str, text: str
) -> None:
    (tmp_path / "sinfo").write_text(f"#!/bin/sh\n{script}\n")
    (tmp_path / "sinfo").chmod(0o700)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(diagnosis, "SLURM_TIMEOUT", 1.0)
    ((found_level, found_text, _),) = diagnosis._partitions()
    assert found_level == level
    assert text in found_text


def test_the_doctor_reports_what_it_does_not_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PROBE_SCRIPT", "")
    assert "--run" in found("not checked here")[1]
