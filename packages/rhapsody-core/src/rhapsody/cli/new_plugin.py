"""`rhapsody new-plugin`: creates the source files of a package with a plugin that observes runs."""

from __future__ import annotations

import argparse
import shlex

from rhapsody import known
from rhapsody.cli.new_backend import COMMON, add_options, checked_name, create
from rhapsody.cli.output import DONE, say
from rhapsody.plugins.manager import CORE, installed
from rhapsody.plugins.specs import UsageError

_FILES = {
    **COMMON,
    "plugin_README.md": "README.md",
    "plugin_init.py": "src/{package}/__init__.py",
    "observer.py": "src/{package}/plugin.py",
    "test_observer.py": "tests/test_plugin.py",
}
"""Paths of the rendered files by template."""


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.add_argument("name", metavar="NAME", help="the plugin's name, such as demo")
    add_options(parser)


def run(arguments: argparse.Namespace) -> int:
    """Write the source files of the package, and print the next steps.

    Returns:
        The exit code.

    Raises:
        UsageError: The name or the author is invalid, or the target cannot be written.
    """
    name = checked_name(arguments.name, "new-plugin")
    distribution = f"rhapsody-{name.replace('_', '-')}"
    owners = {*known.BACKENDS.values(), *known.COMMANDS.values(), *known.FORMATS.values(), CORE}
    if distribution in owners | {entry.distribution for entry in installed().entries}:
        raise UsageError(f"the distribution {distribution} exists; choose another name")
    more = {
        "kind": "plugin",
        "flag": f"{name}_file".replace("_", "-"),
        "test_requirements": 'test = ["pytest>=8.4"]',
        "pytest_options": "xfail_strict = true",
        "entry_point": "The key is a name of your choice",
    }
    target = create(arguments, name, _FILES, more)
    say(f"Created {target}, which contains a working plugin. Next:\n")
    for command in (f"cd {shlex.quote(target)}", "pip install -e '.[test]'", "pytest"):
        say(f"  {command}")
    say(f"\nThen implement your plugin in src/rhapsody_{name}/plugin.py.")
    return DONE
