"""The environment that RADICAL-Pilot's processes need, set while they are started.

RADICAL-Pilot starts its processes by name and reads variables that users are told to
set. Here the backend sets them, for as long as the start takes, and keeps what
RADICAL-Pilot and PSI/J would leave in the home directory in the backend's own.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from rhapsody.errors import BackendUnavailableError
from rhapsody_radical.library import BASE, keep_counters_in

MARK = "RADICAL_RHAPSODY"
"""Names the session in the environment of its processes. RADICAL-Pilot hands variables
that begin with `RADICAL_` on to its pilots."""

COMPONENT = "radical-pilot-component"
BRIDGE = "radical-pilot-bridge"

_starting = threading.Lock()
_holding = threading.Lock()
_holders: dict[str, str] = {}


class Environment:
    """The variables for one session.

    Args:
        directory: The backend's directory, which exists.
        session: The session's uid.
        verbose: Whether RADICAL-Pilot reports on standard error.

    Raises:
        BackendUnavailableError: RADICAL-Pilot's programs are not where its package is.
    """

    def __init__(self, directory: Path, session: str, *, verbose: bool) -> None:
        self._directory = directory
        self._session = session
        self._verbose = verbose
        self._scripts = scripts()

    def variables(self) -> dict[str, str]:
        """What is set while RADICAL-Pilot's processes are started."""
        own = self._directory / "bin"
        home = os.path.expanduser("~")
        found = {
            # Its processes are started by their names.
            "PATH": os.pathsep.join(
                [str(own), str(self._scripts), os.environ.get("PATH", os.defpath)]
            ),
            # Its counters and locks go there, else to the home directory.
            BASE: str(self._directory),
            # Its configuration stays where users have it, although HOME is another.
            "RADICAL_CONFIG_USER_DIR": os.environ.get("RADICAL_CONFIG_USER_DIR", home),
            "RADICAL_REPORT": "TRUE" if self._verbose else "FALSE",
            "RADICAL_PILOT_REPORT": "TRUE" if self._verbose else "FALSE",
            # Profiling starts several processes per task.
            "RADICAL_PROFILE": os.environ.get("RADICAL_PROFILE", "FALSE"),
            MARK: self._session,
        }
        if sys.prefix != sys.base_prefix and "CONDA_PREFIX" not in os.environ:
            # The agent is started in a login shell, which has a PATH of its own.
            found["VIRTUAL_ENV"] = sys.prefix
        return found

    def prepare(self) -> None:
        """Writes the files behind the variables."""
        own, home, temporary = (self._directory / name for name in ("bin", "home", "tmp"))
        for directory in (own, home, temporary):
            directory.mkdir(mode=0o700, exist_ok=True)
        real = os.path.expanduser("~")
        # PSI/J, in the process that launches pilots, writes to `.psij` in the home
        # directory, and RADICAL-Pilot leaves a temporary file there for each pilot. A pilot
        # on this machine inherits that process's environment: its login shell takes the
        # real directories back, and reads what it would have read.
        # A session of their own keeps the terminal's Ctrl-C from them.
        setsid = "setsid " if shutil.which("setsid") else ""
        for name, lines in (
            (
                COMPONENT,
                f"HOME={shlex.quote(str(home))}\nTMPDIR={shlex.quote(str(temporary))}\n"
                "export HOME TMPDIR\n",
            ),
            (BRIDGE, ""),
        ):
            wrapper = own / name
            program = shlex.quote(str(self._scripts / name))
            wrapper.write_text(f'#!/bin/sh\n{lines}exec {setsid}{program} "$@"\n')
            wrapper.chmod(0o700)
        (home / ".bash_profile").write_text(
            f"export HOME={shlex.quote(real)}\n{_temporary_again()}\n"
            'for profile in "$HOME/.bash_profile" "$HOME/.bash_login" "$HOME/.profile"; do\n'
            '    if [ -r "$profile" ]; then . "$profile"; break; fi\n'
            "done\n"
            "unset profile\n"
        )

    @contextmanager
    def applied(self) -> Iterator[None]:
        """Sets the variables inside the block. One session at a time, as they are the process's."""
        with _starting, _set(self.variables()):
            yield

    def hold(self) -> None:
        """Keeps RADICAL-Pilot's counters out of the home directory until `release`."""
        with _holding:
            _holders[self._session] = str(self._directory)
            keep_counters_in(str(self._directory))

    def release(self) -> None:
        """Takes `hold` back."""
        with _holding:
            if _holders.pop(self._session, None) is not None:
                keep_counters_in(next(reversed(_holders.values()), None))


def _temporary_again() -> str:
    """The command that takes the user's own directory for temporary files back."""
    theirs = os.environ.get("TMPDIR")
    return "unset TMPDIR" if theirs is None else f"export TMPDIR={shlex.quote(theirs)}"


def agents_temporary(session: str) -> str:
    """The directory that a session's agents make for temporary files, and never remove."""
    return os.path.join(os.environ.get("TMPDIR", "/tmp"), session)  # noqa: S108 - RADICAL-Pilot's


def scripts() -> Path:
    """Where RADICAL-Pilot's programs are installed.

    Raises:
        BackendUnavailableError: They are not found.
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
        "PATH; to install them again: pip install --force-reinstall radical.pilot"
    )


@contextmanager
def _set(variables: Mapping[str, str]) -> Iterator[None]:
    former = {name: os.environ.get(name) for name in variables}
    os.environ.update(variables)
    try:
        yield
    finally:
        for name, value in former.items():
            _restore(name, value)


def _restore(name: str, value: str | None) -> None:
    if value is None:
        os.environ.pop(name, None)
    else:
        os.environ[name] = value
