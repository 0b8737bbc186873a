"""Commands in a directory in which another user has planted records and links."""

from __future__ import annotations

import json
import os
import sys

import pytest

from tests._support.accounts import Accounts
from tests._support.histories import BEGIN, Records, call, end, finish

OWN = "20260102T000000-align-00b2"
PLANTED = "20990101T000000-align-ffff"
SECRET = "-----BEGIN OPENSSH PRIVATE KEY-----"

COMMANDS = """
import json, sys
from rhapsody.cli import main
for words in json.loads(sys.argv[1]):
    print(f"==> {words[0]}", flush=True)
    sys.stderr.write(f"==> {words[0]}\\n")
    print(main(words), flush=True)
"""
"""Runs several commands in one process."""


class Place:
    """A directory of a group with a run of alice and a planted one."""

    def __init__(self, accounts: Accounts) -> None:
        self.accounts = accounts
        self.alice, self.mallory = accounts.alice, accounts.mallory
        self.secret = self.alice.home / "id_rsa"
        self.secret.write_text(SECRET)
        os.utime(self.secret, (BEGIN - 10, BEGIN - 10))
        self.secret.chmod(0o600)
        named = {"name": "key", "path": str(self.secret), "size": len(SECRET)}
        planted = [call(1, "part"), end(1, 0, 0, 1, inputs=[named], stdout_path=str(self.secret))]
        own = [call(1, "part"), end(1, 0, 0, 1)]
        records = Records(accounts.group)
        records.write(PLANTED, *planted, *finish(2.0), program=str(self.secret))
        records.write(OWN, *own, *finish(2.0))
        records.base.chmod(0o2770)
        for name, account in ((PLANTED, self.mallory), (OWN, self.alice)):
            run = records.base / name
            account.owns(run, run / "run.jsonl")
            run.chmod(0o755)
        self.alice.owns(self.secret)

    def run(self, *commands: list[str]) -> tuple[str, str]:
        """Run commands as alice; return their output and their errors."""
        words = (sys.executable, "-c", COMMANDS, json.dumps(commands))
        done = self.alice.run(*words, cwd=self.accounts.group)
        assert done.returncode == 0, done.stderr
        return done.stdout, done.stderr


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
    target = place.alice.home / ".bashrc"
    target.write_text("mine")
    place.alice.owns(target)
    names = [f"{OWN}.trace.json", f"{OWN}.html", f"{OWN}-crate"]
    for name in names:
        done = place.mallory.run("ln", "-s", str(target), name, cwd=place.accounts.group)
        assert done.returncode == 0, done.stderr
    out, _ = place.run(["trace"], ["report"], ["export"])
    assert [part.split()[-1] for part in out.split("==> ")[1:]] == ["1", "1", "1"]
    assert target.read_text() == "mine"


def test_files_that_the_record_of_another_user_names_are_not_copied_or_printed(
    place: Place,
) -> None:
    crate = ["export", PLANTED, "-o", str(place.alice.home / "crate"), "--files", "copy"]
    out, err = place.run(crate, ["logs", PLANTED, "1"], ["logs", PLANTED, "1", "--json"])
    assert [part.split()[-1] for part in out.split("==> ")[1:]] == ["0", "1", "1"]
    assert SECRET not in out + err
    assert f"does not belong to {place.mallory.uid}" in err
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
