"""Compare the plugin interface with that of core's last release, using griffe.

The check fails if a name that plugins use is missing or has new requirements, and `API_VERSION` has
not been raised since that release. docs/plugins/publishing.md describes the interface. Only its
names are compared, because a comparison of all code would forbid every change. Without a release,
there is nothing to compare with, and the check passes.

    python .ci/check_plugin_api.py [--repository DIR] [--tag TAG]
"""

from __future__ import annotations

import argparse
import io
import re
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterator
from pathlib import Path

import griffe
from packaging.version import InvalidVersion, Version

SOURCES = {
    "rhapsody": "packages/rhapsody-core/src",
    "rhapsody_testing": "packages/rhapsody-testing/src",
}
"""The packages with the interface, and the directories that contain them."""

TAG = "rhapsody-core-v"
SPECS = "rhapsody.plugins.specs"

MODULES = [SPECS]
"""Modules whose public names all belong to the interface: the hooks."""

ROOTS = [
    "rhapsody",
    "rhapsody.backends",
    "rhapsody.history",
    "rhapsody.plugins",
    "rhapsody.sdk",
    "rhapsody.sdk.runs",
    "rhapsody_testing",
]
"""Packages whose names in `__all__` all belong to the interface."""

HARMLESS = {
    # The version itself, and numbers that no plugin depends on.
    griffe.BreakageKind.ATTRIBUTE_CHANGED_VALUE,
}
HARMLESS_IN_HOOKS = {
    # A plugin's function may accept any subset of a hook's arguments.
    griffe.BreakageKind.PARAMETER_ADDED_REQUIRED,
    griffe.BreakageKind.PARAMETER_MOVED,
}


def git(repository: Path, *arguments: str) -> bytes:
    """Return the output of a git command."""
    command = ["git", "-C", str(repository), *arguments]
    return subprocess.run(command, check=True, capture_output=True).stdout


def last_release(repository: Path) -> str | None:
    """Return the highest release tag of core that is an ancestor, if there is one."""
    releases = []
    for tag in git(repository, "tag", "--list", f"{TAG}*", "--merged", "HEAD").decode().split():
        try:
            releases.append((Version(tag.removeprefix(TAG)), tag))
        except InvalidVersion:
            continue
    return max(releases)[1] if releases else None


def load(repository: Path) -> griffe.ModulesCollection:
    """Return the packages of a tree."""
    paths = [repository / source for source in SOURCES.values()]
    loader = griffe.GriffeLoader(search_paths=paths, allow_inspection=False)
    for package in SOURCES:
        loader.load(package)
    loader.resolve_aliases(implicit=True, external=False)
    return loader.modules_collection


def find(packages: griffe.ModulesCollection, path: str) -> griffe.Object | None:
    """Return the module with a name."""
    try:
        found = packages[path]
    except KeyError:
        return None
    return found.final_target if isinstance(found, griffe.Alias) else found


def offered(packages: griffe.ModulesCollection, path: str) -> dict[str, griffe.Object]:
    """Return the public names of a module that belong to the interface."""
    module = find(packages, path)
    found = {}
    for name in (module.exports if module is not None else None) or ():
        member = module.members.get(str(name)) if module is not None else None
        try:
            target = member.final_target if isinstance(member, griffe.Alias) else member
        except griffe.AliasResolutionError:  # imported from another distribution
            continue
        if target is not None:
            found[str(name)] = target
    return found


def breaks(old: griffe.ModulesCollection, new: griffe.ModulesCollection) -> Iterator[str]:
    """Yield each change that would break a plugin, in words."""
    for path in MODULES:
        before, after = find(old, path), find(new, path)
        if before is None:
            continue  # a new module
        if after is None:
            yield f"{path}: the module is missing"
            continue
        yield from compare(before, after, hooks=path == SPECS)
    for path in ROOTS:
        before_names, after_names = offered(old, path), offered(new, path)
        for name, thing in before_names.items():
            if name not in after_names:
                yield f"{path}.{name}: no longer exported"
            elif not thing.path.startswith(tuple(f"{module}." for module in MODULES)):
                yield from compare(thing, after_names[name])


def compare(old: griffe.Object, new: griffe.Object, *, hooks: bool = False) -> Iterator[str]:
    """Yield each break in one module, class or function."""
    changes = griffe.find_breaking_changes(old, new)
    if old.is_function and old.parent is not None and new.parent is not None:
        # griffe compares only the members of an object.
        around = griffe.find_breaking_changes(old.parent, new.parent)
        changes = (found for found in around if found.obj.path == old.path)
    for found in changes:
        hook = hooks and found.obj.is_function and found.obj.name.startswith("rhapsody_")
        if found.kind in HARMLESS or (hook and found.kind in HARMLESS_IN_HOOKS):
            continue
        yield f"{found.obj.module.path}.{in_words(found)}"
    for path, required in abstract(new).items():
        more = required - abstract(old).get(path, required)
        yield from (f"{path}.{name}: subclasses must implement this new method" for name in more)


def in_words(found: griffe.Breakage) -> str:
    """Return griffe's report without its colors and its first line."""
    text = re.sub("\x1b\\[[0-9;]*m", "", found.explain(griffe.ExplanationStyle.ONE_LINE))
    return " ".join(text.partition(": ")[2].split())


def abstract(thing: griffe.Object) -> dict[str, set[str]]:
    """Return the abstract methods of the public classes."""
    classes = [thing] if thing.is_class else [*thing.classes.values()]
    return {
        one.path: {name for name, f in one.functions.items() if "abstractmethod" in f.labels}
        for one in classes
        if not one.name.startswith("_")
    }


def api_version(packages: griffe.ModulesCollection) -> int:
    """Return the version that the interface declares."""
    return int(str(packages[f"{SPECS}.API_VERSION"].value))


def main() -> int:
    """Compare the interfaces and print the result."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--repository", type=Path, default=Path(__file__).parents[1])
    parser.add_argument("--tag", help="compare with this tag instead of the last release")
    options = parser.parse_args()
    tag = options.tag or last_release(options.repository)
    if tag is None:
        print(f"plugin interface: there is no release tag {TAG}* to compare with")
        return 0
    new = load(options.repository)
    with tempfile.TemporaryDirectory() as directory:
        archive = git(options.repository, "archive", "--format=tar", tag, *SOURCES.values())
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(directory, filter="data")
        old = load(Path(directory))
        found = sorted(set(breaks(old, new)))
        before, now = api_version(old), api_version(new)
    for line in found:
        print(f"  {line}")
    if not found:
        print(f"plugin interface: version {now}, no breaking changes since {tag}")
        return 0
    if now > before:
        print(
            f"plugin interface: version {now} makes the breaking changes above; {tag} has "
            f"version {before}"
        )
        return 0
    print(
        f"plugin interface: these changes break plugins written for {tag}, but the version is "
        f"still {now}; undo them, or raise API_VERSION in rhapsody/plugins/specs.py and describe "
        "the necessary changes of plugins in CHANGELOG.md"
    )
    return 1


if __name__ == "__main__":
    sys.exit(main())
