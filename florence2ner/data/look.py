"""Looks at every image once: can it be decoded, its size, its digest and a perceptual hash. Imports no torch."""

import hashlib
from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from itertools import islice
from typing import Any

import numpy as np
from PIL import Image

from florence2ner.data.pictures import QUARTER_TURNS, ImageError, decode, finish, reasons
from florence2ner.data.samples import ImageRef
from florence2ner.process import usable_cores

COARSE = 8  # side of the coarse picture that goes with a perceptual hash, in pixels
_SIDE = 32  # of the picture that the hash is computed from, in pixels
_FLAT = 2  # levels of 255 by which the pixels of a single colour differ at most: JPEG rounds
_CHUNK = 1 << 20  # bytes read at a time
_AHEAD = 4  # images in work, per thread

Floats = np.ndarray[Any, np.dtype[np.float64]]


@dataclass(frozen=True, slots=True)
class Look:
    """What is remembered of an image: a few hundred bytes, however many pixels it has."""

    size: tuple[int, int] = (0, 0)  # (width, height) of the upright picture, in pixels
    turned: bool = False  # whether EXIF turns it by a quarter or a half, or mirrors it
    flat: bool = False  # whether it is a single colour
    digest: bytes = b""  # of the file
    hash: int = 0  # 64 bits: those of similar pictures differ in few
    coarse: bytes = b""  # the picture with 8 x 8 pixels, RGB
    failure: str = ""  # why it can't be read; the rest is then unset


def look_at_all(images: Iterable[ImageRef], *, max_pixels: int, threads: int | None = None) -> Iterator[Look]:
    """Look at images in `threads` threads (None: one per core), in their order.

    Threads do, as Pillow decodes without the GIL. At most a few images per thread are in memory at a time.
    """
    threads = threads or usable_cores()
    waiting: deque[Future[Look]] = deque()
    images = iter(images)
    pool = ThreadPoolExecutor(threads)
    try:
        while True:
            ahead = islice(images, _AHEAD * threads - len(waiting))
            waiting.extend(pool.submit(look_at, image, max_pixels=max_pixels) for image in ahead)
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def look_at(image: ImageRef, *, max_pixels: int) -> Look:
    """Decode one image. What training can't read has a `failure`; nothing is raised."""
    try:
        with reasons(image):
            decoded = decode(image, max_pixels, at_least=(_SIDE, _SIDE))
            small = decoded.image.resize((_SIDE, _SIDE), Image.Resampling.BOX, decoded.box)
            small = finish(small, decoded)
            width, height = decoded.size
            return Look(
                size=(height, width) if decoded.turn in QUARTER_TURNS else (width, height),
                turned=decoded.turn is not None,
                flat=_is_flat(decoded.image),
                digest=_digest(image),
                hash=perceptual_hash(small),
                coarse=small.resize((COARSE, COARSE), Image.Resampling.BOX).tobytes(),
            )
    except ImageError as error:
        return Look(failure=str(error))


def perceptual_hash(small: Image.Image) -> int:
    """The signs of the lowest 8 x 8 frequencies of a 32 x 32 picture, against their median: 64 bits.

    The "pHash" of Zauner, "Implementation and Benchmarking of Perceptual Image Hash Functions" (2010).
    """
    grey: Floats = np.asarray(small.convert("L"), np.float64)
    waves = _waves()
    lowest = (waves @ grey @ waves.T).flatten()
    lowest[0] = 0  # the mean brightness, which would outweigh the rest
    bits = lowest > np.median(lowest)
    return int.from_bytes(np.packbits(bits).tobytes(), "big")


@cache
def _waves() -> Floats:
    """The first 8 basis vectors of the discrete cosine transform (type II) of 32 points: (8, 32)."""
    points = np.arange(_SIDE)
    waves: Floats = np.cos(np.pi / _SIDE * (points[None] + 0.5) * np.arange(8)[:, None])
    return waves


def _is_flat(image: Image.Image) -> bool:
    extrema: Any = image.getextrema()
    bands = extrema if isinstance(extrema[0], tuple) else (extrema,)
    return all(high - low <= _FLAT for low, high in bands)


def _digest(image: ImageRef) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with image.open() as file:
        while chunk := file.read(_CHUNK):
            digest.update(chunk)
    return digest.digest()
