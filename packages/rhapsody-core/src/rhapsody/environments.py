"""Software environments of executables: containers, conda and virtual environments, modules.

Just before the engine submits a task, `wrap_command` replaces its command: a string with the words
that run it in a shell, see `rhapsody.shells`, and a command that needs an environment with a shell
script that enters the environment and runs the command there. Backends therefore need no code for
either. The journal and error messages use the original command.

The script chooses the container program and initializes environment modules on the machine that
runs the task, because it may be another machine than the engine's. `environment_fault` finds the
mistakes that are visible on the engine's machine.
"""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from rhapsody.sdk.executables import THREAD_COUNTS
from rhapsody.shells import shell_words
from rhapsody.task import TaskDescription

SETTINGS = ("container", "conda", "venv", "modules")
"""Settings of tasks that select an environment, and keys of descriptions."""

PROGRAMS = ("apptainer", "singularity", "podman", "docker")
"""Programs that run containers; the first one that is found is used."""

REGISTRY = "docker://"

_PASSED = ("CUDA_VISIBLE_DEVICES", "PORT", "TRACEPARENT", "TRACESTATE", *THREAD_COUNTS)
"""Variables that backends may set, which Podman and Docker pass on only by name."""

_MODULES = """\
load() {
    command -v module >/dev/null || for init in "$MODULESHOME/init/bash" "$LMOD_PKG/init/bash" \\
        /etc/profile.d/modules.sh /etc/profile.d/lmod.sh /usr/share/modules/init/bash \\
        /usr/share/lmod/lmod/init/bash
    do [ -r "$init" ] && . "$init" && break; done
    module load "$@" </dev/null
}
load NAMES || { echo "rhapsody: cannot load the modules" NAMES "on $(uname -n)" >&2; exit 125; }
"""

_VENV = """\
[ -x ROOT/bin/python ] || { echo "rhapsody: no virtual environment in" ROOT >&2; exit 125; }
unset PYTHONHOME
export VIRTUAL_ENV=ROOT PATH=ROOT/bin:"$PATH"
"""

_CONDA = """\
[ -d ROOT/conda-meta ] || { echo "rhapsody: no conda environment in" ROOT >&2; exit 125; }
export CONDA_PREFIX=ROOT CONDA_DEFAULT_ENV=ROOT PATH=ROOT/bin:"$PATH"
activate() { for file in ROOT/etc/conda/activate.d/*.sh; do [ -r "$file" ] && . "$file"; done; }
activate
"""

# The links in the sandbox lead to input files, which must have the same paths in the container.
# Podman and Docker do not kill the container if they are killed, so the script stops it before the
# backend's grace period ends.
_CONTAINER = """\
sandbox=$1 place=$2
shift 2
for tool in PROGRAMS none; do command -v "$tool" >/dev/null && break; done
case $tool in
none) echo "rhapsody: the container needs ANY on $(uname -n)" >&2; exit 125 ;;
podman) bind=--volume user=0:0; set -- PODMAN "$@" ;;
docker) bind=--volume user=$(id -u):$(id -g); set -- DOCKER "$@" ;;
*) bind=--bind; set -- IMAGE "$@" ;;
esac
bound=:
for path in "$sandbox" "$place" "$sandbox"/* "$sandbox"/.[!.]* "$sandbox"/[0-9]*/*; do
    case $path in "$sandbox"/*) [ -h "$path" ] && path=$(readlink "$path") || continue ;; esac
    case $path in /*) ;; *) continue ;; esac
    case $bound in *:"$path":*) continue ;; esac
    bound=$bound$path:
    set -- $bind "$path:$path" "$@"
done
case $tool in podman | docker) ;; *) exec "$tool" exec --pwd "$place" NVIDIA"$@" ;; esac
id=$(mktemp -u)
trap '"$tool" stop -t 3 "$(cat "$id")" >/dev/null 2>&1; rm -f "$id"; exit 143' HUP INT TERM
exec 3<&0
"$tool" run --rm --interactive --cidfile "$id" --network host --security-opt label=disable \\
    --user "$user" --entrypoint '' --workdir "$place" VARIABLES"$@" <&3 3<&- &
wait $!
code=$?
rm -f "$id"
exit $code
"""


# Checks of the settings.


def path_setting(name: str) -> Callable[[object], str | None]:
    """Return a function that checks `container`, `conda` or `venv` and replaces `~`."""
    accepted = {
        "container": f'an image such as "{REGISTRY}python:3.12", or the path of an image',
        "conda": "the name or the path of a conda environment",
        "venv": "the path of a virtual environment",
    }[name]

    def check(value: object) -> str | None:
        if value is None:
            return None
        text = os.fspath(value) if isinstance(value, str | os.PathLike) else None
        if not isinstance(text, str):
            raise TypeError(f"{name} must be {accepted}, got {value!r}")
        registry = name == "container" and text.startswith(REGISTRY)
        if not text or "\0" in text or ("://" in text and not registry) or text == REGISTRY:
            raise ValueError(f"{name} must be {accepted}, got {value!r}")
        return os.path.expanduser(text)

    return check


def modules(value: object) -> tuple[str, ...]:
    """Check the setting `modules`."""
    names = (value,) if isinstance(value, str) else value
    if value is None:
        return ()
    if not isinstance(names, Iterable) or isinstance(names, Mapping):
        raise TypeError(f'modules must be a list of names such as ["gcc/12"], got {value!r}')
    names = tuple(names)
    for name in names:
        if not isinstance(name, str) or not re.fullmatch(r"[^\s\0-][^\s\0]*", name):
            raise ValueError(f'modules must contain names such as "gcc/12", got {name!r}')
    return names


def is_path(name: str, value: str) -> bool:
    """Return True if the value of a setting is a path, not the name of an image or environment."""
    if name == "conda":
        return "/" in value
    return name in ("cwd", "venv") or (name == "container" and not value.startswith(REGISTRY))


def in_environment(task: Mapping[str, Any]) -> bool:
    """Return True if a task's description has `container`, `conda`, `venv` or `modules`."""
    return any(name in task for name in SETTINGS)


def environment_conflict(settings: Mapping[str, Any]) -> Exception | None:
    """Return the error for settings of a task that cannot be combined, or `None`.

    Args:
        settings: The values of `SETTINGS` that are set.
    """
    first, *others = settings or ("",)
    others = [each for each in others if each != "modules"]
    if others:
        return ValueError(
            f"{first}={settings[first]!r} and {others[0]}={settings[others[0]]!r} cannot be "
            f"combined; set {first}=None or {others[0]}=None"
        )
    return None


def environment_fault(task: Mapping[str, Any], *, shared: bool, here: bool) -> str | None:
    """Return why the environment of a task cannot be used, or `None`.

    Args:
        task: The task's description, or the values of `SETTINGS` that are set.
        shared: True if the task sees the files of this machine.
        here: True if the task runs on this machine.
    """
    container, conda, venv = task.get("container"), task.get("conda"), task.get("venv")
    if conda is not None and not is_path("conda", conda):
        known = dict(_conda_environments())
        if conda not in known:
            return (
                f"conda={conda!r} was not found; environments: {', '.join(known) or 'none'}. Pass "
                "its path, or create it with `conda create`"
            )
    elif conda is not None and shared and not os.path.isdir(os.path.join(conda, "conda-meta")):
        return f"conda={conda!r} is not a conda environment: it has no directory conda-meta"
    if venv is not None and shared and not os.access(os.path.join(venv, "bin/python"), os.X_OK):
        created = f"create it with `python -m venv {shlex.quote(venv)}`"
        return f"venv={venv!r} is not a virtual environment: it has no bin/python; {created}"
    if container is None:
        return None
    if is_path("container", container) and shared and not os.path.exists(container):
        return (
            f"container={container!r} does not exist; for an image of a registry, write docker://"
        )
    programs = _programs(container)
    if here and not task.get("modules") and not any(map(shutil.which, programs)):
        return f"container={container!r} needs {_any(programs)}, and none of them is installed"
    return None


# The script.


def wrap_command(task: TaskDescription, *, here: bool) -> None:
    """Replace the command of an executable task with one that runs it in its environment.

    Afterwards, the command is a program with arguments.

    Args:
        task: The task's description.
        here: True if the task runs on this machine.

    Raises:
        CapabilityError: The command is too long for the task's other settings.
    """
    container, conda, venv = task.get("container"), task.get("conda"), task.get("venv")
    arguments = task.get("arguments")
    if arguments is None:
        words = shell_words(task, here=here and container is None)
    else:
        words = [str(task["executable"]), *arguments]
    if in_environment(task):
        words = _in_environment(task, words, container, conda, venv)
    task["executable"], task["arguments"] = words[0], words[1:]


def _in_environment(
    task: TaskDescription,
    words: list[str],
    container: str | None,
    conda: str | None,
    venv: str | None,
) -> list[str]:
    """Return the words of a script that enters an environment and runs a command there."""
    script = ""
    if "modules" in task:
        script += _MODULES.replace("NAMES", shlex.join(task["modules"]))
    if venv is not None:
        script += _VENV.replace("ROOT", shlex.quote(venv))
    if conda is not None:
        prefix = conda if is_path("conda", conda) else dict(_conda_environments()).get(conda, conda)
        script += _CONDA.replace("ROOT", shlex.quote(prefix))
    if container is not None:
        script += _container(task, container)
        words = [task["sandbox"], task.get("cwd") or task["sandbox"], *words]
    else:
        script += 'exec "$@"\n'
    # Modules and conda packages come with scripts for bash.
    shell = "/bin/sh" if conda is None and "modules" not in task else "bash"
    return [shell, "-c", script, "rhapsody", *words]


def _container(task: TaskDescription, container: str) -> str:
    programs, resources = _programs(container), task.get("resources")
    gpus = resources is not None and resources.gpus > 0
    names = sorted({*_PASSED, *task.get("environment", {})})
    options = [*(f"--env={name}" for name in names), *(["--gpus=all"] if gpus else [])]
    image = shlex.quote(container)
    parts = {
        "PROGRAMS": " ".join(programs),
        "ANY": _any(programs),
        "PODMAN": image if container.startswith(REGISTRY) else f"--rootfs {image}:O",
        "DOCKER": shlex.quote(container.removeprefix(REGISTRY)),
        "IMAGE": image,
        "NVIDIA": "--nv " if gpus else "",
        "VARIABLES": f"{shlex.join(options)} ",
    }
    return re.sub("|".join(parts), lambda found: parts[found[0]], _CONTAINER)


def _programs(container: str) -> tuple[str, ...]:
    """Return the programs that can run an image: from a registry, a directory or a file."""
    if container.startswith(REGISTRY):
        return PROGRAMS
    return PROGRAMS[:3] if os.path.isdir(container) else PROGRAMS[:2]


def _any(programs: tuple[str, ...]) -> str:
    return f"{', '.join(programs[:-1])} or {programs[-1]}"


def _conda_environments() -> Iterator[tuple[str, str]]:
    """Yield the names and paths of the conda environments that conda lists on this machine."""
    home = Path(os.path.expanduser("~")) / ".conda"  # `Path.home()` fails without a home directory
    program = os.environ.get("CONDA_EXE") or shutil.which("conda") or ""
    roots = [os.environ.get("MAMBA_ROOT_PREFIX"), program and os.path.dirname(program) + "/.."]
    places = [Path(os.path.abspath(root)) for root in roots if root]
    yield from (("base", str(place)) for place in places if (place / "conda-meta").is_dir())
    searched = os.environ.get("CONDA_ENVS_PATH") or os.environ.get("CONDA_ENVS_DIRS") or ""
    folders = [*map(Path, filter(None, searched.split(os.pathsep))), home / "envs"]
    for folder in (*folders, *(place / "envs" for place in places)):
        for path in sorted(folder.glob("*/conda-meta")):
            yield path.parent.name, str(path.parent)
    listed = home / "environments.txt"  # conda and mamba add every new environment
    for line in listed.read_text().splitlines() if listed.is_file() else ():
        if os.path.isdir(os.path.join(line.strip(), "conda-meta")):
            yield os.path.basename(line.strip()), line.strip()
