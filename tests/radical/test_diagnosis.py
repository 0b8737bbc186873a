"""What `rhapsody doctor` says of RADICAL-Pilot's installation."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from rhapsody_radical import diagnosis, environment


def found(word: str) -> tuple[str, str, str]:
    """The one finding whose text has a word in it."""
    (finding,) = [finding for finding in diagnosis.findings() if word in finding[1]]
    return finding


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A home directory that is nobody's."""
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("RADICAL_CONFIG_USER_DIR", raising=False)
    return tmp_path


def test_the_doctor_tells_of_version_programs_and_resources() -> None:
    command = [sys.executable, "-W", "ignore", "-m", "rhapsody", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100)
    findings = json.loads(done.stdout)["findings"]
    texts = [each["text"] for each in findings if each["subject"] == "backend radical_pilot"]
    assert any("its programs are in" in text for text in texts), texts
    assert any("local.localhost" in text and "ncsa.delta" in text for text in texts), texts


def test_a_quiet_login_shell_is_fine(home: Path) -> None:
    assert found("login shell")[0] == "ok"


def test_a_login_shell_that_prints_is_noted(home: Path) -> None:
    (home / ".bash_profile").write_text("echo welcome\n")
    level, text, remedy = found("login shell")
    assert level == "note"
    assert "welcome" in text
    assert ".bash_profile" in remedy


def test_a_login_shell_that_fails_is_broken(home: Path) -> None:
    (home / ".bash_profile").write_text("exit 3\n")
    level, text, _ = found("login shell")
    assert level == "broken"
    assert "exit code 3" in text


def test_a_resource_of_ones_own_that_is_no_json_is_broken(home: Path) -> None:
    configs = home / ".radical/pilot/configs"
    configs.mkdir(parents=True)
    (configs / "resource_mine.json").write_text('{\n# mine\n"cluster": {]}')
    level, text, _ = found("resource_mine.json")
    assert level == "broken"
    assert "no JSON" in text


def test_programs_and_tools_that_are_missing_are_told_of(
    home: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path_factory.mktemp("empty")))
    monkeypatch.setattr(environment, "COMPONENT", "radical-pilot-absent")
    level, text, remedy = found("programs")
    assert (level, remedy) == ("broken", "pip install --force-reinstall radical.pilot")
    assert "radical-pilot-absent" in text
    assert found("bash")[0] == "broken"
    assert found("there is no ssh")[0] == "note"
    assert found("there is no mpirun")[2].endswith("openmpi-bin")


def test_text_that_is_not_utf8_is_noted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("locale.getpreferredencoding", lambda _: "ANSI_X3.4-1968")
    assert found("ANSI")[2] == "export LANG=C.UTF-8"
