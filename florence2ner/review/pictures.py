"""The pictures that the review page shows: made on demand, small ones and large ones, and a part of them kept."""

import hashlib
import threading
from collections import OrderedDict

from florence2ner.data.samples import ImageRef
from florence2ner.data.thumbnails import make_thumbnail

SIDES = {"small": 192, "large": 1600}  # pixels of the longer side
_QUALITY = {"small": 78, "large": 90}
_BUDGET = 48_000_000  # bytes of the pictures that are kept
_AT_ONCE = 2  # images decoded at a time: each may take hundreds of megabytes


class Pictures:
    """JPEGs of images, those that were asked for last."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels
        self._kept: OrderedDict[tuple[str, str], bytes] = OrderedDict()
        self._bytes = 0
        self._lock = threading.Lock()
        self._decoding = threading.BoundedSemaphore(_AT_ONCE)

    @staticmethod
    def tag(image: ImageRef, size: str) -> str:
        """What tells this picture from others, and from what it was before the file changed."""
        return hashlib.blake2b(f"{size} {image.stamp()}".encode("utf-8", "surrogateescape"), digest_size=12).hexdigest()

    def get(self, image: ImageRef, size: str) -> bytes:
        """The picture in one of the `SIDES`. Raises ImageError where the image can't be read."""
        key = (image.stamp() or "", size)
        with self._lock:
            if key in self._kept:
                self._kept.move_to_end(key)
                return self._kept[key]
        with self._decoding:
            made = make_thumbnail(image, SIDES[size], max_pixels=self._max_pixels, quality=_QUALITY[size])
        with self._lock:
            if key not in self._kept:
                self._kept[key] = made
                self._bytes += len(made)
            while self._bytes > _BUDGET:
                self._bytes -= len(self._kept.popitem(last=False)[1])
        return made
