"""Small pictures of images, as JPEG, for pages. Imports no torch."""

import io
from typing import Any

from PIL import Image

from florence2ner.data.pictures import Decoded, decode, finish, reasons
from florence2ner.data.samples import ImageRef


def make_thumbnail(image: ImageRef, side: int, *, max_pixels: int, quality: int = 75) -> bytes:
    """A JPEG of the upright picture, whose longer side has at most `side` pixels. Raises ImageError: it can't be read.

    Images of more than `max_pixels` pixels count as those that can't be read.
    """
    with reasons(image):
        return as_jpeg(decode(image, max_pixels, at_least=(side, side)), side, quality=quality)


def as_jpeg(decoded: Decoded, side: int, **options: Any) -> bytes:
    """A JPEG of a decoded picture, whose longer side has at most `side` pixels; `options` are Pillow's for JPEG."""
    scale = min(1.0, side / max(decoded.size))
    size = (max(1, round(decoded.size[0] * scale)), max(1, round(decoded.size[1] * scale)))
    small = finish(decoded.image.resize(size, Image.Resampling.BICUBIC, decoded.box), decoded)
    file = io.BytesIO()
    small.save(file, "JPEG", **options)
    return file.getvalue()
