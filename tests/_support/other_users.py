"""A directory in which another user has planted records and links."""

from __future__ import annotations

import json
import os
import sys

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

    def link(self, *names: str) -> str:
        """Let mallory link names to a file of alice; return the path of the file."""
        target = self.alice.home / ".bashrc"
        target.write_text("mine")
        self.alice.owns(target)
        for name in names:
            done = self.mallory.run("ln", "-s", str(target), name, cwd=self.accounts.group)
            assert done.returncode == 0, done.stderr
        return str(target)
