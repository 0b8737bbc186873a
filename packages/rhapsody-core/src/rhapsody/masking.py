"""Masking of secret values in texts that are shown or stored.

`mask` is the filter that each text passes before it leaves the process: on the terminal, in the log
and the record of a run, in traces, notes and messages. It replaces

- known values: those of the variables in a task's `environment=`, and of variables of this process
  whose names look secret, each with the variable's `<NAME>`;
- values that the text itself gives a name that looks secret, as in `--password X`, `token='X'`,
  `"api_key": "X"` and `Authorization: X`, each with that `<name>`, and the passwords in URLs.

`escaped` makes text safe to print: it escapes the characters that control a terminal.

A secret with neither a known value nor such a name cannot be recognized. Names are searched only in
text that contains one of a few words, because most texts contain none of them.
"""

from __future__ import annotations

import functools
import json
import os
import re
import shlex
from collections.abc import Iterable, Iterator, Mapping
from typing import Any
from urllib.parse import quote, quote_plus

Secrets = tuple[tuple[str, str], ...]
"""Pairs of a secret value and the name of its variable, the longest value first."""

MIN_SECRET_LENGTH = 8
"""Minimum number of characters of a variable's value for the value to be masked."""

MAX_NAME_LENGTH = 100
"""Maximum number of characters of a name in a text."""

MAX_REMEMBERED = 1000
"""Maximum number of values of tasks' variables that are masked in all texts."""

# Regular expressions are compiled when they are first used, because most programs need few of them.

_SUSPICIOUS = (
    r"(?i)SECRET|CREDENTIAL|PASSWORD|PASSWD|PASSPHRASE|(^|_)PASS(_|$)|TOKENS?(_|$)|KEYS?(_|$)|"
    r"_PAT$|(^|_)AUTH(ORIZATION)?(_(?!SOCK)|$)|COOKIES?(_|$)|_PWD$|BEARER|WEBHOOK|"
    r"DATABASE_UR[IL]$"
)

_WORDS = (
    "pass", "secret", "credential", "token", "key", "_pat", "-pat", "auth", "cookie", "bearer",
    "webhook", "database_ur", "signature", "pwd",
)  # fmt: skip
"""Words of which each name that looks secret contains one, in lower case."""

_EVERYDAY = frozenset({"key", "keys", "tokens"})
"""Names of arguments and dictionary keys that look secret, but usually are not."""

_WORD = "|".join(_WORDS)
_REST = r"[\w-]*"
_QUOTED = (
    r"""[bBrRfF]{0,2}(?P<quote>\\*(?:\"{3}|'{3}|["']))(?P<quoted>(?:(?!(?P=quote))(?:\\.|.))*)"""
)
_ASSIGNED = rf"""(?x)
    (?:=(?!=) | \\*["']\s*:\s*[\[(]? | \s*:\s* | \s*=\s*) {_QUOTED}
    | \\*["'],\s*[bBrRfF]{{0,2}}(?P<mark>\\*["'])(?P<pair>(?:(?!(?P=mark))(?:\\.|.))*)(?P=mark)\)
    | =(?!=)(?P<value>[^\s"'\\,;&|<>]+)
    | [ \t]*=[ \t]+(?P<setting>[^\s"'\\,;&|<>=.()\[\]]+)(?=[\s"'\\]|$)
    | :[ \t]*(?P<header>[^\s"'\\,;&|<>]+)
    """
_OPTION = rf"""(?x)
    (?:= | [ \t]+ | \\*["'],\s*(?=\\*["']))
    (?:{_QUOTED} | (?P<value>[^\s"'\\;&|<>-][^\s"'\\;&|<>]*))
    """
_HEADER = r"""\\*["']?\s*:\s*\\*["']?(?P<value>[^"'\\\n]+)"""
_HEADERS = frozenset({"authorization", "proxy-authorization", "cookie", "set-cookie"})
_BEARER = r"(?i)\b(bearer) +[\w.~+/=-]{8,}"
_SIGNED = r"""([?&]sig=)[^\s&"'<>\\]+"""
_USER = r"""(?i)\b([a-z][a-z0-9+.-]*://)([^\s/?#"'<>@:]*)(:[^\s/"'<>]*)?@"""
_CONSTANT = r"True|False|None|true|false|null|[-+]?[\d.]+(?:e[-+]?\d+)?|[(\[*%].*|\.\.\."
"""Values without quotes that are shown: constants, and what is not a value."""


@functools.lru_cache(maxsize=1000)
def looks_secret(name: str) -> bool:
    """Return True if a variable's name, such as `API_TOKEN`, suggests that its value is secret."""
    return re.search(_SUSPICIOUS, name) is not None


@functools.lru_cache(maxsize=1000)
def _secret_name(name: str) -> str | None:
    """Return the name to show for the value of an option, argument or key; `None` to show it."""
    bare = name.lstrip("-").replace("-", "_")
    if bare.lower() in _EVERYDAY and not name.startswith("-"):
        return None
    if bare.startswith("no_") or bare.endswith(("Error", "Exception", "Warning")):
        return None
    other = bare.lower() == "pwd" or bare.lower().endswith("signature")
    return bare if other or looks_secret(bare) else None


def hides(name: object, value: object) -> bool:
    """Return True if the value of an argument or of a dictionary key with this name is masked.

    Numbers and other constants are shown, except those of passwords.
    """
    if not isinstance(name, str) or _secret_name(name) is None:
        return False
    if isinstance(value, bool | None):
        return False
    return not isinstance(value, int | float) or "passw" in name.lower()


class Hidden(str):
    """Name of a secret that is shown instead of its value."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"<{self}>"


_remembered: dict[str, str] = {}


def remember(environment: Mapping[str, str]) -> None:
    """Mask the values of a task's variables whose names look secret in all texts from now on."""
    for value, name in values_of({k: v for k, v in environment.items() if looks_secret(k)}):
        _remembered.pop(value, None)
        _remembered[value] = name
        if len(_remembered) > MAX_REMEMBERED:
            del _remembered[next(iter(_remembered))]


def secrets_of(environment: Mapping[str, str] | None = None) -> Secrets:
    """Return the values to mask: those of a task's variables and of this process.

    Args:
        environment: The task's variables; `None` for those of the process alone.
    """
    names = filter(looks_secret, os.environ)
    process = values_of({name: os.environ.get(name, "") for name in names})
    if _remembered:
        process = merged(tuple(_remembered.items()), process)
    return merged(values_of(environment or {}), process)


def values_of(variables: Mapping[str, str]) -> Secrets:
    """Return the values of variables that are long enough to be masked, each in all its forms."""
    pairs = [
        (form, name)
        for name, value in variables.items()
        if len(value) >= MIN_SECRET_LENGTH
        for form in _forms(value)
    ]
    return tuple(sorted(pairs, key=_by_length))


@functools.lru_cache(maxsize=MAX_REMEMBERED)
def _forms(value: str) -> tuple[str, ...]:
    """Return a value unchanged, and as it is written in Python, JSON, URLs and shell commands."""
    raw = value.encode("utf-8", "surrogateescape")
    forms = [value, json.dumps(value)[1:-1], json.dumps(value, ensure_ascii=False)[1:-1]]
    forms += [repr(value)[1:-1], repr(raw)[2:-1], shlex.quote(value).strip("'")]
    forms += [quote(raw, safe=""), quote(raw), quote_plus(raw)]
    return tuple(dict.fromkeys(forms))


def _by_length(pair: tuple[str, str]) -> int:
    return -len(pair[0])


def merged(task: Secrets, process: Secrets) -> Secrets:
    """Return the values of a task's variables and those of this process, the longest first.

    A value may begin with another one. If the shorter one were replaced first, the rest of the
    longer one would remain in the text.
    """
    return tuple(sorted((*task, *process), key=_by_length)) if task else process


def mask(text: str, secrets: Iterable[tuple[str, str]] | None = None) -> str:
    """Return text in which each secret value is replaced with the `<NAME>` of the value.

    Args:
        text: The text.
        secrets: The known values; `None` for those of this process.
    """
    for value, name in secrets_of() if secrets is None else secrets:
        text = text.replace(value, f"<{name}>")
    if "://" in text:
        text = re.sub(_SIGNED, r"\1<signature>", text)
        if "@" in text:
            text = re.sub(_USER, _without_password, text)
    lower = _lower(text)
    if "bearer" in lower:
        text = re.sub(_BEARER, r"\1 <token>", text)
        lower = _lower(text)
    if any(word in lower for word in _WORDS):
        text = "".join(_without_named(text, lower))
    return text


def _lower(text: str) -> str:
    """Return text in lower case, with the same number of characters."""
    lower = text.lower()
    if len(lower) != len(text):
        lower = "".join(each.lower()[0] for each in text)
    return lower


def _without_password(url: re.Match[str]) -> str:
    scheme, user, password = url.groups()
    if password is not None and not password.startswith((":$", ":<", ":{")):
        return f"{scheme}{user}:<password>@"
    if password is None and "http" in scheme.lower() and not user.startswith(("$", "<", "{")):
        return f"{scheme}<user>@"  # in most cases, it is a token
    return url[0]


def _without_named(text: str, lower: str) -> Iterator[str]:
    """Yield the pieces of text, without the values whose names in the text look secret."""
    done = end = 0
    for found in re.finditer(_WORD, lower):
        if found.start() < end:
            continue
        start, first = found.start(), max(end, found.start() - MAX_NAME_LENGTH)
        while start > first and (text[start - 1].isalnum() or text[start - 1] in "_-"):
            start -= 1
        end = re.compile(_REST).match(text, found.end()).end()  # type: ignore[union-attr]
        given = text[start:end]
        name = _secret_name(given) if len(given) <= MAX_NAME_LENGTH else None
        span = None if name is None else _value_of(text, given, end)
        if span is not None:
            yield text[done : span[0]]
            yield f"<{name}>"
            done = end = span[1]
    yield text[done:]


def _value_of(text: str, name: str, end: int) -> tuple[int, int] | None:
    """Return where the value of a name that ends at `end` is; `None` if there is none to mask."""
    lower = name.lower()
    if lower in _HEADERS and (header := re.compile(_HEADER).match(text, end)):
        return None if header["value"].startswith(("<", "$")) else header.span("value")
    found = re.compile(_OPTION if name.startswith("-") else _ASSIGNED).match(text, end)
    if found is None:
        return None
    kind = found.lastgroup or ""
    quoted = kind in ("quoted", "pair")
    value = found[kind] if quoted else found[kind].rstrip(")]}")
    password = "passw" in lower or "passphrase" in lower
    # Many messages consist of a word, a colon and an explanation.
    if not password and text[end] in ": " and not name.startswith("-"):
        several = quoted or "_" in name or "-" in name
        if len(value) < MIN_SECRET_LENGTH or not several:
            return None
    constant = not (quoted or password) and re.fullmatch(_CONSTANT, value)
    directory = lower == "pwd" and value.startswith(("/", "~"))
    if not value or value.startswith(("$", "<", "{")) or constant or directory:
        return None
    start = found.start(kind)
    return start, start + len(value)


_CONTROLS = (
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u206f\ufff9-\ufffb"
    "\U000e0000-\U000e007f]"
)
"""Control characters except tabs and line feeds, and characters that hide or reorder text."""


def escaped(text: str) -> str:
    """Return text in which characters that could control a terminal are escaped.

    Lines and tabs are kept, and carriage returns before the ends of lines are removed.
    """
    if text.isascii() and text.replace("\n", "").replace("\t", "").isprintable():
        return text
    lines = text.replace("\r\n", "\n")
    return re.sub(_CONTROLS, lambda found: ascii(found[0])[1:-1], lines)


def mask_arguments(arguments: Iterable[str], secrets: Secrets) -> Iterator[str]:
    """Yield the arguments of a program without secrets."""
    option = None
    for argument in arguments:
        if option is not None and not argument.startswith("-"):
            yield f"<{option}>"
            option = None
            continue
        option = _secret_name(argument) if argument.startswith("-") else None
        yield mask(argument, secrets)


def mask_value(value: Any, secrets: Secrets) -> Any:
    """Return a value that JSON can represent without the secrets in its texts and keys."""
    if isinstance(value, str):
        return mask(value, secrets)
    if isinstance(value, Mapping):
        return {
            key: f"<{key}>" if hides(key, each) else mask_value(each, secrets)
            for key, each in value.items()
        }
    if isinstance(value, list | tuple):
        return [mask_value(each, secrets) for each in value]
    return value
