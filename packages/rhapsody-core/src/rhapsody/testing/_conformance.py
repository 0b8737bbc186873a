"""The class that authors of backends subclass: all checks, put together.

The checks are in the modules named for what they prove; what an author can say
about a backend is in `_settings`; how a check is run is in `_running`.
"""

from __future__ import annotations

import difflib
from typing import Any

import pytest

from rhapsody.testing import _plugin
from rhapsody.testing._cancellation import Cancellation
from rhapsody.testing._executables import Executables, Sandboxes
from rhapsody.testing._files import Files
from rhapsody.testing._functions import Functions
from rhapsody.testing._graphs import Graphs
from rhapsody.testing._isolation import Isolation
from rhapsody.testing._lifecycle import Lifecycle
from rhapsody.testing._misfortunes import Misfortunes
from rhapsody.testing._reports import Reports
from rhapsody.testing._resources import Resourcefulness
from rhapsody.testing._routes import Routes
from rhapsody.testing._running import Stage, stages
from rhapsody.testing._services import Services
from rhapsody.testing._settings import Settings
from rhapsody.testing._upkeep import Upkeep
from rhapsody.testing._values import Values


# pytest runs the tests of the last base first: those that need backends of their own before the
# one of the class is started.
class BackendConformance(
    Misfortunes,
    Graphs,
    Resourcefulness,
    Cancellation,
    Files,
    Services,
    Sandboxes,
    Executables,
    Isolation,
    Values,
    Functions,
    Routes,
    Reports,
    Upkeep,
    Lifecycle,
    Settings,
):
    """Proves that a backend does what its capabilities claim.

    Subclass it in a test module, with a name that starts with `Test`, and write
    one method:

        class TestMine(BackendConformance):
            async def make_backend(self):
                return MyBackend(workers=2)

    Every check is a test of its own with a time limit. A check of something that the
    backend does not declare is skipped with the reason. A failure says what was
    expected, what was seen, and which class attribute allows it. The class attributes
    are those of `Settings`; `expected_failures` lists checks that are known to fail.
    A check cannot be replaced or switched off in any other way.

    Raises:
        TypeError: When a subclass is made that replaces a check, or that expects
            a check to fail which does not exist.
    """

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        checks = _checks()
        for name, check in checks.items():
            if getattr(cls, name, None) is not check:
                raise TypeError(
                    f"{cls.__name__} replaces the check {name!r}: give your test another name, "
                    f"or say why the check must fail with "
                    f'`expected_failures = {{"{name}": "the reason"}}`'
                )
        for name, reason in cls.expected_failures.items():
            if name not in checks:
                close = difflib.get_close_matches(name, checks, 1)
                hint = f"; did you mean {close[0]!r}?" if close else ""
                raise TypeError(f"expected_failures: there is no check {name!r}{hint}")
            if not isinstance(reason, str) or not reason.strip():
                raise TypeError(f"expected_failures: {name!r} needs a reason, got {reason!r}")

    @pytest.fixture(autouse=True)
    def _stage(self, request: pytest.FixtureRequest) -> None:
        kind = type(self)
        _plugin.announce(request.config, kind)
        if self.backend_scope == "class" and kind not in stages:
            stage = stages[kind] = Stage()

            def close() -> None:
                del stages[kind]
                stage.close(kind)

            parent = request.node.getparent(pytest.Class)
            assert parent is not None
            parent.addfinalizer(close)


def _checks() -> dict[str, Any]:
    return {
        name: getattr(BackendConformance, name)
        for name in dir(BackendConformance)
        if name.startswith("test_")
    }
