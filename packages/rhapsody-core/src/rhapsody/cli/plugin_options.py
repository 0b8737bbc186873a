"""Options that plugins add to built-in commands, and what to install for those of known plugins."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args, get_origin

from rhapsody.cli.output import CommandError, complain
from rhapsody.plugins.manager import install_command

if TYPE_CHECKING:
    from rhapsody.plugins.specs import CommandOption


def add_options(
    parser: argparse.ArgumentParser,
    owner: str,
    options: Iterable[CommandOption],
    owners: dict[str, str],
) -> None:
    """Add options to a command. Options that the command already has are reported and left out.

    Args:
        parser: The parser of the command.
        owner: The plugin or format that declares the options.
        options: The options.
        owners: The plugin of each option that has been added, to which these are added.
    """
    groups: dict[str, Any] = {}
    for option in options:
        target: Any = parser
        if option.group:
            if option.group not in groups:
                groups[option.group] = parser.add_mutually_exclusive_group()
            target = groups[option.group]
        text = option.help.replace("%", "%%")  # argparse formats the text
        keys: dict[str, Any] = {"type": option.type, "metavar": option.metavar or None}
        if option.type is bool:
            keys = {"action": "store_true"}
        elif option.type == list[str]:
            keys = {"action": "append", "metavar": option.metavar or option.name.upper()}
        elif get_origin(option.type) is Literal:
            keys = {"choices": get_args(option.type), "metavar": option.metavar or None}
        elif option.type is Path:
            keys = {"type": _path, "metavar": option.metavar or "PATH"}
        elif not option.metavar:
            keys["metavar"] = option.name.upper()
        try:
            target.add_argument(option.flag, dest=_dest(owner, option), help=text, **keys)
        except argparse.ArgumentError:
            other = owners.get(option.flag, parser.prog)
            complain(f"ignoring the option {option.flag} of {owner}: {other} has the same option")
        else:
            owners[option.flag] = owner


def _path(text: str) -> Path:
    """Return a path with `~` replaced, because shells do not replace it after `=`."""
    return Path(os.path.expanduser(text))


def given_options(
    arguments: argparse.Namespace, owner: str, options: Iterable[CommandOption]
) -> dict[str, Any]:
    """Return the values of the options that were given, by name."""
    found = {option.name: getattr(arguments, _dest(owner, option), None) for option in options}
    return {name: each for name, each in found.items() if each is not None and each is not False}


def _dest(owner: str, option: CommandOption) -> str:
    return f"{owner}: {option.name}"


def require_known(owners: Mapping[str, str], name: str, what: str) -> None:
    """Raise an error if the distribution that contains a known feature is not installed.

    Args:
        owners: The distributions of features by name; see `rhapsody.known`.
        name: The name of the feature, which was not found.
        what: The feature in messages.

    Raises:
        CommandError: A known distribution contains the feature.
    """
    if owner := owners.get(name):
        raise CommandError(
            f"{what} not found: it is part of {owner}. To install it: {install_command(owner)}"
        )
