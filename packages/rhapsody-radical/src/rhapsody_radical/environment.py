"""Environment of RADICAL-Pilot's client and its processes.

RADICAL-Pilot starts its processes by name and reads variables that users have to set. Here
they are set only for the client, and the files that RADICAL-Pilot and PSI/J would leave in the home
directory are kept in the session's directory.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from pathlib import Path

from rhapsody import BackendUnavailableError
from rhapsody_radical.cleanup import MARK, PILOT

COMPONENT = "radical-pilot-component"


def variables(directory: Path, session: str, *, verbose: bool) -> dict[str, str]:
    """Return the environment of a session's client, in which all of its processes are found.

    RADICAL-Pilot's processes write their titles over what the system shows of their
    environment, unless `SPT_NOENV` is set. A client that is itself started by a task of
    another session does not belong to that session's pilot.

    Args:
        directory: The session's directory.
        session: Its uid.
        verbose: Whether RADICAL-Pilot reports on standard error.

    Raises:
        BackendUnavailableError: RADICAL-Pilot's programs are not where its package is.
    """
    found = {name: value for name, value in os.environ.items() if name != PILOT}
    path = [str(directory / "bin"), str(scripts()), found.get("PATH", os.defpath)]
    found.update(
        {
            MARK: session,
            "SPT_NOENV": "1",
            # Its processes are started by their names.
            "PATH": os.pathsep.join(path),
            # Its counters and locks go there, else to the home directory.
            "RADICAL_BASE": str(directory),
            "RADICAL_REPORT": "TRUE" if verbose else "FALSE",
            "RADICAL_PILOT_REPORT": "TRUE" if verbose else "FALSE",
        }
    )
    found.pop("RADICAL_PILOT_BULK_CB", None)  # its callbacks would get lists
    # Its configuration stays where users have it, although the launcher's HOME is another.
    found.setdefault("RADICAL_CONFIG_USER_DIR", os.path.expanduser("~"))
    # Profiling starts several processes per task.
    found.setdefault("RADICAL_PROFILE", "FALSE")
    if sys.prefix != sys.base_prefix and "CONDA_PREFIX" not in found:
        # The agent is started in a login shell, which has a PATH of its own.
        found["VIRTUAL_ENV"] = sys.prefix
    return found


def prepare(directory: Path) -> None:
    """Write the files that the variables refer to into the session's directory.

    PSI/J, in the process that launches pilots, writes to `.psij` in the home directory, and
    RADICAL-Pilot leaves a temporary file there for each pilot: that process gets others. A pilot
    on this machine inherits its environment: its login shell takes the real directories back, and
    reads what it would have read.
    """
    own, home, temporary = (directory / name for name in ("bin", "home", "tmp"))
    for each in (own, home, temporary):
        each.mkdir(mode=0o700)
    wrapper = own / COMPONENT
    wrapper.write_text(
        f"#!/bin/sh\nHOME={shlex.quote(str(home))}\nTMPDIR={shlex.quote(str(temporary))}\n"
        f'export HOME TMPDIR\nexec {shlex.quote(str(scripts() / COMPONENT))} "$@"\n'
    )
    wrapper.chmod(0o700)
    theirs = os.environ.get("TMPDIR")
    again = "unset TMPDIR" if theirs is None else f"export TMPDIR={shlex.quote(theirs)}"
    (home / ".bash_profile").write_text(
        f"export HOME={shlex.quote(os.path.expanduser('~'))}\n{again}\n"
        'for profile in "$HOME/.bash_profile" "$HOME/.bash_login" "$HOME/.profile"; do\n'
        '    if [ -r "$profile" ]; then . "$profile"; break; fi\n'
        "done\n"
        "unset profile\n"
    )


def scripts() -> Path:
    """Return the directory of RADICAL-Pilot's programs.

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
