"""Commands in a directory in which another user has planted records and links."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests._support.accounts import Accounts
from tests._support.histories import BEGIN, Records, call, end, finish
from tests._support.other_users import OWN, PLANTED, SECRET, Place


@pytest.fixture
def place(accounts: Accounts) -> Place:
    return Place(accounts)


def test_nothing_is_written_through_a_link(place: Place) -> None:
    target = place.link(f"{OWN}.html", f"{OWN}-crate")
    out, _ = place.run(["report"], ["export"])
    assert [part.split()[-1] for part in out.split("==> ")[1:]] == ["1", "1"]
    assert Path(target).read_text() == "mine"


def test_a_report_of_another_users_run_says_so(place: Place) -> None:
    _, err = place.run(["report", PLANTED, "-o", str(place.alice.home / "r.html")])
    assert f"is the record of user {place.mallory.uid}" in err


def test_files_that_the_record_of_another_user_names_are_not_copied(place: Place) -> None:
    crate = ["export", PLANTED, "-o", str(place.alice.home / "crate"), "--files", "copy"]
    out, err = place.run(crate)
    assert out.split()[-1] == "0"
    assert SECRET not in out + err
    files = [path for path in (place.alice.home / "crate").rglob("*") if path.is_file()]
    assert sorted(path.name for path in files) == [
        "ro-crate-metadata.json", "ro-crate-preview.html"
    ]  # fmt: skip
    assert (
        "sha256"
        not in (files[0].parent / "ro-crate-metadata.json").read_text().partition("@graph")[2]
    )


def test_a_crate_has_only_copies_of_files_in_the_directories_of_the_run(place: Place) -> None:
    inside, link = place.accounts.group / "data.txt", place.accounts.group / "link.txt"
    inside.write_text("data")
    os.utime(inside, (BEGIN - 10, BEGIN - 10))
    link.symlink_to(place.secret)
    named = [
        {"name": path.name, "path": str(path), "size": path.stat().st_size}
        for path in (inside, link, place.secret)
    ]
    records = Records(place.accounts.group)
    lines = [call(1, "part"), end(1, 0, 0, 1, inputs=named), *finish(2.0)]
    run = records.write(OWN, *lines, cwd=str(place.accounts.group))
    place.alice.owns(run, run.parent)
    _, err = place.run(["export", "-o", str(place.alice.home / "crate"), "--files", "copy"])
    copied = sorted(path.name for path in (place.alice.home / "crate/data").rglob("*"))
    assert copied == ["data.txt"]
    assert "link.txt and 1 more" in err
