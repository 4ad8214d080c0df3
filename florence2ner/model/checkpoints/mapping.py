"""Model files that are mapped into memory: what was read of them need not stay there."""

import ctypes
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_MAPS = Path("/proc/self/maps")
_PAGEOUT = 21  # Linux's MADV_PAGEOUT: unlike MADV_DONTNEED, it keeps what was written to


def release_mapped_files() -> None:
    """Give the memory back in which there are pages of model files. What is needed again is read again.

    Weights that are kept only for saving, or were cast, would stay in memory otherwise, with all the file beside them.
    Does nothing where the system can't do it.
    """
    with suppress(OSError, AttributeError):  # not Linux, or an old one
        advise = ctypes.CDLL(None).madvise
        for start, end in mapped_files():
            advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _PAGEOUT)


def mapped_files() -> Iterator[tuple[int, int]]:
    """The addresses of model files in memory: begin and end of each."""
    for line in _MAPS.read_text(encoding="utf-8", errors="replace").splitlines():
        if line.endswith(".safetensors"):
            start, end = line.split()[0].split("-")
            yield int(start, 16), int(end, 16)
