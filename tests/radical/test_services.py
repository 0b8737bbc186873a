"""Checks of services before they are submitted."""

from __future__ import annotations

import socket

import pytest

from rhapsody_radical import services
from tests.radical.stand_ins import pilot, task


def test_a_service_is_rejected_if_its_port_is_in_use() -> None:
    with socket.create_server(("127.0.0.1", 0)) as stranger:
        service = task(is_service=True, ready=f"tcp:{stranger.getsockname()[1]}")
        with pytest.raises(OSError, match="listens on port"):
            services.prepare(service, {}, pilot())
        services.prepare(service, {}, pilot(here=False))
    services.prepare(service, {}, pilot())
