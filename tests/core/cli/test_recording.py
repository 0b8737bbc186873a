"""`rhapsody run` after a run that did not end well, and what is reused on request."""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests._support.command_line import check_mistake
from tests._support.forked import rhapsody
from tests._support.programs import PATIENCE
from tests._support.resumed import PROGRAM, RESULT, SHOW, WORK, Place, journal

OWN_ENGINE = """
import asyncio, os
from rhapsody import WorkflowEngine

async def program():
    for word in ("one", "two"):
        async with WorkflowEngine.create() as flow:
            @flow.function_task
            def work(word):
                with open("ran.txt", "a") as log:
                    log.write(f"work {word}\\n")
                return word

            print(await work(word))
    if os.path.exists("bad"):
        raise ValueError("after all engines")

asyncio.run(program())
"""


SIGNALLED = """
import os, subprocess

async def main(flow):
    @flow.function_task
    def work(number):
        if number == 2 and not os.path.exists("again"):
            subprocess.run(["kill", "-INT", str(os.getpid())], check=True)
            return "what a program had printed when the signal ended it"
        return number

    for number in (1, 2):
        print(await work(number))
"""


@pytest.mark.parametrize(
    ("number", "code", "said"),
    [
        (signal.SIGKILL, -9, "was killed"),
        (signal.SIGTERM, 143, "was interrupted"),
        (signal.SIGINT, 130, "was interrupted"),
        (signal.SIGHUP, 129, "was interrupted"),
    ],
)
def test_the_same_command_goes_on(place: Place, number: int, code: int, said: str) -> None:
    place.write("kill", str(int(number)))
    ended = place.run()
    assert ended.returncode == code
    assert place.ran() == WORK
    if number != signal.SIGKILL:
        assert "results are kept; run the same command again to continue" in ended.stderr
    done = place.run()
    assert (done.returncode, done.stdout) == (0, RESULT), done.stderr
    assert f"the last run {said}; found 5 recorded results" in done.stderr
    assert "--fresh starts over" in done.stderr
    assert "10 done (5 of them reused)" in done.stderr
    assert place.ran() == SHOW


def test_of_a_bad_sample_only_its_branch_runs_again(place: Place) -> None:
    place.write("bad")
    failed = place.run()
    assert failed.returncode == 1
    assert "ValueError: a bad sample" in failed.stderr
    assert failed.stderr.endswith("results are kept; run the same command again to continue\n")
    before = place.ran()
    (place.path / "bad").unlink()
    assert place.run().stdout == RESULT
    assert place.ran() == {"work 3": 1, **{k: v for k, v in SHOW.items() if k not in before}}


def test_a_wrong_backend_is_the_only_message(place: Place) -> None:
    place.write("wf.py", OWN_ENGINE)
    place.write("bad")
    assert place.run().returncode == 1
    wrong = place.run("-b", "locl")
    assert (wrong.returncode, wrong.stderr.count("\n")) == (2, 1), wrong.stderr
    assert "Did you mean 'local'?" in wrong.stderr


def test_a_run_that_ended_well_is_reused_only_when_asked(place: Place) -> None:
    for _ in range(2):
        done = place.run()
        assert place.ran() == {**WORK, **SHOW}
        assert "last run" not in done.stderr
    done = place.run("--resume")
    assert done.stdout == RESULT
    assert "found 10 recorded results" in done.stderr
    assert place.ran() == {}
    place.write("helpers.py", "def scale(number):\n    # a remark\n    return number * 10\n")
    assert place.run("--resume").stdout == RESULT
    assert place.ran() == WORK


def test_reused_tasks_are_logged_as_reused(place: Place) -> None:
    place.run()
    logged = place.run("--resume", "-v", "-e", 'trace="trace.jsonl"').stderr.splitlines()
    ends = [line.rpartition(": ")[2] for line in logged if " work(" in line]
    assert ends == ["reused"] * 5
    assert '"native": "reused"' in (place.path / "trace.jsonl").read_text()


def test_options_of_the_backend_and_the_engine_do_not_count(place: Place) -> None:
    place.write("bad")
    place.run("-b", "local", "-o", "cores=1")
    before = place.ran()
    (place.path / "bad").unlink()
    done = place.run("-o", "cores=2", "-e", "retries=1", "-e", "timeout=100", "-v")
    assert done.stdout == RESULT, done.stderr
    assert before.keys() - {"work 3"} & place.ran().keys() == set()


def test_other_arguments_are_another_run(place: Place) -> None:
    place.write("bad")
    place.run("--", "one")
    place.ran()
    (place.path / "bad").unlink()
    assert place.run("--", "two").stdout == RESULT
    assert place.ran() == {**WORK, **SHOW}


def test_results_of_runs_with_other_arguments_are_reused_on_request(place: Place) -> None:
    place.run("--", "20")
    place.ran()
    previewed = place.run("--resume", "--dry-run", "--", "21")
    assert previewed.stdout.count("reused") == 10, previewed.stdout
    done = place.run("--resume", "--", "21")
    assert done.stdout == RESULT, done.stderr
    assert (
        "no earlier run with these arguments is recorded; looking for results in 1" in done.stderr
    )
    assert "10 results reused from another run, in journal wf-" in done.stderr
    assert "10 done (10 of them reused)" in done.stderr
    assert place.ran() == {}
    explained = place.command("journal", "explain", "work").stdout
    assert explained.count("reused (recorded in journal wf-") == 5
    for path in (place.path / ".rhapsody/journals").glob("*.sqlite"):
        if path.name in explained:
            path.unlink()
    again = place.run("--resume", "--", "21")  # the results were copied
    assert "found 10 recorded results" in again.stderr
    assert "in journal" not in again.stderr
    assert place.ran() == {}


def test_functions_with_processes_that_return_after_a_signal_are_not_recorded(place: Place) -> None:
    place.write("wf.py", SIGNALLED)
    assert place.run().returncode == 130
    place.write("again")
    done = place.run()
    assert done.stdout == "1\n2\n"
    assert "2 done (1 of them reused)" in done.stderr


@pytest.mark.parametrize("option", ["--fresh", None])
def test_results_of_other_journals_are_used_only_on_request(
    place: Place, option: str | None
) -> None:
    place.run("--", "20")
    place.ran()
    place.write("bad")
    place.run("--", "21")
    (place.path / "bad").unlink()
    place.ran()
    place.run(*filter(None, [option]), "--", "21")
    ran = place.ran()
    assert (ran["work 3"], ran["show 30"]) == (1, 1)
    assert ("work 1" in ran) is (option is not None)


def test_results_are_found_in_the_directory_of_the_program(
    place: Place, tmp_path_factory: pytest.TempPathFactory
) -> None:
    place.run()
    place.ran()
    elsewhere = tmp_path_factory.mktemp("elsewhere")
    done = rhapsody("run", str(place.path / "wf.py"), "--resume", cwd=elsewhere, timeout=PATIENCE)
    assert "5 results reused from another run" in done.stderr  # commands name the directory
    assert done.stdout == RESULT


@pytest.mark.parametrize("option", ["--fresh", "--no-journal"])
def test_nothing_is_reused(place: Place, option: str) -> None:
    place.write("bad")
    place.run()
    place.ran()
    (place.path / "bad").unlink()
    assert place.run(option).stdout == RESULT
    assert place.ran() == {**WORK, **SHOW}


def test_without_a_journal_only_the_log_and_the_record_are_left(place: Place) -> None:
    place.run("--no-journal")
    left = [path for path in (place.path / ".rhapsody").rglob("*") if path.is_file()]
    assert {path.name for path in left} == {"log.txt", "run.jsonl"}


def test_tasks_of_a_name_run_again(place: Place) -> None:
    place.run()
    place.ran()
    done = place.run("--rerun", "show", "--rerun", "main")  # implies --resume
    assert place.ran() == SHOW
    assert "--rerun main: no task with this name was called" in done.stderr
    assert "--rerun show" not in done.stderr


@pytest.mark.parametrize("option", [None, "--resume"])
def test_results_from_before_an_interrupted_rerun_are_not_used(
    place: Place, option: str | None
) -> None:
    place.run("--", "20")  # the other journal contains the same results
    place.run("--resume")
    place.write("kill", str(int(signal.SIGKILL)))
    assert place.run("--rerun", "show").returncode == -signal.SIGKILL
    place.ran()
    done = place.run(*filter(None, [option]))
    assert (done.stdout, place.ran()) == (RESULT, SHOW)
    assert "ran: requested by --rerun" in place.journal("explain", "show").stdout
    place.run("--resume")
    assert not place.ran()


def test_a_rerun_that_is_killed_after_some_calls_keeps_their_results(place: Place) -> None:
    place.run()
    place.write("kill", str(int(signal.SIGKILL)))
    assert place.run("--rerun", "work", "--rerun", "show").returncode == -signal.SIGKILL
    assert place.ran() == dict.fromkeys(WORK, 2) | SHOW
    assert (place.run().stdout, place.ran()) == (RESULT, SHOW)


def test_a_run_that_lives_has_not_ended(place: Place) -> None:
    place.write("bad")
    place.run()
    place.ran()
    (place.path / "bad").unlink()
    fifo = place.path / "fifo"
    os.mkfifo(fifo)
    place.write("wf.py", PROGRAM.replace("    values =", "    open('fifo').read()\n    values ="))
    with subprocess.Popen(
        [sys.executable, "-m", "rhapsody", "run", "wf.py"],
        cwd=place.path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    ) as first:
        with fifo.open("w") as there:
            fcntl.flock(there, fcntl.LOCK_SH)  # the first has opened it, and so its journal
            place.write("wf.py", PROGRAM)
            second = place.run()
        assert first.communicate(timeout=PATIENCE)[0] == RESULT
    assert second.stdout == RESULT
    assert "this run is not recorded, and cannot be resumed: journal" in second.stderr
    assert "is in use by another run" in second.stderr


def test_programs_with_engines_of_their_own_are_recorded(place: Place) -> None:
    place.write("wf.py", OWN_ENGINE)
    place.write("bad")
    assert place.run().returncode == 1
    assert place.ran() == {"work one": 1, "work two": 1}
    (place.path / "bad").unlink()
    done = place.run()
    assert (done.returncode, done.stdout) == (0, "one\ntwo\n"), done.stderr
    assert place.ran() == {}


def test_the_journal_that_a_program_asks_for_is_that_of_the_command(place: Place) -> None:
    place.write("wf.py", OWN_ENGINE.replace("create()", "create(journal=True)"))
    place.write("bad")
    place.run()
    (place.path / "bad").unlink()
    assert place.run().stdout == "one\ntwo\n"
    assert place.ran() == {"work one": 1, "work two": 1}


def test_options_count_for_the_journal_that_a_program_names(place: Place) -> None:
    place.write("wf.py", OWN_ENGINE.replace("create()", "create(journal=f'{word}.sqlite')"))
    assert place.run().stdout == "one\ntwo\n"
    assert place.ran() == {"work one": 1, "work two": 1}
    done = place.run("--resume", "--rerun", "work")
    assert done.stdout == "one\ntwo\n"
    assert place.ran() == {}
    assert done.stderr.count("ignoring --rerun: the program uses its own journal, one.sqlite") == 1
    place.run("--fresh")
    assert place.ran() == {"work one": 1, "work two": 1}
    assert not (place.path / ".rhapsody" / "journals").exists()


def test_a_journal_that_the_command_line_or_a_profile_names_is_that_of_the_run(
    place: Place,
) -> None:
    place.write("wf.py", OWN_ENGINE)
    named = ("-e", "journal='own.sqlite'")
    preview = place.run("--resume", "--dry-run", *named)
    assert "no earlier run with these arguments is recorded" in preview.stderr
    assert not (place.path / "own.sqlite").exists()
    assert place.run(*named).stdout == "one\ntwo\n"
    assert place.ran() == {"work one": 1, "work two": 1}
    assert place.run("--resume", *named).stderr.startswith("rhapsody: found 2 recorded results")
    assert place.ran() == {}
    place.write("rhapsody.toml", "[engine]\njournal = 'own.sqlite'\n")
    assert place.run("--resume", "--dry-run").stdout.count("reused") == 2
    done = place.run("--rerun", "work")
    assert place.ran() == {"work one": 1, "work two": 1}
    assert "rhapsody: no " not in done.stderr
    assert "ignoring" not in done.stderr
    place.run("--no-journal")
    assert place.ran() == {"work one": 1, "work two": 1}
    assert not (place.path / ".rhapsody" / "journals").exists()


def test_what_the_program_says_of_resuming_wins(place: Place) -> None:
    place.write("wf.py", OWN_ENGINE.replace("create()", "create(resume=True)"))
    place.run()
    place.ran()
    assert place.run("--no-journal").stdout == "one\ntwo\n"
    assert place.ran() == {"work one": 1, "work two": 1}
    place.run()
    assert place.ran() == {}


def test_a_directory_that_moves_takes_its_journal_along(place: Place, tmp_path: Path) -> None:
    place.write("bad")
    place.run()
    place.ran()
    moved = tmp_path / "moved"
    moved.mkdir()
    for each in [*tmp_path.iterdir()]:
        if each != moved:
            each.rename(moved / each.name)
    (moved / "bad").unlink()
    place.path = moved
    assert place.run().stdout == RESULT
    # Their command names the directory; the functions do not.
    assert {name for name in place.ran() if name.startswith("work")} == {"work 3"}


# What cannot be used.


def test_one_that_others_may_write_is_refused(place: Place) -> None:
    place.run()
    journal(place).chmod(0o666)
    refused = place.run()
    check_mistake(
        refused,
        "is writable by other users",
        "chmod 600",
        "run without a journal, pass --no-journal",
    )
    assert place.run("--no-journal").returncode == 0


def test_a_damaged_one_is_refused(place: Place) -> None:
    place.run()
    journal(place).write_text("no database" * 1000)
    check_mistake(
        place.run(), "move it away to start a new one", "run without a journal, pass --no-journal"
    )


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a file away")
def test_one_of_another_user_is_left_alone(place: Place) -> None:
    place.run()
    os.chown(journal(place), 12345, 12345)
    before = journal(place).read_bytes()
    done = place.run()
    assert (done.returncode, done.stdout) == (0, RESULT)
    assert "this run is not recorded, and cannot be resumed" in done.stderr
    assert "another user" in done.stderr
    assert journal(place).read_bytes() == before


def test_where_no_journal_can_be_the_run_is_not_recorded(place: Place) -> None:
    (place.path / ".rhapsody").mkdir()
    place.write(".rhapsody/journals")
    done = place.run()
    assert (done.returncode, done.stdout) == (0, RESULT)
    assert "this run is not recorded, and cannot be resumed" in done.stderr


EDITED = """
import os
import helpers

def replace():
    if os.path.exists("edit"):
        os.replace("edit", "helpers.py")

# early: replace()

async def main(flow):
    @flow.function_task
    def by_module():
        import helpers
        return helpers.SCALE

    @flow.function_task
    def by_class():
        return helpers.Scale().SCALE

    @flow.function_task
    def by_function():
        return helpers.scale()

    replace()
    print([await task() for task in (by_module, by_class, by_function)])
"""


@pytest.mark.parametrize("when", ["early", "later"])
def test_source_that_is_replaced_after_its_import_is_not_taken_for_what_ran(
    place: Place, when: str
) -> None:
    text = "SCALE = 1\n\nclass Scale:\n    SCALE = 1\n\ndef scale():\n    return 1\n"
    place.write("wf.py", EDITED.replace("# early: ", "") if when == "early" else EDITED)
    place.write("helpers.py", text)
    place.write("edit", text.replace("1", "22"))
    os.utime(place.path / "edit", (1, 1))  # as `cp -p` and `rsync -a` leave it
    first = place.run()
    assert first.stdout == "[1, 1, 1]\n"
    for name in ("by_module", "by_class", "by_function"):  # a worker would run the new source
        said = (
            f"task '{name}' is not recorded and will run again on resume: "
            "helpers.py was changed after the program started"
        )
        assert first.stderr.count(said) == 1, first.stderr
    assert place.run("--resume").stdout == "[22, 22, 22]\n"


HELD_BACK = """
import asyncio

async def main(flow):
    @flow.function_task
    def work(number):
        with open("ran.txt", "a") as log:
            log.write(f"work {number}\\n")

    long = work.options(resources={"walltime": 600})
    tasks = [work(0), long(1), long(2)]
    await asyncio.gather(*tasks, return_exceptions=True)
"""

HELD_BACK_AND_EXIT = f"""{HELD_BACK.replace("main", "steps")}
from rhapsody import WorkflowEngine

async def program():
    async with WorkflowEngine.create() as flow:
        await steps(flow)

asyncio.run(program())
raise SystemExit
"""


@pytest.mark.parametrize("program", [HELD_BACK, HELD_BACK_AND_EXIT], ids=["main", "exit"])
def test_a_run_that_held_tasks_back_has_not_ended_well(place: Place, program: str) -> None:
    place.write("wf.py", program)
    ended = place.run("-b", "local", "-o", "resources={walltime=60, cores=1}")
    assert "2 tasks were held back" in ended.stderr
    assert "results are kept; run the same command again to continue" in ended.stderr
    assert place.ran() == {"work 0": 1}
    place.run("-b", "local")
    assert place.ran() == {"work 1": 1, "work 2": 1}
    place.run("-b", "local")
    assert place.ran() == {f"work {number}": 1 for number in range(3)}


HANDLES = """
import asyncio
from pathlib import Path

async def main(flow):
    @flow.function_task
    def inverse(number):
        return 1 / (number + Path("shift.txt").stat().st_size)

    @flow.function_task
    def double(value):
        return 2 * value

    values = [double(inverse(number)) for number in (1, 0, 2)]
    print(len(await asyncio.gather(*values, return_exceptions=True)))
"""


def test_after_handled_failures_the_summary_names_resume(place: Place) -> None:
    place.write("wf.py", HANDLES)
    place.write("shift.txt", "")
    said = "rhapsody: to run only the failed task again, add --resume\n"
    done = place.run()
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
    assert done.stderr.endswith(said)
    assert said not in place.run("-q").stderr
    again = place.run("--resume")
    assert "4 done (4 of them reused), 1 failed, 1 skipped" in again.stderr
    assert said not in again.stderr
