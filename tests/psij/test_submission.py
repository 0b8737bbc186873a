"""Runs that are jobs themselves: `rhapsody submit`, `attach` and `cancel`."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path

import pytest

from rhapsody import SubmissionError, reserve_run
from rhapsody.cli import main
from rhapsody.plugins import UsageError
from rhapsody_psij import commands, supervisor
from rhapsody_psij.commands import _Queue, _selected
from rhapsody_psij.submission import DIRECTORY, OUTPUT, EndOfRun, SubmittedRun
from rhapsody_psij.supervisor import Supervisor
from tests._support.slurm import until_no_jobs

STEPS = """
import asyncio, os, sys

async def main(flow):
    here = os.getcwd()

    @flow.executable_task
    def step(number, seconds):
        work = f"sleep {seconds}"
        if seconds == "once":  # the second start ends at once
            work = f"[ -e {here}/gate ] || {{ touch {here}/gate; sleep 1000; }}"
        if seconds.startswith("until-"):
            work = f"until [ -e {seconds.removeprefix('until-')} ]; do sleep 0.1; done"
        return f"echo start {number} >>{here}/log; {work}; echo end {number} >>{here}/log"

    for number, seconds in enumerate(sys.argv[1:]):
        await step(number, seconds)
    print(os.environ["GREETING"], "done")
"""


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current directory, with a workflow whose arguments are the durations of its tasks."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("GREETING", "all is")
    (tmp_path / "steps.py").write_text(STEPS)
    return tmp_path


def rhapsody(*words: object, code: int = 0) -> str:
    """Run a command, which must end with an exit code, and return its output and errors."""
    command = [sys.executable, "-m", "rhapsody", *map(str, words)]
    said = subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
    assert said.returncode == code, said.stdout
    return said.stdout


def submit(*words: object) -> SubmittedRun:
    """Submit a run, and return it; its name is known at once."""
    said = rhapsody("submit", *words)
    (root,) = [path.parents[1] for path in Path().glob(f".rhapsody/2*/{DIRECTORY}/control")]
    assert root.name in said
    return SubmittedRun(root.resolve())


def submitted(job: str) -> SubmittedRun:
    """Return a run whose job was submitted to Slurm, but does not exist."""
    root = reserve_run("steps.py")
    (root / DIRECTORY).mkdir(0o700)
    (root / DIRECTORY / "description.json").write_text('{"executor": "slurm"}')
    description = {"number": 1, "run": root.name, "job": job}
    (root / DIRECTORY / "job-1.json").write_text(json.dumps(description))
    return SubmittedRun(root)


def until(condition: Callable[[], object], seconds: float = 60) -> None:
    """Wait until a condition is true."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.05)


def require_run_once(place: Path, count: int, unfinished: int = 0) -> None:
    """Require that each task has ended once, and that only so many have started another time."""
    lines = (place / "log").read_text().splitlines()
    ends = [line for line in lines if line.startswith("end")]
    assert sorted(ends) == sorted(f"end {number}" for number in range(count))
    assert len(lines) - 2 * count <= unfinished


# Files of other users.


def _link_to_a_root() -> Path:
    """Make a link of another user, which leads to a directory of this one."""
    root = submitted("1").root
    root.rename("elsewhere")
    root.symlink_to(Path("elsewhere").resolve())
    return root


def _link_to_a_directory() -> Path:
    root = submitted("1").root
    (root / DIRECTORY).rename("elsewhere")
    (root / DIRECTORY).symlink_to(Path("elsewhere").resolve())
    return root


def _writable() -> Path:
    root = submitted("1").root
    root.chmod(0o770)
    return root


def _option() -> Path:
    return submitted("--user=victim").root


def _damaged() -> Path:
    root = submitted("1").root
    (root / DIRECTORY / "description.json").write_text("[")
    return root


def _endless_link() -> Path:
    root = reserve_run("steps.py")
    root.rmdir()
    root.symlink_to("a" * 300)
    return root


MAKERS = [_link_to_a_root, _link_to_a_directory, _writable, _option, _damaged, _endless_link]


@pytest.mark.parametrize("make", MAKERS)
def test_files_that_another_user_may_have_made_are_not_used(
    make: Callable[[], Path], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    root = make()
    monkeypatch.setattr("rhapsody_psij.submission._said", lambda words: pytest.fail(str(words)))
    for command in ("attach", "cancel"):
        assert main([command, root.name]) == 2
        assert "no submitted run" in capsys.readouterr().err
    assert not os.path.lexists(root / DIRECTORY / "control")
    own = submitted("2")
    assert _selected(None).root == own.root


def test_a_directory_of_runs_that_other_users_can_replace_is_not_used(
    capsys: pytest.CaptureFixture[str],
) -> None:
    root = submitted("1").root
    root.parent.chmod(0o777)
    assert main(["cancel", root.name]) == 1
    assert "chmod o-w" in capsys.readouterr().err
    assert not (root / DIRECTORY / "control").exists()


@pytest.mark.parametrize(
    ("job", "valid"),
    [("481516_[1-3]", True), ("12.pbs-1.site", True), ("ƒ2x", True), ("-9", False), ("1 2", False)],
)
def test_the_id_of_a_job_is_no_option(job: str, valid: bool) -> None:
    run = submitted(job)
    with nullcontext() if valid else pytest.raises(SubmissionError):
        assert run.jobs[0].job == job


def test_a_cancellation_follows_no_link(place: Path) -> None:
    run = submitted("1")
    (place / "thesis").write_text("x")
    (run.root / DIRECTORY / "control").symlink_to(place / "thesis")
    with pytest.raises(OSError, match="control"):
        run.request_cancellation()
    assert (place / "thesis").read_text() == "x"


def test_the_reason_of_the_end_does_not_control_the_terminal(
    capsys: pytest.CaptureFixture[str],
) -> None:
    submitted("1").finish(EndOfRun("\x1b[2J ended", 0))
    for command in ("attach", "cancel"):
        assert main([command]) == 0
        said = capsys.readouterr().out
        assert "ended" in said
        assert "\x1b" not in said


# As processes of this machine.


def test_a_run_is_followed_to_the_exit_code_of_its_script(place: Path) -> None:
    (place / "fails.py").write_text("import sys\nasync def main(flow):\n    sys.exit(7)\n")
    run = submit("fails.py", "--executor", "local")
    assert "exit code 7" in rhapsody("attach", code=7)
    assert "exit code 7" in rhapsody("status", run.root.name)
    assert "the program ended" in rhapsody("cancel")
    assert run.end is not None
    assert run.end.exit_code == 7
    assert "removed 1 run" in rhapsody("clean")


def test_the_newest_run_is_followed_even_before_it_has_started() -> None:
    older, newer = (reserve_run("steps.py") for _ in range(2))
    for root in (older, newer):
        (root / DIRECTORY).mkdir(0o700)
        (root / DIRECTORY / "description.json").write_text("{}")
        (root / DIRECTORY / "job-1.json").write_text(f'{{"number": 1, "run": "{root.name}"}}')
    Path(".rhapsody/latest").symlink_to(older.name)
    assert _selected(None).root == newer
    assert _selected(older.name[-4:]).root == older
    with pytest.raises(UsageError, match="several"):
        _selected(older.name[:8])


def test_a_supervisor_that_has_ended_without_a_word_is_noticed() -> None:
    roots = [reserve_run("steps.py") for _ in range(2)]
    for root in roots:
        (root / DIRECTORY).mkdir(0o700)
        (root / DIRECTORY / "control").touch()
        (root / DIRECTORY / "description.json").write_text('{"executor": "local"}')
        (root / DIRECTORY / "job-1.json").write_text(
            json.dumps({"number": 1, "run": root.name, "job": "1"})
        )
        (root / DIRECTORY / "host-1").write_text(socket.gethostname())
        (root / DIRECTORY / "job-2.json").write_text('{"number": 2, "run": "y"}')
    assert main(["attach", roots[0].name]) == 1
    assert "was killed" in str(SubmittedRun(roots[0]).end)
    assert main(["cancel", roots[1].name]) == 0
    assert "canceled" in str(SubmittedRun(roots[1]).end)


def test_a_program_is_not_submitted_twice_and_its_early_errors_are_shown(place: Path) -> None:
    words = ["--executor=local", "--", f"until-{place}/gate"]
    run = submit("steps.py", *words, "\x1b[2J")
    said = rhapsody("submit", place / "steps.py", "--fresh", *words, "\x1b[2J", code=1)
    assert f"cancel {run.root.name[-4:]}" in said
    rhapsody("cancel")
    (place / "steps.py").write_text("async def main(flow):\n    raise ValueError('\x1b[2J')\n")
    rhapsody("submit", "steps.py", *words, "\x1b[2J")
    said = rhapsody("attach", code=1)
    assert "ValueError" in said
    assert "\x1b" not in said


def test_of_two_submissions_at_the_same_moment_only_one_is_submitted(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def create(description: dict[str, object]) -> SubmittedRun:
        made.append(made_by(description))
        if len(made) == 1:  # the other one starts now, and is not stopped by its first check
            made.append(made_by(description))
        return made[0]

    made_by, made = SubmittedRun.create, list[SubmittedRun]()
    monkeypatch.setattr(SubmittedRun, "create", create)
    assert main(["submit", str(place / "steps.py"), "--executor=local"]) == 1
    assert f"run {made[1].root.name} of the same program" in capsys.readouterr().err
    assert [path.parent for path in Path().resolve().glob(".rhapsody/2*/submission")] == [
        made[1].root
    ]


def test_attach_ends_although_the_record_does_not_show_the_end(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    run = submitted("1")
    (run.root / "run.jsonl").touch()  # a process of another host was killed
    run.finish(EndOfRun("the program ended", 137))
    monkeypatch.setattr(commands, "LAST_LOOK", 0.1)
    watch = (sys.executable, "-c", "import time; time.sleep(1000)")
    monkeypatch.setattr(commands, "RHAPSODY", watch)
    assert main(["attach"]) == 137


@pytest.mark.parametrize(
    ("reason", "expected"),
    [
        ("PartitionTimeLimit", "--walltime or --queue"),
        ("PartitionConfig", "another --queue, or less --cores"),
        ("Priority", None),
        ("PartitionDown", None),
    ],
)
def test_attach_ends_if_the_job_can_never_start(
    reason: str, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(SubmittedRun, "status", lambda *_: reason)
    run = submitted("1")
    queue = _Queue(run)
    assert queue.check(run.jobs[0]) is None
    assert (queue.never is not None) == (expected is not None)
    if expected is not None:
        assert queue.never is not None
        assert expected in queue.never
        assert main(["attach"]) == 1


def test_a_job_that_can_never_start_is_canceled_at_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    statuses, removed = iter(["", "None", "PartitionTimeLimit"]), list[str | None]()
    monkeypatch.setattr(commands, "POLL", 0.01)
    monkeypatch.setattr(SubmittedRun, "_submit", lambda *_: "17")
    monkeypatch.setattr(SubmittedRun, "status", lambda *_: next(statuses))
    monkeypatch.setattr(SubmittedRun, "remove_from_queue", lambda _, job: removed.append(job.job))
    assert main(["submit", "steps.py", "--executor=slurm"]) == 1
    assert removed == ["17"]
    assert "job 17 of slurm was canceled: PartitionTimeLimit" in capsys.readouterr().err
    assert not list(Path(".rhapsody").glob("2*"))


def test_a_refused_continuation_is_submitted_again(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def submit_job(*_: object) -> str:
        if len(refusals) > 1:
            raise SubmissionError(refusals.pop())
        return "18"

    run = submitted("1")
    (run.root / DIRECTORY / "description.json").write_text(
        json.dumps({"executor": "slurm", "script": "steps.py", "cwd": str(place), "walltime": 60})
    )
    (run.root / DIRECTORY / "control").touch()
    (run.root / DIRECTORY / "queue").mkdir()
    run = SubmittedRun(run.root)
    refusals = ["invalid account", "MaxSubmitJobs", "MaxSubmitJobs"]
    monkeypatch.setattr(supervisor, "CHECK_INTERVAL", 0.01)
    monkeypatch.setattr(SubmittedRun, "_submit", submit_job)
    watching = Supervisor(run, 1)
    status = {"run": {"counts": {"done": 1, "reused": 0}}, "jobs": []}
    assert asyncio.run(watching._continue(status, 0)) is None
    assert [job.job for job in run.jobs] == ["1", "18"]
    refusals.append("x")
    end = asyncio.run(watching._continue(status, 0))
    assert "was not submitted" in str(end)
    assert len(run.jobs) == 2
    output = (run.root / OUTPUT).read_text()
    assert output.count("trying again") == 1
    assert "continues it" in output


@pytest.mark.long
def test_a_run_continues_in_further_jobs_until_it_is_done(place: Path) -> None:
    run = submit(
        "steps.py", "--executor=local", "--walltime=30s", "--stop-before=18s", "--until-done",
        "--", 0, "once", 0,
    )  # fmt: skip
    rhapsody("attach", run.root.name[-4:])
    require_run_once(place, 3, unfinished=1)
    assert len(run.jobs) > 1
    output = (run.root / OUTPUT).read_text()
    assert "all is done" in output
    assert "was interrupted; found 1 recorded result" in output
    assert "limit of the job is near; the run stops\n" in output
    assert "job 2 of the run was submitted, and continues it\n" in output


@pytest.mark.long
def test_a_run_that_has_ended_when_its_job_reaches_the_limit_does_not_start_again(
    place: Path,
) -> None:
    (place / "steps.py").write_text(
        f"import atexit, time\natexit.register(time.sleep, 100)\n{STEPS}"
    )
    run = submit(
        "steps.py", "--executor=local", "--walltime=20s", "--stop-before=8s", "--until-done",
        "--", 0,
    )  # fmt: skip
    rhapsody("attach")
    assert run.jobs[1:] == []
    require_run_once(place, 1)


@pytest.mark.long
def test_a_run_without_progress_does_not_continue_for_ever() -> None:
    run = submit(
        "steps.py", "--executor=local", "--walltime=4s", "--stop-before=3s", "--until-done",
        "--", 100,
    )  # fmt: skip
    assert "--walltime" in rhapsody("attach", code=143)
    assert len(run.jobs) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["-b", "psij", "-o", "walltme=3"], "backend 'psij' has no option 'walltme'"),
        (["-b", "local", "-o", "cores=many"], "cores"),
        (["-b", "psjj"], "Did you mean 'psij'?"),
    ],
)
def test_wrong_settings_of_the_backend_are_reported_before_the_job_waits(
    words: list[str], message: str
) -> None:
    assert message in rhapsody("submit", "steps.py", "--executor=local", *words, code=2)
    assert not Path(".rhapsody").exists()


def test_the_settings_of_a_profile_are_checked_too(place: Path) -> None:
    (place / "rhapsody.toml").write_text(
        '[profile.site]\nbackend = "psij"\n[profile.site.options]\nmax_jobs = "three"\n'
    )
    words = ["submit", "steps.py", "--executor=local", "--profile=site"]
    assert "max_jobs" in rhapsody(*words, code=2)
    (place / "rhapsody.toml").write_text('[profile.site]\nbackend = ["local", "psij"]\n')
    assert "several backends (local, psij); select one" in rhapsody(*words, code=2)


def test_leaving_leaves_the_run_and_canceling_ends_it_like_ctrl_c(place: Path) -> None:
    run = submit("steps.py", "--executor=local", "--until-done", "-w", "1h", "--", 0, 100)
    until(lambda: (place / "log").exists() and "start 1" in (place / "log").read_text())
    following = [sys.executable, "-m", "rhapsody", "attach"]
    with subprocess.Popen(following, stdout=subprocess.PIPE, text=True) as left:
        assert left.stdout is not None
        while "1 running" not in (line := left.stdout.readline()):
            assert line  # the record may be written a moment after the task has started
        left.send_signal(signal.SIGINT)
        assert "continues" in left.stdout.read()
    assert left.returncode == 0
    assert run.end is None
    assert "canceled" in rhapsody("cancel", run.root.name)
    assert "canceled" in rhapsody("attach", code=130)
    assert json.loads(rhapsody("status", "--json"))["run"]["outcome"] == "interrupted"
    assert len(run.jobs) == 1


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["none.py"], "'none.py' does not exist"),
        (["steps.py", "--profile=none"], "unknown profile 'none'"),
        (["steps.py", "--until-done"], "pass --walltime"),
        (["steps.py", "--until-done", "-w1h", "-ejournal=false"], "option journal is false"),
        (["steps.py", "-w1h", "--stop-before=2h"], "must be less"),
        (["steps.py", "-w", "soon"], "--walltime"),
        (["steps.py", "--alpha"], "-- --alpha"),
    ],
)
def test_invalid_arguments_are_reported_before_anything_starts(
    words: list[str], expected: str, capfd: pytest.CaptureFixture[str]
) -> None:
    assert main(["submit", "--executor=local", *words]) == 2
    assert expected in capfd.readouterr().err
    assert not Path(".rhapsody").exists()


def test_the_batch_system_is_recognized_or_must_be_named(
    place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("PATH", str(place))
    assert main(["submit", "steps.py"]) == 2
    assert "--executor" in capsys.readouterr().err
    assert main(["attach"]) == 2
    assert "no submitted run" in capsys.readouterr().err


# On Slurm.

PROFILES = """
[profile.psij]
backend = "psij"

[profile.psij.options]
executor = "slurm"
queue = "debug"
poll_interval = 1
"""


@pytest.fixture
def profiles(place: Path, cluster: None) -> None:
    """A profile that submits tasks to Slurm."""
    (place / "rhapsody.toml").write_text(PROFILES)


@pytest.mark.usefixtures("profiles")
@pytest.mark.long
def test_a_run_that_waits_is_canceled_without_a_start() -> None:
    said = rhapsody("submit", "steps.py", "--profile=psij", "--queue=none", code=1)
    assert "change it, use --queue" in said
    run = submit("steps.py", "--profile=psij", "--attribute=slurm.hold")
    following = [sys.executable, "-m", "rhapsody", "attach"]
    with subprocess.Popen(following, stdout=subprocess.PIPE, text=True) as waiting:
        assert waiting.stdout is not None
        assert "waits: JobHeldUser" in waiting.stdout.readline()
        assert "rhapsody attach" in rhapsody("status", run.root.name, code=2)
        assert "its jobs may continue" in rhapsody("clean")
        rhapsody("cancel")
        assert "canceled" in waiting.stdout.read()
    until_no_jobs()
    assert run.host(run.jobs[0]) is None


@pytest.mark.usefixtures("profiles")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_jobs_are_taken_over_by_the_job_that_continues_the_run(place: Path) -> None:
    run = submit(
        "steps.py", "--profile=psij", "--walltime=1min", "--stop-before=35s", "--until-done",
        "--", 0, f"until-{place}/second", 0,
    )  # fmt: skip
    until(lambda: len(run.jobs) > 1 and any(map(run.host, run.jobs[1:])), 200)
    (place / "second").touch()
    rhapsody("attach")
    require_run_once(place, 3)
    assert len(run.jobs) > 1
    until_no_jobs()


@pytest.mark.usefixtures("profiles")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_canceling_a_run_cancels_its_detached_jobs(place: Path) -> None:
    submit("steps.py", "--profile=psij", "-w", "5min", "--until-done", "--", 1000)
    until(lambda: (place / "log").exists())
    rhapsody("cancel")
    rhapsody("attach", code=130)
    until_no_jobs()


@pytest.mark.usefixtures("profiles")
@pytest.mark.long
@pytest.mark.timeout(300)
def test_detached_jobs_are_canceled_after_the_end_of_the_run_or_before_the_next_one(
    place: Path,
) -> None:
    words = ["steps.py", "--profile=psij", "-w", "5min", "--until-done", "--", 1000]
    first = submit(*words)
    until(lambda: (place / "log").exists())
    subprocess.run(["scancel", str(first.jobs[0].job)], check=True)
    until(lambda: first.end)
    assert "canceled 1 detached job" in rhapsody("cancel")
    until_no_jobs()
    assert "detached" not in rhapsody("cancel")
    (place / "log").unlink()
    rhapsody("submit", *words)
    until(lambda: (place / "log").exists())
    second = _selected(None)
    subprocess.run(["scancel", str(second.jobs[0].job)], check=True)
    until(lambda: second.end)
    rhapsody("submit", "--attribute=slurm.hold", *words)
    assert "canceled 1 detached job" in rhapsody("cancel")
    until_no_jobs()
