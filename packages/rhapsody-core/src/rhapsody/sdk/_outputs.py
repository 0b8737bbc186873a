"""What programs write, read through the descriptors that they were given at their start.

The paths belong to the program: it may remove its own output files, or put links and
FIFOs in their place, which would give somebody else's text or none for ever.
"""

from __future__ import annotations

import codecs
import os
from collections.abc import Iterator

from rhapsody.data import OUTPUT_FILES

CHUNK = 1 << 20
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
    """Return the current content of a file, without output that is still being written.

    CPython extends a string in place if only this loop refers to it, so that the peak memory is
    the text and one piece. Joining a list, or decoding all bytes at once, takes twice the size.
    """
    text = ""
    for piece in _pieces(descriptor):
        text += piece
    return text


def _pieces(descriptor: int) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    size, offset = os.fstat(descriptor).st_size, 0
    while offset < size:
        data = os.pread(descriptor, min(CHUNK, size - offset), offset)
        if not data:  # truncated meanwhile
            break
        offset += len(data)
        yield decoder.decode(data)
    yield decoder.decode(b"", final=True)
