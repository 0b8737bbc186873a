"""`rhapsody journal`: what is kept, why a task ran again, what can go, and whether it is whole."""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import signal
import sqlite3

import pytest

from rhapsody.builtin.journal import store as journal_store
from rhapsody.builtin.journal.store import Store, opened
from tests._support.command_line import check_mistake
from tests._support.resumed import RESULT, SHOW, WORK, Place, journal


def explained(place: Place, task: str) -> str:
    done = place.journal("explain", task)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_without_journals_it_says_so(place: Place) -> None:
    done = place.journal("show")
    assert (done.returncode, done.stdout) == (
        0,
        f"no journals in {place.path}/.rhapsody/journals\n",
    )


@pytest.mark.parametrize("what", ["show", "explain", "verify", "prune"])
def test_a_link_that_leads_nowhere_is_refused(what: str, place: Place) -> None:
    journals = place.path / ".rhapsody" / "journals"
    journals.mkdir(parents=True)
    (journals / "wf.sqlite").symlink_to("missing")
    done = place.journal(what)
    assert done.returncode != 0
    assert "wf.sqlite is not a regular file" in done.stderr
    assert "Traceback" not in done.stderr


def test_show_lists_the_runs(place: Place) -> None:
    place.write("bad")
    place.run()
    (place.path / "bad").unlink()
    place.run()
    shown = place.journal("show").stdout
    assert re.search(r"\.rhapsody/journals/wf-\w{8}\.sqlite  \d+\.\d kB\n", shown)
    rows = [line.split() for line in shown.splitlines()[2:]]
    assert [(row[0], row[3]) for row in rows] == [("1", "failed"), ("2", "done")]
    assert sum(int(row[4]) for row in rows) == 10


def test_show_tells_a_run_that_was_killed_from_one_that_runs(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    place.write("kill", str(int(signal.SIGKILL)))
    assert place.run().returncode == -signal.SIGKILL
    path = journal(place)

    def ends() -> list[str]:
        # In a process of its own: the lock of a running run shows in others alone.
        lines = place.command("journal", "show").stdout.splitlines()[2:]
        return [line.split()[3] for line in lines]

    assert ends() == ["killed"]
    store = Store(path, shared=False)
    store.begin(None)
    try:
        assert ends() == ["killed", "running"]
        monkeypatch.setattr(journal_store, "on_network", lambda directory: True)
        with opened(path) as reader:
            assert [run.how for run in reader.runs()] == [None, None]
    finally:
        store.end("failed")
    assert ends() == ["killed", "failed"]


def test_explain_names_what_has_changed(place: Place) -> None:
    place.run()
    assert "work (task.000001)  ran: it was not recorded before" in explained(place, "work")
    place.write("helpers.py", "\n\n\ndef scale(number):\n    return 100 * number\n")
    place.run("--resume")
    assert explained(place, "task.000002") == (
        "work (task.000002)  ran: scale in helpers.py (line 4) changed\n"
    )
    assert explained(place, "2") == explained(place, "task.000002")
    assert "show (task.000007)  ran: command changed\n" in explained(place, "show")
    assert "show (task.000006)  reused\n" in explained(place, "show")
    place.run("--resume", "--rerun", "show")
    assert "work (task.000005)  reused\n" in explained(place, "work")
    assert "show (task.000010)  ran: requested by --rerun\n" in explained(place, "show")
    check_mistake(place.journal("explain", "shaw"), "recorded no task 'shaw'", "show, work")


def test_explain_names_missing_and_changed_files(place: Place) -> None:
    program = """
from rhapsody import OutputFile

async def main(flow):
    @flow.executable_task
    def make(*files):
        return "echo made | tee a.txt > b.txt"

    await make(OutputFile("a.txt", save="./"), OutputFile("b.txt", save="./"))
"""
    place.write("wf.py", program)
    place.run()
    for path in place.path.glob(".rhapsody/2*"):
        shutil.rmtree(path)
    place.write("a.txt", "changed\n")
    place.run("--resume")
    assert "ran: a file that it wrote is missing or has changed\n" in explained(place, "make")


def test_explain_without_a_name_lists_all_tasks_of_the_last_run(place: Place) -> None:
    place.run()
    place.write("helpers.py", "def scale(number):\n    return 100 * number\n")
    place.run("--resume")
    work = [f"work (task.00000{n})  ran: scale in helpers.py (line 1) changed" for n in range(1, 6)]
    show = [f"show (task.0000{n:02})  ran: command changed" for n in range(7, 11)]
    done = place.journal("explain")
    assert done.stdout.splitlines() == [*work, "show (task.000006)  reused", *show]


def test_explain_names_arguments_files_versions_and_globals(place: Place) -> None:
    program = """
from rhapsody import InputFile
LIMIT = {limit}

async def main(flow):
    @flow.function_task(version={version!r})
    def first(number, *, key):
        return number

    @flow.function_task
    def second(file: InputFile):
        return LIMIT

    await first({number}, key={key})
    await second(InputFile("in.txt"))
"""
    place.write("in.txt", "one")
    settings = {"limit": 1, "version": "1", "number": 1, "key": 1}
    place.write("wf.py", program.format(**settings))
    place.run()
    place.write("wf.py", program.format(**{**settings, "number": 2, "key": 2}))
    place.write("in.txt", "two")
    place.run("--resume")
    assert "ran: argument 1 changed; argument key changed\n" in explained(place, "first")
    assert "ran: input file in.txt changed\n" in explained(place, "second")
    place.write("wf.py", program.format(**{**settings, "version": "2", "limit": 2}))
    place.run("--resume")
    assert "version changed from 1 to 2" in explained(place, "first")
    assert "LIMIT used by main.<locals>.second in wf.py changed" in explained(place, "second")


def test_explain_compares_with_the_same_call(place: Place) -> None:
    place.write("bad")
    place.run()
    (place.path / "bad").unlink()
    place.run()
    assert explained(place, "task.000004") == (
        "work (task.000004)  ran: it was not recorded before\n"
    )
    assert "work (task.000003)  reused\n" in explained(place, "work")
    place.run()
    assert explained(place, "task.000004") == "work (task.000004)  ran: the run started over\n"


def test_explain_compares_a_failed_run_that_started_over_with_the_run_before(place: Place) -> None:
    place.run()
    place.write("bad")
    place.run()
    assert explained(place, "task.000001") == (
        "work (task.000001)  ran: the run started over; nothing had changed\n"
    )
    place.write("helpers.py", "def scale(number):\n    return 100 * number\n")
    place.run("--fresh")
    assert explained(place, "task.000001") == (
        "work (task.000001)  ran: the run started over; scale in helpers.py (line 1) changed\n"
    )


def test_explain_says_that_failed_tasks_are_not_listed(place: Place) -> None:
    place.write("bad")
    place.run()
    done = place.journal("explain")
    assert "the last run failed: tasks that failed or did not run are not listed" in done.stderr
    (place.path / "bad").unlink()
    place.run()
    assert not place.journal("explain").stderr


def test_explain_compares_a_new_call_with_what_was_given_the_same_only(place: Place) -> None:
    program = """
async def main(flow):
    @flow.function_task
    def work(number):
        return {code}

    for number in {numbers}:
        await work(number)
"""
    place.write("wf.py", program.format(code="number", numbers=[1, 2]))
    place.run()
    place.write("wf.py", program.format(code="-number", numbers=[3, 4, 2, 5]))
    place.run("--resume")
    assert explained(place, "task.000003") == (
        "work (task.000003)  ran: main.<locals>.work in wf.py (line 3) changed\n"
    )
    assert explained(place, "task.000004") == (
        "work (task.000004)  ran: it was not recorded before\n"
    )


def test_explain_names_files_and_what_is_not_recorded(place: Place) -> None:
    place.write(
        "wf.py",
        """
import threading

async def main(flow):
    @flow.function_task
    def read(path):
        return len(open(path).read())

    @flow.function_task
    def lock():
        return threading.Lock()

    await read("in.txt")
    await lock()
""",
    )
    place.write("in.txt", "one")
    place.run()
    place.write("in.txt", "three")
    place.run("--resume")
    assert explained(place, "read") == ("read (task.000001)  ran: file in.txt changed\n")
    assert explained(place, "lock").startswith(
        "lock  ran: it is not recorded: its result cannot be pickled: "
    )


def test_explain_says_what_is_never_recorded(place: Place) -> None:
    place.write(
        "wf.py",
        """
async def main(flow):
    @flow.function_task
    def work():
        return 1

    @flow.function_task(cache=False)
    def ask():
        return 2

    @flow.block
    async def root():
        return await work() + await ask()

    await root()
""",
    )
    place.run()
    for task in ("root", "ask"):
        check_mistake(
            place.journal("explain", task),
            f"the last run recorded no task {task!r} (recorded: work)",
        )


def test_prune_goes_on_after_one_that_is_broken(place: Place) -> None:
    place.run()
    place.run("--", "other")
    first, second = sorted((place.path / ".rhapsody" / "journals").glob("*.sqlite"))
    first.write_text("no database" * 1000)
    os.utime(first, (0, 0))
    os.utime(second, (1, 1))
    done = place.journal("prune", "--older", "30d")
    assert (done.returncode, second.exists()) == (1, False)
    assert "file is not a database" in done.stderr
    assert done.stdout.startswith("removed 1 journal, ")


def test_verify_finds_what_was_changed(place: Place) -> None:
    place.run()
    assert place.journal("verify").stdout.endswith("  no damage found\n")
    with contextlib.closing(sqlite3.connect(journal(place))) as database:
        database.execute("UPDATE recordings SET value = x'00' WHERE uid = 'task.000002'")
        database.commit()
    damaged = place.journal("verify")
    assert damaged.returncode == 1
    assert "damaged: the result of 'work' (task.000002)" in damaged.stderr
    journal(place).write_text("no database" * 1000)
    check_mistake(place.journal("verify"), "cannot be read: file is not a database")
    check_mistake(place.journal("show"), "cannot be read: file is not a database")


def test_prune_removes_what_no_run_can_take_up(place: Place) -> None:
    place.run()
    place.write("helpers.py", "def scale(number):\n    return 100 * number\n")
    place.run("--resume")
    assert place.journal("prune").returncode == 0
    kept = place.journal("show").stdout
    assert [line.split()[3:] for line in kept.splitlines()[2:]] == [
        ["done", "10", "0"],
        ["done", "9", "1"],
    ]
    place.ran()
    place.run("--resume")
    assert place.ran() == {}
    os.utime(journal(place), (0, 0))
    done = place.journal("prune", "--older", "30d")
    assert done.stdout.startswith("removed 1 journal, ")
    assert os.listdir(place.path / ".rhapsody" / "journals") == []
    place.write("helpers.py", "def scale(number):\n    return 10 * number\n")
    assert place.run("--resume").stdout == RESULT
    assert place.ran() == {**WORK, **SHOW}


def test_bad_usage(place: Place) -> None:
    check_mistake(place.journal("show", "work"), "only explain takes a task")
    check_mistake(place.journal("show", "-j", "no.sqlite"), "there is no journal")
