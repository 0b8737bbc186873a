"""Two users of one machine, for tests of what one of them can do to the other."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests._support.load import can_change_user
from tests._support.programs import PATIENCE

GROUP = 23000
"""The group of both users, who have no entries in the system's list of users."""


@dataclass(frozen=True)
class Account:
    """A user.

    Attributes:
        uid: The number of the user, whose own group has the same number.
        home: The home directory.
        rights: Options of `setpriv` for more rights.
    """

    uid: int
    home: Path
    rights: tuple[str, ...] = ()

    def start(
        self, *command: str, cwd: Path, umask: int = 0o022, **variables: str
    ) -> subprocess.Popen[str]:
        """Start a command as this user, with its own home directory and few variables."""
        who = [f"--reuid={self.uid}", f"--regid={self.uid}", f"--groups={GROUP}"]
        return subprocess.Popen(
            ["setpriv", *who, *self.rights, *command],
            cwd=cwd,
            env={"HOME": str(self.home), "PATH": os.environ["PATH"], **variables},
            umask=umask,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(
        self, *command: str, cwd: Path, umask: int = 0o022, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run a command as this user."""
        with self.start(*command, cwd=cwd, umask=umask, **variables) as process:
            try:
                out, err = process.communicate(timeout=PATIENCE)
            finally:
                process.kill()
        return subprocess.CompletedProcess(command, process.returncode, out, err)

    def owns(self, *paths: Path) -> None:
        """Make this user the owner of files."""
        for path in paths:
            os.chown(path, self.uid, -1)

    def rhapsody(
        self, *arguments: str, cwd: Path, umask: int = 0o022, **variables: str
    ) -> subprocess.CompletedProcess[str]:
        """Run `rhapsody` as this user."""
        command = (sys.executable, "-m", "rhapsody", *arguments)
        return self.run(*command, cwd=cwd, umask=umask, **variables)


@dataclass(frozen=True)
class Accounts:
    """Two users and a directory.

    Attributes:
        alice: The user whose files the other one wants to read, remove or replace.
        mallory: The other user.
        group: A directory of root that the group of both may write to, with the setgid bit.
    """

    alice: Account
    mallory: Account
    group: Path


READS = ("--inh-caps=+dac_read_search", "--ambient-caps=+dac_read_search")
"""Rights to read all files, as this Python may be in a directory that only root can enter."""


@pytest.fixture
def accounts() -> Iterator[Accounts]:
    """Two users; the first one can read all files. Skips the test without the rights of root."""
    if not can_change_user():
        pytest.skip("only root can run processes as two other users, with setpriv")
    with tempfile.TemporaryDirectory(prefix="rhapsody-accounts-", dir="/tmp") as directory:
        place = Path(directory)
        place.chmod(0o755)
        alice = Account(GROUP + 1, place / "alice", READS)
        mallory = Account(GROUP + 2, place / "mallory")
        for account in (alice, mallory):
            account.home.mkdir()
            account.home.chmod(0o700)
            account.owns(account.home)
        group = place / "group"
        group.mkdir()
        os.chown(group, 0, GROUP)
        group.chmod(0o2775)
        done = alice.run(sys.executable, "-c", "", cwd=alice.home)
        if done.returncode:
            pytest.skip(f"another user cannot run this Python: {done.stderr}")
        yield Accounts(alice, mallory, group)
