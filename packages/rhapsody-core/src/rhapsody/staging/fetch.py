"""Download of remote input files into a cache directory, for one engine.

Each file is fetched once, into a directory that only the user can read. Each download runs on a
separate thread, so that a hanging download delays neither the loop nor the end of the program.
"""

from __future__ import annotations

import asyncio
import hashlib
import importlib
import io
import os
import re
import shutil
import threading
import uuid
from base64 import b64decode
from collections.abc import Awaitable, Callable
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote_to_bytes

from rhapsody.data import is_data_url, make_sandbox, without_secrets
from rhapsody.errors import DataError
from rhapsody.resources import memory_in_bytes, seconds
from rhapsody.sdk.threads import in_thread

INSTALL = "pip install 'rhapsody-core[files]'"
_URL = re.compile(r"[A-Za-z][\w.+-]*://[^\s'\"<>]+")
_CHUNK = 1 << 20
_LOCAL = {"file", "local", "git", "reference", "dir", "generic"}
_CACHES = {"cached", "blockcache", "filecache", "simplecache"}
_REFUSED: frozenset[str] = frozenset(_LOCAL | _CACHES)
"""Schemes that are refused unless `RHAPSODY_FETCH_SCHEMES` contains them: those that read files of
this machine, and those with which fsspec keeps copies in a directory that others may write to."""

_MAX_TRANSFERS = 8
_TIMEOUT = "600"
_MAX_SIZE = "10 GiB"
_STALL_TIMEOUT = 60.0  # seconds without data after which an HTTP transfer is abandoned


class _TooLargeError(Exception):
    """The file is larger than the limit."""


class _RefusedError(Exception):
    """The URL has a scheme that is refused."""


class _MissingExtraError(Exception):
    """A library that the extra `files` installs is missing."""


class Fetcher:
    """Cache of fetched files, in a directory that is created when it is first needed.

    Args:
        directory: The cache directory.
        timeout: Time limit for one file, in seconds. Default: `RHAPSODY_FETCH_TIMEOUT`, or 600.
        limit: Size limit of one file, in bytes or as text such as `"2 GiB"`. Default:
            `RHAPSODY_FETCH_LIMIT`, or 10 GiB.

    Raises:
        ValueError: An argument or an environment variable is invalid.
    """

    def __init__(
        self, directory: Path, *, timeout: float | None = None, limit: int | str | None = None
    ) -> None:
        self.directory = directory
        self._timeout = _timeout(timeout)
        self._limit = _limit(limit)
        self._fetches: dict[str, asyncio.Task[str]] = {}
        self._slots = asyncio.Semaphore(_MAX_TRANSFERS)

    def download(self, url: str, filename: str) -> asyncio.Task[str]:
        """Start downloading a URL into the cache; see `bring`."""
        return self.bring(url, filename, lambda part: self._in_thread(url, part))

    def bring(
        self, origin: str, filename: str, write: Callable[[Path], Awaitable[None]]
    ) -> asyncio.Task[str]:
        """Start fetching a file into the cache, unless an earlier call has started to fetch it.

        Await the task with `asyncio.shield`, because other callers may await the same task. After a
        failure, the next call starts another fetch.

        Args:
            origin: The identity of the file, such as its URL.
            filename: The name of the copy.
            write: Async function that writes the file to a path.

        Returns:
            A task that returns the path of the copy, or raises `DataError`.
        """
        fetch = self._fetches.get(origin)
        if fetch is None:
            fetch = asyncio.create_task(
                self._bring(origin, filename, write), name=f"fetch {filename}"
            )
            self._fetches[origin] = fetch
            fetch.add_done_callback(lambda ended: self._ended(origin, ended))
        return fetch

    def _ended(self, origin: str, fetch: asyncio.Task[str]) -> None:
        # Retrieving the exception keeps asyncio from logging it as never retrieved.
        if fetch.cancelled() or fetch.exception() is not None:
            self._fetches.pop(origin, None)

    async def _bring(
        self, origin: str, filename: str, write: Callable[[Path], Awaitable[None]]
    ) -> str:
        shown = without_secrets(origin)
        directory = self.directory / hashlib.sha256(origin.encode()).hexdigest()[:20]
        part = directory / f".{uuid.uuid4().hex}.part"
        async with self._slots:
            try:
                make_sandbox(self.directory)
                make_sandbox(directory)
                async with asyncio.timeout(self._timeout):
                    await write(part)
                os.chmod(part, 0o400)  # tasks share the file through links: none may change it
                target = directory / filename
                os.replace(part, target)
                return str(target)
            except _MissingExtraError as error:
                raise DataError(f"{shown} cannot be fetched: {error}; run {INSTALL}") from error
            except _RefusedError as error:
                raise DataError(f"{shown} is not fetched: {error}") from None
            except _TooLargeError:
                raise DataError(
                    f"{shown} is larger than {self._limit} bytes; to fetch larger files, set "
                    "RHAPSODY_FETCH_LIMIT to a size such as '50 GiB'"
                ) from None
            except TimeoutError:
                raise DataError(
                    f"{shown} was not fetched within {self._timeout:g} seconds; to allow more "
                    "time, set RHAPSODY_FETCH_TIMEOUT"
                ) from None
            except Exception as error:
                # A protocol's library may raise any exception. Its text may contain the URL with
                # the password, or the URL of a redirection: pass on only the scrubbed text.
                if isinstance(error, FileNotFoundError) and isinstance(error.__cause__, OSError):
                    error = error.__cause__  # fsspec's error for all that fails before the answer
                text = f"{type(error).__name__}: {error}".replace(origin, shown)
                if "certificate verify failed" in text.lower():
                    text += (
                        "; to trust its authority, set SSL_CERT_FILE to a file with certificates"
                    )
                text = _URL.sub(lambda url: without_secrets(url[0]), text)
                raise DataError(f"{shown} cannot be fetched: {text}") from None
            finally:
                part.unlink(missing_ok=True)

    async def _in_thread(self, url: str, part: Path) -> None:
        stop = threading.Event()
        try:
            await in_thread(_download, url, part, self._limit, self._timeout, stop)
        except BaseException:
            stop.set()
            raise

    def forget(self, path: str) -> None:
        """Fetch a file again when it is next needed, because the copy in the cache has changed."""
        for origin, fetch in tuple(self._fetches.items()):
            if fetch.done() and not fetch.cancelled() and fetch.result() == path:
                del self._fetches[origin]

    async def close(self, *, remove: bool) -> None:
        """Cancel running downloads and, with `remove`, remove the cache directory."""
        fetches = [fetch for fetch in self._fetches.values() if not fetch.done()]
        for fetch in fetches:
            fetch.cancel()
        if fetches:
            await asyncio.wait(fetches)
        if remove:
            self._fetches.clear()
            if self.directory.exists():
                remove_all = partial(shutil.rmtree, self.directory, ignore_errors=True)
                await in_thread(remove_all, or_here=True)


def _download(url: str, part: Path, limit: int, timeout: float, stop: threading.Event) -> None:
    """Download a URL to a file. Once `stop` is set, abort and remove the file."""
    try:
        with _opened(url, timeout) as remote, open(part, "wb") as local:
            size = 0
            while (chunk := remote.read(_CHUNK)) and not stop.is_set():
                size += len(chunk)
                if size > limit:
                    raise _TooLargeError
                local.write(chunk)
    finally:
        if stop.is_set():
            part.unlink(missing_ok=True)


def _opened(url: str, timeout: float) -> Any:
    """Open a URL for reading: decode a `data:` URL, or open any other URL with fsspec."""
    if is_data_url(url):
        head, _, data = url.partition(",")
        content = unquote_to_bytes(data)
        return io.BytesIO(b64decode(content) if head.lower().endswith(";base64") else content)
    _check_schemes(url)
    try:
        core = importlib.import_module("fsspec.core")
        web = url.lower().startswith(("http://", "https://"))
        aiohttp = importlib.import_module("aiohttp") if web else None
    except ModuleNotFoundError as error:
        raise _MissingExtraError(f"{error.name} is not installed") from error
    if aiohttp is None:
        system, path = core.url_to_fs(url)
        return system.open(path, "rb")
    quiet = min(timeout, _STALL_TIMEOUT)
    client = {
        "timeout": aiohttp.ClientTimeout(total=timeout, sock_connect=quiet, sock_read=quiet),
        "trust_env": True,  # use the proxies in environment variables, which clusters often need
        # Nothing is decompressed: a .gz file remains compressed, as with curl.
        "headers": {"Accept-Encoding": "identity"},
        "auto_decompress": False,
    }
    system, path = core.url_to_fs(url, client_kwargs=client, block_size=0)
    return system.open(path, "rb", block_size=0)


def _check_schemes(url: str) -> None:
    """Raise an error if a URL, or a part of a chained URL such as `zip://a::file://b`, is refused.

    Raises:
        _RefusedError: The URL has a scheme that is refused.
    """
    allowed = os.environ.get("RHAPSODY_FETCH_SCHEMES", "").replace(",", " ").split()
    for part in url.split("::"):
        scheme, separator, _ = part.partition("://")
        scheme = scheme.lower()
        if not separator and "/" in part:  # a path
            scheme = "file"
        if scheme in _REFUSED and scheme not in allowed:
            instead = "to use a file of this machine, pass its path" if scheme in _LOCAL else ""
            instead = instead or "fetched files are cached anyway, so leave the scheme out"
            raise _RefusedError(
                f"the scheme {scheme!r} is refused; {instead}. To allow it, set "
                f"RHAPSODY_FETCH_SCHEMES to {scheme}"
            )


def _timeout(given: float | None) -> float:
    if given is not None:
        return seconds("fetch_timeout", given)
    return seconds("RHAPSODY_FETCH_TIMEOUT", os.environ.get("RHAPSODY_FETCH_TIMEOUT", _TIMEOUT))


def _limit(given: int | str | None) -> int:
    if given is not None:
        return memory_in_bytes(given)
    text = os.environ.get("RHAPSODY_FETCH_LIMIT", _MAX_SIZE)
    try:
        return memory_in_bytes(text)
    except ValueError:
        raise ValueError(
            f"RHAPSODY_FETCH_LIMIT must look like '500 MB' or '2 GiB', got {text!r}"
        ) from None
