"""Connection of the program to its RADICAL-Pilot client, a process that this module starts.

One thread reads the client's messages, and another calls users' callbacks in order. The end of the
client is detected by the end of the socket or by waiting for the process, whichever comes first,
because forked processes of either side may hold copies of the socket.

RADICAL-Pilot starts its processes by name, and is configured by environment variables. The backend
sets these variables for the client only. The files that RADICAL-Pilot and PSI/J would leave in the
home directory are kept in the session's directory.
"""

from __future__ import annotations

import atexit
import logging
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import sysconfig
import threading
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rhapsody import BackendUnavailableError
from rhapsody.backends import looks_secret
from rhapsody.sdk import start_thread
from rhapsody_radical import cleanup
from rhapsody_radical.cleanup import MARK, PILOT
from rhapsody_radical.functions import own_path
from rhapsody_radical.pilot import PilotException
from rhapsody_radical.remote import Remotes
from rhapsody_radical.wire import Channel

log: logging.Logger = logging.getLogger("rhapsody.radical")

VERSION: str = version("rhapsody-radical")
"""The version when this module was imported; a later installation changes the metadata."""

COMPONENT = "radical-pilot-component"

PROGRAM = "home/program.sh"
"""Script in the session's directory that restores the program's variables in a task."""

COMMANDS = "home/commands.sh"
"""Script in the session's directory that starts `rhapsody_radical.command` for a RAPTOR worker."""

CHANGED = (
    "PYTHONHOME PYTHONPATH PYTHONNOUSERSITE VIRTUAL_ENV VIRTUAL_ENV_PROMPT _OLD_VIRTUAL_PATH "
    "_OLD_VIRTUAL_PYTHONPATH _OLD_VIRTUAL_PYTHONHOME _OLD_VIRTUAL_PS1 LC_NUMERIC MAKEFLAGS "
    "SBATCH_EXPORT SBATCH_JOB_NAME"
)
"""Variables that RADICAL-Pilot or the backend sets, and that tasks would inherit."""

OF_A_PROCESS = re.compile(
    r"SLURM_.*|RP_.*|HOSTNAME|PWD|OLDPWD|SHLVL|_|(?![A-Za-z_][A-Za-z0-9_]*$).*"
)
"""Names of variables that tasks do not receive: those of one process or job, and invalid names."""


def variables(directory: Path, session: str, *, verbose: bool) -> dict[str, str]:
    """Return the environment of a session's client.

    The client's descendants inherit this environment, and are identified by it. It contains
    `SPT_NOENV`, because RADICAL-Pilot's processes set titles: without this variable, the titles
    would overwrite the environment that the system shows. It does not contain `RP_PILOT_ID`: a
    client that was started by a task of another session does not belong to that session's pilot.
    RADICAL-Pilot writes its environment into scripts. Therefore, variables whose names look secret
    are left out, and so are variables whose values a script would change or execute.

    Args:
        directory: The session's directory.
        session: The session's uid.
        verbose: True if RADICAL-Pilot prints reports on standard error.

    Raises:
        BackendUnavailableError: RADICAL-Pilot's programs are not found.
    """
    found = {
        name: value
        for name, value in os.environ.items()
        if name != PILOT and not looks_secret(name) and not set(value) & set("$`\\\n")
    }
    path = [str(directory / "bin"), str(scripts()), found.get("PATH", os.defpath)]
    found.update(
        {
            MARK: session,
            "SPT_NOENV": "1",
            # RADICAL-Pilot starts its processes by their names.
            "PATH": os.pathsep.join(path),
            # The directory for RADICAL-Pilot's counters and locks, instead of the home directory.
            "RADICAL_BASE": str(directory),
            "RADICAL_REPORT": "TRUE" if verbose else "FALSE",
            "RADICAL_PILOT_REPORT": "TRUE" if verbose else "FALSE",
        }
    )
    found.pop("RADICAL_PILOT_BULK_CB", None)  # it would make callbacks receive lists
    # The user's configuration is read although the launcher has another HOME.
    found.setdefault("RADICAL_CONFIG_USER_DIR", os.path.expanduser("~"))
    # Profiling starts several processes per task.
    found.setdefault("RADICAL_PROFILE", "FALSE")
    if sys.prefix != sys.base_prefix and "CONDA_PREFIX" not in found:
        # The agent is started in a login shell, which sets another PATH.
        found["VIRTUAL_ENV"] = sys.prefix
    return found


def prepare(directory: Path) -> None:
    """Write the files to which the client's environment refers, in the session's directory.

    The process that launches pilots uses PSI/J, which writes to `.psij` in the home directory, and
    leaves a temporary file for each pilot. This process therefore has other home and temporary
    directories. Pilots inherit its environment. In Slurm jobs, they inherit it because
    `SBATCH_EXPORT` is set; otherwise, Slurm would run a login shell to create an environment. The
    pilot's own login shell restores the real directories and reads the user's profile.
    """
    own, home, temporary = (directory / name for name in ("bin", "home", "tmp"))
    for each in (own, home, temporary):
        each.mkdir(mode=0o700)
    name = re.sub(r"[^\w.-]", "-", Path(sys.argv[0] or "python").stem)
    wrapper = own / COMPONENT
    wrapper.write_text(
        f"#!/bin/sh\nHOME={shlex.quote(str(home))}\nTMPDIR={shlex.quote(str(temporary))}\n"
        f'export HOME TMPDIR SBATCH_EXPORT="${{SBATCH_EXPORT:-ALL}}"\n'
        f'export SBATCH_JOB_NAME="${{SBATCH_JOB_NAME:-rhapsody-{name}}}"\n'
        f'exec {shlex.quote(str(scripts() / COMPONENT))} "$@"\n'
    )
    wrapper.chmod(0o700)
    (directory / PROGRAM).write_text(_restored(), errors="surrogateescape")
    former = os.environ.get("TMPDIR")
    restore = "unset TMPDIR" if former is None else f"export TMPDIR={shlex.quote(former)}"
    (home / ".bash_profile").write_text(
        f"export HOME={shlex.quote(os.path.expanduser('~'))}\n{restore}\n"
        'for profile in "$HOME/.bash_profile" "$HOME/.bash_login" "$HOME/.profile"; do\n'
        '    if [ -r "$profile" ]; then . "$profile"; break; fi\n'
        "done\n"
        # If VIRTUAL_ENV is set, RADICAL-Pilot would append an empty entry to PATH.
        "unset profile VIRTUAL_ENV\n"
        f"export PATH={shlex.quote(os.environ.get('PATH', os.defpath))}\n"
    )


def _restored() -> str:
    """Return shell commands that restore the program's variables, except secret-looking ones."""
    lines = [f"unset {CHANGED}"]
    lines += [
        f"export {name}={shlex.quote(value)}"
        for name, value in os.environ.items()
        if not OF_A_PROCESS.fullmatch(name) and not looks_secret(name)
    ]
    return "\n".join([*lines, ""])


def scripts() -> Path:
    """Return the directory of RADICAL-Pilot's programs.

    Raises:
        BackendUnavailableError: The programs are not found.
    """
    places = [Path(sysconfig.get_path("scripts")), Path(sys.executable).parent]
    found = shutil.which(COMPONENT)
    if found is not None:
        places.append(Path(found).parent)
    for place in places:
        if (place / COMPONENT).exists():
            return place
    raise BackendUnavailableError(
        f"RADICAL-Pilot's programs ({COMPONENT} and others) are neither in {places[0]} nor in "
        "PATH. Reinstall them: pip install --force-reinstall radical.pilot"
    )


LOG = "client.log"
CLOSE_LIMIT = 120.0
"""Time limit in seconds for closing the client, after which its session is ended by force."""

EXIT_LIMIT = 60.0
"""Time limit in seconds for closing the client if the program ends without a shutdown."""

EXIT_TIMEOUT = 5.0
"""Time limit in seconds for the end of a client that has closed its connection."""

NOTICE_AFTER = 2.0
"""Seconds after which a warning is logged if the client is still closing."""


class ClientConnection:
    """Connection to one client.

    Args:
        uid: The session's uid.
        directory: The session's directory; `open` creates it and its parents.
        receive: Called with the name and parts of messages about tasks and pilots, on the reading
            thread.
        on_lost: Called with the reason if the client ends unexpectedly, on the reading thread.

    Attributes:
        remotes: The remote objects, which represent RADICAL-Pilot's objects in the client.
        directory: The session's directory.
        ended: Event that is set when the client has ended.
        closing: True once a shutdown or the end of the program has started to close the client.
    """

    _process: subprocess.Popen[bytes]
    _channel: Channel

    def __init__(
        self,
        uid: str,
        directory: Path,
        receive: Callable[..., None],
        on_lost: Callable[[str], None],
    ) -> None:
        self.uid = uid
        self.directory = directory
        self._receive = receive
        self._on_lost = on_lost
        self._made = [place for place in directory.parents if not place.exists()]
        self._opened = False
        self.closing: bool = False
        self._keep: bool | None = None
        self._lock = threading.Lock()
        self._owner = os.getpid()
        self.ended: threading.Event = threading.Event()
        self.remotes: Remotes = Remotes(self.send, self.ended)

    # Start and end.

    def open(self, settings: Mapping[str, Any], *, verbose: bool) -> Any:
        """Start the client, and wait until its session is running.

        Args:
            settings: Further settings for the client.
            verbose: True if RADICAL-Pilot prints reports on standard error.

        Returns:
            The client's reply.

        Raises:
            PilotException: The session cannot be started; the text contains the reason.
        """
        known = {
            "version": VERSION,
            "uid": self.uid,
            "directory": str(self.directory),
            "made": [str(place) for place in self._made],
            "here": os.getcwd(),
            "path": own_path(),
        }
        with self._lock:  # a connection cannot be closed while it is being opened
            if self.closing:
                raise PilotException("RADICAL-Pilot's client is closed. Create a new backend")
            self._keep = settings["keep"]
            started = self.remotes.waiting[0] = Future[Any]()
            self._start_process(verbose=verbose)
            with suppress(PilotException):  # the reading thread detects the end of the client
                self.send("open", {**known, **settings})
        return started.result()

    def _start_process(self, *, verbose: bool) -> None:
        environment = variables(self.directory, self.uid, verbose=verbose)
        self.directory.mkdir(parents=True, mode=0o700)
        prepare(self.directory)
        own_end, client_end = socket.socketpair()
        words = [sys.executable, "-P", "-m", "rhapsody_radical.client"]
        words += [str(client_end.fileno()), str(os.getpid())]
        try:
            with open(self.directory / LOG, "ab", opener=_private) as output:
                self._process = subprocess.Popen(
                    words,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=None if verbose else output,
                    cwd=self.directory,
                    env=environment,
                    pass_fds=[client_end.fileno()],
                    start_new_session=True,
                )
        except BaseException:
            own_end.close()
            raise
        finally:
            client_end.close()
        self._channel = Channel(own_end)
        self._opened = True
        _open.add(self)
        for target in (self._wait, self._read):
            start_thread(target, f"rhapsody-radical{target.__name__.replace('_', '-')}")

    def close(self, *, keep: bool | None, limit: float = CLOSE_LIMIT) -> None:
        """Close the session and wait for the client to end; kill the client after a time limit.

        Args:
            keep: True to keep the session's directory, False to remove it, `None` to keep it only
                if a pilot failed.
            limit: The time limit in seconds.
        """
        with self._lock:
            first, self.closing = not self.closing, True
        if not self._opened:
            self.remotes.callbacks.stop()
            return
        if first:
            self._keep = keep
            # On a thread, because sending blocks while the client does not read.
            start_thread(self._ask_to_close, "rhapsody-radical-close")
        if not self.ended.wait(NOTICE_AFTER):
            log.warning(
                "RADICAL-Pilot session %s: closing, waiting for its pilots and their processes to "
                "end; this takes up to 20 s", self.uid,
            )  # fmt: skip
        if not self.ended.wait(limit - NOTICE_AFTER):
            log.warning(
                "RADICAL-Pilot session %s: killing its client, which did not close the session "
                "within %g s; the session's files are in %s", self.uid, limit, self.directory,
            )  # fmt: skip
            self.end_by_force()
            self.ended.wait(10)
        _open.discard(self)
        self.remotes.callbacks.stop()

    def _ask_to_close(self) -> None:
        with suppress(PilotException):  # the client has ended
            self.send("close", self._keep)

    def end_by_force(self) -> None:
        """End all processes of the session on this machine, and its batch jobs."""
        cleanup.end_session(cleanup.place(self.directory.parent), self.uid)

    def at_exit(self) -> None:
        """Close the client if the program ends without a shutdown.

        If the client is already closing, the program was interrupted during the shutdown. In this
        case, do not wait: the client finishes closing after the program has ended.
        """
        if os.getpid() == self._owner and not self.closing:  # a fork does not own the client
            self.close(keep=self._keep, limit=EXIT_LIMIT)

    def _wait(self) -> None:
        code = self._process.wait()
        log.debug("RADICAL-Pilot session %s: client exited with code %s", self.uid, code)
        self._channel.shut()  # forks of the program may hold its other end

    def _read(self) -> None:
        self.remotes.reader = threading.get_ident()
        try:
            while (messages := self._channel.receive()) is not None:
                for message in messages:
                    self._dispatch(*message)
        except Exception:  # the client loads another version of this package
            log.exception("RADICAL-Pilot session %s: invalid message from its client", self.uid)
        finally:
            self._on_client_end()

    def _on_client_end(self) -> None:
        """Fail all calls that wait for the client; clean up if the client ended unexpectedly."""
        self._channel.shut()
        try:
            code = self._process.wait(EXIT_TIMEOUT)
        except subprocess.TimeoutExpired:  # it has sent an invalid message
            self._process.kill()
            code = self._process.wait()
        reason = f"RADICAL-Pilot's client ended: {_tail(self.directory / LOG)}"
        if self._keep is not False:
            reason += f" (log: {self.directory / LOG})"
        if code or not self.closing:
            self._on_lost(reason)
            self.end_by_force()
            if self._keep is False:
                shutil.rmtree(self.directory, ignore_errors=True)
        self._channel.close()
        self.ended.set()
        self.remotes.end(PilotException(reason))

    # Messages to the client.

    def send(self, name: str, *parts: Any) -> None:
        """Send a message; block while the client does not read.

        Raises:
            PilotException: The client has ended.
        """
        try:
            self._channel.send((name, *parts))
        except OSError as error:
            raise PilotException("RADICAL-Pilot's client has ended") from error

    # Messages from the client; on the reading thread.

    def _dispatch(self, name: str, *parts: Any) -> None:
        """Process one message, and log exceptions of the code that it calls."""
        try:
            if name == "reply":
                self.remotes.reply(*parts)
            elif name == "log":
                logger = logging.getLogger(parts[0]["name"])
                if logger.isEnabledFor(parts[0]["levelno"]):
                    logger.handle(logging.makeLogRecord(parts[0]))
            else:
                self._receive(name, *parts)
        except Exception:  # raised by a callback or a logging handler
            with suppress(Exception):
                log.exception("RADICAL-Pilot session %s: cannot process message %r", self.uid, name)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _tail(path: Path) -> str:
    """Return the end of the client's log."""
    try:
        lines = path.read_text(errors="replace").strip().splitlines()
    except OSError:
        return "its log is missing"
    return " / ".join(line.strip() for line in lines[-3:])[-1000:] or "it printed nothing"


_open: set[ClientConnection] = set()


def _at_exit() -> None:
    """Close the connections that are still open when the program ends without a shutdown."""
    for connection in list(_open):
        connection.at_exit()


# Run before the interpreter waits for threads, as for `concurrent.futures`: closing starts threads,
# which is impossible later.
getattr(threading, "_register_atexit", atexit.register)(_at_exit)
