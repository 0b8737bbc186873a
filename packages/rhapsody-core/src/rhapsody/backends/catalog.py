"""Which backend a name means: the claims that plugins make, judged.

One claim is one entry point. Nobody wins silently where several distributions
claim a name. Classes are not imported here, and plugins' modules only when a
declaration is asked for.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import TYPE_CHECKING

from rhapsody.errors import PluginError
from rhapsody.plugins.entry_points import (
    BACKENDS,
    CORE,
    DISABLE,
    Declared,
    Installed,
    installed,
    normalise_distribution,
)
from rhapsody.plugins.installing import install_command
from rhapsody.plugins.manager import load
from rhapsody.plugins.specs import API_VERSION, BackendSpec
from rhapsody_guard import ConflictError

if TYPE_CHECKING:
    from packaging.requirements import Requirement

PUBLISHED = {
    "noop": CORE,
    "local": CORE,
    "dask": "rhapsody-dask",
    "radical_pilot": "rhapsody-radical",
}
"""The names that belong to a distribution of ours."""

CHOICE = "RHAPSODY_BACKENDS"

logger: logging.Logger = logging.getLogger("rhapsody.plugins")


def normalise(name: str) -> str:
    """The form in which backend names are compared."""
    return name.strip().lower().replace("-", "_")


class UnusableError(Exception):
    """Why a backend cannot be used.

    Args:
        reason: What is wrong.
        remedy: What to do, a command where there is one.
    """

    def __init__(self, reason: str, remedy: str) -> None:
        super().__init__(reason, remedy)
        self.reason = reason
        self.remedy = remedy


@dataclass(frozen=True, slots=True)
class Claims:
    """The entry points that claim one name.

    Attributes:
        name: The name as the first of them spells it.
        claims: All of them but those left out.
    """

    name: str
    claims: tuple[Declared, ...]


class Catalog:
    """The backends that installed distributions declare, at one time."""

    def __init__(self, found: Installed) -> None:
        self.installed = found
        self._claims: dict[str, Claims] = {}
        self._specs: dict[Declared, BackendSpec] = {}
        for declared in found.group(BACKENDS):
            key = normalise(declared.name)
            known = self._claims.get(key, Claims(declared.name, ()))
            self._claims[key] = Claims(known.name, (*known.claims, declared))

    def names(self) -> dict[str, str]:
        """Every claimed name as it is spelled, by its compared form."""
        return {key: claims.name for key, claims in self._claims.items()}

    def __contains__(self, key: str) -> bool:
        return key in self._claims

    def claimants(self, key: str) -> tuple[str, ...]:
        """The distributions that claim a name."""
        claims = self._claims[key].claims if key in self._claims else ()
        return tuple(dict.fromkeys(claim.distribution for claim in claims))

    def claim(self, key: str) -> Declared:
        """The claim that is in effect.

        Raises:
            UnusableError: There is none, or more than one.
        """
        claims = self._claims[key].claims
        owner = PUBLISHED.get(key)
        if owner is not None:
            right = [claim for claim in claims if claim.distribution == owner]
            if not right:
                raise UnusableError(
                    f"the name {key!r} belongs to {owner}, but is claimed by {_who(claims)}",
                    install_command(owner),
                )
            claims = tuple(right)
        elif len({claim.distribution for claim in claims}) > 1:
            claims = self._chosen(key, claims)
        if len({claim.value for claim in claims}) > 1:
            raise UnusableError(
                f"{_who(claims)} has {len(claims)} different entry points of this name",
                f"pip install --upgrade {claims[0].distribution}",
            )
        return claims[0]

    def conflicts(self, key: str) -> tuple[str, ...]:
        """The claims on a name that are not in effect, each with why."""
        claims = self._claims[key].claims
        try:
            effective = self.claim(key)
        except UnusableError:
            return ()
        why = "belongs to" if key in PUBLISHED else f"is given by {CHOICE} to"
        return tuple(
            f"{claim} is not used: the name {why} {effective.distribution}"
            for claim in claims
            if claim.distribution != effective.distribution
        )

    def spec(self, key: str) -> BackendSpec:
        """The declaration of a backend; loads the plugin's module.

        Raises:
            UnusableError: The plugin cannot be loaded, or declares nonsense.
        """
        claim = self.claim(key)
        spec = self._specs.get(claim)
        if spec is None:
            # Failures are not kept: one may be due to who asks, in the middle of an import.
            spec = self._specs[claim] = self._declared(key, claim)
        return spec

    def _declared(self, key: str, claim: Declared) -> BackendSpec:
        upgrade = f"pip install --upgrade {claim.distribution}"
        try:
            plugin = load(claim, self.installed)
        except PluginError as error:
            clash = error.__cause__
            if isinstance(clash, ConflictError):
                raise UnusableError(clash.reason, clash.remedy) from error
            raise UnusableError(str(error), upgrade) from error
        hook = plugin.hooks.get("rhapsody_backends")
        if hook is None:
            raise UnusableError(f"{claim}: {claim.value} declares no backend", upgrade)
        try:
            given = hook[0].call()
            specs = _checked(given, claim)
        except KeyboardInterrupt:
            raise
        except BaseException as error:  # a plugin's hook may raise anything
            reason = f"{claim}: its declaration cannot be used: {type(error).__name__}: {error}"
            raise UnusableError(reason, upgrade) from error
        named = [spec for spec in specs if normalise(spec.name) == key]
        if len(named) != 1:
            others = ", ".join(repr(spec.name) for spec in specs) or "none"
            count = "no backend" if not named else f"{len(named)} backends"
            raise UnusableError(
                f"{claim}: {claim.value} declares {count} of this name; declared: {others}", upgrade
            )
        return named[0]

    def check_usable(self, key: str, spec: BackendSpec) -> None:
        """Raises unless what a declaration needs is installed. Imports nothing.

        Raises:
            UnusableError: The API version does not fit, or something is missing.
        """
        distribution = self.claim(key).distribution
        if spec.api_version != API_VERSION:
            outdated = distribution if spec.api_version < API_VERSION else CORE
            raise UnusableError(
                f"{distribution} is written for version {spec.api_version} of the plugin "
                f"interface, this {CORE} has version {API_VERSION}",
                f"pip install --upgrade {outdated}",
            )
        check_requirements(spec, distribution)
        top = spec.import_path.partition(":")[0].partition(".")[0]
        check_module(top, spec.install_hint or f"pip install --force-reinstall {distribution}")

    def _chosen(self, key: str, claims: tuple[Declared, ...]) -> tuple[Declared, ...]:
        choice = choices().get(key)
        example = f"export {CHOICE}={claims[0].distribution}:{key}"
        if choice is None:
            raise UnusableError(f"{_who(claims)} all claim the name {key!r}", example)
        chosen = tuple(claim for claim in claims if claim.distribution == choice)
        if not chosen:
            raise UnusableError(
                f"{CHOICE} gives the name {key!r} to {choice}, but it is claimed by {_who(claims)}",
                example,
            )
        return chosen

    def left_out(self, key: str) -> str | None:
        """Why a backend of this name is installed and yet not registered, `None` if it is not."""
        for declared in self.installed.disabled:
            if declared.group == BACKENDS and normalise(declared.name) == key:
                return f"{declared.distribution}, which has it, is left out by {DISABLE}"
        return None


_catalog: tuple[Installed, Catalog] | None = None
_told: set[str] = set()
"""The values of `RHAPSODY_BACKENDS` whose problems were logged."""


def catalog() -> Catalog:
    """The catalog of what is installed now."""
    global _catalog
    found, known = installed(), _catalog
    if known is None or known[0] is not found:
        known = _catalog = (found, Catalog(found))
    choice = os.environ.get(CHOICE, "")
    if choice and choice not in _told:
        _told.add(choice)
        for problem in (*malformed_choices(), *idle_choices(known[1])):
            logger.warning("%s: %s", CHOICE, problem)
    return known[1]


def choice_items() -> list[str]:
    """What `RHAPSODY_BACKENDS` holds, item by item."""
    return [item.strip() for item in os.environ.get(CHOICE, "").split(",") if item.strip()]


def choices() -> dict[str, str]:
    """What `RHAPSODY_BACKENDS` says: the distribution that each name is given to.

    Items without a colon are left out, see `malformed_choices`.
    """
    pairs = (item.partition(":") for item in choice_items())
    return {
        normalise(name): normalise_distribution(distribution)
        for distribution, colon, name in pairs
        if colon
    }


def malformed_choices() -> list[str]:
    """What in `RHAPSODY_BACKENDS` cannot be understood, in words."""
    return [
        f"{item!r} is not understood: write {CHOICE}=distribution:name,..."
        for item in choice_items()
        if ":" not in item
    ]


def idle_choices(known: Catalog) -> list[str]:
    """What `RHAPSODY_BACKENDS` names and is not there, in words."""
    problems = []
    for name, distribution in choices().items():
        who = known.claimants(name)
        if not who:
            problems.append(f"no plugin declares a backend named {name!r}")
        elif distribution not in who:
            problems.append(
                f"{distribution} declares no backend named {name!r}; {' and '.join(who)} "
                f"{'does' if len(who) == 1 else 'do'}"
            )
    return problems


def check_module(top: str, remedy: str) -> None:
    """Raises unless a top-level module can be found. Imports nothing.

    Raises:
        UnusableError: It cannot.
    """
    try:
        found = find_spec(top) is not None
    except (ImportError, ValueError):  # ValueError: a module in sys.modules without a spec
        found = True
    if not found:
        raise UnusableError(f"there is no module named {top!r}", remedy)


def check_requirements(spec: BackendSpec, distribution: str) -> None:
    """Raises unless the distributions that a declaration requires are installed.

    Raises:
        UnusableError: One is missing or of the wrong version, or a requirement is malformed.
    """
    from packaging.requirements import InvalidRequirement, Requirement

    for text in spec.requires:
        try:
            requirement = Requirement(text)
        except InvalidRequirement as error:
            raise UnusableError(
                f"{distribution} declares a malformed requirement {text!r}: {error}",
                f"pip install --upgrade {distribution}",
            ) from None
        if requirement.marker is not None and not requirement.marker.evaluate():
            continue
        problem = unmet(requirement)
        if problem is not None:
            raise UnusableError(problem, spec.install_hint or f"pip install '{text}'")


def unmet(requirement: Requirement) -> str | None:
    """What is wrong with what is installed of a requirement, `None` where nothing is."""
    from importlib_metadata import PackageNotFoundError, version

    try:
        present = version(requirement.name)
    except PackageNotFoundError:
        return f"{requirement} is not installed"
    if present is None or not requirement.specifier.contains(present, prereleases=True):
        return f"{requirement} is needed, but {requirement.name} {present} is installed"
    return None


def _checked(given: object, claim: Declared) -> list[BackendSpec]:
    specs = [given] if isinstance(given, BackendSpec) or not isinstance(given, Iterable) else given
    if claim.distribution == CORE:
        return [spec for spec in specs if isinstance(spec, BackendSpec)]
    from rhapsody.backends.checks import check_spec

    return [check_spec(spec) for spec in specs]


def _who(claims: Iterable[Declared]) -> str:
    return " and ".join(dict.fromkeys(claim.distribution for claim in claims))
