"""Finds images as they appear in folders, for `caption --watch`, and plans what is to be done with them."""

import time
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path

from florence2ner.captioning.plan import CaptionPlan, make_plan
from florence2ner.config.commands import CaptionConfig
from florence2ner.data.formats import discover_images
from florence2ner.errors import UserError

_PAUSE = 1.0  # seconds between two scans, at least: where scans are slow, they take at most a sixth of the time

_Stamp = tuple[int, int] | None  # size in bytes and modification time of a file; None where there is no such file


class Watch:
    """Scans folders for images that are new or have changed, and are complete."""

    def __init__(self, config: CaptionConfig, known: Iterable[Path]) -> None:
        """`known` images are ignored until they change. To be called before any is read: it may be incomplete yet."""
        self._config = config
        self._known = {image: _stamp(image) for image in known}
        self._refused: set[Path] = set()

    def wait(self, pause: Callable[[float], bool]) -> tuple[list[Path], list[Path]] | None:
        """Wait until there are new images, then return all images and the new ones. These are known from then on.

        `pause(seconds)` is called to wait between scans; when it returns True, `wait` gives up and returns None.
        """
        seen: dict[Path, _Stamp] = {}
        while True:
            start = time.monotonic()
            now = {image: _stamp(image) for image in discover_images(self._config.paths)}
            # A file that didn't change between two scans is taken to be complete.
            new = [image for image, stamp in now.items() if stamp == seen.get(image, 0) != self._known.get(image, 0)]
            if new:
                self._known |= {image: now[image] for image in new}
                return list(now), new
            seen = now
            if pause(max(_PAUSE, 5 * (time.monotonic() - start))):
                return None

    def plan(self, images: Sequence[Path], new: Sequence[Path], refuse: Callable[[Path, str], None]) -> CaptionPlan:
        """Plan the captioning of `new` images, of all that `wait` has found.

        Those that can't be, such as an a.png beside an a.jpg, are left out until they change: `refuse` is called with
        each, and the reason.
        """
        self._refused -= set(new)
        old = set(images) - self._refused - set(new)
        known = [image for image in images if image in old]

        try:
            return make_plan(self._config, [*known, *new], new)
        except UserError:
            make_plan(self._config, known, [])  # raises where it isn't the new images' fault

        def acceptable(before: list[Path], candidates: Sequence[Path]) -> list[Path]:
            try:
                make_plan(self._config, [*before, *candidates], candidates)
            except UserError as error:
                if len(candidates) == 1:
                    self._refused |= set(candidates)
                    refuse(candidates[0], str(error))
                    return []
                # In halves, as a plan takes long where there are many images, and few are refused.
                half = len(candidates) // 2
                first = acceptable(before, candidates[:half])
                return first + acceptable([*before, *first], candidates[half:])
            return list(candidates)

        accepted = acceptable(known, new)
        return make_plan(self._config, [*known, *accepted], accepted)


def _stamp(path: Path) -> _Stamp:
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_size, found.st_mtime_ns
