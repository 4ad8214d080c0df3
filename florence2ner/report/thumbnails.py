"""Small pictures of images, as they stand in a page: JPEG in data: URIs that fit into a budget."""

import base64
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from florence2ner.config.options import MAX_PIXELS
from florence2ner.data.pictures import Decoded, ImageError, decode, reasons
from florence2ner.data.samples import ImageRef
from florence2ner.data.thumbnails import as_jpeg
from florence2ner.process import usable_cores

MOST_PICTURES = 5000  # in a page
BUDGET = 80_000_000  # bytes of all pictures of a page, as they are in it: it stays below 100 MB
_SIDES = (360, 280, 220, 170, 130, 96, 64, 32)  # pixels of the longer side; the first that fits is taken
_BYTES_PER_PIXEL = 0.35  # of most photographs in base64; those of more are made smaller
_QUALITY = 78
_TINY = 96  # pixels
_START = "data:image/jpeg;base64,"


def thumbnail(image: ImageRef, *, side: int, max_pixels: int = MAX_PIXELS, most_bytes: int = BUDGET) -> str:
    """The upright picture as a data: URI, its longer side of `side` pixels, or fewer to have at most `most_bytes`.

    Raises ImageError where it can't be read or has more than `max_pixels` pixels.
    """
    with reasons(image):
        decoded = decode(image, max_pixels, at_least=(side, side))
        sides = [side, *(smaller for smaller in _SIDES if smaller < side)]
        return next(text for s in sides if len(text := _encoded(decoded, s)) <= most_bytes or s == sides[-1])


def thumbnails(images: Sequence[ImageRef | None], *, max_pixels: int = MAX_PIXELS) -> list[str | None]:
    """Pictures of images, made by all cores; None for those that can't be read. Together they are below `BUDGET`."""
    share = BUDGET // max(1, len(images))
    side = next((side for side in _SIDES if side * side * _BYTES_PER_PIXEL <= share), _SIDES[-1])

    def make(image: ImageRef | None) -> str | None:
        try:
            return thumbnail(image, side=side, max_pixels=max_pixels, most_bytes=share) if image else None
        except ImageError:
            return None

    with ThreadPoolExecutor(usable_cores()) as pool:
        return list(pool.map(make, images))


def _encoded(decoded: Decoded, side: int) -> str:
    # A tiny picture is shown enlarged, with all that JPEG does to it, and costs next to nothing.
    is_tiny = min(side, max(decoded.size)) <= _TINY
    quality = {"quality": 92, "subsampling": 0} if is_tiny else {"quality": _QUALITY}
    return _START + base64.b64encode(as_jpeg(decoded, side, optimize=True, **quality)).decode()
