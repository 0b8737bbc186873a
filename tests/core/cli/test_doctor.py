"""`rhapsody doctor`: each plugin in a process of its own, reasons, remedies and exit codes."""

from __future__ import annotations

import json
import os
import re
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest

from rhapsody.backends import Capabilities, get_backend
from rhapsody.cli import doctor as doctor_command
from rhapsody.cli import main
from rhapsody.plugins.manager import hidden_entries
from tests._support.distributions import BACKEND, declaration, install, install_backend, unique


@pytest.fixture(autouse=True)
def _nothing_is_slow(monkeypatch: pytest.MonkeyPatch) -> None:
    """However busy the machine is, imports are quick enough."""
    monkeypatch.setattr(doctor_command, "SLOW_IMPORT", 100.0)


def doctor(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, dict[str, Any]]:
    capsys.readouterr()
    code = main(["doctor", "--json", *arguments])
    return code, json.loads(capsys.readouterr().out)


def findings(report: dict[str, Any], subject: str) -> list[dict[str, str]]:
    return [one for one in report["findings"] if one["subject"].startswith(subject)]


def toy(
    site: Path,
    light_source: str = "",
    heavy_source: str = "",
    extra: str = "",
    name: str = "toy",
) -> str:
    light, heavy = unique("light"), unique("heavy")
    source = light_source + declaration(f"name={name!r}, import_path='{heavy}:Backend'{extra}")
    modules = {light: source, heavy: heavy_source or BACKEND.format(name=name)}
    install(site, f"{name}s", backends={name: light}, modules=modules)
    return light


def test_the_versions_of_a_plugins_requirements_are_listed(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install_backend(site, "toys", "toy")
    metadata = site / "toys-1.0.dist-info" / "METADATA"
    needed = "Requires-Dist: pluggy>=1\nRequires-Dist: rhapsody-core\n"
    metadata.write_text(metadata.read_text() + needed)
    _, report = doctor(capsys)
    texts = [one["text"] for one in findings(report, "toys")]
    assert texts[0] == f"uses pluggy {version('pluggy')}"


def test_a_sound_installation_is_reported_as_such(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    light = toy(site)
    assert main(["doctor"]) == 0
    text = capsys.readouterr().out
    assert sys.executable in text
    assert "ok      rhapsody-core: " in text
    assert "ok      pluggy: " in text
    assert f"ok      toys 1.0: {light} loads in" in text
    assert "ok      backend toy: class imported in" in text
    assert text.endswith("everything works\n")


def test_the_report_as_json(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    code, report = doctor(capsys)
    assert code == 0
    assert report["ok"] is True
    assert report["executable"] == sys.executable
    assert {"level", "subject", "text", "remedy"} == set(report["findings"][0])


def test_no_plugin_is_loaded_in_the_doctor_s_own_process(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    light = toy(site)
    doctor(capsys)
    assert light not in sys.modules


def test_plugins_that_break_when_loaded_are_broken_each_with_its_remedy(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    breaks = {
        "import": ("import no_such_library\n", "no_such_library"),
        "exit": ("import sys; sys.exit(4)\n", "SystemExit: 4"),
        "end": ("import os; os._exit(4)\n", "the process exited with code 4"),
        "abort": ("import os; os.abort()\n", "the process was killed by SIGABRT"),
        "noise": ("print('noise')\n1 / 0\n", "ZeroDivisionError"),
    }
    for name, (source, _) in breaks.items():
        toy(site, source, name=name)
    install_backend(site, "fine-toys", "fine")
    code, report = doctor(capsys)
    assert code == 1
    assert report["ok"] is False
    for name, (_, reason) in breaks.items():
        (broken,) = findings(report, f"{name}s 1.0")
        assert broken["level"] == "broken"
        assert reason in broken["text"]
        assert broken["remedy"] == f"pip install --upgrade {name}s"
    assert [one["level"] for one in findings(report, "fine-toys")] == ["ok"]


def test_a_plugin_that_hangs_is_given_up(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    toy(site, "import threading; threading.Event().wait()\n")
    code, report = doctor(capsys, "--timeout", "1")
    assert code == 1
    (broken,) = findings(report, "toys")
    assert "timed out after 1 s" in broken["text"]


def test_a_class_that_hangs_when_imported_is_given_up(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy(site, heavy_source="import threading; threading.Event().wait()\n")
    code, report = doctor(capsys, "--timeout", "10")
    assert code == 1
    assert [one["level"] for one in findings(report, "toys")] == ["ok"]
    (broken,) = findings(report, "backend toy")
    assert "importing the class timed out after 10 s" in broken["text"]


def test_a_slow_plugin_is_named_and_is_not_broken(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(doctor_command, "SLOW_IMPORT", 0.0)
    toy(site)
    code, report = doctor(capsys)
    assert code == 0
    (slow,) = findings(report, "toys")
    assert slow["level"] == "slow"
    assert "should not import libraries" in slow["text"]


def test_a_backend_whose_library_is_missing_says_what_to_install(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy(site, extra=", requires=['no-such-library>=3']")
    code, report = doctor(capsys)
    assert code == 1
    (broken,) = findings(report, "backend toy")
    assert broken["text"] == "no-such-library>=3 is not installed"
    assert broken["remedy"] == "pip install 'no-such-library>=3'"


def test_backends_whose_class_cannot_be_imported_say_why(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    reasons = {
        "missing": ("import no_such_library", "no_such_library"),
        "foreign": ("class Backend: ...", "is not a backend class"),
        "exits": ("exit()", "SystemExit"),
    }
    for name, (source, _) in reasons.items():
        toy(site, heavy_source=source, name=name)
    code, report = doctor(capsys)
    assert code == 1
    for name, (_, reason) in reasons.items():
        (broken,) = findings(report, f"backend {name}")
        assert broken["level"] == "broken"
        assert reason in broken["text"]


def test_a_backend_may_diagnose_itself(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = """
    @classmethod
    def diagnose(cls):
        yield "ok", "its cluster answers", ""
        yield "broken", "its key is stale", "toy-login"
        yield "dreadful", "its words are its own", ""
"""
    toy(site, heavy_source=BACKEND.format(name="toy") + own)
    code, report = doctor(capsys)
    assert code == 1
    told = [(one["level"], one["text"], one["remedy"]) for one in findings(report, "backend toy")]
    assert told[1:] == [
        ("ok", "its cluster answers", ""),
        ("broken", "its key is stale", "toy-login"),
        ("note", "its words are its own", ""),
    ]


def test_a_diagnosis_that_raises_is_broken(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    own = "    @classmethod\n    def diagnose(cls): raise OSError('no network')\n"
    toy(site, heavy_source=BACKEND.format(name="toy") + own)
    _, report = doctor(capsys)
    texts = [one["text"] for one in findings(report, "backend toy") if one["level"] == "broken"]
    assert texts == ["diagnose() raised OSError: no network"]


def test_a_diagnosis_that_ends_its_process_is_broken(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    own = "    @classmethod\n    def diagnose(cls): os._exit(4)\n"
    toy(site, heavy_source="import os\n" + BACKEND.format(name="toy") + own)
    _, report = doctor(capsys)
    (broken,) = [one for one in findings(report, "backend toy") if one["level"] == "broken"]
    assert broken["text"].startswith("diagnose() failed: the process exited with code 4")


def test_a_name_claimed_twice_is_broken(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_backend(site, "first-toys", "toy")
    install_backend(site, "other-toys", "toy")
    code, report = doctor(capsys)
    assert code == 1
    (broken,) = findings(report, "backend toy")
    assert "first-toys and other-toys" in broken["text"]
    assert broken["remedy"] == "pip uninstall other-toys"


def test_claims_that_lost_are_noted(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install_backend(site, "impostor", "noop")
    code, report = doctor(capsys)
    assert code == 0
    notes = [one for one in findings(report, "backend noop") if one["level"] == "note"]
    assert len(notes) == 1
    assert "impostor" in notes[0]["text"]


def test_names_of_disabled_plugins_are_reported(
    site: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    toy(site)
    monkeypatch.setenv("RHAPSODY_DISABLE_PLUGINS", "toys,nobody")
    code, report = doctor(capsys)
    assert code == 0
    assert "disabled by RHAPSODY_DISABLE_PLUGINS" in findings(report, "toys")[0]["text"]
    assert "'nobody'" in findings(report, "RHAPSODY_DISABLE_PLUGINS")[0]["text"]


def test_what_a_plugins_metadata_require_and_is_not_there_is_broken(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    toy(site)
    with open(site / "toys-1.0.dist-info" / "METADATA", "a") as metadata:
        for text in (
            "no-such-library>=3",
            "pytest>=1000; python_version >= '3'",
            "pluggy",
            "other-library; extra == 'all'",
        ):
            metadata.write(f"Requires-Dist: {text}\n")
    code, report = doctor(capsys)
    assert code == 1
    broken = [one for one in findings(report, "toys") if one["level"] == "broken"]
    assert [one["remedy"] for one in broken] == [
        "pip install 'no-such-library>=3'",
        "pip install 'pytest>=1000'",
    ]
    assert broken[0]["text"] == "no-such-library>=3 is not installed"


def test_unreadable_metadata_are_broken(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    info = install(site, "garbled", backends={"x": "y"})
    (info / "entry_points.txt").write_bytes(b"[rhapsody.backends]\nx = \xff\n")
    code, report = doctor(capsys)
    assert code == 1
    assert findings(report, "garbled")[0]["level"] == "broken"


def test_a_backend_in_the_group_of_other_plugins_is_broken(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    light = unique("light")
    source = declaration("name='nicely', import_path='a.b:C'")
    install(site, "nicely-toys", plugins={"nicely": light}, modules={light: source})
    code, report = doctor(capsys)
    assert code == 1
    loaded, broken = findings(report, "nicely-toys 1.0")
    assert [loaded["level"], broken["level"]] == ["ok", "broken"]
    assert "no entry point in the group 'rhapsody.backends'" in broken["text"]
    assert broken["remedy"] == "pip install --upgrade nicely-toys"


def test_a_module_in_both_groups_is_sound(site: Path, capsys: pytest.CaptureFixture[str]) -> None:
    light, heavy = unique("light"), unique("heavy")
    modules = {
        light: declaration(f"name='nicely', import_path='{heavy}:Backend'"),
        heavy: BACKEND.format(name="nicely"),
    }
    points = {"nicely": light}
    install(site, "nicely-toys", backends=points, plugins=points, modules=modules)
    code, report = doctor(capsys)
    assert code == 0
    assert [one["level"] for one in findings(report, "nicely-toys")] == ["ok"]


def test_an_entry_point_in_a_misspelled_group_is_broken(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    info = install(site, "nicely-toys", backends={"nicely": "nicely_toys"})
    (info / "entry_points.txt").write_text("[rhapsody.backend]\nnicely = nicely_toys\n")
    code, report = doctor(capsys)
    assert code == 1
    (broken,) = findings(report, "nicely-toys 1.0")
    assert "group 'rhapsody.backend'; did you mean 'rhapsody.backends'?" in broken["text"]


def test_the_clash_with_rhapsody_py_ends_with_the_commands_that_mend_it(
    site: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    install(site, "rhapsody-py", backends={"dask": "x:Y"})
    code, report = doctor(capsys)
    assert code == 1
    (broken,) = findings(report, "rhapsody-py")
    assert broken["remedy"].split("\n")[-2:] == [
        "  pip uninstall -y rhapsody-py",
        "  pip install --force-reinstall --no-deps rhapsody-core",
    ]


def test_children_find_what_the_doctor_finds(
    site: Path, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    assert str(site) in sys.path
    assert str(site) not in os.environ.get("PYTHONPATH", "")
    toy(site)
    _, report = doctor(capsys)
    assert [one["level"] for one in findings(report, "toys")] == ["ok"]


# A backend that is started.


def test_a_backend_is_started_with_its_settings_and_ended(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["doctor", "-b", "local", "-o", "cores=2"]) == 0
    text = capsys.readouterr().out
    started = r"^ok +backend local: started in \d\.\d\d s; to run a task as well, use --run$"
    assert re.search(started, text, re.MULTILINE)


@pytest.mark.parametrize("name", ["local", "noop"])
def test_a_task_is_run_on_request(
    name: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, report = doctor(capsys, "-b", name, "--run")
    assert code == 0
    said = [one["text"] for one in findings(report, f"backend {name}")][-2:]
    assert re.fullmatch(r"started in \d+\.\d\d s", said[0])
    assert re.fullmatch(r"ran a task in \d+\.\d\d s", said[1])
    assert list(tmp_path.iterdir()) == []


def test_the_backend_of_a_profile_is_started_with_its_options(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("rhapsody.toml").write_text(
        '[profile.small]\nbackend = "local"\noptions.cores = 1\n'
        "[profile.empty]\n[profile.wrong]\noptions.coers = 1\n"
        "[profile.large]\ndefaults.cores = 99999\n"
    )
    code, report = doctor(capsys, "--profile", "small", "--run")
    assert code == 0
    assert findings(report, "backend local")[-1]["text"].startswith("ran a task in")
    code, report = doctor(capsys, "--profile", "empty")
    assert code == 0
    assert findings(report, "backend local")[-1]["text"].startswith("started in")
    code, report = doctor(capsys, "--profile", "small", "-b", "noop")
    assert findings(report, "backend noop")[-1]["text"].startswith("started in")
    code, report = doctor(capsys, "--profile", "large", "--run")
    assert code == 1
    assert "cannot run a task" in findings(report, "backend local")[-1]["text"]
    assert main(["doctor", "--profile", "wrong"]) == 2
    assert "rhapsody.toml:6: " in capsys.readouterr().err
    assert main(["doctor", "--profile", "smallx"]) == 2
    assert "did you mean 'small'?" in capsys.readouterr().err


def test_a_function_is_run_on_a_backend_without_executables(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "rhapsody.backends.noop.NoopExecutionBackend.capabilities", Capabilities(executables=False)
    )
    code, report = doctor(capsys, "-b", "noop", "--run")
    assert code == 0
    assert findings(report, "backend noop")[-1]["text"].startswith("ran a task in")


def test_a_task_that_fails_is_a_line_in_the_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("rhapsody.cli.doctor.TASK", "exit 3")
    assert main(["doctor", "-b", "local", "--run"]) == 1
    text = capsys.readouterr().out
    assert re.search(r"^ok +backend local: started in", text, re.MULTILINE)
    assert re.search(r"^broken +backend local: cannot run a task: ", text, re.MULTILINE)


def test_a_backend_that_cannot_be_started_is_a_line_in_the_report(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def start(self: object) -> None:
        raise OSError("no room")

    monkeypatch.setattr("rhapsody.backends.noop.NoopExecutionBackend.start", start)
    assert main(["doctor", "-b", "noop"]) == 1
    assert "broken  backend noop: cannot be started: OSError: no room" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-b", "nowhere"], "nowhere"),
        (["-b", "local", "-o", "nonsense=1"], "nonsense"),
        (["-o", "cores=1"], "-b or --profile"),
        (["--run"], "-b or --profile"),
    ],
)
def test_what_cannot_be_started_for_a_mistake_is_bad_usage(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_backend_that_stale_metadata_hide_is_broken(
    site: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    install_backend(site, "toys", "toy")
    checkout = site / "checkout"
    (checkout / "toys.egg-info").mkdir(parents=True)
    (checkout / "toys.egg-info" / "PKG-INFO").write_text("Name: toys\nVersion: 0.5\n")
    assert not list(hidden_entries())
    monkeypatch.syspath_prepend(str(checkout))
    code, report = doctor(capsys)
    assert code == 1
    (broken,) = findings(report, "toys")
    assert broken["level"] == "broken"
    assert str(checkout) in broken["remedy"]
    with pytest.raises(ValueError, match=f"toys .*{checkout}"):
        get_backend("toy")


def test_a_backend_that_logs_leaves_no_run_behind(
    site: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    stop = (
        "    async def stop(self):\n"
        "        import logging\n"
        "        logging.getLogger('rhapsody.toy').warning('closing')\n"
    )
    toy(site, heavy_source=BACKEND.format(name="toy") + stop)
    place = tmp_path / "here"
    earlier = place / ".rhapsody" / "20260101T000000-mine-0001"
    earlier.mkdir(parents=True, mode=0o700)
    (earlier / "log.txt").write_text("mine")
    monkeypatch.chdir(place)
    code, report = doctor(capsys, "-b", "toy", "--run")
    assert code == 0
    assert any("ran a task in" in one["text"] for one in report["findings"])
    runs = [each for each in (place / ".rhapsody").iterdir() if not each.is_symlink()]
    assert runs == [earlier]
    assert (earlier / "log.txt").read_text() == "mine"
