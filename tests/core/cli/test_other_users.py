"""Commands in a directory in which another user has planted records and links."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests._support.accounts import Accounts
from tests._support.other_users import OWN, PLANTED, SECRET, Place


@pytest.fixture
def place(accounts: Accounts) -> Place:
    return Place(accounts)


def test_a_run_of_another_user_is_listed_as_theirs_and_never_the_default(place: Place) -> None:
    out, err = place.run(["runs"], ["status"], ["status", PLANTED])
    runs, own, planted = out.split("==> ")[1:]
    assert "OWNER" in runs
    assert str(place.mallory.uid) in runs
    assert "align.py" in own
    assert "id_rsa" in planted
    first, second = err.split("==> ")[2:]
    assert str(place.mallory.uid) not in first
    assert str(place.mallory.uid) in second


def test_nothing_is_written_through_a_link(place: Place) -> None:
    target = place.link(f"{OWN}.trace.json")
    out, _ = place.run(["trace"])
    assert out.split()[-1] == "1"
    assert Path(target).read_text() == "mine"


def test_files_that_the_record_of_another_user_names_are_not_printed(place: Place) -> None:
    out, err = place.run(["logs", PLANTED, "1"], ["logs", PLANTED, "1", "--json"])
    assert [part.split()[-1] for part in out.split("==> ")[1:]] == ["1", "1"]
    assert SECRET not in out + err
    assert f"does not belong to {place.mallory.uid}" in err
