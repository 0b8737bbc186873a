"""`rhapsody clean`: which directories go, and which never do."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from rhapsody import InputFile, OutputFile, WorkflowEngine
from rhapsody.cli import main
from rhapsody.resources import size_text
from rhapsody.sdk import runs
from rhapsody.sdk.runs import Run, enter_run, leave_run
from tests._support.scripted import within

NAMES = [f"2026112{n}T041233-digits-7f3a" for n in range(3)]
DAY = 86400


@pytest.fixture
def base(tmp_path: Path) -> Path:
    """Three runs that ended a day, two and three days ago, of 1000 bytes each."""
    place = tmp_path / ".rhapsody"
    for number, name in enumerate(NAMES):
        box = place / name / "engine.12345678" / "box"
        box.mkdir(parents=True)
        (box / "data").write_bytes(b"x" * 1000)
        aged(place / name, 3 - number)
    (place / "latest").symlink_to(NAMES[-1])
    return place


@pytest.fixture
def live(base: Path) -> Iterator[Run]:
    """A run of this process, which is alive."""
    run = enter_run(base, "engine")
    run.make()
    yield run
    leave_run(run, "engine")


def aged(path: Path, days: float) -> None:
    then = time.time() - days * DAY
    for each in (*path.iterdir(), path):
        os.utime(each, (then, then), follow_symlinks=False)


def clean(capsys: pytest.CaptureFixture[str], *arguments: str, code: int = 0) -> list[str]:
    """The lines that the command prints."""
    assert main(["clean", *arguments]) == code
    said = capsys.readouterr()
    return [*said.out.splitlines(), *said.err.splitlines()]


def test_runs_that_have_ended_go_and_one_that_lives_stays(
    base: Path, live: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clean(capsys) == [
        *(f"{name}  1.0 kB" for name in NAMES),
        "removed 3 runs, 3.0 kB; 1 still running",
    ]
    assert sorted(os.listdir(base)) == sorted([live.path.name, "latest"])
    assert os.readlink(base / "latest") == live.path.name


def test_a_run_that_is_removed_meanwhile_is_skipped(
    base: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(base: Path) -> list[runs.LeftRun]:
        runs = left_runs(base)
        shutil.rmtree(base / NAMES[1])
        return runs

    left_runs = runs.left_runs
    monkeypatch.setattr(runs, "left_runs", found)
    others = [f"{name}  1.0 kB" for name in (NAMES[0], NAMES[2])]
    assert clean(capsys) == [*others, "removed 2 runs, 2.0 kB"]


def test_with_the_last_run_its_place_goes_too(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert clean(capsys)[-1] == "removed 3 runs, 3.0 kB"
    assert not base.exists()
    assert clean(capsys) == [f"no runs in {base}"]


@pytest.mark.parametrize(("older", "left"), [("36h", 1), ("1.5d", 1), ("2880m", 1), ("5w", 3)])
def test_younger_ones_stay(
    base: Path, capsys: pytest.CaptureFixture[str], older: str, left: int
) -> None:
    said = clean(capsys, "--older", older)
    count = 3 - left
    runs = "runs" if count != 1 else "run"
    size = f"{count}.0 kB" if count else "0 B"
    assert said[-1] == f"removed {count} {runs}, {size}; {left} changed in the last {older}"
    assert len(os.listdir(base)) == left + 1


def test_a_run_is_as_old_as_its_last_change(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    os.utime(base / NAMES[0] / "engine.12345678")
    assert "removed 2 runs" in clean(capsys, "--older", "12h")[-1]
    assert sorted(os.listdir(base)) == [NAMES[0], "latest"]
    assert os.readlink(base / "latest") == NAMES[0]


def test_a_dry_run_says_what_would_go_and_changes_nothing(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {path: path.lstat().st_mtime for path in base.rglob("*")}
    assert clean(capsys, "--dry-run") == [
        *(f"{name}  1.0 kB" for name in NAMES),
        "would remove 3 runs, 3.0 kB",
    ]
    assert {path: path.lstat().st_mtime for path in base.rglob("*")} == before


@pytest.mark.parametrize("directory", ["there", "there/.rhapsody"])
def test_another_directory_can_be_given(
    base: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    directory: str,
) -> None:
    (tmp_path / "there").mkdir()
    base.rename(tmp_path / "there" / ".rhapsody")
    assert clean(capsys, directory)[-1] == "removed 3 runs, 3.0 kB"
    assert os.listdir(tmp_path / "there") == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--older", "soon"],
            "--older must be a number of seconds or text such as '90 s', '3 min' or '1h30m'",
        ),
        (["--older", "-3d"], "argument --older: expected one argument"),
        (["nowhere"], "directory 'nowhere' does not exist"),
    ],
)
def test_invalid_options_remove_nothing(
    base: Path, capsys: pytest.CaptureFixture[str], arguments: list[str], said: str
) -> None:
    with pytest.raises(SystemExit, match="2"):
        sys.exit(main(["clean", *arguments]))
    assert said in capsys.readouterr().err
    assert len(os.listdir(base)) == 4


def test_nothing_is_removed_that_is_not_named_like_a_run(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    theirs = ["radical.0", "mine", "engine.mine", f"{NAMES[0]}.tar", f"x{NAMES[0]}"]
    for name in theirs:
        (base / name).mkdir()
    (base / "20261121T041233-file-7f3a").write_text("a file")
    (base / "20261121T041233-link-7f3a").symlink_to(tmp_path / "outside")
    assert clean(capsys)[-1].startswith("removed 3 runs")
    assert set(os.listdir(base)) == {
        *theirs, "20261121T041233-file-7f3a", "20261121T041233-link-7f3a",
    }  # fmt: skip


def test_links_are_not_followed(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "precious").write_bytes(b"x" * 5000)
    box = base / NAMES[0] / "engine.12345678" / "box"
    (box / "directory").symlink_to(outside)
    (box / "file").symlink_to(outside / "precious")
    (base / NAMES[1] / "engine.87654321").symlink_to(outside)
    os.link(outside / "precious", box / "also")
    assert clean(capsys)[-1].startswith("removed 3 runs, 3.")
    assert os.listdir(outside) == ["precious"]


def test_read_only_directories_are_removed(base: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (base / NAMES[0] / "engine.12345678" / "box").chmod(0o500)
    assert clean(capsys)[-1] == "removed 3 runs, 3.0 kB"


HOLDS = """
import asyncio, sys
from rhapsody import WorkflowEngine

async def main():
    async with WorkflowEngine.create() as flow:
        await flow.executable_task(lambda: "true")()
        print(flow.work_dir.parent.name, flush=True)
        await asyncio.to_thread(sys.stdin.read)

asyncio.run(main())
"""


def test_another_programs_run_goes_when_that_was_killed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = [sys.executable, "-c", HOLDS]
    with subprocess.Popen(
        command, cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as program:
        assert program.stdout is not None
        name = program.stdout.readline().strip()
        assert clean(capsys) == ["removed 0 runs, 0 B; 1 still running"]
        program.kill()
        program.wait()
    first, last = clean(capsys)
    assert first.startswith(f"{name}  ")
    assert last.startswith("removed 1 run, ")
    assert not (tmp_path / ".rhapsody").exists()


def test_a_run_of_another_host_stays_while_it_may_be_alive(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lock = base / NAMES[0] / ".lock"
    lock.write_text("elsewhere")
    first, *_, last = clean(capsys)
    assert first.endswith(f"run: rm {lock}")
    assert last == "removed 2 runs, 2.0 kB; 1 may still be running"
    lock.write_text(socket.gethostname())
    assert clean(capsys)[-1].startswith("removed 1 run, ")


@pytest.mark.asyncio
@pytest.mark.parametrize("keep", ["results", "all"])
async def test_results_stay_unless_they_are_to_be_removed(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], keep: str
) -> None:
    async with WorkflowEngine.create(keep_sandboxes=keep, record=True) as flow:  # type: ignore[arg-type]

        @flow.executable_task
        def write(out: OutputFile, code: int = 0) -> str:
            return f"echo x | tee {out} scratch; exit {code}"

        @flow.executable_task
        def read(file: InputFile) -> str:
            return f"cat {file}"

        await within(write(OutputFile("kept.txt")))
        write(OutputFile("intermediate.txt"))
        await within(read(InputFile("intermediate.txt")))
        failed = write(OutputFile("failed.txt"), 3)
        await within(failed.ended())
        assert failed.exception() is not None
        flow.log.warning("careful")
    run = flow.work_dir.parent
    kept = [file.path.name for file in flow.results]
    assert kept == ["kept.txt"] if keep == "results" else ["kept.txt", "intermediate.txt"]
    first, second, last = clean(capsys)
    assert first.endswith(f" (kept: {', '.join(kept)}, {2 * len(kept)} B)")
    assert second.startswith("removed 1 run, ")
    assert last.startswith(f"kept {len(kept)} result")
    assert last.endswith("to remove results as well, run: rhapsody clean --results")
    assert sorted(path.name for path in run.rglob("*") if path.is_file()) == sorted(
        [*kept, "results.json", "run.jsonl"]
    )
    assert clean(capsys) == ["removed 0 runs, 0 B", last]
    for command in (["runs"], ["status"], ["show", "1"], ["logs", "1"]):
        assert main(command) == 0
        assert capsys.readouterr().out
    assert clean(capsys, "--results", "--dry-run")[-1].startswith("would remove 1 run, ")
    assert clean(capsys, "--results")[-1].startswith("removed 1 run, ")
    assert not (tmp_path / ".rhapsody").exists()


@pytest.mark.asyncio
async def test_a_run_goes_when_its_results_have_been_moved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    async with WorkflowEngine.create(record=True) as flow:
        await within(flow.executable_task(lambda out: f"echo x > {out}")(OutputFile("kept.txt")))
    (file,) = flow.work_dir.rglob("kept.txt")
    file.rename(tmp_path / "kept.txt")
    assert clean(capsys)[-1].startswith("removed 1 run, ")
    assert os.listdir(tmp_path) == ["kept.txt"]


KILLED = """
import asyncio, os
from rhapsody import OutputFile, WorkflowEngine

async def main():
    async with WorkflowEngine.create(journal="j.sqlite") as flow:
        @flow.executable_task
        def write(out):
            return f"echo x | tee {out} scratch"
        await write(OutputFile("kept.txt"))
        {end}
    print(*(file.path for file in flow.results))

asyncio.run(main())
"""


def test_results_of_a_killed_run_stay_if_a_later_run_has_reused_them(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "flow.py").write_text(KILLED.replace("{end}", "os.kill(os.getpid(), 9)"))
    command = [sys.executable, "flow.py"]
    assert subprocess.run(command, cwd=tmp_path).returncode == -9
    resumed = KILLED.replace("{end}", "pass")
    (tmp_path / "flow.py").write_text(resumed.replace('"j.sqlite"', '"j.sqlite", resume=True'))
    listed = subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)
    assert clean(capsys)[-1].startswith("kept 1 result, 2 B")
    assert Path(listed.stdout.strip()).read_text() == "x\n"


@pytest.mark.parametrize("listed", ["{", "[1]", '[{"file": "x"}]'])
def test_a_run_with_a_malformed_list_of_results_stays_as_a_whole(
    base: Path, capsys: pytest.CaptureFixture[str], listed: str
) -> None:
    (base / NAMES[0] / "engine.12345678" / "results.json").write_text(listed)
    assert clean(capsys)[-1] == "removed 2 runs, 2.0 kB"
    assert (base / NAMES[0] / "engine.12345678" / "box" / "data").exists()
    assert clean(capsys, "--results")[-1].startswith("removed 1 run, ")


@pytest.mark.parametrize("listed", ['[{"path": "../../../../outside"}]', '[{"path": "/"}]'])
def test_a_list_of_results_never_leads_out_of_its_engines_directory(
    base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], listed: str
) -> None:
    (tmp_path / "outside").write_text("precious")
    (base / NAMES[0] / "engine.12345678" / "results.json").write_text(listed)
    assert clean(capsys)[-1].startswith("removed 3 runs, ")
    assert (tmp_path / "outside").read_text() == "precious"


@pytest.mark.parametrize(
    ("size", "text"),
    [(0, "0 B"), (999, "999 B"), (1000, "1.0 kB"), (3.4e9, "3.4 GB"), (2.5e15, "2500.0 TB")],
)
def test_sizes_are_shown_in_powers_of_a_thousand(size: float, text: str) -> None:
    assert size_text(size) == text


def test_the_help_has_it(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--help"])
    assert "remove the directories of runs that have ended" in capsys.readouterr().out


def test_a_run_whose_jobs_may_continue_stays(
    base: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    jobs = base / NAMES[1] / "engine.12345678" / "backend" / runs.JOBS
    jobs.parent.mkdir()
    jobs.touch()
    said = clean(capsys, "--older", "1h")
    assert said[-1] == "removed 2 runs, 2.0 kB; 1 may have jobs"
    assert any(line.endswith(f"run: rm {jobs}") for line in said)
    jobs.unlink()
    assert clean(capsys)[-1] == "removed 1 run, 1.0 kB"
