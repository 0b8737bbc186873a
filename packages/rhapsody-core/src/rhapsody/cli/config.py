"""`rhapsody config`: shows every setting of the selected profile with the place that sets it."""

from __future__ import annotations

import argparse
import json
import os
from collections.abc import Iterator
from datetime import date, time
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from rhapsody.cli.output import DONE, complain, say, say_json, say_lines, table
from rhapsody.errors import ProfileError
from rhapsody.plugins.specs import UsageError

if TYPE_CHECKING:
    from rhapsody.engine.configuration.profiles import Profile, Value


DEFAULT = "default"


class ProfileSetting(NamedTuple):
    """Setting of a profile.

    Attributes:
        name: The name, with the table that contains it in a file.
        value: The value; `None` if it is not set.
        source: The place that sets the value.
    """

    name: str
    value: Any
    source: str


def configure(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    text = "trust the file of another user, so that its settings are used"
    parser.add_argument("action", nargs="?", choices=["trust"], metavar="trust", help=text)
    text = "the file, or its directory (default: the current directory)"
    parser.add_argument("path", nargs="?", default=".", metavar="FILE", help=text)
    text = "with trust: no longer trust the file"
    parser.add_argument("--remove", action="store_true", help=text)
    text = "the profile (default: RHAPSODY_PROFILE, or the default_profile of a file)"
    parser.add_argument("--profile", metavar="NAME", help=text)
    parser.add_argument("--json", action="store_true", help="print JSON")


def run(arguments: argparse.Namespace) -> int:
    """Print the settings as a table or as JSON, and warn about a backend that is not found.

    With `trust`, only add a file to those that the user trusts, or remove it.

    Returns:
        The exit code.

    Raises:
        UsageError: The profile does not exist, or a file contains a mistake or is not trusted.
    """
    from rhapsody.backends.discovery import declared_options
    from rhapsody.config_files import short
    from rhapsody.engine.configuration.profiles import Value, active_profile

    if arguments.action == "trust":
        return _trust(arguments.path, remove=arguments.remove)
    if arguments.remove:
        raise UsageError("--remove can only be used with rhapsody config trust")
    selected = None
    if arguments.profile is not None:
        selected = Value(arguments.profile, place="--profile")
    try:
        profile = active_profile(selected)
    except ProfileError as error:
        raise UsageError(str(error)) from None
    for name in profile.backends:
        try:
            declared_options(name)
        except ValueError as error:  # the program may register it at run time
            complain(f"{profile.backend.source if profile.backend else DEFAULT}: {error}")
    files = [short(file.path) for file in profile.files]
    found = list(settings(profile))
    if arguments.json:
        say_json(
            {
                "files": files,
                "profiles": list(profile.known),
                "settings": [setting._asdict() for setting in found],
            }
        )
        return DONE
    say(f"files: {', '.join(files) or 'none'}")
    say(f"profiles: {', '.join(profile.known) or 'none'}\n")
    rows = [(name, _text(value), each.source) for each in found for name, value in _parts(each)]
    say_lines(table(("SETTING", "VALUE", "SOURCE"), rows))
    return DONE


def _trust(given: str, *, remove: bool) -> int:
    """Trust a file, or no longer trust it, and print which one.

    Returns:
        The exit code.

    Raises:
        UsageError: There is no such file, or it was not trusted.
    """
    from rhapsody.config_files import NAME, PYPROJECT, is_trusted, trust

    path = Path(os.path.abspath(given))
    if path.is_dir():
        path /= PYPROJECT if not (path / NAME).exists() and (path / PYPROJECT).exists() else NAME
    if not is_trusted(path) if remove else not path.is_file():
        why = "is not trusted" if remove else "does not exist"
        raise UsageError(f"file {path} {why}; pass the path of a {NAME} or {PYPROJECT}")
    trusted = trust(path, remove=remove)
    how = "no longer trusted" if remove else "trusted: its settings can run commands as you"
    say(f"{path} is {how} (list: {trusted})")
    return DONE


def settings(profile: Profile) -> Iterator[ProfileSetting]:
    """Yield every setting of a profile, including those that are not set."""
    from rhapsody.backends.discovery import declared_options
    from rhapsody.cli.run import implied
    from rhapsody.engine.configuration.options import all_options
    from rhapsody.engine.configuration.profiles import DEFAULTS, in_files
    from rhapsody.engine.configuration.settings import NO_FALLBACK, Settings
    from rhapsody.resources import Resources

    yield _setting("profile", profile.name, None)
    yield _setting("backend", profile.backend, "local")
    for name, options in profile.options.items():
        try:
            declared = declared_options(name)
        except ValueError:  # not installed
            declared = {}
        table = "options" if len(profile.options) == 1 else f"options.{_key(name)}"
        shown = {each.name: each.as_dict()["default"] for each in declared.values() if each.help}
        for key in {**shown, **options}:
            yield _setting(f"{table}.{key}", options.get(key), shown.get(key))
    of_the_run, every = implied(), all_options()
    for key in in_files():
        setting = _setting(f"engine.{key}", profile.engine.get(key), every[key].default)
        if setting.source == DEFAULT and key in of_the_run:
            source = f"{DEFAULT} (rhapsody run: {json.dumps(of_the_run[key])})"
            setting = setting._replace(source=source)
        yield setting
    plain, resources = Settings(), Resources()
    for key in DEFAULTS:
        default = getattr(resources, key, None)
        if key in every:
            default = every[key].default
        elif hasattr(plain, key):
            default = getattr(plain, key)
        default = None if default in (NO_FALLBACK, ()) else default
        yield _setting(f"defaults.{key}", profile.defaults.get(key), default)
    for plugin, options in profile.plugins.items():
        for key, value in options.items():
            yield _setting(f"plugins.{_key(plugin)}.{key}", value, None)
    for pattern, values in profile.tasks:
        for key, value in values.items():
            yield _setting(f"tasks.{_key(pattern)}.{key}", value, None)


def _setting(name: str, value: Value | None, default: Any) -> ProfileSetting:
    if value is None:
        return ProfileSetting(name, default, DEFAULT)
    return ProfileSetting(
        name, _without_secrets(name.rpartition(".")[2], value.value), value.source
    )


def _without_secrets(name: str, value: Any) -> Any:
    """Return a value for JSON, with secrets in it replaced by their names."""
    from rhapsody.masking import looks_secret, mask

    if isinstance(value, dict):
        return {key: _without_secrets(key, each) for key, each in value.items()}
    if isinstance(value, list):
        return [_without_secrets(name, each) for each in value]
    if isinstance(value, date | time):  # a `datetime` is a `date`
        return value.isoformat()
    if isinstance(value, str):
        return f"<{name}>" if looks_secret(name) else mask(value)
    return value


def _key(name: str) -> str:
    """Return a name as a key in TOML."""
    bare = name.replace("-", "").replace("_", "")
    return name if bare.isalnum() and bare.isascii() else json.dumps(name)


def _parts(setting: ProfileSetting) -> Iterator[tuple[str, object]]:
    """Yield the name and value of a setting, or those of each key of a table."""
    if isinstance(setting.value, dict) and setting.value:
        for key, value in setting.value.items():
            yield from _parts(setting._replace(name=f"{setting.name}.{_key(key)}", value=value))
    else:
        yield setting.name, setting.value


def _text(value: object) -> str:
    return "-" if value is None else json.dumps(value)
