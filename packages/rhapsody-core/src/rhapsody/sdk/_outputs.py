"""What programs write, read through the descriptors that they were given at their start.

The paths belong to the program: it may remove its own output files, or put links and
FIFOs in their place, which would give somebody else's text or none for ever.
"""

from __future__ import annotations

import os

from rhapsody.data import OUTPUT_FILES

CHUNK = 1 << 24
"""Bytes that are read at once."""


class ProgramOutput:
    """The files for the standard output and standard error of one program.

    Args:
        directory: The sandbox that they are made in.

    Raises:
        OSError: They cannot be made.
    """

    def __init__(self, directory: str) -> None:
        self._descriptors: list[int] = []
        for name in OUTPUT_FILES:
            flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_NOFOLLOW
            self._descriptors.append(os.open(os.path.join(directory, name), flags, 0o600))

    def __del__(self) -> None:
        self.close()

    @property
    def descriptors(self) -> tuple[int, int]:
        """What the program writes to."""
        stdout, stderr = self._descriptors
        return stdout, stderr

    @property
    def size(self) -> int:
        """The bytes that have been written."""
        return sum(os.fstat(descriptor).st_size for descriptor in self._descriptors)

    def take(self) -> list[str]:
        """Return what was written to each file, and close them."""
        try:
            return [_text(descriptor) for descriptor in self._descriptors]
        finally:
            self.close()

    def close(self) -> None:
        """Close the files; they stay on disk."""
        while self._descriptors:
            os.close(self._descriptors.pop())


def _text(descriptor: int) -> str:
    """All that a file holds now; where it is written to further is left as it is."""
    size, data = os.fstat(descriptor).st_size, bytearray()
    while len(data) < size:
        more = os.pread(descriptor, min(CHUNK, size - len(data)), len(data))
        if not more:  # it was cut meanwhile
            break
        data += more
    return data.decode("utf-8", "replace")
