"""Images as they appear in folders."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from florence2ner.data.formats import discover_images

_PAUSE = 1.0  # seconds between two looks; at most a sixth of the time goes into looking

_Stamp = tuple[int, int] | None  # bytes and time of the last change; None: not there


class Watch:
    """Looks at folders for images that are new or have changed, and are written to their end."""

    def __init__(self, paths: Sequence[Path], known: Iterable[Path]) -> None:
        """`known` images are passed over until they change."""
        self._paths = paths
        self._known = {image: _stamp(image) for image in known}

    def wait(self, pause: Callable[[float], bool]) -> tuple[list[Path], list[Path]] | None:
        """Return all images there are, and those that are new, once there are some; they are known from then on.

        `pause(seconds)` waits, and returns True to give up: then None is returned.
        """
        seen: dict[Path, _Stamp] = {}
        while True:
            start = time.monotonic()
            now = {image: _stamp(image) for image in discover_images(self._paths)}
            # A file that looks the same twice is whole, as far as anybody can tell from outside.
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
