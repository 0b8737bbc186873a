"""Worker's side of backends that use a pool of processes."""

from __future__ import annotations

from rhapsody.sdk import Runner


def execute(packed: bytes) -> bytes:
    """Execute a packed call and return its packed result."""
    return Runner().run(packed)
