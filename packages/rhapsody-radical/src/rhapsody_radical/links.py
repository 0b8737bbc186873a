"""Input files of tasks, external or from other tasks, as RADICAL-Pilot's staging directives."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rhapsody.sdk import copy_into, link_into, name_in_sandbox, plain_name
from rhapsody_radical.descriptions import as_list

if TYPE_CHECKING:
    from rhapsody_radical.pilots import PilotTask

PILOT = "pilot:///"
TASK = "task:///"

_COPY = """(
done=".rhapsody.copied.$SRC_TASK_ID" copied=.rhapsody.copied code=0
if ! mkdir ".rhapsody.copying.$SRC_TASK_ID" 2>/dev/null; then
    until [ -e "$done" ]; do sleep 0.1; done
    exit "$(cat "$done")"
fi
for src in "$SRC_TASK_SANDBOX"/* "$SRC_TASK_SANDBOX"/.[!.]*; do
    [ -e "$src" ] || [ -L "$src" ] || continue
    name="${src##*/}"
    case "$name" in "$SRC_TASK_ID"*|.rhapsody.*|LEFT_OUT) continue;; esac
    if [ -e "$name" ] || [ -L "$name" ]; then
        [ -L "$src" ] && continue
        grep -qxF -e "$name" "$copied" 2>/dev/null || continue
        diff -r "$src" "./$name" >/dev/null 2>&1 && continue
        echo "'$name' was left by two dependencies of this task; one is $SRC_TASK_ID." >&2
        echo "Pass them an OutputFile with different names." >&2
        code=1
        break
    fi
    cp -RPp --reflink=auto "$src" "./$name" || { code=1; break; }
    echo "$name" >> "$copied"
done
echo "$code" > "$done.new"
mv "$done.new" "$done"
exit "$code"
)"""
"""Shell command that copies the files of one task. Of several ranks, the first copies all files.

The names of copied files are in `.rhapsody.copied`. Other existing files are declared inputs, which
take precedence. A link is copied as a link, and is skipped if its name is taken.
"""


class PilotLinks:
    """Links to create in the sandboxes of tasks that have not been submitted."""

    def __init__(self) -> None:
        self._sandboxes: dict[str, dict[str, str]] = {}
        self._directives: dict[str, list[dict[str, Any]]] = {}

    def add_file(
        self,
        src_task: Mapping[str, Any] | None,
        dst_task: Any,
        file_name: str | None,
        file_path: str | None,
        *,
        copy: bool = False,
    ) -> dict[str, Any]:
        """Append the staging directive for one file to the target's `input_staging`.

        Returns:
            The directive.

        Raises:
            ValueError: Neither `file_path` nor both `src_task` and `file_name` are given.
            DataError: The name refers to a place outside the sandbox.
        """
        if file_path:
            name = name_in_sandbox(file_name or os.path.basename(file_path.rstrip("/")))
            action = "Copy" if copy else "Transfer"
            directive = {"source": file_path, "target": f"{TASK}{name}", "action": action}
        elif src_task is not None and file_name:
            name = plain_name(file_name)
            source = f"{PILOT}{src_task['uid']}/{name}"
            directive = {"source": source, "target": f"{TASK}{name}", "action": "Link"}
            self._note(src_task, dst_task)
        else:
            raise ValueError(
                "link_explicit_data_deps requires either file_path, or both src_task (the task "
                f"that wrote the file) and file_name; got file_name={file_name!r}"
            )
        specific = dst_task.setdefault("task_backend_specific_kwargs", {})
        specific["input_staging"] = [*as_list(specific.get("input_staging")), directive]
        if "uid" in dst_task:
            self._directives.setdefault(dst_task["uid"], []).append(directive)
        return directive

    def add_all(self, src_task: Mapping[str, Any], dst_task: Any) -> None:
        """Append `pre_exec` commands that copy another task's files into a task's sandbox.

        RADICAL-Pilot's own files, whose names begin with the task's uid, and Rhapsody's own files
        (`.rhapsody.*`) are not copied. Names may contain spaces, and the sandbox may be empty.
        """
        self._note(src_task, dst_task)
        left_out = "".join(f"|{shlex.quote(name)}" for name in src_task.get("left_out", ()))
        commands = [
            f"export SRC_TASK_ID={shlex.quote(src_task['uid'])}",
            'export SRC_TASK_SANDBOX="$RP_PILOT_SANDBOX/$SRC_TASK_ID"',
            _COPY.replace("|LEFT_OUT", left_out),
        ]
        specific = dst_task.setdefault("task_backend_specific_kwargs", {})
        specific["pre_exec"] = [*as_list(specific.get("pre_exec")), *commands]

    def _note(self, src_task: Mapping[str, Any], dst_task: Mapping[str, Any]) -> None:
        if src_task.get("sandbox") and "uid" in dst_task:
            found = self._sandboxes.setdefault(dst_task["uid"], {})
            found[src_task["uid"]] = src_task["sandbox"]

    def forget(self, uid: str) -> None:
        """Drop the links for a task that will not be submitted."""
        self._sandboxes.pop(uid, None)
        self._directives.pop(uid, None)

    def take(self, job: PilotTask) -> list[dict[str, Any]]:
        """Create links in the pilot's sandbox to the sandboxes from which a task uses files.

        The directives of `add_file` are removed from the task's description, except those that the
        user has already removed.

        Returns:
            The removed directives. `do` executes them instead of RADICAL-Pilot, whose staging
            ignores missing files and does not support names with spaces.
        """
        for uid, sandbox in self._sandboxes.pop(job.uid, {}).items():
            below = os.path.join(job.pilot.sandbox, uid)
            if not os.path.lexists(below):
                os.symlink(sandbox, below)
        if not (own := {id(each) for each in self._directives.pop(job.uid, ())}):
            return []
        specific = job.task["task_backend_specific_kwargs"]
        staging = as_list(specific.get("input_staging"))
        kept = [each for each in staging if id(each) not in own]
        job.task["task_backend_specific_kwargs"] = {**specific, "input_staging": kept}
        return [each for each in staging if id(each) in own]


def do(directives: list[dict[str, Any]], sandbox: str, pilot_sandbox: str) -> None:
    """Create links in a sandbox to the files that directives name, or copies of them.

    Raises:
        DataError: A file does not exist, or its name is taken in the sandbox.
    """
    for directive in directives:
        source = directive["source"]
        if source.startswith(PILOT):
            source = os.path.realpath(os.path.join(pilot_sandbox, source.removeprefix(PILOT)))
        put = copy_into if directive["action"] == "Copy" else link_into
        put(sandbox, directive["target"].removeprefix(TASK), source)
