"""Tests of the selection of runs and tasks by names, beginnings of names and numbers."""

from __future__ import annotations

from pathlib import Path

import pytest

from rhapsody.history.reader import RunHistory, RunRecord, TaskRun, read_run
from rhapsody.history.selection import (
    SelectionError,
    find_tasks,
    select_run,
    select_task,
)
from tests._support.histories import Records, call, end, start

NAMES = ["20260101T000000-align-00a1", "20260102T000000-screen-00b2", "20260102T110000-align-00c3"]


@pytest.fixture
def base(tmp_path: Path) -> Path:
    for name in NAMES:
        (tmp_path / name).mkdir()
        (tmp_path / name / "run.jsonl").touch()
    (tmp_path / "20260103T000000-other-00d4").mkdir()  # not recorded
    return tmp_path


@pytest.mark.parametrize(
    ("given", "found"),
    [
        (None, NAMES[2]),
        ("latest", NAMES[2]),
        (NAMES[1], NAMES[1]),
        ("20260101", NAMES[0]),
        ("20260102T0", NAMES[1]),
        ("00b2", NAMES[1]),
    ],
)
def test_a_run_is_selected(base: Path, given: str | None, found: str) -> None:
    assert select_run(given, base) == base / found / "run.jsonl"


def test_a_run_is_selected_by_the_path_of_its_record_or_directory(base: Path) -> None:
    path = base / NAMES[0] / "run.jsonl"
    assert select_run(str(path), base / "none") == path
    assert select_run(str(path.parent), base / "none") == path


def test_an_ambiguous_run_lists_the_candidates(base: Path) -> None:
    with pytest.raises(SelectionError, match="2 runs") as caught:
        select_run("20260102", base)
    assert caught.value.candidates == (NAMES[2], NAMES[1])
    assert all(name in str(caught.value) for name in NAMES[1:])


def test_an_unknown_run_names_similar_ones(base: Path) -> None:
    with pytest.raises(SelectionError, match="did you mean") as caught:
        select_run("20260101T000000-alin", base)
    assert NAMES[0] in caught.value.candidates


def test_a_run_without_a_record_may_not_have_started(base: Path) -> None:
    with pytest.raises(SelectionError, match="rhapsody attach 20260103T000000-other-00d4"):
        select_run("00d4", base)


def test_a_directory_without_records_is_an_error(tmp_path: Path) -> None:
    (tmp_path / NAMES[0]).mkdir()
    for text in (None, "latest"):
        with pytest.raises(SelectionError, match="no recorded runs"):
            select_run(text, tmp_path)


def history(*tasks: tuple[str, str]) -> RunHistory:
    """A history of tasks with these keys and names."""
    found = {
        key: TaskRun(key, ".".join(key.split(".")[-2:]), "engine.1", name) for key, name in tasks
    }
    return RunHistory(RunRecord(Path("x"), "run"), {}, found)


HISTORY = history(
    ("task.000001", "fetch"),
    ("task.000002", "align"),
    ("task.000003", "align_all"),
    ("task.000004", "report"),
    ("task.000005", "report"),
    ("block.000001", "around"),
    ("engine.2.task.000001", "other"),
)


@pytest.mark.parametrize(
    ("given", "found"),
    [
        ("task.000002", "task.000002"),
        ("2", "task.000002"),
        ("000003", "task.000003"),
        ("align", "task.000002"),
        ("align_", "task.000003"),
        ("fe", "task.000001"),
        ("block.000001", "block.000001"),
        ("engine.2.task.000001", "engine.2.task.000001"),
        ("oth", "engine.2.task.000001"),
    ],
)
def test_a_task_is_selected(given: str, found: str) -> None:
    assert select_task(given, HISTORY).key == found


def test_an_ambiguous_task_lists_the_candidates() -> None:
    with pytest.raises(SelectionError, match="2 tasks") as caught:
        select_task("rep", HISTORY)
    assert caught.value.candidates == ("task.000004", "task.000005")
    assert [task.key for task in find_tasks("rep", HISTORY)] == ["task.000004", "task.000005"]


def test_the_number_of_tasks_of_several_engines_is_ambiguous() -> None:
    with pytest.raises(SelectionError) as caught:
        select_task("1", HISTORY)
    assert caught.value.candidates == ("task.000001", "engine.2.task.000001")


def test_many_candidates_are_shortened() -> None:
    many = history(*[(f"task.{number:06d}", "part") for number in range(1, 31)])
    with pytest.raises(SelectionError, match="and 20 more"):
        select_task("part", many)


@pytest.mark.parametrize("given", ["fetsh", "task.00001", "", "9"])
def test_an_unknown_task_is_an_error(given: str) -> None:
    with pytest.raises(SelectionError, match="no task") as caught:
        select_task(given, HISTORY)
    if given == "fetsh":
        assert caught.value.candidates == ("fetch",)
    if given == "9":
        assert "its tasks are named" in str(caught.value)


def test_the_candidates_begin_with_failed_and_running_tasks(tmp_path: Path) -> None:
    records = Records(tmp_path)
    skipped = {"state": "FAILED", "skipped": True}
    lines = [call(number, "part") for number in range(1, 6)]
    lines += [end(1, 0, 0, 1), end(2, 0, None, 1, **skipped), end(3, 0, 0, 1, state="FAILED")]
    found = read_run(records.write(NAMES[0], *lines, start(4, 0)))
    with pytest.raises(SelectionError, match="5 tasks") as caught:
        select_task("part", found)
    assert [key[-1] for key in caught.value.candidates] == ["3", "2", "4", "1", "5"]


@pytest.fixture
def shared(base: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A directory in which the newest recorded run is of another user."""
    monkeypatch.setattr(
        "rhapsody.history.selection.other_owner",
        lambda record: 12345 if record.parent.name == NAMES[2] else None,
    )
    return base


def test_the_newest_run_is_the_newest_of_this_user(shared: Path) -> None:
    assert select_run(None, shared) == shared / NAMES[1] / "run.jsonl"
    assert select_run("latest", shared) == shared / NAMES[1] / "run.jsonl"


def test_a_run_of_another_user_can_be_named_if_no_own_run_matches(shared: Path) -> None:
    assert select_run("00c3", shared) == shared / NAMES[2] / "run.jsonl"
    assert select_run("20260102", shared) == shared / NAMES[1] / "run.jsonl"


def test_only_runs_of_other_users_are_an_error(shared: Path) -> None:
    for name in NAMES[:2]:
        (shared / name / "run.jsonl").unlink()
    with pytest.raises(SelectionError, match="belong to other users"):
        select_run(None, shared)
