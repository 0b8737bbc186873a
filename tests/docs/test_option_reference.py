"""The page of the engine's options agrees with their description."""

from __future__ import annotations

from tests.docs import option_reference


def test_the_page_of_options_is_current() -> None:
    assert option_reference.PAGE.read_text() == option_reference.page()
