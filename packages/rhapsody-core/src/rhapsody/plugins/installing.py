"""How to install a plugin of ours that is missing: from where this installation came.

Whoever has installed core from a folder or a repository finds the plugins beside it there, and
perhaps nowhere else. Where a distribution came from is what PEP 610 has installers write down.
"""

from __future__ import annotations

import json
import shlex
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit

from rhapsody.plugins.entry_points import CORE


def install_command(distribution: str) -> str:
    """The command that installs a distribution of ours, from where core was installed.

    Args:
        distribution: Its name, which is also that of its folder.

    Returns:
        `pip install` with a folder or a repository where there is one, else with the name.
    """
    source = _sibling(_origin(), distribution) or distribution
    return f"pip install {shlex.quote(source)}"


def _origin() -> dict[str, Any]:
    """What is written down of where core came from; empty where it came from an index."""
    from importlib_metadata import PackageNotFoundError
    from importlib_metadata import distribution as find

    try:
        origin = json.loads(find(CORE).read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, OSError, ValueError):
        return {}
    return origin if isinstance(origin, dict) else {}


def _sibling(origin: dict[str, Any], distribution: str) -> str | None:
    """What pip takes for the distribution beside core, `None` where it is not known to be there."""
    url, inside = str(origin.get("url", "")), str(origin.get("subdirectory", ""))
    if "dir_info" in origin and url.startswith("file:"):
        folder = Path(unquote(urlsplit(url).path)).parent / distribution
        return str(folder) if (folder / "pyproject.toml").is_file() else None
    if not url or PurePosixPath(inside).name != CORE:
        return None
    # pip takes the URL of a repository on this machine only without a name before it.
    name = "" if url.startswith("file:") else f"{distribution} @ "
    vcs = origin.get("vcs_info")
    if isinstance(vcs, dict):
        url = f"{vcs.get('vcs')}+{url}@{vcs.get('commit_id')}"
    return f"{name}{url}#subdirectory={PurePosixPath(inside).with_name(distribution)}"


def missing_plugin(name: str, distribution: str, error: ImportError) -> ModuleNotFoundError:
    """The error for a name whose plugin cannot be imported.

    Args:
        name: The name that was asked for.
        distribution: The distribution that it comes with.
        error: Why it cannot be imported.

    Returns:
        An error whose text ends with the command that installs the plugin, or with
        those that remove what keeps it from being imported.
    """
    from rhapsody_guard import ConflictError

    if isinstance(error, ConflictError):
        return ModuleNotFoundError(f"{name} cannot be imported: {error}", name=error.name)
    return ModuleNotFoundError(
        f"{name} comes with {distribution}, which cannot be imported ({error}). "
        f"To install it: {install_command(distribution)}",
        name=error.name,
    )
