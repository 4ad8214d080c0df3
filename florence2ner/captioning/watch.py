"""Finds images as they appear in folders, for `caption --watch`."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from florence2ner.data.formats import discover_images

_PAUSE = 1.0  # seconds between two scans, at least: where scans are slow, they take at most a sixth of the time

_Stamp = tuple[int, int] | None  # size in bytes and modification time of a file; None where there is no such file


class Watch:
    """Scans folders for images that are new or have changed, and are complete."""

    def __init__(self, paths: Sequence[Path], known: Iterable[Path]) -> None:
        """`known` images are ignored until they change."""
        self._paths = paths
        self._known = {image: _stamp(image) for image in known}

    def wait(self, pause: Callable[[float], bool]) -> tuple[list[Path], list[Path]] | None:
        """Wait until there are new images, then return all images and the new ones. These are known from then on.

        `pause(seconds)` is called to wait between scans; when it returns True, `wait` gives up and returns None.
        """
        seen: dict[Path, _Stamp] = {}
        while True:
            start = time.monotonic()
            now = {image: _stamp(image) for image in discover_images(self._paths)}
            # A file that didn't change between two scans is taken to be complete.
            new = [image for image, stamp in now.items() if stamp == seen.get(image, 0) != self._known.get(image, 0)]
            if new:
                self._known |= {image: now[image] for image in new}
                return list(now), new
            seen = now
            if pause(max(_PAUSE, 5 * (time.monotonic() - start))):
                return None


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
